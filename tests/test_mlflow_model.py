"""A checkpoint becomes a model of mlflow that speaks as `audio-ct sample` does; its run gets what is measured later."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audio_ct.locks import hold
from audio_ct.record import EVENTS_FILE

ROOT = Path(__file__).parent.parent
MODEL = [
    *("model.num_stacks=1", "model.layers_per_stack=4", "model.residual_channels=8", "model.skip_channels=8"),
    *("model.linear_prediction=null", "training.batch_size=2", "training.window_length=256"),
    *("training.max_tokens=1024", "evaluation.max_validation_tokens=1000", "training.sample_every_windows=0"),
]
ABSENT_SERVER = "http://127.0.0.1:9"
Command = Callable[..., int]

# In a process that has not imported this checkout.
SPEAK = """
import sys, mlflow, soundfile
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
[made] = model.predict({"seconds": 0.05, "temperature": 0.9, "top_p": 0.95, "seed": 7})
soundfile.write(sys.argv[3], made["waveform"], made["sample_rate_hz"])
import audio_ct
print(audio_ct.__file__)
"""


@pytest.fixture(scope="module", autouse=True)
def _mlflow_pyfunc() -> None:
    """Imported once; meanwhile it warns of classes of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc  # noqa: F401


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)


def train(folder: Path, store_path: Path, command: Command, *settings: str) -> Path:
    """A WaveNet after two windows."""
    given = [argument for one in (*MODEL, f"corpus.store={store_path}", *settings) for argument in ("--set", one)]
    assert command("train", ROOT / "recipes/demo/wavenet.yaml", "--run-dir", folder, *given) == 0
    return folder


