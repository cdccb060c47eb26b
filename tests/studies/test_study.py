"""A study reads differences as whole recipes, trains nothing twice, outlives a failing run, and says how sure it is."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest

from audio_ct import checkpoint, cli
from audio_ct.errors import AudioCTError, InputError, MissingError
from audio_ct.locks import hold
from audio_ct.recipe import load_recipe
from audio_ct.studies.parent_run import open_parent_run
from audio_ct.studies.plan import Run, Study, StudyOptions, natural_order, read_study
from audio_ct.studies.runs import Commands
from audio_ct.studies.seeds import Mean, difference_over_seeds, mean_over_seeds
from audio_ct.studies.study import run_study

BASE = """
name: base
corpus: {store: STORE}
model:
  kind: compressive_transformer
  num_layers: 1
  d_model: 16
  num_heads: 2
  d_ff: 16
  segment_length: 64
  memory_length: 32
  compressed_memory_length: 16
optimizer: {learning_rate: 1e-2}
training: {batch_size: 2, window_length: 64, max_tokens: 512, precision: float32, log_every_windows: 2}
evaluation: {max_validation_tokens: 1, window_length: 4096}
tracking: {enabled: false}
"""
WAVENET = "model: {kind: wavenet, num_stacks: 1, layers_per_stack: 3, residual_channels: 8, skip_channels: 8}"
SHORT = StudyOptions(max_tokens=1)


@pytest.fixture
def folder(store_path: Path, tmp_path: Path) -> Path:
    """A study of three variants."""
    folder = tmp_path / "rates"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE.replace("STORE", json.dumps(str(store_path))))
    (folder / "rate-2.yaml").write_text("# Half as many.\nmodel: {compression_rate: 2}\n")
    (folder / "rate-10.yaml").write_text("# nothing\n")
    (folder / "wavenet.yaml").write_text(WAVENET + "\ntraining: {max_tokens: 256}\n")
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let commands run in this process, where torch is imported already, and note their first words and runs."""
    noted: list[str] = []

    def call(self: Commands, arguments: list[str], run: Run, *, output: IO[bytes] | None = None) -> None:
        noted.append(" ".join([arguments[0], run.name, *(["--resume"] if "--resume" in arguments else [])]))
        monkeypatch.setattr(sys, "argv", ["audio-ct", *arguments])
        printed, refused = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(refused):
                cli.main()
        except SystemExit as exit_:
            if exit_.code:
                raise AudioCTError(refused.getvalue()) from exit_
        if output is not None:
            output.write(printed.getvalue().encode())

    monkeypatch.setattr(Commands, "__call__", call)
    return noted


def read(folder: Path, **options: Any) -> Study:
    return read_study(folder, folder.parent / "out", StudyOptions(**options))


def quietly(folder: Path, **options: Any) -> tuple[bool, dict[str, Any], str]:
    """Run a study; return its success, study.json and the table."""
    out = folder.parent / "out"
    is_complete = run_study(folder, out, StudyOptions(**({"max_tokens": 1} | options)), report=lambda line: None)
    return is_complete, json.loads((out / "study.json").read_text()), (out / "table.md").read_text()


def test_names_are_in_natural_order() -> None:
    names = ["rate-10", "rate-2", "base", "rate", "10", "9"]
    assert sorted(names, key=natural_order) == ["9", "10", "base", "rate", "rate-2", "rate-10"]


