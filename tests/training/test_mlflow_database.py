"""mlflow's database is whole or absent, made by one process at a time, and a broken one is set aside, never deleted."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from audio_ct.recipe import TrackingRecipe
from audio_ct.training import sender
from audio_ct.training.mlflow_database import database_path, ensure_database
from audio_ct.training.tracking import Tracker

PROGRAM = """
import sys
from pathlib import Path
import mlflow
from audio_ct.training.mlflow_database import ensure_database
print("go", flush=True)
ensure_database(Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _quiet_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def database(tmp_path: Path, empty_store: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path))


def execute(path: Path, *commands: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for command in commands:
            connection.execute(command)


def num_experiments(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM experiments").fetchone()[0])


def asides(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.broken-*"))


def wait_until_made_in_part(folder: Path) -> None:
    end = time.monotonic() + 120
    while not any(path.stat().st_size > 50_000 for path in folder.glob(".mlflow.db.making-*/mlflow.db")):
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.fault("tracking")
def test_a_kill_while_it_is_made_leaves_nothing_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "runs/mlflow.db"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, path], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until_made_in_part(path.parent)
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    ensure_database(path)
    assert num_experiments(path) == 1
    assert sorted(each.name for each in path.parent.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


@pytest.mark.fault("two at once")
def test_two_runs_that_start_together_are_both_tracked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "CLOSING_SECONDS", 120)
    settings = TrackingRecipe(experiment="speech")
    trackers = [Tracker(tmp_path / name, settings, run_name=name) for name in ("one", "two")]
    for tracker in trackers:
        tracker.log_metrics({"bits": 1.0}, step=1, tokens=1)
    for tracker in trackers:
        tracker.close()
    assert [entry.getMessage() for entry in caplog.records if entry.name == "audio_ct"] == []

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("speech")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {(run.info.run_name, run.info.status, run.data.metrics["bits"]) for run in runs} == {
        ("one", "FINISHED", 1.0),
        ("two", "FINISHED", 1.0),
    }


@pytest.mark.fault("tracking")
def test_a_broken_one_is_set_aside_and_said(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    # What a kill leaves between mlflow's first step, which adds the column "step", and its note of it.
    execute(database, "DELETE FROM experiments", "DROP TABLE webhooks", "DELETE FROM alembic_version")
    ensure_database(database)
    (message,) = [entry.getMessage() for entry in caplog.records if entry.name == "audio_ct"]
    assert message == (
        f"{database}: broken (duplicate column name: step); set aside as mlflow.db.broken-1, a new one is made"
    )
    assert num_experiments(database) == 1
    (aside,) = asides(database)
    assert num_experiments(aside) == 0
    ensure_database(database)
    assert asides(database) == [aside]

    # Pages in the middle overwritten, and an earlier one was set aside.
    before = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)
    caplog.clear()
    ensure_database(database)
    assert "malformed" in caplog.text
    assert [path.name for path in asides(database)] == ["mlflow.db.broken-1", "mlflow.db.broken-2"]
    assert asides(database)[1].stat().st_size == before
    assert num_experiments(database) == 1


def test_what_is_whole_or_somebody_elses_stays(database: Path, tmp_path: Path) -> None:
    content = database.read_bytes()
    ensure_database(database)
    assert database.read_bytes() == content

    (tmp_path / "thesis.txt").write_text("all of it, and quite long" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        ensure_database(tmp_path / "thesis.txt")
    other = tmp_path / "other.db"
    execute(other, "CREATE TABLE metrics (key TEXT, step INT)", "CREATE TABLE runs (run_uuid TEXT)")
    with pytest.raises(Exception, match=r"."):
        ensure_database(other)
    assert asides(database) == []
    assert other.exists()


def test_an_empty_file_is_made_a_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    ensure_database(tmp_path / "mlflow.db")
    assert num_experiments(tmp_path / "mlflow.db") == 1
    assert asides(tmp_path / "mlflow.db") == []


def test_addresses_of_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert database_path("sqlite:///runs/a.db?timeout=3") == tmp_path / "runs/a.db"
    assert database_path(f"sqlite:///{tmp_path}/b.db") == tmp_path / "b.db"
    for other in ("sqlite://", "sqlite:///:memory:", "http://127.0.0.1:5000", "postgresql://host/mlflow", "runs"):
        assert database_path(other) is None
