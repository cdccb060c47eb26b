"""Preparing a folder: the same bytes however it is done, every recording once, every bad file named."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch

from audio_ct.audio import files, mu_law
from audio_ct.corpora.contents import describe
from audio_ct.corpora.subsets import subset
from audio_ct.errors import DamagedError, InputError, MissingError
from audio_ct.tokens.store import TokenStore
from data_prep import plan, skeleton
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions


def noise(seed: int, seconds: float, rate_hz: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).uniform(-1, 1, round(seconds * rate_hz))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twenty good recordings of two speakers and some rates."""
    for speaker in ("anna", "böb\nx"):
        (tmp_path / "corpus" / speaker).mkdir(parents=True)
        for index, rate_hz in enumerate([8000, 16_000, 22_050, 24_000, 48_000] * 2):
            path = tmp_path / "corpus" / speaker / f"{index:02d}.{'flac' if index % 2 else 'wav'}"
            soundfile.write(path, noise(index + 10 * len(speaker), 0.2 + 0.01 * index, rate_hz), rate_hz)
    (tmp_path / "corpus/anna/00.txt").write_text("some\nwords \n", encoding="utf-8")
    return tmp_path / "corpus"


def prepare(source: Path | None, out: Path, **options: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"split_by": "recording", "remove_dc": False, "jobs": 1}
    return skeleton.prepare(CORPUS, source, out, options=PrepOptions(**chosen | options))


