"""The `recipes` commands: shipped recipes by name, every fault at once, and drafts that train as they stand."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audio_ct import estimates, recipe_draft
from audio_ct.errors import MissingError
from audio_ct.estimates import estimate, temporal_range
from audio_ct.models.build import build_model
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import Recipe, load_recipe
from audio_ct.recipe_draft import PASSES, draft
from audio_ct.recipe_files import description, find_recipe, shipped_recipes
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore

RECIPES = Path(__file__).parent.parent / "recipes"
KINDS = ("compressive_transformer", "transformer_xl", "wavenet")
CPU = torch.device("cpu")


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine trains 1,000 tokens a second."""
    monkeypatch.setattr(recipe_draft, "tokens_per_second", lambda recipe, vocabulary_size, device: 1000.0)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_shipped_recipe_is_found_by_name_and_a_file_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo/wavenet") == load_recipe(RECIPES / "demo/wavenet.yaml")
    assert "studies/rates/base" in shipped_recipes()
    assert "studies/rates/rate-2" not in shipped_recipes(), "a difference is no recipe"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/wavenet").write_text("")
    assert find_recipe(Path("demo/wavenet")) == Path("demo/wavenet")


@pytest.mark.parametrize("name", ["demo/wavnet", "recipes/demo/wavenet.yaml", "demo/wavenet.yaml"])
def test_another_name_is_answered_with_the_nearest(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match=r"did you mean demo/wavenet\?"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# yaml-language-server: $schema=../schema.json\n# Of it. More.\nname: a", "Of it"),
        ("# By Rae et al. 2019,\n# see docs/log.md. And so on.", "By Rae et al. 2019, see docs/log.md"),
        ("# First\n#\n# second", "First"),
        ("name: a\n# Late.", ""),
    ],
)
def test_a_description_is_the_first_sentence_on_top(text: str, expected: str) -> None:
    assert description(text) == expected


def test_list_has_a_line_for_each_and_show_the_file(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: shipped_recipes()[name] for name in ("demo/wavenet", "sixteen_bit/compressive_transformer")}
    monkeypatch.setattr("audio_ct.recipe_files.shipped_recipes", lambda: few)
    assert command("recipes", "list") == 0
    first, second = lines_of(capsys)
    assert re.match(r"demo/wavenet +wavenet +0\.3M  WaveNet beside", first)
    assert re.match(r"sixteen_bit/compressive_transformer +compressive_transformer +0\.7M  16-bit samples", second)
    assert command("recipes", "show", "demo/wavenet") == 0
    assert capsys.readouterr().out == (RECIPES / "demo/wavenet.yaml").read_text()


