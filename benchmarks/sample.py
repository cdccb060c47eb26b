"""Speed of sampling: samples per second of our models by `generate`, and of the public packages, timed in turns.

    python -m benchmarks.sample                 # recipes/small, the trial beside the peer, flatness
    python -m benchmarks.sample --parts flat --seconds 0 1 10 60
    python -m benchmarks.sample --parts paper --recipes recipes/paper --waveforms 1 256    # on a GPU

All is timed as a user has it, drawing included, after the step has been compiled. `share` compares with the ceiling of
copying memory here: a step reads each weight once, whatever the number of waveforms, and each waveform's caches, so a
model that fits a processor's cache may pass 1.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_ct.audio.mu_law import silence_token
from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings, WaveNetSettings
from audio_ct.models.token_model import TokenModel, num_parameters
from audio_ct.recipe import Recipe
from audio_ct.sampling.engine import PLAIN, EngineOptions, Sampler
from benchmarks import measure, peers
from benchmarks.bars import judge, ratio
from benchmarks.measure import Build, Row, Timing
from benchmarks.train import VOCABULARY_SIZE, add_sizes, plain_recipe, recipes_of, without_linear_prediction

SAMPLE_RATE_HZ = 24_000
START_TOKEN = silence_token(8)
# 1.7 million parameters.
TRIAL_SIZES = {
    **{"num_layers": 6, "d_model": 128, "num_heads": 4, "segment_length": 256, "memory_length": 256},
    **{"compressed_memory_length": 256, "compression_rate": 4},
}
# Ways to compute a step, by name; the last is the fastest.
OPTIONS = {
    "cpu": {
        "uncompiled": PLAIN,
        "compiled": EngineOptions(compiled=True),
        "bfloat16 memory": EngineOptions(compiled=True, memory="bfloat16"),
        "int8": EngineOptions(compiled=True, weights="int8", memory="bfloat16"),
    },
    "cuda": {
        "uncompiled": EngineOptions(weights="bfloat16", memory="bfloat16"),
        "compiled": EngineOptions(compiled=True, weights="bfloat16", memory="bfloat16"),
        "int8": EngineOptions(compiled=True, weights="int8", memory="bfloat16"),
    },
}
COLUMNS = {
    **{"name": "model", "option": "step", "parameters": "parameters", "num_waveforms": "waveforms"},
    **{"samples_per_second": "samples/s", "microseconds_per_step": "us/step", "share_of_ceiling": "share"},
}


class Sampling:
    """One of our models sampling from nothing; a call makes `num_samples` of each waveform."""

    def __init__(
        self, recipe: Recipe, option: str, *, num_waveforms: int, num_samples: int, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        model = build_model(recipe.model, VOCABULARY_SIZE).to(device)
        self.parameters = num_parameters(model)
        self.option, self.num_waveforms, self.num_samples = option, num_waveforms, num_samples
        self._sampler = Sampler(model, num_waveforms=num_waveforms, options=OPTIONS[device.type][option])
        self._seeds = itertools.count(step=num_waveforms)

    def __call__(self) -> None:
        """Make the samples, other ones each time."""
        blocks = self._sampler.generate(num_samples=self.num_samples, start_token=START_TOKEN, seed=next(self._seeds))
        for _ in blocks:
            pass

    @property
    def bytes_per_step(self) -> int:
        """The bytes that a step must read: weights once, and the caches of every waveform."""
        return self._sampler.bytes_per_step


class Continuation:
    """A model that goes on after a prompt; a call makes the next block of samples."""

    def __init__(self, model: TokenModel, options: EngineOptions, *, prompt_length: int) -> None:
        prompt = torch.randint(0, VOCABULARY_SIZE, (prompt_length,), generator=torch.Generator().manual_seed(0))
        sampler = Sampler(model, num_waveforms=1, options=options)
        self._blocks: Iterator[Tensor] = sampler.generate(
            # More than anybody waits for: the blocks come one by one.
            num_samples=1 << 40,
            start_token=START_TOKEN,
            seed=0,
            prompt=prompt if prompt_length else None,
        )
        self.block_length = next(self._blocks).shape[1]

    def __call__(self) -> None:
        """Make the next block."""
        next(self._blocks)


def _row(name: str, timing: Timing, ceilings: Row) -> Row:
    subject = timing.subject
    if subject is None or timing.median_seconds is None:
        return {"name": name, "samples_per_second": None, "note": timing.failure}
    samples = subject.num_waveforms * subject.num_samples
    row = {
        "name": name,
        "parameters": subject.parameters,
        "num_waveforms": subject.num_waveforms,
        "num_samples": subject.num_samples,
        "samples_per_second": samples / timing.median_seconds,
        "slowest_samples_per_second": samples / max(timing.seconds),
        "fastest_samples_per_second": samples / min(timing.seconds),
        "microseconds_per_step": 1e6 * timing.median_seconds / subject.num_samples,
    }
    if isinstance(subject, Sampling):
        bytes_per_second = subject.bytes_per_step * subject.num_samples / timing.median_seconds
        row |= {"option": subject.option, "bytes_per_step": subject.bytes_per_step}
        row |= {"bytes_per_second": bytes_per_second}
        row["share_of_ceiling"] = bytes_per_second / ceilings["copy_bytes_per_second"]
    return row


def label(recipe: Recipe, num_waveforms: int, option: str) -> str:
    """The name of our model's row."""
    return f"{recipe.name} x {num_waveforms}, {option}"