def test_differences_are_merged_over_the_base(folder: Path) -> None:
    study = read(folder, seeds=(0, 5), settings=("optimizer.learning_rate=3e-3",))
    assert study.baseline.name == "rate-10", "the one that is the base itself"
    first, base, wavenet = study.variants
    assert [variant.name for variant in study.variants] == ["rate-2", "rate-10", "wavenet"]
    assert [variant.description for variant in study.variants] == ["Half as many", "nothing", ""]
    assert base.recipe == load_recipe(folder / "base.yaml", ["optimizer.learning_rate=3e-3"])
    assert first.recipe == load_recipe(
        folder / "base.yaml", ["optimizer.learning_rate=3e-3", "model.compression_rate=2"]
    )
    assert first.differences(base) == {"model.compression_rate": 2}
    assert wavenet.recipe.model.kind == "wavenet"
    assert wavenet.differences(base)["training.max_tokens"] == 256
    assert [run.name for run in study.runs][:3] == ["rate-2/seed-0", "rate-2/seed-5", "rate-10/seed-0"]
    run = study.runs[1]
    assert (run.recipe.name, run.recipe.seed) == ("rates/rate-2/seed-5", 5)
    assert run.folder == folder.parent / "out/rate-2/seed-5"
    assert run.recipe.tracking.uri == f"sqlite:///{folder.parent / 'mlflow.db'}", "one place for all runs"
    assert {run.variant for run in read(folder, only=("wavenet",)).selected} == {"wavenet"}


def test_the_base_is_run_beside_variants_that_all_differ_from_it(folder: Path) -> None:
    (folder / "rate-10.yaml").unlink()
    (folder / "wavenet.yaml").unlink()
    study = read(folder)
    assert [variant.name for variant in study.variants] == ["base", "rate-2"]
    assert study.baseline.name == "base"
    assert study.variants[1].differences(study.baseline) == {"model.compression_rate": 2}


def test_a_shipped_study_is_found_by_name(tmp_path: Path) -> None:
    study = read_study(Path("studies/rates"), tmp_path, StudyOptions())
    assert "rate-2" in {variant.name for variant in study.variants}
    with pytest.raises(MissingError, match=r"did you mean studies/rates\?"):
        read_study(Path("recipes/studies/rate"), tmp_path, StudyOptions())


def test_a_base_alone_and_whole_recipes_are_studies_too(folder: Path) -> None:
    for path in (folder / "rate-2.yaml", folder / "rate-10.yaml", folder / "wavenet.yaml"):
        path.unlink()
    assert [variant.name for variant in read(folder).variants] == ["base"]
    text = (folder / "base.yaml").read_text()
    (folder / "base.yaml").rename(folder / "a.yaml")
    (folder / "b.yaml").write_text(text.replace("memory_length: 32", "memory_length: 0"))
    whole = read(folder)
    assert [each.differences(whole.baseline) for each in whole.variants] == [{}, {"model.memory_length": 0}]


def test_all_faults_are_said_at_once_and_nothing_is_written(folder: Path) -> None:
    (folder / "rate-2.yaml").write_text("model: {compresion_rate: 2}\ntraining: {batch_size: 0}\n")
    (folder / "named.yaml").write_text("seed: 3\n")
    (folder / "other.yaml").write_text("model: {kind: wavnet}\n")
    (folder / "a b.yaml").write_text("")
    with pytest.raises(InputError) as error:
        run_study(folder, folder.parent / "out", SHORT)
    lines = str(error.value).splitlines()
    for part in ("did you mean model.compression_rate", "training.batch_size=0", "seed=3", "wavnet", "a b.yaml"):
        assert sum(part in line for line in lines) == 1, part
    assert len(lines) == 5
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    ("difference", "options", "message"),
    [
        ("corpus: {store: elsewhere}", {}, "one store"),
        ("tracking: {enabled: true}", {}, "one place"),
        ("", {"baseline": "rate-3"}, "did you mean rate-2"),
        ("", {"only": ("wavnet",)}, "did you mean wavenet"),
        ("", {"seeds": (1, 1)}, "stands twice"),
    ],
)
def test_what_makes_no_study_is_refused(folder: Path, difference: str, options: Any, message: str) -> None:
    (folder / "rate-2.yaml").write_text(difference)
    with pytest.raises(InputError, match=message):
        read(folder, **options)


def test_an_empty_study_and_a_wrong_split_are_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(MissingError):
            read(missing)
    with pytest.raises(AudioCTError, match="dev"):
        quietly(folder, split="dev")
    assert not (folder.parent / "out").exists()


