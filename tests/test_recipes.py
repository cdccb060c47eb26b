"""Every shipped recipe goes through the real command, and those of a folder are fair to each other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audio_ct import checkpoint
from audio_ct.models.build import build_model
from audio_ct.models.settings import ModelSettings
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import load_recipe
from audio_ct.studies.plan import BASE_FILE, StudyOptions, read_study

RECIPES = Path(__file__).parent.parent / "recipes"
STUDIES = sorted({path.parent for path in (RECIPES / "studies").rglob("*.yaml")})
# A study's other files are differences from its base.
PATHS = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent not in STUDIES or path.name == BASE_FILE)
FAMILIES = sorted({path.parent for path in PATHS} - set(STUDIES))
# Outside the families: for a single clip, and for a CPU beside recipes for GPUs.
ALONE = {"demo/overfit_one_clip.yaml", "enwik8/small.yaml"}

# A multiple of every compression rate and of the frames of linear prediction.
WINDOW_LENGTH = 192
SHRUNK_TRANSFORMER = {
    "num_layers": 1,
    "d_model": 16,
    "num_heads": 2,
    "d_ff": 16,
    "segment_length": WINDOW_LENGTH,
    "memory_length": WINDOW_LENGTH,
}
SHRUNK = {
    "compressive_transformer": SHRUNK_TRANSFORMER | {"compressed_memory_length": 64},
    "transformer_xl": SHRUNK_TRANSFORMER,
    "wavenet": {"num_stacks": 1, "layers_per_stack": 3, "residual_channels": 8, "skip_channels": 8},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def size_of(model: ModelSettings) -> int:
    with torch.device("meta"):
        return num_parameters(build_model(model, 256))


def test_recipes_are_shipped() -> None:
    assert {path.parent.name for path in PATHS} >= {"demo", "paper", "enwik8"}


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_recipe_parses_and_its_model_can_be_built(path: Path) -> None:
    recipe = load_recipe(path)
    assert size_of(recipe.model) > 0
    # mlflow, file names and the comparison page show it.
    assert recipe.name.replace("-", "").isalnum()


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_recipe_trains_two_steps_through_the_real_command(
    path: Path, command: Callable[..., int], store_path: Path, byte_store_path: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(path)
    changes = {f"model.{key}": value for key, value in SHRUNK[recipe.model.kind].items()} | {
        "corpus.store": byte_store_path if recipe.corpus.store == "stores/enwik8" else store_path,
        "training.batch_size": 2,
        "training.window_length": WINDOW_LENGTH,
        "training.max_tokens": 2 * 2 * WINDOW_LENGTH,
        "training.sample_every_windows": 0,
        "training.update_every": "{0: 1}",
        "training.compile": "false",
        "training.precision": "float32",
        "evaluation.max_validation_tokens": 1000,
        "evaluation.cold_start_samples": 16,
        "tracking.enabled": "false",
    }
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    assert command("train", path, "--run-dir", tmp_path / "run", *settings) == 0
    found = checkpoint.load(checkpoint.find(tmp_path / "run", "newest"))
    assert found.manifest.step == 2
    assert found.manifest.validation_bits_per_sample is not None
    assert all(tensor.isfinite().all() for tensor in found.weights.values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models_of_a_folder_have_as_many_parameters_within_3_percent(family: Path) -> None:
    paths = [path for path in family.glob("*.yaml") if name_of(path) not in ALONE]
    counts = {path.stem: size_of(load_recipe(path).model) for path in paths}
    assert max(counts.values()) <= 1.03 * min(counts.values()), counts


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_variant_of_a_study_parses_and_its_model_can_be_built(folder: Path, tmp_path: Path) -> None:
    study = read_study(folder, tmp_path, StudyOptions())
    assert len(study.variants) == max(1, len(list(folder.glob("*.yaml"))) - (folder / BASE_FILE).is_file())
    assert all(size_of(variant.recipe.model) > 0 for variant in study.variants)