def content(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def names(store: TokenStore) -> list[str]:
    return [recording.name for split in store.splits for recording in store.recordings(split)]


def test_tokens_are_those_of_the_recordings(corpus: Path, tmp_path: Path) -> None:
    summary = prepare(corpus, tmp_path / "store", licence="CC0")
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert summary["digest"] == store.digest
    assert summary["num_recordings"] == 20
    assert sorted(names(store)) == sorted(f"{speaker}/{i:02d}" for speaker in ("anna", "böb\nx") for i in range(10))
    assert store.corpus["synthetic"] is False
    assert store.corpus["licence"] == "CC0"
    assert store.corpus["sources"] == [{"name": "corpus"}]
    for split in store.splits:
        for recording in store.recordings(split):
            assert recording.speaker == str(Path(recording.name).parent)
            assert recording.text == ("some words" if recording.name == "anna/00" else None)
            expected = mu_law.encode(torch.from_numpy(files.read(corpus / recording.source, 24_000))).numpy()
            np.testing.assert_array_equal(store.tokens(split, recording), expected)


def test_jobs_do_not_change_a_byte(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MINIMUM_SHARD_BYTES", 30_000)
    for jobs in (1, 2):
        prepare(corpus, tmp_path / f"jobs{jobs}", jobs=jobs)
    assert content(tmp_path / "jobs1") == content(tmp_path / "jobs2")
    assert len(list((tmp_path / "jobs1").glob("train-*.bin"))) > 3


@pytest.mark.fault("audio")
def test_bad_files_are_named_and_the_rest_goes_on(corpus: Path, tmp_path: Path) -> None:
    soundfile.write(corpus / "nan.wav", np.full(5000, np.nan), 24_000, subtype="FLOAT")
    soundfile.write(corpus / "silent.wav", np.zeros(5000), 24_000)
    soundfile.write(corpus / "offset.wav", np.full(5000, 0.3), 24_000)
    soundfile.write(corpus / "one.wav", np.ones(1), 24_000)
    soundfile.write(corpus / "good.wav", noise(99, 0.3, 24_000), 24_000)
    (corpus / "cut.wav").write_bytes((corpus / "good.wav").read_bytes()[:5000])
    voice = noise(98, 0.3, 24_000)
    # Not quite opposite: a little is left in the mean.
    soundfile.write(corpus / "opposite.wav", np.stack([voice, -0.995 * voice], axis=1), 24_000)
    soundfile.write(corpus / "whole.mp3", voice, 24_000)
    (corpus / "cut.mp3").write_bytes((corpus / "whole.mp3").read_bytes()[:-50])
    (corpus / "text.WAV").write_text("no audio")
    (corpus / "notes.md").write_text("not looked at")
    os.mkfifo(corpus / "pipe.wav")
    (corpus / "dangling.wav").symlink_to("nowhere")
    (corpus / "again.wav").symlink_to("good.wav")
    (corpus / "anna/loop").symlink_to("..")
    os.rename(corpus / "anna/01.flac", os.fsencode(corpus) + b"/anna/\xff.flac")
    summary = prepare(corpus, tmp_path / "store")
    rejects = [json.loads(line) for line in (tmp_path / "store/rejects.jsonl").read_text().splitlines()]
    assert {reject["source"]: reject["reason"] for reject in rejects} == {
        "nan.wav": "non-finite",
        "silent.wav": "silent",
        "offset.wav": "silent",
        "one.wav": "too short",
        "opposite.wav": "channels cancel",
        "cut.wav": "truncated",
        "cut.mp3": "truncated",
        "text.WAV": "unreadable",
        "pipe.wav": "not a regular file",
        "dangling.wav": "unreadable",
        "again.wav": "duplicate",
    }
    assert all(len(reject["detail"].splitlines()) == 1 and str(tmp_path) not in reject["detail"] for reject in rejects)
    assert summary["rejects"]["silent"] == 2
    (cancelled,) = (reject["detail"] for reject in rejects if reject["source"] == "opposite.wav")
    assert "its 2 channels cancel each other in their mean; prepare with --channel 0" in cancelled
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert len(names(store)) == 22
    assert "anna/\\xff" in names(store)
    assert {r.speaker for split in store.splits for r in store.recordings(split)} == {"anna", "böb\nx", "unknown"}


def test_a_split_emptied_by_rejects_is_filled_from_the_rest(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for index in range(6):
        soundfile.write(tmp_path / f"corpus/{index}.wav", noise(index, 0.2, 24_000), 24_000)
    prepare(tmp_path / "corpus", tmp_path / "all")
    bad = TokenStore.open(tmp_path / "all").recordings("test")[0].name
    soundfile.write(tmp_path / f"corpus/{bad}.wav", np.zeros(5000), 24_000)
    prepare(tmp_path / "corpus", tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    assert {split: len(store.recordings(split)) for split in store.splits} == {"train": 3, "validation": 1, "test": 1}
    assert len((tmp_path / "store/rejects.jsonl").read_text().splitlines()) == 1


@pytest.mark.fault("audio")
def test_nothing_usable_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(InputError, match="no audio files"):
        prepare(tmp_path / "corpus", tmp_path / "store")
    for index in range(5):
        seconds = 0.5 if index < 2 else 0.01
        soundfile.write(tmp_path / f"corpus/{index}.wav", noise(index, seconds, 24_000), 24_000)
    with pytest.raises(InputError, match=r"2 usable recordings; at least 3 .* 3 were rejected") as caught:
        prepare(tmp_path / "corpus", tmp_path / "store")
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_places_that_cannot_be_used_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not there"):
        prepare(tmp_path / "absent", tmp_path / "store")
    with pytest.raises(InputError, match="must be a folder"):
        prepare(corpus / "anna/00.wav", tmp_path / "store")
    with pytest.raises(InputError, match="contains the source"):
        prepare(corpus, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="needs a source"):
        prepare(None, tmp_path / "store")


@pytest.mark.fault("killed preparation")
def test_a_store_that_stands_there_is_compared(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "store")
    with pytest.raises(InputError, match="the same options"):
        prepare(corpus, tmp_path / "store", jobs=2)
    with pytest.raises(InputError, match="seed=0 there, 1 here"):
        prepare(corpus, tmp_path / "store", seed=1)


PROGRAM = """
import logging, sys
from audio_ct.errors import AudioCTError
from data_prep import plan
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare
plan.MINIMUM_SHARD_BYTES = 20_000
logging.basicConfig()
print("go", flush=True)
prepare(CORPUS, sys.argv[1], sys.argv[2], options=PrepOptions(split_by="recording", jobs=int(sys.argv[3])))
"""


def start(source: Path, out: Path, jobs: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, source, out, str(jobs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes], number: int) -> bytes:
    """Send a signal, wait until all have ended that could write to the process's output, and return its errors."""
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


def encoded(tmp_path: Path) -> int:
    return len(list(tmp_path.glob(".store.partial/work/*.bin.json")))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.fault("killed preparation")
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGKILL, 1), (signal.SIGTERM, 2)])
def test_stopped_and_run_again_gives_the_unbroken_bytes(
    corpus: Path, tmp_path: Path, number: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MINIMUM_SHARD_BYTES", 20_000)
    prepare(corpus, tmp_path / "unbroken", remove_dc=True)
    process = start(corpus, tmp_path / "store", jobs)
    wait_for(lambda: encoded(tmp_path) >= 3)
    errors = end(process, number)
    assert (b"stopped; what is encoded is kept: the same command goes on." in errors) == (number == signal.SIGTERM)
    assert not (tmp_path / "store").exists()
    before = encoded(tmp_path)
    assert before >= 3
    shards = tmp_path.glob(".store.partial/*.bin")
    recorded = [path for path in shards if (path.parent / f"work/{path.name}.json").exists()]
    times = {path: path.stat().st_mtime_ns for path in recorded}
    assert len(times) >= 3
    with pytest.raises(InputError, match=r"other options \(remove_dc=True there, False here\)"):
        prepare(corpus, tmp_path / "store", remove_dc=False)
    prepare(corpus, tmp_path / "store", remove_dc=True)
    assert content(tmp_path / "store") == content(tmp_path / "unbroken")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*.bin")}
    assert all(kept[path.name] == time for path, time in times.items()), "what was encoded is not encoded again"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.fault("killed preparation")
def test_workers_end_with_the_process_that_they_work_for(corpus: Path, tmp_path: Path) -> None:
    process = start(corpus, tmp_path / "store", jobs=2)
    wait_for(lambda: encoded(tmp_path) >= 1)
    process.kill()
    # Its output ends once all have ended that could write to it.
    process.communicate(timeout=30)


WAITING = """
import time
import joblib
from data_prep.options import PrepOptions
from data_prep.workers import workers
with workers(PrepOptions(jobs=4)) as run:
    list(run([joblib.delayed(time.sleep)(600)] * 2))
"""


def test_workers_without_a_task_end_too(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, env=environment)

    def waiting() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return [child for child in children if any("LokyProcess" in word for word in child.cmdline())]

    wait_for(lambda: len(waiting()) == 4)
    process.kill()
    process.communicate(timeout=30)


@pytest.mark.fault("killed preparation")
def test_killed_again_and_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MINIMUM_SHARD_BYTES", 20_000)
    prepare(corpus, tmp_path / "unbroken", remove_dc=True)
    moments = random.Random(0)
    for _ in range(4):
        process = start(corpus, tmp_path / "store", jobs=1)
        time.sleep(moments.uniform(0.0, 1.0))
        end(process, signal.SIGKILL)
    if not (tmp_path / "store").exists():
        prepare(corpus, tmp_path / "store", remove_dc=True)
    assert content(tmp_path / "store") == content(tmp_path / "unbroken")


@pytest.mark.fault("two at once")
def test_two_at_once_are_refused(corpus: Path, tmp_path: Path) -> None:
    process = start(corpus, tmp_path / "store", jobs=1)
    wait_for(lambda: encoded(tmp_path) >= 1)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(InputError, match=f"is being prepared by process {process.pid} on "):
        prepare(corpus, tmp_path / "store", remove_dc=True)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0
    TokenStore.open(tmp_path / "store").verify()


def test_a_recording_in_two_splits_is_kept_in_the_one_that_is_held_out(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "before", split_by="recording")
    before = TokenStore.open(tmp_path / "before")
    tested = before.recordings("test")[0]
    learned = [recording for recording in before.recordings("train") if recording.speaker == "anna"]
    for number in range(40):
        # By chance some of the copies are for training.
        path = corpus / f"anna/copy-{number}{Path(tested.source).suffix}"
        path.write_bytes((corpus / tested.source).read_bytes())
    summary = prepare(corpus, tmp_path / "after")
    after = TokenStore.open(tmp_path / "after")
    after.verify()
    tokens = before.tokens("test", tested)
    for split in ("train", "validation"):
        for recording in after.recordings(split):
            assert not np.array_equal(after.tokens(split, recording), tokens)
    assert {r.name for r in learned} <= {r.name for r in after.recordings("train")}
    assert summary["rejects"]["duplicate"] >= 30
    assert any("more held-out split" in warning for warning in summary["warnings"])


def test_a_file_of_several_recordings_is_cut_into_pieces(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / f"corpus/{index}.wav", noise(index, 5.0, 8000), 8000)
    prepare(tmp_path / "corpus", tmp_path / "store", maximum_seconds=2.0, sample_rate_hz=8000)
    store = TokenStore.open(tmp_path / "store")
    pieces = [recording for split in store.splits for recording in store.recordings(split)]
    assert all(8000 * 2 / 3 <= piece.length <= 16_000 for piece in pieces)
    for index in range(4):
        lengths = [piece.length for piece in pieces if piece.name.startswith(f"{index}-")]
        assert sum(lengths) == 40_000
        assert (
            len({split for split in store.splits if any(p.source == f"{index}.wav" for p in store.recordings(split))})
            == 1
        )


def test_a_recording_at_a_time_has_its_options(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for index in range(3):
        soundfile.write(tmp_path / f"corpus/{index}.wav", noise(index, 0.5, 16_000) + 0.1, 16_000)
    prepare(tmp_path / "corpus", tmp_path / "store", pad_to_seconds=1.0, sample_rate_hz=16_000, bits=12, remove_dc=True)
    store = TokenStore.open(tmp_path / "store")
    for split in store.splits:
        tokens = store.tokens(split, 0)
        assert len(tokens) == 16_000
        assert tokens.max() > 255
        waveform = np.asarray(store.codec.decode(torch.from_numpy(tokens.astype(np.int64))))
        assert abs(waveform[:8000].mean()) < 1e-3
        assert np.abs(waveform[8100:]).max() < 1e-5


def test_the_report_warns_of_bands_that_are_empty(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(corpus, tmp_path / "store")
    report = json.loads((tmp_path / "store/report.json").read_text())
    assert report["source_sample_rates_hz"] == {"8000": 4, "16000": 4, "22050": 4, "24000": 4, "48000": 4}
    assert "lowest: 8000 Hz" in report["warnings"][0]
    assert [record.message for record in caplog.records] == report["warnings"]
    assert (tmp_path / "store/report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["report.json", "report.png", "report.html", "rejects.jsonl"])
def test_what_is_reported_is_hashed_in_the_manifest(corpus: Path, tmp_path: Path, name: str) -> None:
    prepare(corpus, tmp_path / "store")
    path = tmp_path / "store" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DamagedError, match=rf"{name}' is not what was written"):
        TokenStore.open(tmp_path / "store").verify()


def test_upsampled_sources_are_told_by_their_bandwidth(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for index in range(3):
        narrow = files.resample_blocks([noise(index, 1.0, 8000).astype(np.float32)], 8000, 48_000)
        soundfile.write(tmp_path / f"corpus/{index}.wav", np.concatenate(list(narrow)), 48_000)
    summary = prepare(tmp_path / "corpus", tmp_path / "store")
    report = json.loads((tmp_path / "store/report.json").read_text())
    assert 3500 < report["bandwidth_hz"]["median"] < 4500
    assert 3000 < report["rolloff_hz"]["median"] < 4100
    assert "upsampled or filtered" in summary["warnings"][0]
    # Whoever trains on it is told; a part of it may be without what was warned of.
    store = TokenStore.open(tmp_path / "store")
    assert store.warnings == summary["warnings"]
    assert f"warning: {store.warnings[0]}" in describe(store)
    assert subset(store, tmp_path / "part", splits=["train"]).warnings == []


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