def test_the_t_interval_on_a_worked_example() -> None:
    assert mean_over_seeds([]) is None
    one = mean_over_seeds([2.5])
    assert one == Mean(2.5, None, 1)
    assert f"{one:+.2f}" == "+2.50"
    three = mean_over_seeds([1.0, 2.0, 3.0])
    assert three is not None
    # 4.303 is the 97.5th percentile of t with 2 degrees of freedom, in every table of it.
    assert (three.value, three.half_width) == (2, pytest.approx(4.30265 / 3**0.5, abs=1e-4))
    assert f"{three:+.2f}" == "+2.00 ± 2.48"
    # A seed's effect on both cancels out; a seed that one of them lacks does not count.
    difference = difference_over_seeds({0: 1.5, 1: 2.5, 2: 3.5, 3: 9.0}, {2: 3.0, 1: 2.0, 0: 1.0})
    assert difference == Mean(0.5, 0, 3)


def test_a_study_trains_nothing_twice(folder: Path, calls: list[str]) -> None:
    is_complete, summary, table = quietly(folder, seeds=(0, 1), only=("rate-2", "wavenet"))
    assert is_complete
    expected = [
        f"{what} {run}/seed-{n}" for run in ("rate-2", "wavenet") for n in (0, 1) for what in ("train", "evaluate")
    ]
    assert calls == expected
    first, left_out, wavenet = summary["variants"]
    bits = [run["bits_per_sample"] for run in first["runs"]]
    assert first["bits_per_sample"] == pytest.approx(sum(bits) / 2)
    assert first["half_width"] == pytest.approx(12.7062 * abs(bits[0] - bits[1]) / 2, rel=1e-4)
    paired = [b["bits_per_sample"] - a for a, b in zip(bits, wavenet["runs"], strict=True)]
    assert wavenet["difference"]["value"] == pytest.approx(sum(paired) / 2)
    assert first["difference"] is None
    assert [run["state"] for run in left_out["runs"]] == ["waiting", "waiting"]
    run = first["runs"][0]
    assert "attention_reconstruction" in run["final_metrics"]
    assert run["step"] == 4
    assert run["parameters"] == first["parameters"]
    assert run["validation_bits_per_sample"] > 0
    assert run["evaluation"]["split"] == "test"
    assert first["curve"][0]["tokens"] == 512
    assert "Half as many" in table
    assert "**differs: training.max_tokens=256**" in table
    assert "rate-10, seed 1: waiting" in table
    out = folder.parent / "out"
    assert all((out / name).stat().st_size > 10_000 for name in ("figure.png", "curves.png"))

    calls.clear()
    is_complete, again, _ = quietly(folder, seeds=(0, 1), only=("rate-2", "wavenet"))
    assert is_complete
    assert (calls, again["variants"]) == ([], summary["variants"])
    # Another checkpoint, other settings: scored again, not trained again.
    (out / "rate-2/seed-0/evaluation.json").write_text("{}")
    quietly(folder, seeds=(0, 1), only=("rate-2",))
    assert calls == ["evaluate rate-2/seed-0"]
    quietly(folder, seeds=(0,), only=("wavenet",), cold_start_samples=0)
    assert calls[1:] == ["evaluate wavenet/seed-0"]
    # Of another budget, longer or shorter, or of another recipe: refused, before anything runs.
    calls.clear()
    for setting, message in (
        ("training.max_tokens=1024", "training.max_tokens=1024 was 512 in"),
        ("training.max_tokens=256", "training.max_tokens=256 was 512 in"),
        ("evaluation.max_validation_tokens=7", "evaluation.max_validation_tokens=7 was"),
        ("optimizer.learning_rate=0.5", "was 0.01 in"),
    ):
        with pytest.raises(InputError, match=message) as error:
            quietly(folder, only=("rate-2",), settings=(setting,))
        assert "rate-2/seed-0: " in str(error.value)
    assert calls == []


