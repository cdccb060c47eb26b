"""Decoding in a process of its own: the same samples, and a file that hangs, crashes or grows costs itself only."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_ct.audio import files
from data_prep import decoding
from data_prep.decoding import Decoder
from data_prep.measures import Meter


def noise(seed: int, num_samples: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).uniform(-1, 1, num_samples)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.flac", noise(0, 30_000), 16_000)
    return tmp_path / "a.flac"


def read(decoder: Decoder, path: Path, **options: object) -> np.ndarray:
    return np.concatenate(list(decoder.blocks(path, sample_rate_hz=24_000, **options)))  # type: ignore[arg-type]


def test_samples_and_measures_are_those_of_the_file(recording: Path) -> None:
    soundfile.write(recording.parent / "long.wav", noise(1, 48_000 * 25), 48_000)
    with Decoder() as decoder:
        for path in (recording, recording.parent / "long.wav", recording):
            np.testing.assert_array_equal(read(decoder, path), files.read(path, 24_000))
            with files.AudioReader(path) as reader:
                meter = Meter(reader.sample_rate_hz)
                for block in reader.blocks():
                    meter.update(block)
            assert decoder.measures == meter.result()
        part = read(decoder, recording, spans=((0.5, 1.0),))
        assert len(part) == 12_000


@pytest.mark.fault("audio")
def test_rejects_pass_through_and_the_process_serves_on(recording: Path) -> None:
    (recording.parent / "text.wav").write_text("no audio" * 100)
    with Decoder() as decoder:
        read(decoder, recording)
        child = decoder._child
        for path, reason in (("text.wav", "unreadable"), ("absent.wav", "missing")):
            with pytest.raises(files.RejectedAudioError) as caught:
                read(decoder, recording.parent / path)
            assert caught.value.reason == reason
        read(decoder, recording)
        assert decoder._child is child


def test_a_recording_left_in_the_middle_does_not_mix_with_the_next(recording: Path) -> None:
    soundfile.write(recording.parent / "long.wav", noise(1, 24_000 * 60), 24_000)
    with Decoder() as decoder:
        next(decoder.blocks(recording.parent / "long.wav", sample_rate_hz=24_000))
        np.testing.assert_array_equal(read(decoder, recording), files.read(recording, 24_000))


def fake_child(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoding process that misbehaves for files whose name says so, and decodes the others."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport sys, os, time\nfrom data_prep import decoding_child as child\n"
        "real = child.answer\n"
        "def answer(request, out):\n"
        f"    if 'bad' in request['path']:\n        {body}\n"
        "    real(request, out)\n"
        "child.answer = answer\nchild.main()\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(decoding.sys, "executable", str(program))


@pytest.mark.fault("audio")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("time.sleep(1000)", "hangs"),
        ("os.kill(os.getpid(), 11)", "crashes"),
        ("bytearray(3 << 30)", "memory"),
    ],
)
def test_a_file_that_misbehaves_is_rejected_and_the_next_is_decoded(
    recording: Path, tmp_path: Path, body: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "memory":
        body = (
            "\n        try: bytearray(3 << 30)\n        except MemoryError:"
            "\n            child.AudioReader = None; raise SystemExit('limited')"
        )
        reason = "crashes"
    fake_child(tmp_path, body, monkeypatch)
    monkeypatch.setattr(decoding, "PATIENCE_SECONDS", 5.0)
    bad = tmp_path / "bad.flac"
    bad.write_bytes(recording.read_bytes())
    with Decoder() as decoder:
        started = time.monotonic()
        with pytest.raises(files.RejectedAudioError) as caught:
            read(decoder, bad)
        assert caught.value.reason == reason
        assert len(str(caught.value).splitlines()) == 1
        assert time.monotonic() - started < 60
        np.testing.assert_array_equal(read(decoder, recording), files.read(recording, 24_000))


def test_the_process_ends_with_its_parent(recording: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom data_prep.decoding import Decoder\ndecoder = Decoder()\n"
        "list(decoder.blocks(Path(sys.argv[1]), sample_rate_hz=24_000))\n"
        "print(decoder._child.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    import subprocess

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-c", program, recording], capture_output=True, env=environment, timeout=60, check=False
    )
    pid = int(json.loads(run.stdout))
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
