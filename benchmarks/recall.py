r"""Delayed recall: a symbol is shown, noise follows, and at the end the symbol must be named.

    OMP_NUM_THREADS=1 python -m benchmarks.recall --device cpu --out benchmarks/results/2026-11-24-recall-cpu.json
    python -m benchmarks.recall --models compressed plain --delays 6 24 --max-delay 24 --seeds 1 --updates 300

Episodes follow each other in every lane of a stream, each with a delay of its own, so resets fall anywhere. A model
learns from random delays up to --max-delay, by cross entropy at the queries and its auxiliary loss; then it is asked
about fresh episodes of each of --delays. The models:

    compressed     memory and compressed memory
    plain          the same without compressed memory
    plain, longer  without compressed memory, its memory longer by as many entries as compressed memory had
    lstm           an LSTM with nearly as many parameters, at a learning rate of its own
    lstm, longer   the same, trained four times as long

A memory spans delays up to segment_length - 2 + memory_length + compression_rate x compressed_memory_length, since an
episode begins with a segment; beyond it success is chance, one in --num-symbols.

Stands for the object-matching task of Rae et al. 2019, where the Compressive Transformer took an LSTM's place in an
agent.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.memory_cell import CompressiveMemory, MemoryOutput
from audio_ct.models.settings import (
    LEARNED_FUNCTIONS,
    CompressionFunction,
    CompressionSettings,
    CompressiveTransformerSettings,
)
from audio_ct.models.stage import State
from audio_ct.models.token_model import num_parameters
from audio_ct.studies.seeds import mean_over_seeds
from benchmarks import measure
from benchmarks.measure import Row

MODELS = ("compressed", "plain", "plain, longer", "lstm", "lstm, longer")
NO_TARGET = -1
EVALUATION_LANES = 32
# Options for sizes, with their defaults.
SIZES = {
    **{"d_model": 32, "num_heads": 2, "d_ff": 64, "segment_length": 8, "memory_length": 8},
    **{"compressed_memory_length": 16, "compression_rate": 4},
}


@dataclass(frozen=True)
class Task:
    """The alphabet of an episode.

    Attributes:
        num_symbols: symbols to be remembered; chance is one in so many.
        num_distractors: symbols that noise is made of.
    """

    num_symbols: int = 8
    num_distractors: int = 8

    @property
    def d_in(self) -> int:
        """Size of an observation, one-hot: symbols, distractors, the query."""
        return self.num_symbols + self.num_distractors + 1


@dataclass(frozen=True)
class Stream:
    """Lanes of episodes.

    Attributes:
        shown: numbers of the observations [batch, time].
        resets: True where an episode begins [batch, time].
        targets: the symbol at queries, NO_TARGET elsewhere [batch, time].
    """

    shown: Tensor
    resets: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Stream":
        """The stream on a device."""
        return Stream(self.shown.to(device), self.resets.to(device), self.targets.to(device))

    def unrolls(self, length: int) -> Iterator["Stream"]:
        """Yield the stream in unrolls, a last shorter one included."""
        parts = (tensor.split(length, dim=1) for tensor in (self.shown, self.resets, self.targets))
        for shown, resets, targets in zip(*parts, strict=True):
            yield Stream(shown, resets, targets)


def make_stream(task: Task, delays: Sequence[int], num_lanes: int, num_steps: int, *, seed: int) -> Stream:
    """Make lanes of episodes with random ones of the delays; a lane's last episode may be cut short."""
    random = np.random.default_rng(seed)
    shown = task.num_symbols + random.integers(task.num_distractors, size=(num_lanes, num_steps))
    resets = np.zeros(shown.shape, dtype=bool)
    targets = np.full(shown.shape, NO_TARGET)
    most_episodes = num_steps // (min(delays) + 2) + 1
    for lane in range(num_lanes):
        lengths = random.choice(delays, most_episodes) + 2
        starts = np.cumsum(lengths) - lengths
        starts = starts[starts < num_steps]
        queries = starts + lengths[: len(starts)] - 1
        symbols = random.integers(task.num_symbols, size=len(starts))
        shown[lane, starts] = symbols
        resets[lane, starts] = True
        whole = queries < num_steps
        shown[lane, queries[whole]] = task.d_in - 1
        targets[lane, queries[whole]] = symbols[whole]
    return Stream(torch.from_numpy(shown), torch.from_numpy(resets), torch.from_numpy(targets))


