"""What an mlflow store missed arrives later, once: whatever the store did, and wherever the process was killed."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from audio_ct.locks import hold
from audio_ct.recipe import load_recipe
from audio_ct.record import EVENTS_FILE, METRICS_FILE, add_event
from audio_ct.training import sender
from audio_ct.training.mlflow_store import TRACKING_FILE
from audio_ct.training.replay import replay
from audio_ct.training.tracking import Tracker

pytestmark = pytest.mark.fault("tracking")

ROOT = Path(__file__).parents[2]
ABSENT_SERVER = "http://127.0.0.1:9"
NOTHING = "nothing was left to send"
# The bound that is promised: a line of metrics takes training a millisecond at most, whatever the store does.
SECONDS_PER_LINE = 0.001

SERVER = """
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""

# Trains once, then in as many children as there were calls that change the store: child N is killed right after call N,
# before it can note anything.
KILLED = """
import json, os, signal, shutil, sys
from pathlib import Path
from mlflow import MlflowClient
from audio_ct.training import sender
sys.path.insert(0, sys.argv[1])
from test_replay import train_in_words
sender.POLL_SECONDS = 0.05
sender.SYSTEM_METRICS_SECONDS = 1e9
calls, dies_at = [], None

def counted(name):
    method = getattr(MlflowClient, name)
    def call(*args, **kwargs):
        answer = method(*args, **kwargs)
        calls.append(name)
        if len(calls) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(MlflowClient, name, call)

def train(number):
    run = Path(sys.argv[2], str(number), "run")
    run.parent.mkdir()
    shutil.copy(sys.argv[3], run.parent / "mlflow.db")
    train_in_words(run, None, range(1, 5))

for name in "create_experiment create_run log_batch set_tag log_inputs log_artifact set_terminated".split():
    counted(name)
train(0)
names, calls, num_killed = calls, [], 0
for dies_at in range(1, len(names) + 1):
    if (child := os.fork()) == 0:
        train(dies_at)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    num_killed += os.WIFSIGNALED(status)
print(json.dumps([names, num_killed]))
"""


class Proxy(ThreadingHTTPServer):
    """Stands before a server, and behaves as servers do that fail: `mode` is pass, 500, hang, or lose the answer."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port, self.mode, self.num_requests = port, "pass", 0
        self.dies_after = sys.maxsize
        self.is_released = threading.Event()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side may have gone."""


class Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _forward(self) -> None:
        proxy = self.server
        proxy.num_requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if proxy.num_requests > proxy.dies_after:
            return
        if proxy.mode == "hang":
            proxy.is_released.wait()
            return
        if proxy.mode == "500":
            self.send_error(500)
            return
        connection = HTTPConnection("127.0.0.1", proxy.port, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if proxy.mode == "lose":
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture(scope="module")
def server_port(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server of mlflow; to start one takes seconds."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder)
    environment = os.environ | {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SERVER]
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=folder) as process,
    ):
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@pytest.fixture
def proxy(server_port: int) -> Iterator[Proxy]:
    proxy = Proxy(server_port)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield proxy
    proxy.is_released.set()
    proxy.shutdown()
    thread.join()
    proxy.server_close()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    monkeypatch.setattr(sender, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(sender, "MAX_RETRY_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)


def begin(run: Path, uri: str | None, *settings: str, resume_step: int | None = None) -> Tracker:
    """Describe a run as training does, in an experiment named after the folder that it lies in."""
    address = [] if uri is None else [f"tracking.uri={uri}"]
    experiment = f"tracking.experiment={run.parent.parent.name}-{run.parent.name}"
    recipe = load_recipe(ROOT / "recipes/demo/wavenet.yaml", [*address, experiment, *settings])
    tracker = Tracker(run, recipe.tracking, run_name=recipe.name, resume_step=resume_step)
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    tracker.log_parameters({"learning_rate": 3e-4, "num_layers": 10, "resume_step": resume_step})
    tracker.set_tags({"commit": "abc"})
    tracker.log_dataset("demo", "ab" * 32, "/corpora/demo")
    tracker.log_artifact(run / "recipe.yaml")
    return tracker


def go_on(tracker: Tracker, run: Path, steps: range) -> None:
    """Measure and make a sample at each step; at the last one validate."""
    (run / "samples").mkdir(exist_ok=True)
    for step in steps:
        tracker.log_metrics({"bits": step + 0.5, "missing": None}, step=step, tokens=10 * step)
        (run / f"samples/{step}.txt").write_text(f"step {step}")
        tracker.log_artifact(run / f"samples/{step}.txt", "samples")
    tracker.log_metrics({"validation_bits": 2.0}, step=steps[-1], tokens=10 * steps[-1])


def train_in_words(
    run: Path, uri: str | None, steps: range, *settings: str, resume_step: int | None = None, status: str = "FINISHED"
) -> None:
    tracker = begin(run, uri, *settings, resume_step=resume_step)
    go_on(tracker, run, steps)
    tracker.close(status)


def assert_holds_once(uri: str, run: Path, last_step: int, *, status: str = "FINISHED") -> Any:
    """The store has one run of the record, and in it everything once."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"{run.parent.parent.name}-{run.parent.name}")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    run_id = found.info.run_id
    assert (found.info.run_name, found.info.status) == ("demo-wavenet", status)
    steps = range(1, last_step + 1)
    for name, values in (("bits", [step + 0.5 for step in steps]), ("tokens", [10 * step for step in steps])):
        points = [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        assert sorted(points) == list(zip(steps, values, strict=True)), name
    assert (last_step, 2.0) in [
        (each.step, each.value) for each in client.get_metric_history(run_id, "validation_bits")
    ]
    assert found.data.params == {"learning_rate": "0.0003", "num_layers": "10", "resume_step": "None"}
    assert found.data.tags["commit"] == "abc"
    assert found.inputs is not None
    (dataset,) = [given.dataset for given in found.inputs.dataset_inputs]
    assert (dataset.name, json.loads(dataset.source)["sha256"]) == ("demo", "ab" * 32)
    files = [file.path for folder in (None, "samples") for file in client.list_artifacts(run_id, folder)]
    assert sorted(files) == ["recipe.yaml", "samples", *(f"samples/{step}.txt" for step in steps)]
    return found


@contextmanager
def disk_is_full_beyond(limit_bytes: int) -> Iterator[None]:
    """No file of this process can be written past a length."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def thread_of(tracker: Tracker) -> threading.Thread:
    assert tracker._sender is not None
    return tracker._sender._thread


def num_warnings(caplog: pytest.LogCaptureFixture) -> int:
    return len([entry for entry in caplog.records if entry.name == "audio_ct"])


def test_a_store_that_was_never_there_gets_it_all_later(
    tmp_path: Path,
    empty_store: Path,
    command: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, uri = tmp_path / "runs/one", f"sqlite:///{tmp_path / 'a/mlflow.db'}"
    (tmp_path / "a").mkdir()
    shutil.copy(empty_store, tmp_path / "a")
    before = time.time()
    train_in_words(run, ABSENT_SERVER, range(1, 6))
    assert num_warnings(caplog) == 1
    assert f"audio-ct track replay {run}" in caplog.text
    after = time.time()

    # Moved with its files, it is sent from there.
    moved = tmp_path / "runs/moved"
    run.rename(moved)
    capfd.readouterr()
    assert command("track", "replay", moved, "--uri", uri) == 0
    sent = capfd.readouterr().out
    found = assert_holds_once(uri, moved, 5)
    assert sent == (
        f"{moved}: sent metric lines: 6, descriptions: 3, files: 6, to {uri}; mlflow run {found.info.run_id} is "
        "FINISHED\n"
    )
    assert before - 1 < found.info.start_time / 1000 < found.info.end_time / 1000 < after + 1
    assert command("track", "replay", moved, "--uri", uri) == 0
    assert capfd.readouterr().out == f"{moved}: {NOTHING}, to {uri}; mlflow run {found.info.run_id} is FINISHED\n"

    # To another store everything goes anew; of the first one nothing is forgotten, even without the note.
    (tmp_path / "b").mkdir()
    shutil.copy(empty_store, tmp_path / "b")
    other = f"sqlite:///{tmp_path / 'b/mlflow.db'}"
    assert "metric lines: 6" in replay(moved, other)
    assert_holds_once(other, moved, 5)
    assert NOTHING in replay(moved, uri)
    (moved / TRACKING_FILE).write_text("{")
    assert "metric lines: 0, descriptions: 3, files: 6" in replay(moved, uri)
    assert_holds_once(uri, moved, 5)


@pytest.mark.parametrize("mode", ["500", "hang", "lose"])
def test_a_server_that_fails_costs_training_nothing_and_gets_it_all_later(
    tmp_path: Path,
    proxy: Proxy,
    mode: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[[str], None],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(sender, "CLOSING_SECONDS", 0.5)
    run, proxy.mode = tmp_path / "one", mode
    tracker = begin(run, proxy.uri)
    thread = thread_of(tracker)
    wait_until(lambda: proxy.num_requests)
    began = time.perf_counter()
    for step in range(1, 1001):
        tracker.log_metrics({"bits": step + 0.5}, step=step, tokens=10 * step)
    seconds = time.perf_counter() - began
    assert seconds < 1000 * SECONDS_PER_LINE
    measured(f"server {mode}: {1000 * seconds:.0f} microseconds a line of metrics")
    tracker.log_metrics({"validation_bits": 2.0}, step=1000, tokens=10_000)
    tracker.close()
    thread.join(30)
    assert num_warnings(caplog) == 1
    proxy.mode = "pass"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    assert "is FINISHED" in replay(run)
    assert NOTHING in replay(run)
    from mlflow import MlflowClient

    client = MlflowClient(proxy.uri)
    note = json.loads((run / TRACKING_FILE).read_text())[proxy.uri]
    points = client.get_metric_history(note["run_id"], "bits")
    assert sorted((point.step, point.value) for point in points) == [(step, step + 0.5) for step in range(1, 1001)]
    experiment = client.get_run(note["run_id"]).info.experiment_id
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.parametrize("num_requests", [2, 9])
def test_a_server_that_dies_in_the_middle_is_caught_up_with(
    tmp_path: Path, proxy: Proxy, num_requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    run, proxy.dies_after = tmp_path / "one", num_requests
    tracker = begin(run, proxy.uri)
    thread = thread_of(tracker)
    go_on(tracker, run, range(1, 6))
    wait_until(lambda: num_warnings(caplog))
    tracker.close("KILLED")
    thread.join(30)
    assert num_warnings(caplog) == 1
    # It is back; the run goes on from an earlier checkpoint, and meanwhile the server dies again.
    proxy.dies_after = proxy.num_requests + num_requests
    tracker = begin(run, proxy.uri, resume_step=3)
    go_on(tracker, run, range(4, 8))
    wait_until(lambda: num_warnings(caplog) == 2)
    tracker.close()
    proxy.dies_after = sys.maxsize
    assert "is FINISHED" in replay(run)
    assert NOTHING in replay(run)
    found = assert_holds_once(proxy.uri, run, 7)
    assert found.data.tags["resumed.resume_step"] == "3"


def test_a_failing_replay_is_one_line_and_goes_on_where_it_stopped(
    tmp_path: Path, proxy: Proxy, command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "one"
    train_in_words(run, ABSENT_SERVER, range(1, 6))
    for num_requests in (3, 6, 9):
        proxy.dies_after = proxy.num_requests + num_requests
        capfd.readouterr()
        assert command("track", "replay", run, tmp_path, "--uri", proxy.uri) == 2
        first, second = capfd.readouterr().err.splitlines()
        assert first.startswith(f"audio-ct: {run}: sending to {proxy.uri} failed (")
        assert second.startswith(f"audio-ct: run '{tmp_path}' holds no recipe.yaml and events.jsonl")
    proxy.dies_after = sys.maxsize
    replay(run, proxy.uri)
    assert NOTHING in replay(run, proxy.uri)
    assert_holds_once(proxy.uri, run, 5)


def test_a_store_on_a_full_disk_is_caught_up_with(
    tmp_path: Path, empty_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, uri = tmp_path / "one", f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copy(empty_store, tmp_path)
    tracker = begin(run, None)
    go_on(tracker, run, range(1, 3))
    wait_until(lambda: (run / TRACKING_FILE).exists())
    with disk_is_full_beyond(100_000):
        go_on(tracker, run, range(3, 6))
        wait_until(lambda: num_warnings(caplog))
        tracker.close()
    assert num_warnings(caplog) == 1
    assert "is FINISHED" in replay(run)
    assert NOTHING in replay(run)
    assert_holds_once(uri, run, 5)


def test_a_record_on_a_full_disk_is_one_warning_and_arrives_once_there_is_space(
    tmp_path: Path, empty_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, uri = tmp_path / "one", f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copy(empty_store, tmp_path)
    tracker = begin(run, ABSENT_SERVER)
    thread_of(tracker).join(0.1)
    caplog.clear()
    with disk_is_full_beyond((run / EVENTS_FILE).stat().st_size + 50):
        for _ in range(10):
            tracker.set_tags({"commit": "abc"})
    assert len([entry for entry in caplog.records if EVENTS_FILE in entry.getMessage()]) == 1
    go_on(tracker, run, range(1, 6))
    tracker.close()
    assert "descriptions: 13, files: 6" in replay(run, uri)
    assert_holds_once(uri, run, 5)


def test_a_kill_between_sending_and_noting_doubles_nothing(
    tmp_path: Path, empty_store: Path, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    command = [sys.executable, "-c", KILLED, Path(__file__).parent, tmp_path, empty_store]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    names, num_killed = json.loads(done.stdout.splitlines()[-1])
    # Where the thread reads later there are fewer batches, and so calls.
    assert num_killed >= len(names) - 2
    # In the short form once after each kind of call, and after the last that sent metrics.
    last_metrics = len(names) - names[::-1].index("log_batch")
    numbers = [
        number
        for number, name in enumerate(names, start=1)
        if times(name not in names[: number - 1] or number == last_metrics, True)
    ]
    for number in numbers:
        run = tmp_path / str(number) / "run"
        uri = f"sqlite:///{run.parent / 'mlflow.db'}"
        if number % 2 or number == last_metrics:
            # Metrics 3 and 4 may be there; they are cut from the record and measured again.
            train_in_words(run, None, range(3, 6), resume_step=2)
            status, last_step = "FINISHED", 5
        else:
            status, last_step = "FINISHED" if "ended" in (run / EVENTS_FILE).read_text() else "KILLED", 4
        replay(run)
        assert NOTHING in replay(run)
        assert_holds_once(uri, run, last_step, status=status)
    measured(f"SIGKILL between sending and noting, after {len(numbers)} of {len(names)} calls: nothing doubled")


def test_a_run_that_was_killed_is_ended_so_and_torn_lines_are_left_out(tmp_path: Path, empty_store: Path) -> None:
    run, uri = tmp_path / "one", f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copy(empty_store, tmp_path)
    train_in_words(run, ABSENT_SERVER, range(1, 6))
    events = (run / EVENTS_FILE).read_bytes().splitlines(keepends=True)[:-1]
    (run / EVENTS_FILE).write_bytes(b"".join([*events[:3], b"\0\0\0\n", *events[3:], b'{"event": "ended", "sta']))
    lines = (run / METRICS_FILE).read_bytes().splitlines(keepends=True)
    (run / METRICS_FILE).write_bytes(b"".join([lines[0], b"[]\n", *lines[1:], b'{"step": 6, "tok']))
    add_event(run, "evaluation", checkpoint_step=4, metrics={"test_split_bits_per_sample": 1.5})
    assert "metric lines: 6, descriptions: 4, files: 6" in replay(run, uri)
    found = assert_holds_once(uri, run, 5, status="KILLED")
    assert found.data.metrics["test_split_bits_per_sample"] == 1.5
    assert found.info.end_time == round(1000 * json.loads(lines[-1])["time"])
    # It is resumed after all.
    train_in_words(run, uri, range(5, 7), resume_step=4)
    assert NOTHING in replay(run)
    assert_holds_once(uri, run, 6)


def test_files_that_are_gone_are_said_and_hold_up_nothing(
    tmp_path: Path, empty_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, uri = tmp_path / "one", f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copy(empty_store, tmp_path)
    train_in_words(run, ABSENT_SERVER, range(1, 6))
    caplog.clear()
    (run / "samples/2.txt").unlink()
    assert "files: 5" in replay(run, uri)
    assert [entry.getMessage() for entry in caplog.records if entry.name == "audio_ct"] == [
        f"{run}: {run / 'samples/2.txt'} is gone"
    ]
    assert NOTHING in replay(run, uri)


def test_what_cannot_be_replayed_is_refused_in_a_line(
    tmp_path: Path, command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "one"
    train_in_words(run, None, range(1, 3), "tracking.enabled=false")

    def refusal(*arguments: object) -> str:
        capfd.readouterr()
        assert command("track", "replay", *arguments) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    assert refusal(run) == f"audio-ct: {run}: tracking.enabled=False in its recipe.yaml; name a store with --uri."
    assert "must hold no password" in refusal(run, "--uri", "http://ann:s3cret@127.0.0.1:9")
    assert "holds no recipe.yaml" in refusal(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with hold(run, name="run"):
        assert f"run '{run}' is being trained by process {os.getpid()}" in refusal(run, "--uri", ABSENT_SERVER)
    assert f"{run}: sending to {ABSENT_SERVER} failed" in refusal(run, "--uri", ABSENT_SERVER)


def test_the_samples_of_a_real_run_arrive_by_replay(
    tmp_path: Path, store_path: Path, empty_store: Path, command: Callable[..., int]
) -> None:
    run, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copy(empty_store, tmp_path)
    changes = [
        *(f"corpus.store={store_path}", f"tracking.uri={ABSENT_SERVER}", "model.layers_per_stack=4"),
        *("model.residual_channels=8", "model.skip_channels=8", "training.window_length=256"),
        *("training.batch_size=2", "training.max_tokens=2048", "training.log_every_windows=1"),
        *("training.sample_every_windows=2", "sampling.seconds=0.01", "evaluation.max_validation_tokens=1000"),
    ]
    settings = [part for change in changes for part in ("--set", change)]
    assert command("train", ROOT / "recipes/demo/wavenet.yaml", "--run-dir", run, *settings) == 0
    assert command("track", "replay", run, "--uri", uri) == 0
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run_id = json.loads((run / TRACKING_FILE).read_text())[uri]["run_id"]
    made = sorted(f"samples/{path.name}" for path in (run / "samples").iterdir() if path.suffix in (".wav", ".png"))
    assert len(made) == 4
    assert [file.path for file in client.list_artifacts(run_id, "samples")] == made
    assert len(client.get_metric_history(run_id, "training_bits_per_sample")) == 4
