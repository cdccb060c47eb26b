"""A checkpoint made to harm, its hashes in order: each is refused in one line with exit status 2, by every reader."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from audio_ct import checkpoint

pytestmark = pytest.mark.fault("malicious checkpoint")

ROOT = Path(__file__).parent.parent
SETTINGS = [
    *("model.layers_per_stack=4", "model.residual_channels=8", "model.skip_channels=8", "model.linear_prediction=null"),
    *("training.batch_size=2", "training.window_length=256", "training.max_tokens=1024", "training.precision=float32"),
    *("evaluation.max_validation_tokens=1000", "tracking.enabled=false", "training.sample_every_windows=0"),
]


@pytest.fixture(scope="module")
def arguments(store_path: Path) -> list[str]:
    return [part for each in (*SETTINGS, f"corpus.store={store_path}") for part in ("--set", each)]


@pytest.fixture(scope="module")
def run(command: Callable[..., int], arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert command("train", ROOT / "recipes/demo/wavenet.yaml", "--run-dir", folder, *arguments) == 0
    return folder


def rewrite(folder: Path, changes: dict[str, bytes], **fields: Any) -> None:
    """Change files of a run's only checkpoint, and fields of its manifest's model, and make all hashes agree."""
    (path,) = (folder / "checkpoints").iterdir()
    for name, content in changes.items():
        (path / name).write_bytes(content)
    manifest = checkpoint.read_manifest(path, files=())
    records = {name: checkpoint._record(path / name) for name in checkpoint.FILES}
    changed = manifest.model_copy(update={"files": records, "model": manifest.model | fields})
    (path / checkpoint.MANIFEST_FILE).write_bytes(checkpoint._manifest_bytes(changed))


def spoilt(folder: Path, file: str, change: Callable[[str, Tensor], Tensor]) -> dict[str, bytes]:
    """A file of tensors with every tensor changed."""
    tensors = safetensors.torch.load_file(next((folder / "checkpoints").iterdir()) / file)
    return {file: safetensors.torch.save({name: change(name, tensor) for name, tensor in tensors.items()})}


def recipe_with(folder: Path, old: str, new: str) -> dict[str, bytes]:
    text = (next((folder / "checkpoints").iterdir()) / checkpoint.RECIPE_FILE).read_text(encoding="utf-8")
    assert old in text
    return {checkpoint.RECIPE_FILE: text.replace(old, new).encode()}


def last_is(value: float) -> Callable[[str, Tensor], Tensor]:
    def change(name: str, tensor: Tensor) -> Tensor:
        return torch.cat([tensor.flatten()[:-1], torch.tensor([value])]).view_as(tensor)

    return change


def cut(part: str) -> Callable[[str, Tensor], Tensor]:
    return lambda name, tensor: tensor[..., :1].clone() if part in name else tensor


Make = Callable[[Path], tuple[dict[str, bytes], dict[str, Any]]]
HOSTILE: dict[str, tuple[Make, str]] = {
    "recipe that is not UTF-8": (lambda run: ({checkpoint.RECIPE_FILE: b"name: \xff"}, {}), "not UTF-8 text"),
    "recipe of a megabyte": (lambda run: ({checkpoint.RECIPE_FILE: b"#" * 2**20}, {}), "the limit is 262144"),
    "recipe of code": (lambda run: ({checkpoint.RECIPE_FILE: b"name: !!python/name:os.system"}, {}), "tags"),
    "40 bits": (lambda run: ({}, {"bits": 40}), "bits=40: the rate must be from 1 to 768000, bits 1 to 16"),
    "-3 bits": (lambda run: ({}, {"bits": -3}), "bits=-3"),
    "16 bits": (lambda run: ({}, {"bits": 16}), "weights are not those of its recipe's model"),
    "rate of 10^12": (lambda run: ({}, {"sample_rate_hz": 10**12}), "sample_rate_hz=1000000000000"),
    "rate of 0": (lambda run: ({}, {"sample_rate_hz": 0}), "sample_rate_hz=0"),
    "NaN": (lambda run: (spoilt(run, checkpoint.MODEL_FILE, last_is(torch.nan)), {}), "weights are not finite"),
    "infinity": (lambda run: (spoilt(run, checkpoint.MODEL_FILE, last_is(-torch.inf)), {}), "weights are not finite"),
    "beyond float32": (
        lambda run: (spoilt(run, checkpoint.MODEL_FILE, lambda name, tensor: tensor.double() + 1e300), {}),
        "weights are not finite",
    ),
    "model of 4 billion channels": (
        lambda run: (recipe_with(run, "residual_channels: 8", "residual_channels: 4000000000"), {}),
        "model.residual_channels=4000000000: input should be less than or equal to 65536",
    ),
    "model of terabytes": (
        lambda run: (
            recipe_with(
                run, "residual_channels: 8\n  skip_channels: 8", "residual_channels: 65536\n  skip_channels: 8"
            ),
            {},
        ),
        "weights are not those of its recipe's model",
    ),
}


def harm(run: Path, copy: Path, make: Callable[[Path], tuple[Any, dict[str, Any]]]) -> None:
    """Copy a run and rewrite its checkpoint, hashes in order."""
    changes, fields = make(run)
    shutil.copytree(run, copy)
    rewrite(copy, changes, **fields)


@pytest.mark.parametrize("name", HOSTILE)
def test_sampling_refuses_it(
    command: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make, message = HOSTILE[name]
    harm(run, tmp_path / "run", make)
    capsys.readouterr()
    assert command("sample", tmp_path / "run", "--out", tmp_path / "out", "--seconds", 0.01) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_changed_recipe_that_fits_is_no_fault(command: Callable[..., int], run: Path, tmp_path: Path) -> None:
    """The way in which the others are made leaves a whole checkpoint."""
    shutil.copytree(run, tmp_path / "run")
    rewrite(tmp_path / "run", recipe_with(run, "seed: 0", "seed: 1"))
    assert command("sample", tmp_path / "run", "--out", tmp_path / "out", "--seconds", 0.01) == 0


TRAINING: dict[str, tuple[Make, str]] = {
    "weights of NaN": (HOSTILE["NaN"][0], "weights are not finite"),
    "recipe that is not UTF-8": (HOSTILE["recipe that is not UTF-8"][0], "not UTF-8 text"),
    "moments of another shape": (
        lambda run: (spoilt(run, checkpoint.TRAINING_FILE, cut("exp_avg")), {}),
        "does not fit its own recipe",
    ),
    "another random state": (
        lambda run: (spoilt(run, checkpoint.TRAINING_FILE, cut("random")), {}),
        "does not fit its own recipe",
    ),
    "lanes of another width": (
        lambda run: (spoilt(run, checkpoint.STATE_FILE, cut("convolutions")), {}),
        "does not fit its own recipe",
    ),
    "nothing to resume": (lambda run: ({checkpoint.TRAINING_FILE: safetensors.torch.save({})}, {}), "does not fit"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_resuming_refuses_it(
    command: Callable[..., int],
    arguments: list[str],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    make, message = TRAINING[name]
    harm(run, tmp_path / "run", make)
    capsys.readouterr()
    longer = ("--set", "training.max_tokens=2048")
    recipe = ROOT / "recipes/demo/wavenet.yaml"
    assert command("train", recipe, "--run-dir", tmp_path / "run", *arguments, *longer, "--resume") == 2
    # Before it stand the lines of what differs from the run's own recipe.
    *differences, line = capsys.readouterr().err.splitlines()
    assert message in line
    assert all(", was " in each or each.endswith("; or --set it") for each in differences)
