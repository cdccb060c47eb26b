"""The doctor finds this machine well, and says what to do where something is wrong."""

import json
import shutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from audio_ct import doctor
from audio_ct.doctor import Finding, examine
from audio_ct.errors import InputError


@pytest.fixture
def no_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_self_test", lambda: Finding("self-test", "left out"))


def found() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


def test_this_machine_is_well(command: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert command("doctor", "--json") == 0
    said = capfd.readouterr()
    findings = {each["name"]: each for each in json.loads(said.out)}
    assert said.err == ""
    assert not any(each["is_broken"] for each in findings.values())
    assert findings["audio-ct"]["value"] == "0.1.0"
    assert "tokens/s" in findings["self-test"]["value"]


@pytest.mark.usefixtures("no_self_test")
def test_what_is_missing_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "can_compile", lambda device: False)
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    monkeypatch.setattr(doctor, "LIBRARIES", ("a-library-that-is-not-there",))
    monkeypatch.setattr(doctor.soundfile, "available_formats", lambda: {"WAV": "", "FLAC": "", "OGG": ""})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    findings = found()
    remedies = {name: finding.remedy for name, finding in findings.items()}
    assert remedies["compiler"] == "install g++"
    assert "set OMP_NUM_THREADS=" in remedies["processor"]
    assert remedies["free disk"] == "make room: here, temporary files, cache"
    assert "no MP3" in remedies["audio files"]
    assert "--set tracking.uri" in remedies["tracking"]
    assert findings["a-library-that-is-not-there"].is_broken


@pytest.mark.usefixtures("no_self_test")
def test_a_check_that_fails_is_a_finding_and_exit_status_2(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("a folder here cannot be made or written: Read-only file system; choose a writable place.")

    monkeypatch.setattr(doctor, "hold", refuse)
    assert command("doctor") == 2
    assert "locks           a folder here cannot be made or written" in capsys.readouterr().out