@pytest.fixture(scope="module")
def trained(
    store_path: Path, empty_store: Path, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run that mlflow follows, and its store."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copy(empty_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        return train(folder / "net", store_path, command), f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def untracked(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """The run with its tracking off, and nothing of mlflow beside it."""
    folder = tmp_path / "untracked"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("tracking.json"))
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("enabled: true", "enabled: false"))
    return folder


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / EVENTS_FILE).read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def only_run(uri: str) -> Any:
    from mlflow import MlflowClient

    [experiment] = [one for one in MlflowClient(uri).search_experiments() if one.name == "audio-ct"]
    [found] = MlflowClient(uri).search_runs([experiment.experiment_id])
    return found


def test_mlflow_loads_it_and_it_speaks_as_sample_does(
    trained: tuple[Path, str], command: Command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    (run, uri), client = trained, MlflowClient(trained[1])
    assert command("track", "model", run) == 0
    assert "models:/m-" in capfd.readouterr().out
    for _ in range(2):
        assert command("track", "model", run / "checkpoints/step-00000002", "--register", "my voice") == 0
        assert "registered: my voice, version 1\n" in capfd.readouterr().out
    # Twice logged is once there, of its run, with the run's own figures.
    followed = only_run(uri)
    [logged] = client.search_logged_models([followed.info.experiment_id])
    [version] = client.search_model_versions("name = 'my voice'")
    assert (logged.status, logged.source_run_id, version.run_id) == ("READY", *[followed.info.run_id] * 2)
    assert [output.model_id for output in followed.outputs.model_outputs] == [logged.model_id]
    assert logged.params["step"] == "2"
    [bits] = [metric for metric in logged.metrics if metric.key == "validation_bits_per_sample"]
    assert bits.value == followed.data.metrics["validation_bits_per_sample"]
    assert len(client.get_metric_history(followed.info.run_id, "validation_bits_per_sample")) == 1
    assert followed.info.status == "FINISHED"

    arguments = [uri, "models:/my voice/1", str(tmp_path / "theirs.wav")]
    speaking = subprocess.run(
        [sys.executable, "-c", SPEAK, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    # Its own code, not that which is installed.
    assert Path(speaking.stdout.splitlines()[-1]).is_relative_to(run.parent / "mlartifacts")
    options = ["--seconds", 0.05, "--temperature", 0.9, "--top-p", 0.95, "--seed", 7]
    assert command("sample", run, "--out", tmp_path / "ours", *options) == 0
    [ours] = (tmp_path / "ours").glob("*.wav")
    assert np.array_equal(soundfile.read(tmp_path / "theirs.wav")[0], soundfile.read(ours)[0])


def test_its_signature_says_what_it_takes(trained: tuple[Path, str], command: Command) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    run, uri = trained
    assert command("track", "model", run) == 0
    client = mlflow.MlflowClient(uri)
    [logged] = client.search_logged_models([only_run(uri).info.experiment_id])
    model = mlflow.pyfunc.load_model(logged.artifact_location)
    first, second = model.predict([{"seconds": 0.01, "seed": 0}, {"seconds": 0.02, "seed": 1}])
    [third] = model.predict({"seconds": 0.01, "top_p": None})
    assert (len(first["waveform"]), len(second["waveform"]), first["sample_rate_hz"]) == (240, 480, 24_000)
    assert first["waveform"].dtype == np.float32
    assert np.array_equal(first["waveform"], third["waveform"])
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict({"seed": 1})
    with pytest.raises(ValueError, match="temperature=-1"):
        model.predict({"seconds": 0.01, "temperature": -1.0})
    assert model.metadata.get_input_schema().input_names() == ["seconds", "temperature", "top_p", "seed"]
    requirements = (Path(logged.artifact_location) / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "+" not in requirements


def test_one_that_was_half_sent_is_sent_anew(
    trained: tuple[Path, str], command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    run, uri = trained
    assert command("track", "model", run) == 0
    client = mlflow.MlflowClient(uri)
    experiment = only_run(uri).info.experiment_id
    [before] = client.search_logged_models([experiment])
    client.delete_logged_model(before.model_id)

    def breaks(*args: object) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_model_artifacts", breaks)
        assert command("track", "model", run) == 2
    assert "sending the model to sqlite" in capfd.readouterr().err
    assert command("track", "model", run) == 0
    assert [model.status for model in client.search_logged_models([experiment])] == ["READY"]


def test_what_cannot_be_a_model_is_refused_in_a_line(
    trained: tuple[Path, str], untracked: Path, command: Command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, _ = trained
    absent = f"sqlite:///{tmp_path / 'absent.db'}"
    cases: list[tuple[list[object], str]] = [
        ([tmp_path], "no whole checkpoint there"),
        (["syllables"], "name a folder that train --run-dir made"),
        ([untracked], "tracking.enabled=False"),
        ([untracked, "--uri", absent], f"{absent} has no mlflow run of it; audio-ct track replay makes one"),
        ([run, "--uri", ABSENT_SERVER], f"sending the model to {ABSENT_SERVER} failed"),
        ([run, "--uri", "https://me:secret@there"], "MLFLOW_TRACKING_PASSWORD"),
        ([run, "--register", "a/b"], "register='a/b' must be a name"),
    ]
    for arguments, needed in cases:
        capfd.readouterr()
        assert command("track", "model", *arguments) == 2
        [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("audio-ct")]
        assert needed in line
    assert not (tmp_path / "absent.db").exists()


def test_what_evaluate_finds_stays_with_the_run(
    trained: tuple[Path, str], command: Command, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run, uri = trained
    caplog.set_level("INFO", "audio_ct")
    for _ in range(2):
        capsys.readouterr()
        assert command("evaluate", run, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    [event] = events(run, "evaluation")
    assert event["metrics"] == {
        "test_split_bits_per_sample": figures["bits_per_sample"],
        "test_split_interval_low": figures["interval"][0],
        "test_split_interval_high": figures["interval"][1],
        "test_split_tokens": figures["tokens"],
    }
    followed = only_run(uri)
    assert event["metrics"].items() <= followed.data.metrics.items()
    assert followed.info.status == "FINISHED"
    assert f"test bits of step-00000002: in {run / EVENTS_FILE} and in mlflow run {followed.info.run_id}" in caplog.text

    # Not as it was trained: another figure, which is no run's.
    assert command("evaluate", run, "--at-bits", 4) == 0
    # Of one recording: no interval, and none that is left of other recordings.
    assert command("evaluate", run, "--max-tokens", 1) == 0
    assert [one["metrics"]["test_split_interval_low"] for one in events(run, "evaluation")][1:] == [None]
    assert np.isnan(only_run(uri).data.metrics["test_split_interval_low"])
    # What was measured last is what stands.
    assert command("evaluate", run) == 0
    assert event["metrics"].items() <= only_run(uri).data.metrics.items()
    assert command("track", "replay", run) == 0
    assert "nothing was left to send" in capsys.readouterr().out


@pytest.mark.xdist_group("pitch")
def test_what_compare_finds_stays_with_each_run(
    trained: tuple[Path, str], untracked: Path, command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    run, uri = trained
    caplog.set_level("INFO", "audio_ct")
    options = ["--num", 1, "--seconds", 0.05, "--out", tmp_path / "side by side"]
    assert command("compare", run, run / "checkpoints/step-00000002", untracked, *options) == 0
    client, run_id = MlflowClient(uri), only_run(uri).info.run_id
    [page] = client.list_artifacts(run_id, "comparisons/side by side")
    assert page.path.endswith("index.html")
    assert "test_split_bits_per_sample" in only_run(uri).data.metrics
    assert events(untracked, "page")[0]["path"] == str(tmp_path / "side by side/index.html")
    said = [entry.message for entry in caplog.records if "side by side/index.html: in" in entry.message]
    assert len(said) == 2
    assert "mlflow run" in said[0]
    assert said[1].endswith(str(untracked / EVENTS_FILE))


def test_a_store_that_fails_is_a_warning_and_replay_makes_up_for_it(
    trained: tuple[Path, str], command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    run, uri = trained
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    recipe = moved / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("uri: null", f"uri: {ABSENT_SERVER}"))
    assert command("evaluate", moved, "--split", "validation", "--max-tokens", 1) == 0
    assert f"made up for by: audio-ct track replay {moved}" in caplog.text
    assert "validation_split_tokens" not in only_run(uri).data.metrics
    # While somebody trains there, it is theirs to send.
    with hold(moved, name="moved"):
        assert command("evaluate", moved, "--split", "validation", "--max-tokens", 1) == 0
    assert command("track", "replay", moved, "--uri", uri) == 0
    assert only_run(uri).data.metrics["validation_split_tokens"] > 0
    # What training measured on the same split stays apart.
    assert len(MlflowClient(uri).get_metric_history(only_run(uri).info.run_id, "validation_bits_per_sample")) == 1