def test_a_run_that_fails_does_not_end_the_study(
    folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "out"
    # In the way of rate-2's first run.
    (out / "rate-2").mkdir(parents=True)
    (out / "rate-2/seed-0").write_text("")
    monkeypatch.setattr(sys, "argv", ["audio-ct", "study", str(folder), "--out", str(out), "--max-tokens", "1"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert "rate-2/seed-0: failed: " in capsys.readouterr().out
    assert "evaluate wavenet/seed-0" in calls
    table = (out / "table.md").read_text()
    assert "- rate-2, seed 0: failed: audio-ct: " in table
    assert "cannot be made or written" in table
    (out / "rate-2/seed-0").unlink()
    calls.clear()
    assert quietly(folder)[0]
    assert calls == ["train rate-2/seed-0", "evaluate rate-2/seed-0"]


def test_runs_are_nested_in_mlflow_under_one_parent(
    folder: Path, empty_store: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    shutil.copy(empty_store, folder.parent)
    out = folder.parent / "out"
    settings = ("tracking.enabled=true", "tracking.experiment=speech", "training.checkpoint_every_windows=2")
    _, summary, _ = quietly(folder, only=("rate-2",), settings=settings)
    kept = json.loads((out / "tracking.json").read_text())
    shutil.rmtree(checkpoint.find(out / "rate-2/seed-0"))
    quietly(folder, only=("rate-2",), settings=settings)
    assert json.loads((out / "tracking.json").read_text()) == kept
    assert "train rate-2/seed-0 --resume" in calls
    assert [entry for entry in caplog.records if "tracking" in entry.getMessage()] == []

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("speech")
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert found.keys() == {"rates", "rates/rate-2/seed-0"}
    parent = found["rates"]
    (note,) = kept.values()
    assert parent.info.run_id == note["run_id"]
    assert found["rates/rate-2/seed-0"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert "- **rate-2**: " in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["mlflow.source.name"] == "audio-ct study"
    assert "parameters, to learn" in found["rates/rate-2/seed-0"].data.tags["mlflow.note.content"]
    history = client.get_metric_history(parent.info.run_id, "test_bits_per_sample/rate-2")
    assert history[0].value == summary["variants"][0]["bits_per_sample"]
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        *("study.json", "table.md", "figure.png", "curves.png")
    }


@pytest.mark.fault("tracking")
def test_a_server_that_is_absent_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = "http://user:secret@127.0.0.1:9"
    assert open_parent_run(tmp_path, name="rates", experiment="speech", uri=uri, tags={"commit": "abc"}) is None
    (message,) = [entry.getMessage() for entry in caplog.records if entry.name == "audio_ct"]
    assert "127.0.0.1:9" in message
    assert "secret" not in message


@pytest.mark.fault("signals")
def test_a_signal_stops_real_runs_with_checkpoints_and_the_study_goes_on_from_there(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    out, reached = folder.parent / "out", (*SHORT.settings, "training.max_tokens=12800")
    log = out / "rate-2/seed-0.log"

    def interrupt() -> None:
        end = time.monotonic() + 60
        while not (log.is_file() and b"step 6/" in log.read_bytes()) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        quietly(folder, only=("rate-2", "wavenet"), settings=reached)
    assert signal.getsignal(signal.SIGTERM) is handler
    step = checkpoint.read_manifest(checkpoint.find(out / "rate-2/seed-0")).step
    assert step >= 6
    table = (out / "table.md").read_text()
    assert "rate-2, seed 0: stopped" in table
    assert "wavenet, seed 0: stopped" in table
    assert not (out / "wavenet").exists(), "nothing is begun after a signal"

    assert step < 100
    calls = request.getfixturevalue("calls")
    is_complete, summary, _ = quietly(folder, only=("rate-2",), settings=reached)
    assert is_complete
    assert summary["variants"][0]["runs"][0]["step"] == 100
    assert calls == ["train rate-2/seed-0 --resume", "evaluate rate-2/seed-0"]


@pytest.mark.fault("two at once")
def test_a_folder_is_worked_on_by_one_study_at_a_time(folder: Path, calls: list[str]) -> None:
    out = folder.parent / "out"
    with hold(out, name="--out"), pytest.raises(InputError, match=f"is in use by process {os.getpid()} on "):
        quietly(folder)
    assert calls == []
    assert not out.exists()
