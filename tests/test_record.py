"""The record of a run is complete, goes on exactly behind a checkpoint, and is read whatever a crash has torn."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from audio_ct.errors import AudioCTError, InputError
from audio_ct.record import (
    EVENTS_FILE,
    METRICS_FILE,
    Record,
    add_event,
    learning_curve,
    read_record,
    run_of,
    whole_lines,
)


def write(run_folder: Path, lines: list[dict[str, Any]], **options: Any) -> None:
    record = Record(run_folder, **options)
    for step, metrics in enumerate(lines, start=options.get("resume_step", 0) + 1):
        record.append(metrics, step=step, tokens=10 * step)
    record.close()
    record.close()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    before = time.time()
    write(
        tmp_path / "run", [{"training_bits_per_sample": 7.5, "validation_bits_per_sample": None}, {"a": float("nan")}]
    )
    first, second = read_record(tmp_path / "run")
    assert abs(first.pop("time") - before) < 5
    assert first == {"step": 1, "tokens": 10, "training_bits_per_sample": 7.5, "validation_bits_per_sample": None}
    assert second["a"] is None
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == {METRICS_FILE, EVENTS_FILE}


def test_a_record_is_not_continued_by_accident(tmp_path: Path) -> None:
    write(tmp_path, [{"a": 1.0}])
    with pytest.raises(InputError, match="already exists"):
        Record(tmp_path)


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AudioCTError, match="opening the record failed"):
        Record(tmp_path / "file" / "run")


@pytest.mark.parametrize("torn", [b"", b'{"step": 3, "tok', b'{"step": 3, "tokens": 3}', b"\0\0\0\n", b"[]\n", b"{}\n"])
def test_resuming_cuts_the_record_after_the_checkpoint(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, [{"a": float(step)} for step in range(1, 11)])
    path = tmp_path / METRICS_FILE
    kept = path.read_bytes().splitlines(keepends=True)[:4]
    path.write_bytes(path.read_bytes() + torn)
    assert [line["step"] for line in read_record(tmp_path)] == list(range(1, 11))
    record = Record(tmp_path, resume_step=4)
    assert path.read_bytes() == b"".join(kept)
    record.close()
    write(tmp_path, [{"a": 5.0}], resume_step=4)
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2, 3, 4, 5]
    assert {entry.name for entry in tmp_path.iterdir()} == {METRICS_FILE, EVENTS_FILE}


@pytest.mark.fault("full disk")
def test_a_full_disk_is_one_warning_and_the_record_is_completed_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for step in range(10):
            record.append({"a": 1.0}, step=step, tokens=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    record.append({"a": 1.0}, step=10, tokens=10)
    record.close()
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == list(range(11))
    assert len([entry for entry in caplog.records if entry.name == "audio_ct"]) == 1


def test_the_learning_curve_of_a_run_and_of_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    assert learning_curve(tmp_path) == learning_curve(checkpoint) == read_record(tmp_path) == []
    write(tmp_path, [{"training_bits_per_sample": 7.5}, {"gradient_norm": 1.0}, {"validation_bits_per_sample": 6.5}])
    curve = [
        {"tokens": 10, "training_bits": 7.5, "validation_bits": None},
        {"tokens": 30, "training_bits": None, "validation_bits": 6.5},
    ]
    assert learning_curve(tmp_path) == learning_curve(checkpoint) == curve


@pytest.mark.parametrize("torn", [b"", b'{"event": "artif', b"\0\0\0"])
def test_what_other_processes_add_stays_beside_what_training_does(tmp_path: Path, torn: bytes) -> None:
    record = Record(tmp_path)
    record.append_event("begun")
    record.close()
    path = tmp_path / EVENTS_FILE
    path.write_bytes(path.read_bytes() + torn)
    add_event(tmp_path, "evaluation", checkpoint_step=9, metrics={"a": None})
    resumed = Record(tmp_path, resume_step=4)
    add_event(tmp_path, "page", path="index.html")
    resumed.append_event("ended")
    resumed.close()
    events = [event for _, event, _ in whole_lines(path)]
    assert [event["event"] for event in events] == ["begun", "evaluation", "page", "ended"]
    assert events[1]["metrics"] == {"a": None}


def test_the_run_of_a_checkpoint_is_the_folder_that_it_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "run/checkpoints/step-00000002"
    checkpoint.mkdir(parents=True)
    assert run_of(checkpoint) is None
    add_event(tmp_path / "run", "begun")
    assert run_of(checkpoint) == tmp_path / "run"
    assert run_of(tmp_path / "run") is None
    monkeypatch.chdir(checkpoint)
    assert run_of(Path()) == tmp_path / "run"
