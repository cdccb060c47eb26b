"""Every shipped recipe goes through the real command, and those of a folder are fair to each other."""

import sys
from pathlib import Path

import pytest
import torch

from audio_ct import cli
from audio_ct.models.interface import num_parameters
from audio_ct.recipe import build_model, load_recipe
from audio_ct.training import checkpoint

RECIPES = Path(__file__).parent.parent / "recipes"
PATHS = sorted(RECIPES.rglob("*.yaml"))
FAMILIES = sorted({path.parent for path in PATHS})
# Not one of a family: it is about a single clip.
ALONE = {"overfit_one_clip.yaml"}

SHRUNK_TRANSFORMER = {
    "num_layers": 1,
    "d_model": 16,
    "num_heads": 2,
    "d_ff": 16,
    "segment_length": 256,
    "memory_length": 256,
}
SHRUNK = {
    "compressive_transformer": SHRUNK_TRANSFORMER | {"compressed_memory_length": 64},
    "transformer_xl": SHRUNK_TRANSFORMER,
    "wavenet": {"num_stacks": 1, "layers_per_stack": 3, "residual_channels": 8, "skip_channels": 8},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def test_recipes_are_shipped() -> None:
    assert {path.parent.name for path in PATHS} >= {"demo", "paper"}


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_recipe_parses_and_its_model_can_be_built(path: Path) -> None:
    recipe = load_recipe(path)
    with torch.device("meta"):
        assert num_parameters(build_model(recipe.model, 256)) > 0
    # mlflow, file names and the comparison page show it.
    assert recipe.name.replace("-", "").isalnum()


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_recipe_trains_two_steps_through_the_real_command(
    path: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = load_recipe(path).model.kind
    changes = {f"model.{key}": value for key, value in SHRUNK[kind].items()} | {
        "corpus.store": store_path,
        "training.batch_size": 2,
        "training.window_length": 256,
        "training.max_tokens": 1024,
        "training.sample_every_windows": 0,
        "training.update_every": "{0: 1}",
        "training.compile": "false",
        "evaluation.max_validation_tokens": 1000,
        "evaluation.cold_start_samples": 16,
        "tracking.enabled": "false",
    }
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    arguments = ["audio-ct", "train", str(path), "--run-dir", str(tmp_path / "run"), *settings]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    found = checkpoint.load(checkpoint.find(tmp_path / "run", "newest"))
    assert found.manifest.step == 2
    assert found.manifest.validation_bits_per_sample is not None
    assert all(tensor.isfinite().all() for tensor in found.weights.values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models_of_a_folder_have_as_many_parameters_within_3_percent(family: Path) -> None:
    counts = {}
    for path in sorted(family.glob("*.yaml")):
        if path.name not in ALONE:
            with torch.device("meta"):
                counts[path.stem] = num_parameters(build_model(load_recipe(path).model, 256))
    assert max(counts.values()) <= 1.03 * min(counts.values()), counts