class LSTMMemory(nn.Module):
    """An LSTM in the same clothes: its state is set to zero where an episode begins."""

    def __init__(self, *, d_in: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(d_in, hidden_size)

    def initial_state(self, batch_size: int, device: torch.device | str = "cpu") -> State:
        """Zeros."""
        return {name: torch.zeros(batch_size, self.cell.hidden_size, device=device) for name in ("hidden", "cell")}

    def forward(self, observations: Tensor, state: State, resets: Tensor) -> MemoryOutput:
        """Read an unroll of every lane; see `CompressiveMemory`."""
        hidden, cell = state["hidden"], state["cell"]
        outputs = []
        for observation, goes_on in zip(observations.unbind(1), (~resets).unbind(1), strict=True):
            hidden, cell = self.cell(observation, (hidden * goes_on[:, None], cell * goes_on[:, None]))
            outputs.append(hidden)
        return MemoryOutput(torch.stack(outputs, dim=1), {"hidden": hidden.detach(), "cell": cell.detach()})


class Recall(nn.Module):
    """A memory, and a layer that names a symbol from its outputs."""

    def __init__(self, memory: nn.Module, d_model: int, task: Task) -> None:
        super().__init__()
        self.task = task
        self.memory: Any = memory
        self.name = nn.Linear(d_model, task.num_symbols)

    def forward(self, unroll: Stream, state: State) -> tuple[Tensor, Tensor, MemoryOutput]:
        """Compute logits at an unroll's queries, their targets, and the memory's output."""
        observations = F.one_hot(unroll.shown, self.task.d_in).to(self.name.weight.dtype)
        output = self.memory(observations, state, unroll.resets)
        asked = unroll.targets != NO_TARGET
        return self.name(output.outputs[asked]), unroll.targets[asked], output


@dataclass(frozen=True)
class Training:
    """The training of a model by Adam: warm-up, linear decay to nothing.

    Attributes:
        delays: of the episodes, each as likely.
        num_lanes: episodes side by side.
        unroll_length: steps between two updates.
        num_updates: how many.
        learning_rate: its peak.
    """

    delays: Sequence[int]
    num_lanes: int = 16
    unroll_length: int = 128
    num_updates: int = 600
    learning_rate: float = 3e-3

    @property
    def num_steps(self) -> int:
        """Steps that all lanes together read."""
        return self.num_lanes * self.unroll_length * self.num_updates


def make_model(kind: str, task: Task, sizes: dict[str, int], compression: CompressionSettings) -> Recall:
    """Make a fresh model of one of the kinds."""
    changes: dict[str, int] = {
        "plain": {"compressed_memory_length": 0},
        "plain, longer": {
            "memory_length": sizes["memory_length"] + sizes["compressed_memory_length"],
            "compressed_memory_length": 0,
        },
    }.get(kind, {})
    settings = CompressiveTransformerSettings(num_layers=1, compression=compression, **sizes | changes)
    memory = CompressiveMemory(d_in=task.d_in, settings=settings)
    if not kind.startswith("lstm"):
        return Recall(memory, sizes["d_model"], task)
    hidden_size = 1
    while num_parameters(nn.LSTMCell(task.d_in, hidden_size + 1)) <= num_parameters(memory):
        hidden_size += 1
    return Recall(LSTMMemory(d_in=task.d_in, hidden_size=hidden_size), hidden_size, task)


def span(memory: nn.Module) -> int | None:
    """The longest delay after which the symbol still is in a memory of one layer; None for an LSTM.

    Example: segments of 8, memory of 8, 16 compressed entries of rate 4: 8 - 2 + 8 + 4 * 16 = 78. At delay 79 the query
    is step 80, the first of the eleventh segment, and what is remembered begins with step 80 - 72 = 8.
    """
    if not isinstance(memory, CompressiveMemory):
        return None
    shape = memory.shape
    return shape.segment_length - 2 + shape.memory_length + shape.compression_rate * shape.compressed_length


def learn(model: Recall, training: Training, device: torch.device, *, seed: int) -> None:
    """Train a model on a stream of its own."""
    num_steps = training.num_steps // training.num_lanes
    stream = make_stream(model.task, training.delays, training.num_lanes, num_steps, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
    warm_up = min(50, training.num_updates)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / warm_up, 1 - update / training.num_updates)
    )
    state = model.memory.initial_state(training.num_lanes, device)
    model.train()
    for unroll in stream.unrolls(training.unroll_length):
        logits, targets, output = model(unroll.to(device), state)
        state = output.state
        # A mean over no queries would be no number.
        loss = F.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)
        optimizer.zero_grad()
        (loss + sum(output.auxiliary_losses.values())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def success_rate(model: Recall, delay: int, num_episodes: int, device: torch.device, *, seed: int) -> float:
    """Measure the share of fresh episodes of a delay whose symbol is named."""
    num_lanes = min(EVALUATION_LANES, num_episodes)
    stream = make_stream(model.task, [delay], num_lanes, num_episodes // num_lanes * (delay + 2), seed=seed)
    state = model.memory.initial_state(num_lanes, device)
    model.eval()
    named = asked = 0
    for unroll in stream.unrolls(delay + 2):
        logits, targets, output = model(unroll.to(device), state)
        state = output.state
        named += int((logits.argmax(dim=-1) == targets).sum())
        asked += len(targets)
    return named / asked


def measure_recall(
    kinds: Sequence[str],
    task: Task,
    sizes: dict[str, int],
    trainings: dict[str, Training],
    device: torch.device,
    *,
    compression: CompressionSettings,
    delays: Sequence[int],
    seeds: Sequence[int],
    num_episodes: int,
) -> Row:
    """Measure success rates of every kind of model by delay, for each seed, and their means."""
    rows: list[Row] = []
    for kind in kinds:
        by_delay: dict[int, list[float]] = {delay: [] for delay in delays}
        seconds = 0.0
        for seed in seeds:
            torch.manual_seed(seed)
            model = make_model(kind, task, sizes, compression).to(device)
            began = time.perf_counter()
            # Seeds of evaluation are none of training's.
            learn(model, trainings[kind], device, seed=2 * seed)
            seconds += time.perf_counter() - began
            for delay, rates in by_delay.items():
                rates.append(success_rate(model, delay, num_episodes, device, seed=2 * seed + 1))
        row: Row = {"name": kind, "parameters": num_parameters(model), "span": span(model.memory)}
        row |= {"training_seconds": seconds / len(seeds), "success_rates": by_delay}
        row["training"] = vars(trainings[kind]) | {"delays": list(trainings[kind].delays)}
        row["steps"] = trainings[kind].num_steps
        for delay, rates in by_delay.items():
            mean = mean_over_seeds(rates)
            assert mean is not None
            row[f"delay_{delay}"] = f"{mean:.3f}"
        rows.append(row)
    columns = {"name": "model", "parameters": "parameters", "span": "span", "steps": "steps", "training_seconds": "s"}
    columns |= {f"delay_{delay}": f"delay {delay}" for delay in delays}
    chance = 1 / task.num_symbols
    title = f"Delayed recall, success rate: mean of {len(seeds)} seeds ± 95 %, chance {chance:.3f}"
    measure.show(title, rows, columns)
    return {
        **{"rows": rows, "chance": chance, "sizes": sizes, "delays": list(delays), "seeds": list(seeds)},
        **{"num_episodes": num_episodes, "compression": compression.model_dump(), "bars": []},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="(all)")
    parser.add_argument("--delays", type=int, nargs="+", default=[6, 14, 30, 48, 78, 96], help="(%(default)s)")
    parser.add_argument("--max-delay", type=int, default=96, help="longest in training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--num-episodes", type=int, default=512, help="for each seed and delay (%(default)s)")
    parser.add_argument("--num-symbols", type=int, default=8, help="(%(default)s)")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="(%(default)s)")
    functions = [name for name in get_args(CompressionFunction) if name != "most_used"]
    parser.add_argument("--compression", choices=functions, default="convolution", help="(%(default)s)")
    parser.add_argument("--fixed-compression", action="store_true", help="leave it at its random initial values")
    parser.add_argument("--lanes", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--unroll", type=int, default=128, help="steps between two updates (%(default)s)")
    parser.add_argument("--updates", type=int, default=600, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="(%(default)s)")
    parser.add_argument("--lstm-learning-rate", type=float, default=1e-2, help="(%(default)s)")
    measure.add_common(parser, "recall")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    training = Training(
        range(1, options.max_delay + 1),
        num_lanes=options.lanes,
        unroll_length=options.unroll,
        num_updates=options.updates,
        learning_rate=options.learning_rate,
    )
    is_fixed = options.fixed_compression or options.compression not in LEARNED_FUNCTIONS
    lstm = replace(training, learning_rate=options.lstm_learning_rate)
    trainings = dict.fromkeys(MODELS, training) | {
        "lstm": lstm,
        "lstm, longer": replace(lstm, num_updates=4 * options.updates),
    }
    result: Row = {"benchmark": "recall", "machine": measure.machine(device)}
    found = measure_recall(
        options.models,
        Task(options.num_symbols),
        {name: getattr(options, name) for name in SIZES},
        trainings,
        device,
        compression=CompressionSettings(
            function=options.compression, loss="none" if is_fixed else "attention_reconstruction"
        ),
        delays=options.delays,
        seeds=range(options.seeds),
        num_episodes=options.num_episodes,
    )
    measure.finish(result, {"recall": found}, options.out)


if __name__ == "__main__":
    main()
