"""Training goes on as if it had never stopped, survives what is not finite, and refuses to mix runs."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct import checkpoint, pretrained
from audio_ct.corpora.shard_writer import Part, write_parts
from audio_ct.errors import AudioCTError, DamagedError, InputError, MissingError, NotFiniteError
from audio_ct.locks import hold
from audio_ct.models.build import build_model
from audio_ct.models.stage import State, flatten, map_state, select_lanes
from audio_ct.models.token_model import ModelOutput, TokenModel
from audio_ct.recipe import OptimizerRecipe, Recipe, parse_recipe, refuse_passwords
from audio_ct.record import read_record
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder
from audio_ct.tokens.streams import Streams
from audio_ct.training import loop, setup
from audio_ct.training.optimizer import BEHIND, Verdict, Verdicts
from audio_ct.training.processes import Processes
from audio_ct.training.run import Run

LANES, WINDOW = 2, 32
COMPRESSIVE = """
  kind: compressive_transformer
  num_layers: 2
  d_model: 16
  num_heads: 2
  d_ff: 32
  segment_length: 16
  memory_length: 16
  compressed_memory_length: 8
  compression_rate: 4
  front_dilations: [1, 2]
  linear_prediction: {order: 4, windows: [50, 20], frame_length: 8}
"""
WAVENET = """
  kind: wavenet
  num_stacks: 1
  layers_per_stack: 4
  residual_channels: 16
  skip_channels: 16
"""
MODELS = {"compressive_transformer": COMPRESSIVE, "wavenet": WAVENET}
ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))


def validate(recipe: Recipe, model: TokenModel, store: TokenStore) -> dict[str, float | None]:
    """Score the beginning of a recording."""
    tokens = torch.from_numpy(store.tokens("validation", 0, 0, WINDOW + 1).astype("int64"))[None]
    model.eval()
    with torch.no_grad():
        device = next(model.parameters()).device
        output = model(tokens[:, :-1].to(device), model.initial_state(1, device))
        nats = model.head.nats(output.logits, tokens[:, 1:].to(device)).mean()
    return {"validation_bits_per_sample": float(nats) / math.log(2)}


def make_samples(recipe: Recipe, model: TokenModel, store: TokenStore, step: int, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step}.txt"
    path.touch()
    return [path]


train = partial(loop.train, validate=validate, make_samples=make_samples)


def recipe(store: Path, model: str = COMPRESSIVE, *overrides: str, steps: int = 12) -> Recipe:
    text = f"""
name: tiny
seed: 3
corpus: {{store: {json.dumps(str(store))}}}
model: {model}
optimizer: {{learning_rate: 1e-2, warmup_steps: 3, weight_decay: 0.01}}
training:
  batch_size: {LANES}
  window_length: {WINDOW}
  max_tokens: {steps * LANES * WINDOW}
  precision: float32
  reset_every_windows: 5
  log_every_windows: 4
evaluation: {{batch_size: 2, window_length: 64, cold_start_samples: 16}}
tracking: {{enabled: false}}
"""
    return parse_recipe(text, overrides)


def assert_identical(a: State | None, b: State | None) -> None:
    assert a is not None
    assert b is not None
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def assert_same_checkpoint(a: Path, b: Path) -> None:
    """Everything that the next step depends on is the same, bit for bit; wall clock times may differ."""
    one, other = checkpoint.load(a), checkpoint.load(b)
    assert one.manifest.step == other.manifest.step
    assert one.manifest.validation_bits_per_sample == other.manifest.validation_bits_per_sample
    assert_identical(one.weights, other.weights)
    assert_identical(one.state, other.state)
    for loaded in (one, other):
        assert loaded.training is not None
        del loaded.training["figures"]["seconds"], loaded.training["figures"]["seconds_of_sums"]
    assert_identical(one.training, other.training)


def at_window(patch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do something before training reads the window of a step."""
    read = Streams.window

    def window(self: Streams, wanted: int) -> Any:
        if wanted == step:
            action()
        return read(self, wanted)

    patch.setattr(Streams, "window", window)


def training_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_record(folder) if line.get("training_bits_per_sample") is not None]


def assert_finite(loaded: checkpoint.Checkpoint) -> None:
    assert loaded.state is not None
    assert all(tensor.isfinite().all() for tensor in (*loaded.weights.values(), *flatten(loaded.state).values()))


