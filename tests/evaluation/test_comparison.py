"""Two checkpoints on one page, through the real command."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from audio_ct import cli

RECIPE = """
name: {name}
corpus: {{store: {store}}}
model: {model}
optimizer: {{learning_rate: 1e-3}}
training: {{batch_size: 2, window_length: 256, max_tokens: 1024, precision: float32, log_every_windows: 1}}
evaluation: {{max_validation_tokens: 1000}}
tracking: {{enabled: false}}
"""
MODELS = {
    "ct": "{kind: compressive_transformer, num_layers: 1, d_model: 16, num_heads: 2, d_ff: 16, segment_length: 256, "
    "memory_length: 256, compressed_memory_length: 64}",
    "net": "{kind: wavenet, num_stacks: 1, layers_per_stack: 4, residual_channels: 8, skip_channels: 8}",
}


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["audio-ct", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
    return 0


@pytest.fixture(scope="module")
def runs(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    for name, model in MODELS.items():
        (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, store=json.dumps(str(store_path)), model=model))
        assert run("train", folder / f"{name}.yaml", "--run-dir", folder / name) == 0
    return folder


@pytest.fixture(scope="module")
def comparison(runs: Path) -> dict[str, Any]:
    options = ["--num", 2, "--seconds", 0.05, "--title", "Two <models>"]
    assert run("compare", runs / "ct", runs / "net", "--out", runs / "page", *options) == 0
    return json.loads((runs / "page/comparison.json").read_text())


def test_the_record_has_what_is_promised(comparison: dict[str, Any]) -> None:
    assert [model["name"] for model in comparison["models"]] == ["ct", "net"]
    for model in comparison["models"]:
        assert model["parameters"] > 0
        low, high = model["interval"]
        assert low <= model["bits_per_sample"] <= high
        assert 0 < model["bits_per_sample"] < 12
        assert model["trained_tokens"] == 1024
        assert model["sampling_samples_per_second"] > 0
        assert model["training_tokens_per_second"] > 0
        assert [point["tokens"] for point in model["curve"] if point["training_bits"] is not None] == [512, 1024]
        assert sum(recording["tokens"] for recording in model["recordings"]) == comparison["tokens"]
    (difference,) = comparison["differences"]
    bits = [model["bits_per_sample"] for model in comparison["models"]]
    assert difference["bits"] == pytest.approx(bits[0] - bits[1])
    assert difference["interval"][0] <= difference["bits"] <= difference["interval"][1]
    lines = comparison["reference_lines"]
    assert lines["uniform"] == 8
    assert 0 < lines["linear_prediction"] < lines["order_2"] < 8


def test_the_page_stands_alone(comparison: dict[str, Any], runs: Path) -> None:
    page = (runs / "page/index.html").read_text(encoding="utf-8")
    assert "Two &lt;models&gt;" in page
    assert "<models>" not in page
    assert 'src="http' not in page
    assert page.count("<audio") >= 4


def test_the_waveforms_are_there_to_play(comparison: dict[str, Any], runs: Path) -> None:
    files = sorted((runs / "page/samples").glob("*.wav"))
    assert [path.name for path in files] == ["ct-00.wav", "ct-01.wav", "net-00.wav", "net-01.wav"]
    assert all(soundfile.info(path).frames == 1200 for path in files)


def test_the_same_recipe_twice_is_numbered(runs: Path) -> None:
    arguments = ["--num", 1, "--seconds", 0.01, "--max-tokens", 1]
    assert run("compare", runs / "net", runs / "net", "--out", runs / "twice", *arguments) == 0
    models = json.loads((runs / "twice/comparison.json").read_text())["models"]
    assert [model["name"] for model in models] == ["net-1", "net-2"]
    assert models[0]["bits_per_sample"] == models[1]["bits_per_sample"]


def test_models_of_different_corpora_are_refused_before_any_work(
    runs: Path, store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = ["--set", "corpus.clip_seconds=0.3"]
    assert run("train", runs / "net.yaml", "--run-dir", runs / "clip", *clip) == 0
    capsys.readouterr()
    assert run("compare", runs / "net", runs / "clip", "--out", runs / "mixed") == 2
    out, err = capsys.readouterr()
    assert "another corpus" in err
    assert not out
    assert not (runs / "mixed").exists()


def test_one_recording_has_no_interval_and_json_stays_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("evaluate", runs / "net", "--max-tokens", 1, "--cold-start-samples", 10, "--json") == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["interval"] == [None, None]