def test_check_says_the_size_or_every_fault(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], store_path: Path
) -> None:
    assert command("recipes", "check", "demo/wavenet", "--set", f"corpus.store={store_path}") == 0
    (line,) = lines_of(capsys)
    size = num_parameters(build_model(load_recipe("demo/wavenet").model, 256))
    expected = rf"demo-wavenet: {size / 1e6:.2f}M parameters, at least 0\.\d\d GiB to train; cut length 8"
    assert re.fullmatch(expected, line)
    assert command("recipes", "check", "demo/wavenet", "--set", "corpus.store=stores/none") == 0
    assert lines_of(capsys)[0].endswith(
        "cut length 8, for tokens of 8 bits, since corpus.store='stores/none' is not here"
    )
    faults = ("--set", "training.batch_size=0", "--set", "model.widht=3")
    assert command("recipes", "check", "demo/wavenet", *faults) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_diff_names_what_differs(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("recipes", "diff", "demo/wavenet", "demo/wavenet") == 0
    assert lines_of(capsys) == ["they say the same"]
    assert command("recipes", "diff", "speech/wavenet", "speech/transformer_xl") == 0
    lines = lines_of(capsys)
    assert "name: 'speech-wavenet' -> 'speech-transformer-xl'" in lines
    assert "model.num_stacks: 2 -> no such key" in lines
    assert all(line.startswith(("name", "model.")) for line in lines)


def test_the_range_of_a_model_is_what_reaches_its_output() -> None:
    changes = ["model.linear_prediction=null", "model.num_stacks=1", "model.layers_per_stack=3"]
    recipe = load_recipe("small/wavenet", changes)
    model = build_model(recipe.model, 256)

    def last_logits(tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(tokens, model.initial_state(1)).logits[0, -1]

    silence = torch.zeros(1, 20, dtype=torch.int64)
    loud = [silence.index_fill(1, torch.tensor(place), 200) for place in range(20)]
    reaching = [
        place for place, tokens in enumerate(loud) if not torch.equal(last_logits(tokens), last_logits(silence))
    ]
    assert reaching == list(range(20 - temporal_range(recipe.model), 20))
    assert temporal_range(load_recipe("frames/compressive_transformer").model) == 16 * (32 + 32 + 4 * 128)
    assert temporal_range(load_recipe("frames/transformer_xl").model) == 16 * (32 + 160)


def test_speed_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "TIMED_WINDOWS", 1)
    recipe = load_recipe("demo/wavenet", ["model.layers_per_stack=2"])
    assert estimates.tokens_per_second(recipe, 256, CPU) > 0


@pytest.mark.usefixtures("no_timing")
def test_a_draft_is_written_and_trains(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], store_path: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "mine.yaml", tmp_path / "run"
    arguments = ("recipes", "new", store_path, "--model", "wavenet", "--out", out)
    assert command(*arguments, "--minutes", 0.5) == 0
    assert f"next: audio-ct train {out} --run-dir runs/tiny-" in lines_of(capsys)[-1]
    recipe = load_recipe(out)
    assert recipe.model.kind == "wavenet"
    assert recipe.training.max_tokens == pytest.approx(30_000, rel=0.2)
    assert recipe.training.window_length == 32 * 24, "predictors are fitted each millisecond"
    assert recipe.model.linear_prediction.pitch.longest_lag == 400  # type: ignore[union-attr]
    assert recipe.training.log_every_windows <= max(1, recipe.training.num_steps // 20), "short runs are told of too"
    assert recipe.training.checkpoint_every_windows <= max(1, recipe.training.num_steps // 4)
    changes = ("training.max_tokens=1536", "training.batch_size=1", "tracking.enabled=false")
    narrow = ("model.layers_per_stack=2", "model.residual_channels=8", "model.skip_channels=8")
    settings = (*changes, *narrow, "evaluation.max_validation_tokens=100")
    assert command("train", out, "--run-dir", run, *(part for each in settings for part in ("--set", each))) == 0
    assert command(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize("rate_hz", [1000, 8000, 22_050, 48_000, 192_000])
def test_drafts_for_speech_are_recipes_at_every_rate_and_of_one_size(rate_hz: int, store_path: Path) -> None:
    store = TokenStore.open(store_path)
    store.codec = MuLawCodec(sample_rate_hz=rate_hz, bits=16)
    drafts = [draft(store, kind, CPU, minutes=None)[0] for kind in KINDS]
    entries = [recipe.model for recipe in drafts if recipe.model.kind != "wavenet"]
    assert len({model.memory_length + model.compressed_memory_length for model in entries}) == 1  # type: ignore[union-attr]
    for recipe in drafts:
        assert recipe.model.output == "mixture_of_logistics"
        assert recipe.training == drafts[0].training
        assert abs(recipe.training.max_tokens - PASSES * store.num_tokens("train")) <= recipe.training.tokens_per_step
    sizes = [estimate(recipe, 1 << 16).num_parameters for recipe in drafts]
    assert max(sizes) <= 1.03 * min(sizes), sizes


@pytest.mark.usefixtures("no_timing")
def test_drafts_for_bytes_are_of_one_size(byte_store_path: Path) -> None:
    drafts = [draft(TokenStore.open(byte_store_path), kind, CPU, minutes=1)[0] for kind in KINDS]
    sizes = [estimate(recipe, 256).num_parameters for recipe in drafts]
    assert max(sizes) <= 1.03 * min(sizes), sizes
    assert [recipe.model.kind for recipe in drafts] == list(KINDS)
    assert all(recipe.model.linear_prediction is None for recipe in drafts)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_are_a_time(
    minutes: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str], store_path: Path
) -> None:
    assert command("recipes", "new", store_path, "--model", "wavenet", "--minutes", minutes) == 2
    assert "must be above 0; try 30" in capsys.readouterr().err


def test_the_shipped_schema_is_the_recipes_own_and_every_recipe_names_it(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("recipes", "schema") == 0
    printed = capsys.readouterr().out
    assert (RECIPES / "schema.json").read_text() == printed, "audio-ct recipes schema > recipes/schema.json"
    assert json.loads(printed)["properties"].keys() == Recipe.model_fields.keys()
    for path in shipped_recipes().values():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        schema = first.removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / schema).resolve() == RECIPES / "schema.json", path