def sample_recipes(
    recipes: Sequence[Recipe],
    device: torch.device,
    ceilings: Row,
    *,
    waveforms: Sequence[int],
    options: Sequence[str],
    num_samples: int,
    repeats: int,
) -> Row:
    """Measure the speed of every recipe's model by number of waveforms, with the public WaveNet beside ours."""
    builds: dict[str, Build] = {}
    settings: Any = {"num_samples": num_samples, "device": device}
    for recipe in recipes:
        for number, option in itertools.product(waveforms, options):
            builds[label(recipe, number, option)] = partial(Sampling, recipe, option, num_waveforms=number, **settings)
        if isinstance(recipe.model, WaveNetSettings):
            bare = without_linear_prediction(recipe)
            builds[label(bare, 1, options[-1])] = partial(Sampling, bare, options[-1], num_waveforms=1, **settings)
            builds[peers.WAVENET] = partial(peers.WaveNetSampling, bare, **settings, vocabulary_size=VOCABULARY_SIZE)
    # Many waveforms may not fit a GPU's memory.
    may_fail = [name for name in builds if device.type == "cuda" or name == peers.WAVENET]
    timings = measure.time_in_turns(builds, repeats=repeats, warm_up=1, may_fail=may_fail, device=device)
    rows = [_row(name, timing, ceilings) for name, timing in timings.items()]
    measure.show("Sampling", rows, COLUMNS)
    return {"rows": rows, "bars": []}


def sample_paper(
    recipes: Sequence[Recipe],
    device: torch.device,
    ceilings: Row,
    *,
    waveforms: Sequence[int],
    options: Sequence[str],
    **settings: Any,
) -> Row:
    """Measure as `sample_recipes` does, and judge a GPU's bars for the recipes' Compressive Transformer."""
    result = sample_recipes(recipes, device, ceilings, waveforms=waveforms, options=options, **settings)
    rows = {row["name"]: row for row in result["rows"]}
    ours = next(recipe for recipe in recipes if isinstance(recipe.model, CompressiveTransformerSettings))

    def best(key: str, numbers: Sequence[int]) -> Row:
        found = [rows[label(ours, number, option)] for number in numbers for option in options]
        speeds = [row["samples_per_second"] for row in found if row["samples_per_second"] is not None]
        if speeds:
            return judge(key, max(speeds))
        return judge(key, None, "; ".join(row["note"] for row in found) or "no such number of waveforms was asked for")

    one, many = [number for number in waveforms if number == 1], [number for number in waveforms if number > 1]
    bars = [best("gpu_one_stream", one), best("gpu_one_stream_plain", one), best("gpu_many_streams", many)]
    return result | {"bars": bars}


def sample_trial(
    recipe: Recipe,
    device: torch.device,
    ceilings: Row,
    *,
    options: Sequence[str],
    num_samples: int,
    peer_samples: int,
    repeats: int,
) -> Row:
    """Measure the cost of a second of audio, ours and by the public package's own generate(); with a CPU's bar.

    The peer reads its segment anew for every sample, and its memories fill up within the first seconds. So one segment
    from nothing and one with full memories are timed, the prompt that fills them is taken off, and a second is put
    together: every segment until memories are full counts as one from nothing, which is in the peer's favour.
    """
    model = recipe.model
    assert isinstance(model, CompressiveTransformerSettings)
    filling = peers.segments_to_fill(model) * model.segment_length

    def peer(prompt_length: int, num_samples: int) -> peers.CompressiveTransformerSampling:
        torch.manual_seed(0)
        network = peers.compressive_transformer(model, VOCABULARY_SIZE).to(device).eval()
        return peers.CompressiveTransformerSampling(
            network, prompt_length=prompt_length, num_samples=num_samples, device=device
        )

    parts: dict[str, Build] = {
        "from nothing": partial(peer, 1, peer_samples),
        "memories full": partial(peer, filling + 1, peer_samples),
        "prompt alone": partial(peer, filling + 1, 0),
    }
    settings: Any = {"num_waveforms": 1, "num_samples": num_samples, "device": device}
    ours: dict[str, Build] = {
        label(recipe, 1, option): partial(Sampling, recipe, option, **settings) for option in options
    }
    builds = ours | parts
    timings = measure.time_in_turns(builds, repeats=repeats, warm_up=1, may_fail=list(parts), device=device)
    our_rows = [_row(name, timings[name], ceilings) for name in ours]
    peer_row: Row = {"name": peers.COMPRESSIVE_TRANSFORMER, "samples_per_second": None}
    failures = [timings[part].failure for part in parts if timings[part].failure]
    if failures:
        peer_row["note"] = failures[0]
    else:
        empty, full, prompt = (timings[part].median_seconds or math.nan for part in parts)
        at_first = min(filling, SAMPLE_RATE_HZ)
        seconds = (at_first * empty + (SAMPLE_RATE_HZ - at_first) * (full - prompt)) / peer_samples
        peer_row |= {
            "parameters": num_parameters(timings["from nothing"].subject.model),
            "num_waveforms": 1,
            "samples_per_second": SAMPLE_RATE_HZ / seconds,
            "microseconds_per_step": 1e6 * seconds / SAMPLE_RATE_HZ,
            "microseconds_per_step_from_nothing": 1e6 * empty / peer_samples,
            "microseconds_per_step_memories_full": 1e6 * (full - prompt) / peer_samples,
            "note": f"a second of {SAMPLE_RATE_HZ:,} samples is extrapolated from 2 x {peer_samples} of its samples",
        }
    rows = [*our_rows, peer_row]
    measure.show("Sampling, the trial's size", rows, COLUMNS)
    return {"rows": rows, "bars": [ratio("cpu_sampling_over_peer", our_rows, [peer_row], "samples_per_second")]}


