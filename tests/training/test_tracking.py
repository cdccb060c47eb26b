"""mlflow follows the local record without doubles, and no server can hold up training."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from audio_ct.recipe import TrackingRecipe
from audio_ct.record import EVENTS_FILE, METRICS_FILE, read_record
from audio_ct.training import sender, tracking
from audio_ct.training.mlflow_run import MlflowRun
from audio_ct.training.mlflow_store import TRACKING_FILE
from audio_ct.training.tracking import Tracker

pytestmark = pytest.mark.fault("tracking")

ABSENT_SERVER = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _quiet_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)


def start(run_folder: Path, uri: str | None = None, *, resume_step: int | None = None, **settings: Any) -> Tracker:
    recipe = TrackingRecipe(experiment="speech", uri=uri, **settings)
    return Tracker(run_folder, recipe, run_name="wavenet", resume_step=resume_step)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.name == "audio_ct"]


def test_without_tracking_the_record_is_kept_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tracker = start(run, enabled=False)
    tracker.log_parameters({"learning_rate": 3e-4})
    tracker.log_metrics({"training_bits_per_sample": 7.5}, step=1, tokens=512)
    tracker.close()
    tracker.close()
    assert [line["tokens"] for line in read_record(run)] == [512]
    assert {entry.name for entry in run.iterdir()} == {METRICS_FILE, EVENTS_FILE}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_how_a_run_ended_is_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None, status: str
) -> None:
    closed: list[str] = []
    close = Tracker.close
    monkeypatch.setattr(Tracker, "close", lambda self, status: (closed.append(status), close(self)))
    with nullcontext() if error is None else pytest.raises(error), start(tmp_path, enabled=False):
        if error is not None:
            raise error
    assert closed == [status]


def test_importing_does_not_load_mlflow() -> None:
    program = "import sys, audio_ct.training.tracking; sys.exit('mlflow' in sys.modules)"
    root = Path(tracking.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_an_absent_server_costs_nothing_but_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start_time = time.monotonic()
    tracker = start(tmp_path, uri="http://user:secret@127.0.0.1:9")
    tracker.log_parameters({"a": 1})
    for step in range(200):
        tracker.log_metrics({"a": 1.0}, step=step, tokens=step)
        tracker.set_tags({"commit": "abc"})
    logging_seconds = time.monotonic() - start_time
    tracker.close()
    assert logging_seconds < 2
    assert time.monotonic() - start_time < 20
    assert [line["step"] for line in read_record(tmp_path)] == list(range(200))
    (message,) = warnings_of(caplog)
    assert "127.0.0.1:9" in message
    assert "secret" not in message
    assert "\n" not in message


def test_a_server_that_never_answers_cannot_hold_up_closing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "CLOSING_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        tracker = start(tmp_path, uri=f"http://127.0.0.1:{server.getsockname()[1]}")
        server.settimeout(15)
        connection, _ = server.accept()  # the thread now waits for an answer
        thread = tracker._sender and tracker._sender._thread
        with connection:
            tracker.log_metrics({"a": 1.0}, step=1, tokens=1)
            start_time = time.monotonic()
            tracker.close()
            assert time.monotonic() - start_time < 2
        assert len(read_record(tmp_path)) == 1
        assert len(warnings_of(caplog)) == 1
    # Its connection is gone, so the thread ends; waiting here keeps it out of the next test.
    assert thread is not None
    thread.join(15)
    assert len(warnings_of(caplog)) == 1


def test_a_store_that_comes_back_gets_what_it_missed(
    tmp_path: Path, empty_store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setattr(sender, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(sender, "MAX_RETRY_SECONDS", 0.05)
    send, failures, is_back = MlflowRun._send_lines, iter([False, True, True]), threading.Event()

    def sometimes(run: Any) -> bool:
        if next(failures, False):
            raise ConnectionError("gone")
        has_read = send(run)
        if not has_read:
            is_back.set()
        return has_read

    monkeypatch.setattr(MlflowRun, "_send_lines", sometimes)
    tracker = start(tmp_path / "run")
    for step in range(1, 1001):
        tracker.log_metrics({"bits": 1.0, "other": 2.0}, step=step, tokens=step)
    assert is_back.wait(30)
    tracker.close()
    assert len(warnings_of(caplog)) == 1

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (note,) = json.loads((tmp_path / "run" / TRACKING_FILE).read_text()).values()
    run_id = note["run_id"]
    assert sorted(point.step for point in client.get_metric_history(run_id, "other")) == list(range(1, 1001))


def test_mlflow_holds_the_run_once_however_often_it_is_resumed(
    tmp_path: Path, empty_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "runs" / "one"
    run.parent.mkdir()
    shutil.copy(empty_store, run.parent)
    note = tmp_path / "note.txt"
    note.write_text("heard")

    # The first process never reaches a server; its lines are sent by the second.
    tracker = start(run, uri=ABSENT_SERVER)
    for step in range(1, 4):
        tracker.log_metrics({"bits": step + 0.5}, step=step, tokens=10 * step)
    tracker.close("KILLED")
    assert len(warnings_of(caplog)) == 1
    caplog.clear()

    tracker = start(run, resume_step=3)
    tracker.log_parameters({"learning_rate": 3e-4, "kind": "wavenet", "num_layers": 10})
    tracker.set_tags({"commit": "abc", "dirty": False})
    tracker.log_dataset("demo", "ab" * 32, "/corpora/demo")
    tracker.log_artifact(note, "notes")
    tracker.log_artifact(tmp_path / "gone.txt")
    for step in range(4, 11):
        tracker.log_metrics({"bits": step + 0.5, "missing": None}, step=step, tokens=10 * step)
    tracker.log_metrics({"validation_bits": 2.0}, step=10, tokens=100)
    tracker.close()
    assert len(warnings_of(caplog)) == 1, "a file that is gone is said once and holds up nothing"
    caplog.clear()

    # Back to step 8: 9 and 10 are computed again, 11 is new.
    tracker = start(run, resume_step=8)
    tracker.log_parameters({"learning_rate": 3e-4, "kind": "wavenet", "num_layers": 1})
    for step in range(9, 12):
        tracker.log_metrics({"bits": step + 0.5}, step=step, tokens=10 * step)
    tracker.log_metrics({"validation_bits": 1.5}, step=11, tokens=110)
    tracker.close()
    assert warnings_of(caplog) == []

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("speech")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    # mlflow's pages open at its training runs, not among pages for language models.
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert found.info.run_name == "wavenet"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"learning_rate": "0.0003", "kind": "wavenet", "num_layers": "10"}
    assert found.data.tags["commit"] == "abc"
    assert found.data.tags["dirty"] == "False"
    assert found.data.tags["resumed.num_layers"] == "1"
    assert "resumed.kind" not in found.data.tags

    points = [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, "bits")]
    assert sorted(points) == [(step, step + 0.5) for step in range(1, 12)]
    points = [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, "validation_bits")]
    assert sorted(points) == [(10, 2.0), (11, 1.5)]
    assert "missing" not in found.data.metrics
    assert found.data.metrics["system/system_memory_usage_megabytes"] > 0

    assert found.inputs is not None
    (dataset,) = [given.dataset for given in found.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest) == ("demo", ("ab" * 32)[:36])
    assert json.loads(dataset.source) == {"uri": "/corpora/demo", "sha256": "ab" * 32}
    assert [file.path for file in client.list_artifacts(found.info.run_id, "notes")] == ["notes/note.txt"]
    assert found.info.artifact_uri is not None
    assert str(run.parent / "mlartifacts") in found.info.artifact_uri
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["note.txt", "runs"], "nothing in the working folder"

    # A store made anew gets the whole record.
    (run.parent / "mlflow.db").rename(tmp_path / "old.db")
    shutil.copy(empty_store, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    tracker = start(run, uri=other, resume_step=11)
    tracker.close()
    client = MlflowClient(other)
    experiment = client.get_experiment_by_name("speech")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert sorted(point.step for point in client.get_metric_history(found.info.run_id, "bits")) == list(range(1, 12))