@pytest.mark.fault("killed training")
@pytest.mark.parametrize("schedule", ["{0: 1}", "{0: 1, 4: 2}", "{0: 3}"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_run_made_longer_is_the_run_in_one_go(store_path: Path, tmp_path: Path, kind: str, schedule: str) -> None:
    settings = [f"training.update_every={schedule}"]
    if schedule == "{0: 1}":
        settings.append("optimizer.muon_learning_rate=0.01")
    whole = train(recipe(store_path, MODELS[kind], *settings), tmp_path / "whole")
    first = train(recipe(store_path, MODELS[kind], *settings, steps=5), tmp_path / "parts")
    assert checkpoint.read_manifest(first).step < 12
    second = train(recipe(store_path, MODELS[kind], *settings), tmp_path / "parts", resume=True)
    assert_same_checkpoint(whole, second)
    lines = [training_lines(tmp_path / folder) for folder in ("whole", "parts")]
    for line in (*lines[0], *lines[1]):
        for name in ("tokens_per_second", "times_real_time", "memory_bytes", "time"):
            del line[name]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 3


@pytest.mark.fault("killed training")
def test_a_run_made_longer_keeps_its_average(store_path: Path, tmp_path: Path) -> None:
    setting = "training.average_decay=0.9"
    whole = train(recipe(store_path, COMPRESSIVE, setting), tmp_path / "whole")
    train(recipe(store_path, COMPRESSIVE, setting, steps=5), tmp_path / "parts")
    assert_same_checkpoint(whole, train(recipe(store_path, COMPRESSIVE, setting), tmp_path / "parts", resume=True))


def test_the_average_is_published_and_follows_the_weights(store_path: Path, tmp_path: Path) -> None:
    """The oracle: the recursion over the weights of the same run without an average, which are to be the same."""
    decay, average = 0.2, {}
    for step in range(1, 5):
        plain = checkpoint.load(train(recipe(store_path, steps=step), tmp_path / f"plain-{step}")).weights
        share = min(decay, step / (9 + step))
        # The first update is taken whole.
        average = {name: plain[name].lerp(average.get(name, plain[name]), share) for name in plain}
    averaging = recipe(store_path, COMPRESSIVE, f"training.average_decay={decay}", steps=4)
    path = train(averaging, tmp_path / "averaging")
    published = checkpoint.load(path)
    for name, tensor in average.items():
        torch.testing.assert_close(published.weights[name], tensor, msg=name)
    assert published.training is not None
    for name, tensor in plain.items():
        assert torch.equal(published.training["own_weights"][name.replace(".", "/")], tensor), name
    # What was validated is what was published.
    model = pretrained.load(path, "cpu").model
    bits = validate(averaging, model, TokenStore.open(store_path))["validation_bits_per_sample"]
    assert bits == pytest.approx(published.manifest.metrics["validation_bits_per_sample"], abs=1e-6)


@pytest.mark.fault("signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_window_with_a_checkpoint_to_go_on_from(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = train(recipe(store_path), tmp_path / "whole")
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_window(patch, 6, partial(os.kill, os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            train(recipe(store_path), tmp_path / "stopped")
    assert checkpoint.read_manifest(checkpoint.find(tmp_path / "stopped", "newest")).step == 7
    assert signal.getsignal(number) is handler
    assert_same_checkpoint(whole, train(recipe(store_path), tmp_path / "stopped", resume=True))


@pytest.mark.fault("killed training")
def test_a_run_that_died_goes_on_from_its_last_checkpoint(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = recipe(store_path, COMPRESSIVE, "training.checkpoint_every_windows=4")
    whole = train(often, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_window(patch, 7, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(often, tmp_path / "died")
    assert_same_checkpoint(whole, train(often, tmp_path / "died", resume=True))


@pytest.mark.fault("killed training")
def test_resuming_a_finished_run_changes_nothing(store_path: Path, tmp_path: Path) -> None:
    finished = train(recipe(store_path, steps=4), tmp_path)
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert train(recipe(store_path, steps=4), tmp_path, resume=True) == finished
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_the_loop_against_a_slow_reading_of_it(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adam turns rounding of a gradient near 0 into a visible step; plain descent does not.
    def plain_descent(model: torch.nn.Module, recipe: OptimizerRecipe, sharded: bool) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": model.parameters(), "rate_ratio": 1.0}], lr=1.0, fused=True)

    monkeypatch.setattr(setup, "make_optimizer", plain_descent)
    settings = recipe(store_path, COMPRESSIVE, "training.update_every={0: 2}", "training.gradient_clip_norm=0.5")
    got = checkpoint.load(train(settings, tmp_path))

    store = TokenStore.open(store_path)
    streams = Streams(store, "train", num_lanes=LANES, window_length=WINDOW, seed=3, reset_every_windows=5)
    torch.manual_seed(3)
    model = build_model(settings.model, 256).train()
    initial = model.initial_state(LANES)
    state = initial
    for update in range(6):
        gradients = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for step in (2 * update, 2 * update + 1):
            window = streams.window(step)
            state = select_lanes(window.fresh, initial, state)
            output = model(window.inputs, state)
            state = output.state
            loss = -output.logits.log_softmax(-1).gather(-1, window.targets[..., None]).mean()
            loss = loss + output.auxiliary_losses["attention_reconstruction"]
            for gradient, one in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
                gradient += one / 2
        # The compression functions learn from another loss, and are clipped by themselves.
        for own in (False, True):
            group = [
                (parameter, gradient)
                for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True)
                if ("compressor" in name) == own
            ]
            norm = math.sqrt(sum(float(gradient.square().sum()) for _, gradient in group))
            rate = 1e-2 * min(1.0, (2 * update + 2) / 3)
            for parameter, gradient in group:
                parameter.data -= rate * min(1.0, 0.5 / norm) * gradient
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(got.weights[name], weight, atol=1e-5, rtol=0)
    assert got.state is not None
    assert flatten(got.state).keys() == flatten(state).keys()


def test_training_lowers_the_loss_and_says_so(store_path: Path, tmp_path: Path) -> None:
    train(recipe(store_path, WAVENET, steps=60), tmp_path)
    lines = training_lines(tmp_path)
    assert lines[0]["training_bits_per_sample"] > lines[-1]["training_bits_per_sample"] + 0.5
    assert [line["step"] for line in lines] == list(range(4, 61, 4))
    assert lines[-1]["tokens"] == 60 * LANES * WINDOW
    assert lines[-1]["updates_not_finite"] == 0
    assert any(line.get("validation_bits_per_sample") for line in read_record(tmp_path))


@pytest.mark.parametrize(
    ("precision", "kind", "steps"),
    [
        ("float16", "compressive_transformer", 40),
        ("float16", "wavenet", 40),
        ("bfloat16", "compressive_transformer", 4),
    ],
)
def test_training_in_16_bits(store_path: Path, tmp_path: Path, precision: str, kind: str, steps: int) -> None:
    found = train(recipe(store_path, MODELS[kind], f"training.precision={precision}", steps=steps), tmp_path)
    loaded = checkpoint.load(found)
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in loaded.weights.values())
    assert loaded.training is not None
    assert ("scaler" in loaded.training) == (precision == "float16")
    last = training_lines(tmp_path)[-1]
    assert last["training_bits_per_sample"] < (7.8 if steps == 40 else 8.5)
    assert last["updates_not_finite"] < 5


def poison(patch: pytest.MonkeyPatch, steps: set[int], *, state_too: bool = False) -> None:
    """Make the models' training forward pass give NaN at these calls, in lane 1 of its state too."""
    healthy = TokenModel.forward

    def spoilt(tensor: Tensor) -> Tensor:
        if not (state_too and tensor.is_floating_point() and tensor.numel()):
            return tensor
        tensor = tensor.clone()
        tensor[1] = math.nan
        return tensor

    def forward(self: Any, tokens: Tensor, state: State) -> ModelOutput:
        output = healthy(self, tokens, state)
        if not self.training:
            return output
        self.calls = getattr(self, "calls", -1) + 1
        if self.calls not in steps:
            return output
        return ModelOutput(output.logits * math.nan, map_state(spoilt, output.state), output.auxiliary_losses)

    patch.setattr(TokenModel, "forward", forward)


@pytest.mark.fault("not finite")
@pytest.mark.parametrize("state_too", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float16", pytest.param("bfloat16", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "model",
    [WAVENET, COMPRESSIVE, COMPRESSIVE.replace("memory_length: 16", "memory_length: 0")],
    ids=["wavenet", "compressive", "without_memory"],
)
def test_nan_never_reaches_parameters_or_states(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, precision: str, state_too: bool
) -> None:
    poison(monkeypatch, {2, 3, 6}, state_too=state_too)
    loaded = checkpoint.load(train(recipe(store_path, model, f"training.precision={precision}", steps=10), tmp_path))
    assert_finite(loaded)
    assert loaded.training is not None
    assert loaded.training["figures"]["not_finite"] >= 3
    values = [value for line in read_record(tmp_path) for value in line.values() if isinstance(value, float)]
    assert all(map(math.isfinite, values))


@pytest.mark.fault("not finite")
@pytest.mark.parametrize(("every", "poisoned", "sound_steps", "steps"), [(1, {3, 4}, 3, 5), (2, {2}, 2, 4)])
def test_a_nan_in_any_of_its_windows_drops_an_update(
    store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    poisoned: set[int],
    sound_steps: int,
    steps: int,
) -> None:
    setting = f"training.update_every={{0: {every}}}"
    sound = checkpoint.load(train(recipe(store_path, COMPRESSIVE, setting, steps=sound_steps), tmp_path / "sound"))
    poison(monkeypatch, poisoned)
    found = checkpoint.load(train(recipe(store_path, COMPRESSIVE, setting, steps=steps), tmp_path / "poisoned"))
    assert_identical(sound.weights, found.weights)


class LateVerdicts(Verdicts):
    """Verdicts as late as a GPU's may be."""

    def settled(self, *, all_of_them: bool) -> Iterator[tuple[int, Verdict]]:
        while self.pending and (all_of_them or len(self.pending) > BEHIND):
            step, verdict, _ = self.pending.popleft()
            yield step, Verdict(int(verdict))


def begin_with_late_verdicts(*arguments: Any, **options: Any) -> Run:
    begun = setup.begin(*arguments, **options)
    begun.verdicts = LateVerdicts()
    return begun


def test_late_verdicts_change_no_parameters(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {2, 3, 7}, state_too=True)
    settings = recipe(store_path, COMPRESSIVE, "training.checkpoint_every_windows=4", steps=10)
    at_once = checkpoint.load(train(settings, tmp_path / "at_once"))
    monkeypatch.setattr(loop, "begin", begin_with_late_verdicts)
    late = checkpoint.load(train(settings, tmp_path / "late"))
    assert_identical(late.weights, at_once.weights)
    assert_identical(late.state, at_once.state)
    assert late.training is not None
    assert late.training["figures"]["not_finite"] == 3


@pytest.mark.fault("not finite")
@pytest.mark.parametrize("begin", [setup.begin, begin_with_late_verdicts], ids=["at_once", "late"])
def test_too_many_nans_in_a_row_stop_the_run_and_name_step_and_recordings(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[..., Run]
) -> None:
    poison(monkeypatch, {1, 4, 5, 6})
    monkeypatch.setattr(loop, "begin", begin)
    changes = ("training.max_not_finite=3", "training.checkpoint_every_windows=4")
    with pytest.raises(NotFiniteError, match=r"3 updates in a row, last at step 6 on recordings .*[abc]/\d"):
        train(recipe(store_path, COMPRESSIVE, *changes, steps=20), tmp_path)
    assert_finite(checkpoint.load(checkpoint.find(tmp_path, "newest")))


def make_spikes(patch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the models' training forward pass far too sure of itself at these calls."""
    healthy = TokenModel.forward

    def forward(self: Any, tokens: Tensor, state: State) -> ModelOutput:
        output = healthy(self, tokens, state)
        if not self.training:
            return output
        self.calls = getattr(self, "calls", -1) + 1
        return output if self.calls not in steps else replace(output, logits=1e4 * output.logits)

    patch.setattr(TokenModel, "forward", forward)


@pytest.mark.fault("not finite")
def test_a_spike_is_left_out_and_counted(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = "training.skip_spikes_above=20"
    plain = checkpoint.load(train(recipe(store_path, COMPRESSIVE, steps=6), tmp_path / "plain"))
    sound = checkpoint.load(train(recipe(store_path, COMPRESSIVE, setting, steps=6), tmp_path / "sound"))
    assert_identical(plain.weights, sound.weights)
    make_spikes(monkeypatch, {6, 7})
    found = checkpoint.load(train(recipe(store_path, COMPRESSIVE, setting, steps=8), tmp_path / "spikes"))
    assert_identical(sound.weights, found.weights)
    assert training_lines(tmp_path / "spikes")[-1]["updates_of_spikes"] == 2
    assert training_lines(tmp_path / "spikes")[-1]["updates_not_finite"] == 0


@pytest.mark.fault("not finite")
def test_spikes_in_a_row_take_the_weights_back_and_training_goes_on(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = (
        "training.skip_spikes_above=20",
        "training.roll_back_after=2",
        "training.checkpoint_every_windows=4",
        "training.average_decay=0.5",
    )
    before = checkpoint.load(train(recipe(store_path, COMPRESSIVE, *changes, steps=4), tmp_path / "before"))
    make_spikes(monkeypatch, {6, 7})
    back = checkpoint.load(train(recipe(store_path, COMPRESSIVE, *changes, steps=8), tmp_path / "back"))
    assert_identical(before.weights, back.weights)
    assert before.training is not None
    assert back.training is not None
    assert_identical(before.training["optimizer"], back.training["optimizer"])
    assert "rolled back to the weights of" in caplog.text
    # The windows that come next are trained on, and a resumed run does the same.
    whole = train(recipe(store_path, COMPRESSIVE, *changes, steps=12), tmp_path / "whole")
    monkeypatch.undo()
    assert_same_checkpoint(
        whole, train(recipe(store_path, COMPRESSIVE, *changes, steps=12), tmp_path / "back", resume=True)
    )


@pytest.mark.fault("not finite")
def test_spikes_without_end_stop_the_run(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_spikes(monkeypatch, set(range(3, 20)))
    changes = ("training.skip_spikes_above=20", "training.max_not_finite=4", "training.roll_back_after=2")
    with pytest.raises(NotFiniteError, match="a spike in 4 updates in a row, last at step 6 on recordings"):
        train(recipe(store_path, COMPRESSIVE, *changes, "training.checkpoint_every_windows=1", steps=20), tmp_path)


@pytest.mark.fault("out of memory")
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["gpu", "cpu"],
)
def test_memory_that_runs_out_is_one_line_with_a_remedy(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def run_out() -> None:
        raise error

    changes = "training.checkpoint_every_windows=4"
    at_window(monkeypatch, 6, run_out)
    with pytest.raises(
        AudioCTError, match=r"out of memory at step 6: .*try batch_size=1, or training\.recompute"
    ) as one:
        train(recipe(store_path, COMPRESSIVE, changes), tmp_path)
    assert "\n" not in str(one.value)
    assert checkpoint.read_manifest(checkpoint.find(tmp_path)).step == 4


@pytest.mark.fault("not finite")
@pytest.mark.parametrize("average", ["0.0", "0.9"])
def test_parameters_that_overflow_stop_the_run_and_are_in_no_checkpoint(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    """The gradient of the last update is finite, and what it makes of the parameters is not."""
    at_window(monkeypatch, 5, partial(monkeypatch.setattr, loop, "learning_rate", lambda *_: 1e300))
    changes = ("training.checkpoint_every_windows=4", f"training.average_decay={average}")
    with pytest.raises(NotFiniteError, match=r"parameters are not finite at step 6; lower optimizer.learning_rate="):
        train(recipe(store_path, WAVENET, *changes, steps=6), tmp_path)
    newest = checkpoint.find(tmp_path, "newest")
    assert newest.name == "step-00000004"
    assert_finite(checkpoint.load(newest))


@pytest.mark.fault("not finite")
def test_a_validation_that_is_not_finite_stops_the_run(store_path: Path, tmp_path: Path) -> None:
    def not_finite(*_: Any) -> dict[str, float | None]:
        return {"validation_bits_per_sample": math.nan}

    with pytest.raises(NotFiniteError, match=r"validation_bits_per_sample=nan is not finite at step 2"):
        loop.train(recipe(store_path, WAVENET, steps=2), tmp_path, validate=not_finite, make_samples=make_samples)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.fault("out of memory")
def test_a_model_that_does_not_fit_is_refused_before_it_is_built(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "build_model", lambda *_: pytest.fail("built"))
    change = "model.d_model=32768"
    with pytest.raises(InputError, match=r"needs [\d,.]+ GiB at the least \(parameters .*lower the model's channels"):
        train(recipe(store_path, COMPRESSIVE, change, "model.d_ff=262144", "model.num_layers=64"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(store_path: Path, tmp_path: Path) -> None:
    train(recipe(store_path, WAVENET, steps=2), tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="already holds a run; add --resume or name another folder"):
        train(recipe(store_path, WAVENET, steps=4), tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(MissingError, match="nothing can be resumed"):
        train(recipe(store_path, WAVENET, steps=4), tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()
    # An empty folder is begun.
    (tmp_path / "other").mkdir()
    found = train(recipe(store_path, WAVENET, steps=2), tmp_path / "other", resume=True)
    assert checkpoint.read_manifest(found).step == 2


@pytest.mark.parametrize(
    ("change", "key", "remedy"),
    [
        ("tracking.uri=https://ann:s3cret@host/mlflow", "tracking.uri", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.uri=postgresql://ann:s3c@ret@host/mlflow", "tracking.uri", "PGPASSWORD"),
        ("tracking.uri=postgresql://host/mlflow?password=s3cret", "tracking.uri", "PGPASSWORD"),
        ("corpus.store=ftp://ann:s3cret@host/store", "corpus.store", "FSSPEC_FTP_PASSWORD"),
    ],
)
def test_a_password_is_never_stored(store_path: Path, tmp_path: Path, change: str, key: str, remedy: str) -> None:
    with pytest.raises(InputError, match=f"^{key} must hold no password, .*{remedy}") as refused:
        train(recipe(store_path, WAVENET, change), tmp_path / "run")
    assert "s3c" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "postgresql://ann@host:5432/a:b", "sqlite:///runs/a@b.db"])
def test_an_address_without_a_password_is_taken(store_path: Path, uri: str) -> None:
    refuse_passwords(recipe(store_path, WAVENET, f"tracking.uri={uri}"))


def test_a_run_that_was_stored_with_a_password_is_resumed_without(store_path: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "refuse_passwords", lambda recipe: None)
        uri = "tracking.uri=http://ann:s3cret@127.0.0.1:9"
        train(recipe(store_path, WAVENET, uri, "tracking.enabled=false", steps=2), tmp_path)
    assert pretrained.load(tmp_path).recipe.name == "tiny"
    found = train(recipe(store_path, WAVENET, steps=4), tmp_path, resume=True)
    assert b"s3cret" not in (found / "recipe.yaml").read_bytes() + (tmp_path / "recipe.yaml").read_bytes()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.fault("two at once")
def test_two_processes_never_train_in_one_folder(store_path: Path, tiny_run: Path, tmp_path: Path) -> None:
    # Of the other process, which is in the middle of writing a checkpoint.
    (tiny_run / "checkpoints/step-00000004.tmp-7").mkdir()
    (tiny_run / "checkpoints/step-00000004.tmp-7/model.safetensors").touch()
    for folder, resume in ((tiny_run, True), (tiny_run, False), (tmp_path / "new", False)):
        with hold(folder, name="the other"):
            before = contents(folder)
            with pytest.raises(InputError, match=rf"^--run-dir '.*' is in use by process {os.getpid()} on \S+, or"):
                train(recipe(store_path, steps=4), folder, resume=resume)
            assert contents(folder) == before
    assert checkpoint.read_manifest(train(recipe(store_path, steps=4), tiny_run, resume=True)).step == 4


@pytest.mark.fault("foreign checkpoint")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.d_ff=48", "model.d_ff=48 was 32"),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate=0.001 was 0.01"),
        ("training.batch_size=4", "training.batch_size=4 was 2"),
        ("training.update_every={0: 1, 9: 2}", "training.update_every="),
        ("seed=4", "seed=4 was 3"),
        ("corpus.clip_seconds=1.0", "corpus.clip_seconds=1.0 was None"),
    ],
)
def test_a_resumed_run_must_be_the_same_run(store_path: Path, change: str, message: str, tiny_run: Path) -> None:
    before = (tiny_run / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match=message):
        train(recipe(store_path, COMPRESSIVE, change), tiny_run, resume=True)
    assert (tiny_run / "recipe.yaml").read_bytes() == before


@pytest.fixture
def tiny_run(store_path: Path, tmp_path: Path) -> Path:
    train(recipe(store_path, steps=2), tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_resumed_run_may_change_what_the_next_window_does_not_depend_on(store_path: Path, tmp_path: Path) -> None:
    train(recipe(store_path, WAVENET, steps=2), tmp_path)
    settings = recipe(store_path, WAVENET, "name=other", "training.log_every_windows=1", "evaluation.batch_size=1")
    assert checkpoint.read_manifest(train(settings, tmp_path, resume=True)).step == 12


@pytest.mark.fault("foreign checkpoint")
def test_another_store_is_refused_and_a_moved_one_is_not(
    store_path: Path, recordings_folder: Path, tmp_path: Path, tiny_run: Path
) -> None:
    from data_prep.folder import CORPUS
    from data_prep.options import PrepOptions
    from data_prep.skeleton import prepare

    prepare(CORPUS, recordings_folder, tmp_path / "other", options=PrepOptions(seed=5, jobs=1))
    with pytest.raises(InputError, match=r"is not the store that .* was trained on"):
        train(recipe(tmp_path / "other", steps=3), tiny_run, resume=True)
    shutil.copytree(store_path, tmp_path / "moved")
    shutil.copytree(tiny_run, tmp_path / "run")
    assert checkpoint.read_manifest(train(recipe(tmp_path / "moved", steps=3), tmp_path / "run", resume=True)).step == 3


def test_learning_one_clip_by_heart(store_path: Path, tmp_path: Path) -> None:
    found = train(recipe(store_path, WAVENET, "corpus.clip_seconds=0.3", steps=3), tmp_path)
    digest = TokenStore.open(store_path).digest
    assert checkpoint.read_manifest(found).store_digest == f"{digest}-clip-7200"


@pytest.mark.parametrize("kind", ["audio", "bytes"])
def test_a_run_validates_and_samples_through_the_front_door(
    store_path: Path, byte_store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    from audio_ct import api

    store, suffixes, unit = {
        "audio": (store_path, ("wav", "json", "png"), "sample"),
        "bytes": (byte_store_path, ("txt", "json"), "byte"),
    }[kind]
    overrides = ["training.sample_every_windows=2", "sampling.num_samples=2", "sampling.seconds=0.01"]
    overrides += ["sampling.num_bytes=30", "evaluation.max_validation_tokens=1000"]
    with caplog.at_level("INFO", logger="audio_ct"):
        api.train(recipe(store, WAVENET, *overrides, steps=3), tmp_path)
    assert any(f"step 3: validation {bits:.4f} bits per {unit}" in caplog.messages for bits in validations(tmp_path))
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        f"step-{step:08d}-{i:02d}.{suffix}" for step in (2, 3) for i in (0, 1) for suffix in suffixes
    }
    assert pretrained.load(tmp_path).codec == TokenStore.open(store).codec


def validations(folder: Path) -> list[float]:
    return [line["validation_bits_per_sample"] for line in read_record(folder) if "validation_bits_per_sample" in line]


def test_a_run_over_bytes_goes_on_bit_for_bit(byte_store_path: Path, tmp_path: Path) -> None:
    train(recipe(byte_store_path, WAVENET, steps=3), tmp_path / "run")
    resumed = train(recipe(byte_store_path, WAVENET, steps=6), tmp_path / "run", resume=True)
    assert_same_checkpoint(train(recipe(byte_store_path, WAVENET, steps=6), tmp_path / "whole"), resumed)


def test_linear_prediction_is_not_for_bytes(byte_store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model.linear_prediction .* holds bytes") as caught:
        train(recipe(byte_store_path, COMPRESSIVE), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("foreign checkpoint")
@pytest.mark.parametrize("change", [{"sample_rate_hz": None}, {"bits": None}, {"encoding": "bytes"}], ids=str)
def test_a_checkpoint_that_does_not_say_its_tokens_is_damaged(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    load = checkpoint.load

    def load_changed(*arguments: Any, **options: Any) -> checkpoint.Checkpoint:
        loaded = load(*arguments, **options)
        manifest = loaded.manifest.model_copy(update={"model": loaded.manifest.model | change})
        return replace(loaded, manifest=manifest)

    monkeypatch.setattr(checkpoint, "load", load_changed)
    with pytest.raises(DamagedError, match="train the model again") as caught:
        pretrained.load(tiny_run)
    assert len(str(caught.value).splitlines()) == 1


def test_a_resumed_run_makes_its_samples_when_the_unbroken_one_does(store_path: Path, tmp_path: Path) -> None:
    overrides = ["training.sample_every_windows=4", "training.evaluate_every_windows=4"]
    train(recipe(store_path, WAVENET, *overrides, steps=5), tmp_path)
    train(recipe(store_path, WAVENET, *overrides, steps=9), tmp_path, resume=True)
    assert {path.stem for path in (tmp_path / "samples").iterdir()} == {f"step-{step}" for step in (4, 5, 8, 9)}
    assert [line["step"] for line in read_record(tmp_path) if "validation_bits_per_sample" in line] == [4, 5, 8, 9]


@pytest.mark.fault("signals")
def test_after_a_signal_nothing_comes_before_the_checkpoint(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_window(monkeypatch, 0, partial(os.kill, os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(recipe(store_path, WAVENET, "training.sample_every_windows=1", steps=4), tmp_path)
    assert checkpoint.read_manifest(checkpoint.find(tmp_path, "newest")).validation_bits_per_sample is None
    assert not (tmp_path / "samples").exists()


def test_compiling_is_the_recipes_choice(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []

    def compile_nothing(model: torch.nn.Module) -> torch.nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(loop.torch, "compile", compile_nothing)
    train(recipe(store_path, WAVENET, steps=1), tmp_path / "plain")
    assert compiled == []
    train(recipe(store_path, WAVENET, "training.compile=true", steps=1), tmp_path / "compiled")
    assert len(compiled) == 1


@pytest.mark.fault("foreign checkpoint")
def test_a_checkpoint_whose_lanes_carry_something_else_is_damaged(
    tiny_run: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path: replace(load(path), state={"transformer": {}}))
    with pytest.raises(DamagedError, match="does not fit its own recipe"):
        train(recipe(store_path, steps=3), tiny_run, resume=True)


def test_speed_is_that_of_the_windows_since_the_last_line(store_path: Path, tmp_path: Path) -> None:
    settings = recipe(store_path, WAVENET, "training.log_every_windows=2", steps=4)
    train(settings, tmp_path)
    first, second = (row for row in read_record(tmp_path) if "tokens_per_second" in row)
    speeds = first["tokens_per_second"], second["tokens_per_second"]
    whole = checkpoint.read_manifest(checkpoint.find(tmp_path)).metrics["training_tokens_per_second"]
    # Of two equal halves the whole's speed is the harmonic mean.
    assert whole == pytest.approx(2 / (1 / speeds[0] + 1 / speeds[1]))
    assert speeds[0] != pytest.approx(speeds[1])


@pytest.mark.parametrize(
    ("capabilities", "precision", "num_warnings"),
    [
        ({"avx512_bf16": False, "amx_bf16": False}, "bfloat16", 1),
        ({"avx512_bf16": False, "amx_bf16": False}, "float32", 0),
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16", 0),
        ({}, "bfloat16", 0),
    ],
)
def test_bfloat16_without_its_instructions_is_warned_of(
    store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capabilities: dict[str, bool],
    precision: str,
    num_warnings: int,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    setup.begin(recipe(store_path, WAVENET, f"training.precision={precision}"), tmp_path, ALONE, resume=False)
    assert sum("emulates" in message for message in caplog.messages) == num_warnings


def test_the_log_repeats_what_preparation_warned_of(
    store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = TokenStore.open(store_path)
    with TokenStoreBuilder(tmp_path / "store", old.codec) as builder:
        builder.metadata["warnings"] = ["half the band is empty", "two\nlines"]
        write_parts(builder, {split: [Part.whole(old, split)] for split in old.splits})
        builder.commit()
    setup.begin(recipe(tmp_path / "store", WAVENET), tmp_path / "run", ALONE, resume=False)
    assert caplog.messages == ["store: half the band is empty", "store: 'two\\nlines'"]


@pytest.mark.fault("signals")
@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_sigterm_to_the_real_command_and_resume(store_path: Path, tmp_path: Path, kind: str) -> None:
    settings = recipe(store_path, MODELS[kind], "training.num_threads=1", "training.log_every_windows=1", steps=100_000)
    (tmp_path / "recipe.yaml").write_text(settings.to_yaml())

    def command(folder: str, *more: str) -> list[str]:
        arguments = ["train", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / folder), *more]
        return [sys.executable, "-c", "from audio_ct.cli import main; main()", *arguments]

    process = subprocess.Popen(command("stopped"))
    metrics = tmp_path / "stopped/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 130
    step = checkpoint.read_manifest(checkpoint.find(tmp_path / "stopped", "newest")).step
    length = f"training.max_tokens={(step + 7) * LANES * WINDOW}"
    subprocess.run(command("stopped", "--resume", "--set", length), check=True, timeout=120)
    subprocess.run(command("whole", "--set", length), check=True, timeout=120)
    assert_same_checkpoint(
        checkpoint.find(tmp_path / "whole", "newest"), checkpoint.find(tmp_path / "stopped", "newest")
    )
