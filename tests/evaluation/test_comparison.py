"""Two checkpoints on one page, through the real command."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import audio_ct
from audio_ct.corpora.subsets import subset
from audio_ct.errors import InputError
from audio_ct.evaluation import comparison
from audio_ct.locks import LOCK_FILE, hold
from audio_ct.tokens.store import TokenStore
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare

pytestmark = pytest.mark.xdist_group("pitch")

Command = Callable[..., int]
Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def page(trained: Trained, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "page"
    options = ["--num", 2, "--seconds", 0.05, "--prompt-seconds", 0.1, "--title", "Two <models>"]
    assert command("compare", trained("ct"), trained("net"), "--out", out, *options) == 0
    return out


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "comparison.json").read_text())


def test_the_record_has_what_is_promised(page: Path) -> None:
    found = record(page)
    assert [model["name"] for model in found["models"]] == ["ct", "net"]
    for model in found["models"]:
        assert model["parameters"] > 0
        low, high = model["interval"]
        assert low <= model["bits_per_sample"] <= high
        assert 0 < model["bits_per_sample"] < 12
        assert model["trained_tokens"] == 1024
        assert model["sampling_samples_per_second"] > 0
        assert model["training_tokens_per_second"] > 0
        assert [point["tokens"] for point in model["curve"] if point["training_bits"] is not None] == [512, 1024]
        assert sum(recording["tokens"] for recording in model["recordings"]) == found["tokens"]
    (difference,) = found["differences"]
    bits = [model["bits_per_sample"] for model in found["models"]]
    assert difference["bits"] == pytest.approx(bits[0] - bits[1])
    assert difference["interval"][0] <= difference["bits"] <= difference["interval"][1]
    lines = found["reference_lines"]
    assert lines["uniform"] == 8
    assert 0 < lines["linear_prediction"] < lines["order_2"] < 8


def test_the_page_stands_alone_beside_waveforms_to_play(page: Path) -> None:
    text = (page / "index.html").read_text(encoding="utf-8")
    assert "Two &lt;models&gt;" in text
    assert "<models>" not in text
    assert 'src="http' not in text
    assert text.count("<audio") == 2 + 2 * 4
    for name in ("ct", "net"):
        for continued, num_samples in (("", 1200), ("-continued", 3600)):
            files = sorted((page / "samples").glob(f"{name}{continued}-??.wav"))
            assert [path.stem for path in files] == [f"{name}{continued}-00", f"{name}{continued}-01"]
            assert all(soundfile.info(path).frames == num_samples for path in files)


def test_all_models_continue_the_same_beginnings_of_the_split(page: Path, store_path: Path) -> None:
    prompts = [soundfile.read(page / f"samples/{name}-continued-01.wav")[0][:2400] for name in ("ct", "net")]
    assert np.array_equal(*prompts)
    store = TokenStore.open(store_path)
    label = record(page)["models"][0]["continuations"][1]["label"]
    index = [recording.name for recording in store.recordings("test")].index(label.removeprefix("seed 1, continuing "))
    assert prompts[0] == pytest.approx(store.codec.decode(store.tokens("test", index, 0, 2400)), abs=1e-4)
    alone, after = (soundfile.read(page / f"samples/ct{kind}-01.wav")[0][-1200:] for kind in ("", "-continued"))
    assert not np.array_equal(alone, after)
    continuations = record(page)["models"][0]["continuations"]
    assert [each["label"].split(",")[0] for each in continuations] == ["seed 0", "seed 1"]
    assert all(each["prompt_seconds"] == 0.1 for each in continuations)


def test_a_few_waveforms_are_measured_and_what_takes_more_is_named(page: Path) -> None:
    hearing = record(page)["hearing"]
    kinds = [row["kind"] for row in hearing["rows"]]
    assert kinds == ["real", "line", "line", "line", "model", "continued", "model", "continued"]
    assert [row["name"] for row in hearing["rows"][4:]] == ["ct", "ct", "net", "net"]
    assert (hearing["num"], hearing["num_real"]) == (2, 16)
    for row in hearing["rows"]:
        assert 0 <= row["figures"]["pauses"] <= 1
        assert "frechet" not in row["figures"]
    assert all("figures are within the range of real speech" in row["verdict"] for row in hearing["rows"][4:])
    assert any("--num 16" in note for note in hearing["notes"])
    assert "--num 16" in (page / "index.html").read_text(encoding="utf-8")


def test_the_same_recipe_twice_is_numbered_and_a_page_has_a_few_players(
    trained: Trained, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "MAX_PLAYERS", 1)
    arguments = ["--num", 2, "--seconds", 0.01, "--max-tokens", 1]
    assert command("compare", trained("net"), trained("net"), "--out", tmp_path / "twice", *arguments) == 0
    first, second = record(tmp_path / "twice")["models"]
    assert (first["name"], second["name"]) == ("net-1", "net-2")
    assert first["bits_per_sample"] == second["bits_per_sample"]
    assert len(list((tmp_path / "twice/samples").glob("*.wav"))) == 4
    text = (tmp_path / "twice/index.html").read_text(encoding="utf-8")
    assert text.count("<audio") == 3
    assert "the first 1 of 2 waveforms, by seed" in text


def test_what_cannot_be_compared_is_refused_before_any_work(
    trained: Trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = trained("net"), trained("net", "corpus.clip_seconds=0.2")
    (tmp_path / "file").touch()
    capsys.readouterr()
    for checkpoints, out, message in (
        (models, tmp_path / "mixed", "name the store that both are scored on by --store"),
        (models[:1], tmp_path / "file/page", "cannot be made or written: Not a directory; choose a writable place."),
    ):
        assert command("compare", *checkpoints, "--out", out) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert not printed.out
        assert not out.exists()


def test_a_store_of_other_recordings_is_scored_and_said_one_of_other_tokens_is_refused(
    trained: Trained,
    command: Command,
    store_path: Path,
    recordings_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = subset(TokenStore.open(store_path), tmp_path / "part", splits=["train", "test"])
    arguments = ["--num", 1, "--seconds", 0.01, "--max-tokens", 1, "--out", tmp_path / "page"]
    assert command("compare", trained("net"), "--store", part.address, *arguments) == 0
    note = "part is not the store that the models were trained on"
    assert any(note in each for each in record(tmp_path / "page")["notes"])
    assert any("is not the store that" in message for message in caplog.messages)
    prepare(CORPUS, recordings_folder, tmp_path / "slow", options=PrepOptions(sample_rate_hz=8000, jobs=1))
    capsys.readouterr()
    assert command("evaluate", trained("net"), "--store", tmp_path / "slow") == 2
    assert "8-bit mu-law codes at 8,000 Hz; " in capsys.readouterr().err


def test_models_of_several_stores_are_compared_on_one_that_is_named(
    trained: Trained, store_path: Path, tmp_path: Path
) -> None:
    model = audio_ct.load(trained("net"))
    foreign = replace(model, manifest=model.manifest.model_copy(update={"store_digest": "f" * 64}))
    options: Any = {"num_waveforms": 1, "seconds": 0.01, "max_tokens": 1}
    with pytest.raises(InputError, match="was trained on another corpus than"):
        audio_ct.compare([model, foreign], tmp_path / "page", **options)
    audio_ct.compare([model, foreign], tmp_path / "page", store=store_path, **options)
    assert len(record(tmp_path / "page")["models"]) == 2
    (note,) = (each for each in record(tmp_path / "page")["notes"] if "is not the store that" in each)
    assert f"{foreign.label} was trained on" in note


@pytest.mark.fault("two at once")
def test_two_comparisons_never_write_to_one_folder(
    trained: Trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = trained("net"), tmp_path / "out"
    capsys.readouterr()
    with hold(out, name="the other"):
        assert command("compare", model, "--out", out) == 2
        assert [path.name for path in out.iterdir()] == [LOCK_FILE]
    assert f"out={str(out)!r} is in use by process {os.getpid()} on " in capsys.readouterr().err


def test_one_recording_has_no_interval_and_json_stays_json(
    trained: Trained, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = trained("net")
    capsys.readouterr()
    assert command("evaluate", run_folder, "--max-tokens", 1, "--cold-start-samples", 10, "--json") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail)["interval"] == [None, None]
