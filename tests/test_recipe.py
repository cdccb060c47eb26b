"""A recipe is checked whole before anything is loaded, and every fault says what to write instead."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from audio_ct.errors import InputError, MissingError
from audio_ct.recipe import MAX_RECIPE_BYTES, Recipe, load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent
TEXT = """
name: tiny
seed: 1
corpus:
  store: stores/demo
model:
  kind: compressive_transformer
  num_layers: 2
  d_model: 96
  num_heads: 3
  d_ff: 384
  segment_length: 128
  memory_length: 128
  compressed_memory_length: 128
  front_dilations: [1, 2, 4]
optimizer:
  learning_rate: 3e-4
  decay: cosine
training:
  batch_size: 8
  window_length: 256
  max_tokens: 500000
  update_every: {0: 1, 100: 4}
"""


def parse(*overrides: str) -> Recipe:
    return parse_recipe(TEXT, overrides)


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new)


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, overrides, name="r.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("r.yaml: ") or line.startswith("--set ") for line in lines)
    return lines


def test_a_resolved_recipe_reads_back_as_itself() -> None:
    recipe = parse()
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.training.update_every == {0: 1, 100: 4}
    assert parse_recipe(recipe.to_yaml()).to_yaml() == recipe.to_yaml()
    assert yaml.safe_load(recipe.to_yaml())["training"]["precision"] == "bfloat16", "defaults are written out"


@pytest.mark.parametrize("name", ["3e-4", "1e5", "007", "null", "yes", "2020-01-01", "é: #", "a\nb", "1_0", " ", "~"])
def test_text_that_looks_like_something_else_reads_back_as_text(name: str) -> None:
    values = yaml.safe_load(TEXT) | {"name": name}
    values["optimizer"]["learning_rate"] = 3e-4
    recipe = Recipe.model_validate(values)
    assert parse_recipe(recipe.to_yaml()).name == name


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("3E-4", 3e-4), ("1.5e+2", 150), ("2", 2), ("0.5", 0.5)])
def test_numbers_are_yaml_1_2s(text: str, value: float) -> None:
    assert parse_recipe(changed("3e-4", text)).optimizer.learning_rate == value


@pytest.mark.fault("recipe")
def test_every_fault_is_named_at_once_with_the_nearest_key() -> None:
    text = changed("num_layers: 2", "num_layer: 2").replace("batch_size: 8", "batch_size: eight")
    text = text.replace("decay: cosine", "decay: cosin").replace("seed: 1", "sead: 1")
    text = text.replace("kind: compressive_transformer", "kind: compressive_transformer\n  memory_lenght: 4")
    lines = "\n".join(faults(text))
    for expected in (
        "model.num_layers is missing; add it.",
        "model.num_layer=2: no such key; did you mean model.num_layers?",
        "model.memory_lenght=4: no such key; did you mean model.memory_length?",
        "training.batch_size='eight': input should be a valid integer",
        "optimizer.decay='cosin': input should be 'none', 'linear' or 'cosine'",
        "sead=1: no such key; did you mean seed?",
    ):
        assert expected in lines


@pytest.mark.fault("recipe")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 1", "seed: 1.0", "seed=1.0: input should be a valid integer; write 1."),
        (
            "max_tokens: 500000",
            "max_tokens: 1e5",
            "training.max_tokens=100000.0: input should be a valid integer; write 100000.",
        ),
        ("seed: 1", "seed: true", "seed=True"),
        ("seed: 1", "seed: -1", "seed=-1: input should be greater than or equal to 0"),
        ("3e-4", ".nan", "optimizer.learning_rate=nan"),
        ("3e-4", "1e999", "optimizer.learning_rate=inf"),
        ("3e-4", "'3e-4'", "optimizer.learning_rate='3e-4'"),
        ("kind: compressive_transformer", "kind: gru", "model.kind='gru': must be one of compressive_transformer, tra"),
        ("kind: compressive_transformer", "", "model.kind=None: must be one of"),
        ("d_ff: 384", "d_ff: 384\n  compression_rate: 129", "model.compression_rate=129 leaves nothing of "),
        ("d_ff: 384", "d_ff: 384\n  num_key_value_heads: 2", "model.num_key_value_heads=2 must divide model.num_heads"),
        ("d_ff: 384", "d_ff: 384\n  compression: {function: max_pooling}", "has nothing to teach: max_pooling"),
        ("d_ff: 384", "d_ff: 384\n  compression: {functon: 1}", "did you mean model.compression.function?"),
        ("num_heads: 3", "num_heads: 5", "model.num_heads=5 must divide model.d_model=96"),
        (
            "  memory_length: 128\n",
            "  memory_length: [128, 1]\n",
            "model.memory_length=[128, 1]: input should be a valid",
        ),
        (
            "  memory_length: 128\n",
            "  memory_length: 64\n  compression: {function: most_used, loss: none}\n",
            "model.memory_length=64 must be at least model.segment_length=128",
        ),
        (
            "d_ff: 384",
            "d_ff: 384\n  linear_prediction: {frame_length: 3}",
            "model.linear_prediction.frame_length=3 must divide model.segment_length=128; try 16",
        ),
        ("d_ff: 384", "d_ff: 384\n  linear_prediction: {windows: [1]}", "model.linear_prediction.windows.0=1: "),
        (
            "d_ff: 384",
            "d_ff: 384\n  output: mixture_of_logistics\n  linear_prediction: {logistics: true}",
            "model.linear_prediction.logistics=true is for a softmax",
        ),
        (
            "  front_dilations: [1, 2, 4]",
            "  convolutions: swiglu",
            "model.convolutions='swiglu': there are none; give model.front_dilations",
        ),
        (
            "window_length: 256",
            "window_length: 200",
            "window_length=200 must be a multiple of model.segment_length=128",
        ),
        ("num_layers: 2", "num_layers: 1000000000", "model.num_layers=1000000000: input should be less than or equal"),
        ("d_model: 96", "d_model: 98304", "model.d_model=98304: input should be less than or equal to 65536"),
        (
            "d_ff: 384",
            "d_ff: 99999999999999999999999999",
            "model.d_ff=99999999999999999999999999: input should be",
        ),
        ("  memory_length: 128\n", "  memory_length: 1048577\n", "model.memory_length=1048577: input should be less"),
        ("[1, 2, 4]", "[1048577]", "model.front_dilations.0=1048577: input should be less than or equal to 1048576"),
        ("d_ff: 384", "d_ff: 384\n  linear_prediction: {windows: [1048577]}", "model.linear_prediction.windows.0=104"),
        ("3e-4", "1e300", "optimizer.learning_rate=1e+300: input should be less than or equal to 1000"),
        (
            "batch_size: 8",
            "batch_size: 65537",
            "training.batch_size=65537: input should be less than or",
        ),
        ("max_tokens: 500000", "max_tokens: 1000000000000001", "training.max_tokens=1000000000000001: input should be"),
        ("{0: 1, 100: 4}", "{0: 300}", "updates once in 300 windows from step 0 on, and the run has 245; lower it"),
        ("{0: 1, 100: 4}", "{100: 4}", "update_every={100: 4} must say how often from step 0 on"),
        ("{0: 1, 100: 4}", "{0: 0}", "training.update_every.0=0"),
        ("{0: 1, 100: 4}", "{0: 1, 102: 4}", "changes at step 102, which must be a multiple of 1 and 4"),
        ("name: tiny", "wavenet: {}", "wavenet={}: no such key"),
        ("name: tiny", "1: tiny", "1"),
        ("name: tiny", "? \n: tiny", "name is missing"),
        ("corpus:\n  store: stores/demo", "corpus: stores/demo", "corpus='stores/demo'"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(old: str, new: str, message: str) -> None:
    assert any(message in line for line in faults(changed(old, new))), faults(changed(old, new))


def test_a_wavenets_window_is_whole_frames_of_linear_prediction() -> None:
    model = "kind: wavenet\n  num_stacks: 1\n  layers_per_stack: 2\n  residual_channels: 4\n  skip_channels: 4\n"
    start, end = TEXT.index("kind: "), TEXT.index("optimizer:")
    text = (TEXT[:start] + model + TEXT[end:]).replace("window_length: 256", "window_length: 100")
    assert parse_recipe(text).model.cut_length == 1
    (fault,) = faults(text.replace("kind: wavenet", "kind: wavenet\n  linear_prediction: {}"))
    assert "training.window_length=100 must be a multiple of model.linear_prediction.frame_length=16; try 16" in fault


@pytest.mark.fault("recipe")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("name: tiny", "name: !!python/object/apply:os.system [true]"), "tags"),
        (changed("[1, 2, 4]", "!!set {1, 2}"), "tags"),
        (changed("name: tiny", "name: &a tiny").replace("stores/demo", "*a"), "aliases"),
        (changed("d_ff: 384", "d_ff: 384\n  d_ff: 384"), "key 'd_ff' stands twice"),
        (changed("seed: 1", "seed: " + "[" * 30 + "]" * 30), "nested deeper than 20"),
        (changed("seed: 1", "seed: " + "[" * 5000), "nested deeper than 20"),
        (changed("seed: 1", "[a]: 1"), "a key must be plain text"),
        (changed("seed: 1", "seed: 2020-13-45"), "not plain YAML"),
        (changed("seed: 1", "seed: " + "9" * 5000), "not plain YAML"),
        (TEXT + "\x07", "not plain YAML"),
        (TEXT + "\n---\n" + TEXT, "not plain YAML"),
        ("", "holds NoneType"),
        ("- 1", "holds list"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text: str, message: str) -> None:
    (line,) = faults(text)
    assert message in line


@pytest.mark.fault("recipe")
def test_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(MissingError, match="is not a file"):
        load_recipe(path)
    with pytest.raises(MissingError, match="is not a file"):
        load_recipe(tmp_path)
    path.write_text(TEXT)
    assert load_recipe(path) == parse()
    path.write_bytes(b"name: \xff")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_recipe(path)
    path.write_text(TEXT + "#" * MAX_RECIPE_BYTES)
    with pytest.raises(InputError, match="is it a recipe"):
        load_recipe(path)


def test_overrides_are_read_as_yaml_and_validated() -> None:
    recipe = parse(
        "optimizer.learning_rate=1e-3", "model.front_dilations=[8, 16]", "name=other", "training.update_every={0: 2}"
    )
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.model.front_dilations == [8, 16]  # type: ignore[union-attr]
    assert recipe.name == "other"
    assert recipe.training.update_every[0] == 2
    assert parse("seed=2", "seed=3").seed == 3
    assert parse("corpus.clip_seconds=1.5", "corpus.clip_seconds=null").corpus.clip_seconds is None
    text = changed("d_ff: 384", "d_ff: 384\n  linear_prediction: {order: 8}")
    assert parse_recipe(text).model.linear_prediction is not None
    assert parse_recipe(text, ["model.linear_prediction=null"]).model.linear_prediction is None


@pytest.mark.fault("recipe")
def test_a_list_of_wrong_numbers_is_told_in_some_lines() -> None:
    told = faults(changed("[1, 2, 4]", str([0] * 1000)))
    assert len(told) == 31
    assert "970 more faults like these" in told[-1]


def test_muon_is_not_sharded() -> None:
    overrides = ["optimizer.muon_learning_rate=0.01", "training.shard_optimizer=true"]
    assert any(
        "optimizer.muon_learning_rate=0.01 needs training.shard_optimizer=false" in f for f in faults(TEXT, *overrides)
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "did you mean optimizer.learning_rate?"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast'"),
        ("training.window_length=100", "must be a multiple of"),
        ("seed", "must have the form section.key=value"),
        ("seed.x=1", "seed={'x': 1}"),
        ("name=${oc.env:HOME}", "x"),
        ("model={", "cannot be read"),
        ("seed=!!python/object/apply:os.getpid []", ""),
        ("=1", ""),
        ("[0]=1", ""),
        ("..=1", ""),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    if override.startswith("name=$"):
        assert parse(override).name == "${oc.env:HOME}", "nothing of the environment gets in"
        return
    assert any(message in line for line in faults(TEXT, override))


def mutated(source: random.Random) -> str:
    pieces = ["!!", "&a ", "*a", "[", "]", "{", "}", ": ", "- ", "\n", "  ", "'", '"', "1e9", "-1", "null", "0x_", "?"]
    text = TEXT
    for _ in range(source.randint(1, 2)):
        place = source.randrange(len(text))
        cut = source.choice([0, 0, 1, 5, 40])
        new = source.choice(
            ["", "1", *pieces, chr(source.randrange(1, 300)), text[place : place + source.randrange(30)]]
        )
        text = text[:place] + new + text[place + cut :]
    return text


@pytest.mark.fault("recipe")
@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_gets_past_as_anything_but_a_recipe_or_an_input_error(seed: int) -> None:
    source = random.Random(seed)
    outcomes = set()
    for _ in range(60):
        try:
            recipe = parse_recipe(mutated(source))
        except InputError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert parse_recipe(recipe.to_yaml()) == recipe
    assert outcomes == {"read", "refused"}


def test_a_difference_drops_the_bases_keys_that_another_kind_has_not() -> None:
    recipe = parse_recipe(TEXT, difference="model: {kind: transformer_xl, d_ff: 96}")
    assert recipe.model.kind == "transformer_xl"
    assert (recipe.model.d_model, recipe.model.d_ff) == (96, 96)
    assert parse_recipe(TEXT, difference="# as the base") == parse()
    with pytest.raises(InputError, match=r"model.kind=.gru.: must be one of"):
        parse_recipe(TEXT, difference="model: {kind: gru}")
    with pytest.raises(InputError, match=r"r: model.compression_rate=2: no such key"):
        parse_recipe(TEXT, difference="model: {kind: transformer_xl, compression_rate: 2}", name="r")


def test_reading_a_recipe_imports_no_torch() -> None:
    program = "import sys, audio_ct.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
