"""Every shipped recipe goes through the real command, those of a folder are fair to each other, and what they say of
themselves is so."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audio_ct import checkpoint
from audio_ct.models.build import build_model
from audio_ct.models.settings import ModelSettings
from audio_ct.models.token_model import num_parameters
from audio_ct.prep import CorpusCommands
from audio_ct.recipe import Recipe, load_recipe
from audio_ct.studies.plan import BASE_FILE, StudyOptions, read_study
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from benchmarks.costs import costs

RECIPES = Path(__file__).parent.parent / "recipes"
STUDIES = sorted({path.parent for path in (RECIPES / "studies").rglob("*.yaml")})
# A study's other files are differences from its base.
PATHS = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent not in STUDIES or path.name == BASE_FILE)
FAMILIES = sorted({path.parent for path in PATHS} - set(STUDIES))
# Outside the families: for a single clip, and for a CPU beside recipes for GPUs.
ALONE = {"demo/overfit_one_clip.yaml", "enwik8/small.yaml"}
# For published corpora: each says how its store is made, and what it will cost.
OF_CORPORA = [path for path in PATHS if path.parent.name in ("sc09", "ljspeech", "vctk", "libritts")]

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


def comment_of(path: Path) -> str:
    """The comment at the top of a recipe as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def prep_command_of(path: Path) -> list[str]:
    """The command in a recipe's comment that makes its store, without "audio-ct prep"."""
    lines = path.read_text(encoding="utf-8").replace("\\\n#", "").splitlines()
    (command,) = (line for line in lines if line.startswith("#     audio-ct prep "))
    return shlex.split(command.removeprefix("#"))[2:]


def size_of(model: ModelSettings) -> int:
    with torch.device("meta"):
        return num_parameters(build_model(model, 256))


def test_recipes_are_shipped() -> None:
    assert {path.parent.name for path in PATHS} >= {
        *("demo", "paper", "enwik8"),
        *("sc09", "ljspeech", "vctk", "libritts"),
    }


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
    shrunk = SHRUNK[recipe.model.kind]
    if getattr(recipe.model, "frames", None):
        # Lengths of the Transformer count frames.
        num_frames = WINDOW_LENGTH // recipe.model.frames.samples
        shrunk = shrunk | {"segment_length": num_frames, "memory_length": num_frames, "frames.channels": 8}
    changes = {f"model.{key}": value for key, value in shrunk.items()} | {
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
    if recipe.corpus.clip_seconds is not None:
        changes["corpus.clip_seconds"] = 0.5
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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models_of_a_folder_differ_in_their_architecture_alone(family: Path) -> None:
    recipes = [load_recipe(path) for path in family.glob("*.yaml") if name_of(path) not in ALONE]

    def shared(recipe: Recipe) -> dict[str, Any]:
        model = {name: getattr(recipe.model, name) for name in ("embedding", "linear_prediction", "output")}
        return recipe.model_dump(exclude={"name", "model"}) | {"model": model}

    assert all(shared(recipe) == shared(recipes[0]) for recipe in recipes)


@pytest.mark.parametrize("path", OF_CORPORA, ids=name_of)
def test_a_recipe_says_the_command_that_makes_its_store(path: Path) -> None:
    name, *arguments = prep_command_of(path)
    command = CorpusCommands().get_command(None, name)
    # Raises where an option is not the corpus's.
    given = command.make_context(name, arguments).params
    recipe = load_recipe(path)
    assert given["out"] == recipe.corpus.store
    assert given["bits"] == 8
    rates_hz = {"sc09": 16_000, "ljspeech": 22_050, "vctk": 24_000, "libritts": 24_000}
    assert given["sample_rate_hz"] == rates_hz[path.parent.name]
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert shlex.join(["audio-ct", "prep", name, "SOURCE", *arguments[1:]]) in readme


@pytest.mark.parametrize("path", OF_CORPORA, ids=name_of)
def test_a_recipe_and_the_readme_say_what_it_costs(path: Path) -> None:
    row = costs(load_recipe(path))
    parameters, hours = f"{row['parameters'] / 1e6:.2f}M", f"{row['hours']:.1f}"
    flops, tokens = f"{row['flops_per_token'] / 1e6:.0f}", f"{row['tokens'] / 1e9:.2f} billion"
    comment = comment_of(path)
    assert f"{parameters} parameters" in comment
    assert f"Expected: {hours} hours on one H100, {flops} MFLOP a token" in comment
    assert "Not yet run" in comment
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert f"| {row['name']} | {parameters} | {tokens} | {flops} | {hours} |" in readme


def test_the_readme_names_every_folder() -> None:
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    folders = {path.name for path in RECIPES.iterdir() if path.is_dir()}
    assert set(re.findall(r"^\| \[(\w+)\]\(\1\)", readme, flags=re.MULTILINE)) == folders


def test_a_window_of_sc09_is_a_clip(command: Callable[..., int], tmp_path: Path) -> None:
    """From the corpus's files to the windows of every lane, with as many clips as the lanes of the recipe divide."""
    recipe = load_recipe(RECIPES / "sc09" / "wavenet.yaml")
    training, corpus = recipe.training, tmp_path / "speech_commands_v0.02"
    assert 31_158 % training.batch_size == 0
    random = np.random.default_rng(0)
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    clips = [f"{digits[i % 10]}/{i // 5:08x}_nohash_{i % 5}.wav" for i in range(2 * training.batch_size + 4)]
    for number, clip in enumerate(clips):
        path = corpus / clip
        path.parent.mkdir(parents=True, exist_ok=True)
        # A tenth of the real ones are shorter than a second.
        soundfile.write(path, 0.3 * random.standard_normal(16_000 if number % 10 else 12_345), 16_000)
    (corpus / "validation_list.txt").write_text("".join(f"{clip}\n" for clip in clips[-4:-2]))
    (corpus / "testing_list.txt").write_text("".join(f"{clip}\n" for clip in clips[-2:]))
    name, _, *options = prep_command_of(RECIPES / "sc09" / "wavenet.yaml")
    options[options.index("--out") + 1] = str(tmp_path / "store")
    assert command("prep", name, corpus, *options) == 0

    store = TokenStore.open(tmp_path / "store")
    recordings = store.recordings("train")
    whole = {store.tokens("train", i, 0, 16_000).tobytes() for i in range(len(recordings))}
    assert len(whole) == 2 * training.batch_size
    streams = Streams(
        store,
        "train",
        num_lanes=training.batch_size,
        window_length=training.window_length,
        seed=recipe.seed,
        reset_every_windows=training.reset_every_windows,
    )
    assert streams.windows_per_epoch == 2
    for step in range(4):
        window = streams.window(step)
        assert window.fresh.all()
        assert all(lane.numpy().astype(np.uint8).tobytes() in whole for lane in window.targets)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_variant_of_a_study_parses_and_its_model_can_be_built(folder: Path, tmp_path: Path) -> None:
    study = read_study(folder, tmp_path, StudyOptions())
    files = {path.stem for path in folder.glob("*.yaml")}
    assert {variant.name for variant in study.variants} in (files, files - {Path(BASE_FILE).stem})
    assert all(size_of(variant.recipe.model) > 0 for variant in study.variants)
