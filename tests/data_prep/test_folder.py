"""Preparing a folder: the same bytes however it is done, every recording once, every bad file named."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_ct.audio import files, mu_law
from audio_ct.errors import InputError, MissingError
from audio_ct.tokens.store import TokenStore
from data_prep import folder, plan
from data_prep.plan import Candidate, PrepOptions


def noise(seed: int, seconds: float, rate_hz: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).uniform(-1, 1, round(seconds * rate_hz))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twenty good recordings of two speakers and some rates."""
    for speaker in ("anna", "böb\nx"):
        (tmp_path / "corpus" / speaker).mkdir(parents=True)
        for index, rate_hz in enumerate([8000, 16_000, 22_050, 24_000, 48_000] * 2):
            path = tmp_path / "corpus" / speaker / f"{index:02d}.{'flac' if index % 2 else 'wav'}"
            soundfile.write(path, noise(index, 0.2 + 0.01 * index, rate_hz), rate_hz)
    (tmp_path / "corpus/anna/00.txt").write_text("some\nwords \n", encoding="utf-8")
    return tmp_path / "corpus"


def content(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def names(store: TokenStore) -> list[str]:
    return [recording.name for split in store.splits for recording in store.recordings(split)]


def test_tokens_are_those_of_the_recordings(corpus: Path, tmp_path: Path) -> None:
    options = PrepOptions(licence="CC0")
    summary = folder.prepare(corpus, tmp_path / "store", options=options)
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert summary["digest"] == store.digest
    assert summary["num_recordings"] == 20
    assert sorted(names(store)) == sorted(f"{speaker}/{i:02d}" for speaker in ("anna", "böb\nx") for i in range(10))
    assert store.corpus["synthetic"] is False
    assert store.corpus["licence"] == "CC0"
    assert store.corpus["sources"] == [{"name": "corpus", "kind": "folder"}]
    for split in store.splits:
        for recording in store.recordings(split):
            assert recording.speaker == str(Path(recording.name).parent)
            assert recording.text == ("some words" if recording.name == "anna/00" else None)
            expected = mu_law.encode(torch.from_numpy(files.read(corpus / recording.source, 24_000))).numpy()
            np.testing.assert_array_equal(store.tokens(split, recording), expected)


def test_jobs_do_not_change_a_byte(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MINIMUM_SHARD_BYTES", 30_000)
    for jobs in (1, 2):
        folder.prepare(corpus, tmp_path / f"jobs{jobs}", options=PrepOptions(jobs=jobs))
    assert content(tmp_path / "jobs1") == content(tmp_path / "jobs2")
    assert len(list((tmp_path / "jobs1").glob("train-*.bin"))) > 3


def test_bad_files_are_named_and_the_rest_goes_on(corpus: Path, tmp_path: Path) -> None:
    soundfile.write(corpus / "nan.wav", np.full(5000, np.nan), 24_000, subtype="FLOAT")
    soundfile.write(corpus / "silent.wav", np.zeros(5000), 24_000)
    soundfile.write(corpus / "offset.wav", np.full(5000, 0.3), 24_000)
    soundfile.write(corpus / "one.wav", np.ones(1), 24_000)
    soundfile.write(corpus / "good.wav", noise(99, 0.3, 24_000), 24_000)
    (corpus / "cut.wav").write_bytes((corpus / "good.wav").read_bytes()[:5000])
    (corpus / "text.WAV").write_text("no audio")
    (corpus / "notes.md").write_text("not looked at")
    os.mkfifo(corpus / "pipe.wav")
    (corpus / "dangling.wav").symlink_to("nowhere")
    (corpus / "again.wav").symlink_to("good.wav")
    (corpus / "anna/loop").symlink_to("..")
    os.rename(corpus / "anna/01.flac", os.fsencode(corpus) + b"/anna/\xff.flac")
    summary = folder.prepare(corpus, tmp_path / "store", options=PrepOptions())
    rejects = [json.loads(line) for line in (tmp_path / "store/rejects.jsonl").read_text().splitlines()]
    assert {reject["source"]: reject["reason"] for reject in rejects} == {
        "nan.wav": "non-finite",
        "silent.wav": "silent",
        "offset.wav": "silent",
        "one.wav": "too short",
        "cut.wav": "truncated",
        "text.WAV": "unreadable",
        "pipe.wav": "not a regular file",
        "dangling.wav": "unreadable",
        "again.wav": "duplicate",
    }
    assert all(len(reject["detail"].splitlines()) == 1 and str(tmp_path) not in reject["detail"] for reject in rejects)
    assert summary["rejects"]["silent"] == 2
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert len(names(store)) == 21
    assert "anna/\\xff" in names(store)
    assert {r.speaker for split in store.splits for r in store.recordings(split)} == {"anna", "böb\nx", "unknown"}


def test_a_split_emptied_by_rejects_is_filled_from_the_rest(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for index in range(6):
        soundfile.write(tmp_path / f"corpus/{index}.wav", noise(index, 0.2, 24_000), 24_000)
    split_of = plan.plan_splits([str(index) for index in range(6)], PrepOptions())
    bad = next(name for name, split in split_of.items() if split == "test")
    soundfile.write(tmp_path / f"corpus/{bad}.wav", np.zeros(5000), 24_000)
    folder.prepare(tmp_path / "corpus", tmp_path / "store", options=PrepOptions())
    store = TokenStore.open(tmp_path / "store")
    assert {split: len(store.recordings(split)) for split in store.splits} == {"train": 3, "validation": 1, "test": 1}
    assert len((tmp_path / "store/rejects.jsonl").read_text().splitlines()) == 1


def test_nothing_usable_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(InputError, match="no audio files"):
        folder.prepare(tmp_path / "corpus", tmp_path / "store", options=PrepOptions())
    for index in range(5):
        seconds = 0.5 if index < 2 else 0.01
        soundfile.write(tmp_path / f"corpus/{index}.wav", noise(index, seconds, 24_000), 24_000)
    with pytest.raises(InputError, match=r"2 usable recordings; at least 3 .* 3 were rejected") as caught:
        folder.prepare(tmp_path / "corpus", tmp_path / "store", options=PrepOptions())
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_places_that_cannot_be_used_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not there"):
        folder.prepare(tmp_path / "absent", tmp_path / "store", options=PrepOptions())
    with pytest.raises(InputError, match="must be a folder"):
        folder.prepare(corpus / "anna/00.wav", tmp_path / "store", options=PrepOptions())
    with pytest.raises(InputError, match="contains the source"):
        folder.prepare(corpus, tmp_path, options=PrepOptions(overwrite=True))
    with pytest.raises(InputError, match="needs a source"):
        folder.prepare(None, tmp_path / "store", options=PrepOptions())


def test_a_store_that_stands_there_is_compared(corpus: Path, tmp_path: Path) -> None:
    folder.prepare(corpus, tmp_path / "store", options=PrepOptions())
    with pytest.raises(InputError, match="the same options"):
        folder.prepare(corpus, tmp_path / "store", options=PrepOptions(jobs=2))
    with pytest.raises(InputError, match="seed=0 there, 1 here"):
        folder.prepare(corpus, tmp_path / "store", options=PrepOptions(seed=1))


def test_killed_and_run_again_gives_the_unbroken_bytes(corpus: Path, tmp_path: Path) -> None:
    folder.prepare(corpus, tmp_path / "unbroken", options=PrepOptions())
    program = (
        "import sys\nfrom pathlib import Path\nfrom data_prep import folder, plan\n"
        "print('go', flush=True)\n"
        "folder.prepare(Path(sys.argv[1]), Path(sys.argv[2]), options=plan.PrepOptions())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, corpus, tmp_path / "store"], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".store.partial/work-*/*.bin")) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "store").exists()
    folder.prepare(corpus, tmp_path / "store", options=PrepOptions())
    assert content(tmp_path / "store") == content(tmp_path / "unbroken")
    assert not list(tmp_path.glob(".*"))


def test_the_report_warns_of_bands_that_are_empty(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder.prepare(corpus, tmp_path / "store", options=PrepOptions())
    report = json.loads((tmp_path / "store/report.json").read_text())
    assert report["source_sample_rates_hz"] == {"8000": 4, "16000": 4, "22050": 4, "24000": 4, "48000": 4}
    assert "lowest: 8000 Hz" in report["warnings"][0]
    assert [record.message for record in caplog.records] == report["warnings"]
    assert (tmp_path / "store/report.png").read_bytes().startswith(b"\x89PNG")


def test_upsampled_sources_are_told_by_their_bandwidth(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for index in range(3):
        narrow = files.resample_blocks([noise(index, 1.0, 8000).astype(np.float32)], 8000, 48_000)
        soundfile.write(tmp_path / f"corpus/{index}.wav", np.concatenate(list(narrow)), 48_000)
    summary = folder.prepare(tmp_path / "corpus", tmp_path / "store", options=PrepOptions())
    report = json.loads((tmp_path / "store/report.json").read_text())
    assert 3500 < report["bandwidth_hz"]["median"] < 4500
    assert 3000 < report["rolloff_hz"]["median"] < 4100
    assert "upsampled or filtered" in summary["warnings"][0]


def test_splits_are_exact_and_depend_on_seed_and_name_only() -> None:
    names = [f"r{index}" for index in range(200)]
    options = PrepOptions(validation_fraction=0.1, test_fraction=0.05)
    split_of = plan.plan_splits(names, options)
    counts = {split: list(split_of.values()).count(split) for split in plan.SPLITS}
    assert counts == {"train": 170, "validation": 20, "test": 10}
    assert plan.plan_splits(names[::-1], options) == split_of
    assert plan.plan_splits(names, PrepOptions(validation_fraction=0.1, seed=1)) != split_of
    for count in range(3, 30):
        for fraction in (0.001, 0.05, 0.49):
            options = PrepOptions(validation_fraction=fraction, test_fraction=fraction)
            assert set(plan.plan_splits(names[:count], options).values()) == set(plan.SPLITS)


def test_shards_hold_every_recording_once_in_reading_order() -> None:
    sizes = np.random.default_rng(0).integers(1, 40 << 20, 300).tolist()
    candidates = [Candidate(Path(f"{i:03d}"), f"{i:03d}", "a", f"{i:03d}", size) for i, size in enumerate(sizes)]
    shards = plan.plan_shards(candidates, PrepOptions())
    assert sorted(c.name for _, batch in shards for c in batch) == [c.name for c in candidates]
    for _, batch in shards:
        assert [c.name for c in batch] == sorted(c.name for c in batch)
        assert len(batch) == 1 or sum(c.num_bytes for c in batch) <= plan.MAXIMUM_SHARD_BYTES


@pytest.mark.parametrize(
    "wrong",
    [
        {"jobs": 0},
        {"bits": 17},
        {"sample_rate_hz": 0},
        {"validation_fraction": 0.0},
        {"test_fraction": 0.96},
        {"minimum_seconds": float("nan")},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        PrepOptions(**wrong)