def sample_flat(recipe: Recipe, device: torch.device, *, option: str, seconds: Sequence[float], repeats: int) -> Row:
    """Measure the cost of a sample after so many seconds of audio; the bar is the last of them over the first.

    The seconds before are read as a prompt, by windows; then `generate` makes blocks after the prompts in turns.
    """
    torch.manual_seed(0)
    model = build_model(recipe.model, VOCABULARY_SIZE).to(device)
    options = OPTIONS[device.type][option]
    builds: dict[str, Build] = {
        f"after {second:g} s": partial(Continuation, model, options, prompt_length=round(second * SAMPLE_RATE_HZ))
        for second in sorted(seconds)
    }
    timings = measure.time_in_turns(builds, repeats=repeats, warm_up=0, device=device)
    rows = [
        {
            "name": name,
            "microseconds_per_sample": 1e6 * (timing.median_seconds or math.nan) / timing.subject.block_length,
            "blocks": repeats,
            "samples_per_block": timing.subject.block_length,
        }
        for name, timing in timings.items()
    ]
    columns = {"name": "time", "microseconds_per_sample": "us/sample", "samples_per_block": "samples", "blocks": "x"}
    measure.show("Cost of a sample by time already generated", rows, columns)
    value = rows[-1]["microseconds_per_sample"] / rows[0]["microseconds_per_sample"]
    note = f"{rows[-1]['name']} over {rows[0]['name']}, {num_parameters(model) / 1e6:.2f}M parameters, {option}"
    return {"rows": rows, "bars": [judge("cpu_sampling_flat", value, note)]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["recipes", "trial", "flat"]
    parser.add_argument("--parts", nargs="+", choices=[*parts, "paper"], default=parts)
    parser.add_argument("--options", nargs="+", choices=sorted({*OPTIONS["cpu"], *OPTIONS["cuda"]}), help="steps (all)")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/small"), help="folder (%(default)s)")
    parser.add_argument("--waveforms", type=int, nargs="+", default=[1, 16], help="made side by side (%(default)s)")
    parser.add_argument("--num-samples", type=int, default=1024, help="of each waveform in a timing (%(default)s)")
    parser.add_argument("--peer-samples", type=int, help="in a timing of the trial's peer (a segment)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0, 60], help="for flatness (%(default)s)")
    add_sizes(parser, TRIAL_SIZES)
    parser.add_argument("--repeats", type=int, default=5, help="timings of each, in turns (%(default)s)")
    measure.add_common(parser, "sample")
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    trial = plain_recipe({name: getattr(options, name) for name in TRIAL_SIZES})
    result: Row = {"benchmark": "sample", "machine": measure.machine(device), "ceilings": measure.ceilings(device)}
    steps = options.options or list(OPTIONS[device.type])
    timing: Any = {"num_samples": options.num_samples, "repeats": options.repeats}
    found: dict[str, Row] = {}
    for part, sample in {"recipes": sample_recipes, "paper": sample_paper}.items():
        if part in options.parts:
            recipes = recipes_of(options.recipes)
            found[part] = sample(
                recipes, device, result["ceilings"], waveforms=options.waveforms, options=steps, **timing
            )
    if "trial" in options.parts:
        peer_samples = options.peer_samples or options.segment_length
        found["trial"] = sample_trial(
            trial, device, result["ceilings"], options=steps, peer_samples=peer_samples, **timing
        )
    if "flat" in options.parts:
        found["flat"] = sample_flat(trial, device, option=steps[-1], seconds=options.seconds, repeats=options.repeats)
    measure.finish(result, found, options.out)


if __name__ == "__main__":
    main()
