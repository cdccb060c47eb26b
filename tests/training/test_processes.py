"""Several processes train as one does: torchrun, gloo, and the real command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from audio_ct import checkpoint
from audio_ct.errors import InputError
from audio_ct.models.stage import flatten
from audio_ct.record import read_record
from audio_ct.training.processes import Processes
from tests.training.test_loop import COMPRESSIVE

# Of two windows each.
UPDATES = 50
STEPS = 2 * UPDATES
ENDLESS = ("--set", "training.max_tokens=1000000000", "--set", "training.evaluate_every_windows=10000000")
RECIPE = """
name: tiny
corpus: {{store: {store}}}
model: {model}
optimizer: {{learning_rate: 1e-3, warmup_steps: 3, weight_decay: 0.01}}
training:
  batch_size: 4
  window_length: 32
  max_tokens: 6400
  precision: float32
  update_every: {{0: 2}}
  reset_every_windows: 7
  log_every_windows: 10
  checkpoint_every_windows: 10
evaluation: {{batch_size: 2, window_length: 4096, cold_start_samples: 16, max_validation_tokens: 2000}}
tracking: {{enabled: false}}
"""


@pytest.fixture
def recipe_path(store_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(store=json.dumps(str(store_path)), model=COMPRESSIVE))
    return path


def start(size: int, *arguments: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start the command in so many processes, as the documentation says."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *options, "-m"]
    launcher = torchrun if size > 1 else []
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "audio_ct", "train", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, status: int = 0) -> str:
    _, said = process.communicate(timeout=240)
    assert process.returncode == status, said
    return said


def newest(run: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.find(run))


def bits(run: Path) -> list[float]:
    return [line["training_bits_per_sample"] for line in read_record(run) if "training_bits_per_sample" in line]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def has_reached(run: Path, step: int) -> bool:
    return any(line["step"] >= step for line in read_record(run))


def assert_same_run(one: Path, many: Path) -> list[float]:
    """Compare two runs up to rounding, and return by how many bits each line of their records differs."""
    a, b = newest(one), newest(many)
    assert a.manifest.step == b.manifest.step
    losses = [abs(x - y) for x, y in zip(bits(one), bits(many), strict=True)]
    assert max(losses) < 1e-5
    assert a.state is not None
    assert b.state is not None
    assert a.training is not None
    assert b.training is not None
    content = [flatten(each.state) | each.weights | flatten(each.training["optimizer"]) for each in (a, b)]
    assert content[0].keys() == content[1].keys()
    for name, tensor in content[0].items():
        torch.testing.assert_close(tensor, content[1][name], atol=1e-4, rtol=0, msg=name)
    return losses


def steps(number: int) -> list[str]:
    return ["--set", f"training.max_tokens={number * 4 * 32}"]


@pytest.mark.fault("another number of processes")
@pytest.mark.fault("a worker dies")
def test_two_processes_train_as_one_until_one_is_killed_and_another_goes_on_alone(
    command: Callable[..., int], recipe_path: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    process = start(2, recipe_path, "--run-dir", many, *ENDLESS)
    wait_for(lambda: has_reached(many, STEPS), process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    said = finish(process, status=1)
    assert said.count(f"step {STEPS}/") == 1, "one process speaks"
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    end = newest(many).manifest.step + 10
    assert end >= STEPS
    assert command("train", recipe_path, "--run-dir", many, *steps(end), "--resume") == 0
    assert command("train", recipe_path, "--run-dir", one, *steps(end)) == 0
    apart = assert_same_run(one, many)[STEPS // 10 - 1]
    measured(f"two gloo processes against one after {UPDATES} updates: {apart:.1e} bits apart")


@pytest.mark.slow
@pytest.mark.fault("another number of processes")
def test_a_run_goes_on_with_any_number_of_processes(
    recipe_path: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    sizes = (2, 4, 1, 2)
    for part, size in enumerate(sizes):
        # Four of them share the optimizer.
        options = [*steps(10 * (part + 1)), "--set", f"training.shard_optimizer={size == 4}"]
        finish(start(size, recipe_path, "--run-dir", tmp_path / "many", *options, *["--resume"] * (part > 0)))
    finish(start(1, recipe_path, "--run-dir", tmp_path / "one", *steps(10 * len(sizes))))
    apart = max(assert_same_run(tmp_path / "one", tmp_path / "many"))
    measured(f"{', '.join(map(str, sizes))} processes in turn against one: {apart:.1e} bits apart")


@pytest.mark.slow
@pytest.mark.fault("a worker dies")
def test_workers_are_killed_at_any_moment(recipe_path: Path, tmp_path: Path, measured: Callable[[str], None]) -> None:
    run, number, chance, slowest, reached = tmp_path / "run", 20, random.Random(0), 0.0, 0
    for kill in range(number):
        process = start(2, recipe_path, "--run-dir", run, *ENDLESS, *["--resume"] * (kill > 0))
        wait_for(partial(has_reached, run, reached + 10 + chance.randrange(10)), process)
        time.sleep(chance.random() / 4)
        workers, began = workers_of(process), time.monotonic()
        os.kill(chance.choice(workers), signal.SIGKILL)
        finish(process, status=1)
        slowest = max(slowest, time.monotonic() - began)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        assert newest(run).manifest.step >= reached
        reached = newest(run).manifest.step
    finish(start(1, recipe_path, "--run-dir", run, *steps(reached + 10), "--resume"))
    finish(start(1, recipe_path, "--run-dir", tmp_path / "one", *steps(reached + 10)))
    apart = max(assert_same_run(tmp_path / "one", run))
    measured(f"{number} of {number} kills ended all within {slowest:.1f} s; {apart:.1e} bits from a run never killed")


@pytest.mark.slow
@pytest.mark.fault("a worker dies")
def test_a_worker_that_hangs_ends_all_within_the_timeout(recipe_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(2, recipe_path, "--run-dir", run, *ENDLESS, "--set", "training.timeout_seconds=3")
    wait_for(lambda: has_reached(run, 20), process)
    began = time.monotonic()
    os.kill(workers_of(process)[1], signal.SIGSTOP)
    said = finish(process, status=1)
    assert "did not answer within training.timeout_seconds=3; checkpoints are intact" in said
    # torchrun gives the stopped one 30 seconds to end.
    assert time.monotonic() - began < 60
    assert newest(run).manifest.step >= 10


@pytest.mark.slow
@pytest.mark.fault("a worker dies")
def test_torchrun_starts_all_of_them_again(recipe_path: Path, tmp_path: Path) -> None:
    one, run = tmp_path / "one", tmp_path / "run"
    run.mkdir()
    process = start(2, recipe_path, "--run-dir", run, *steps(100), "--resume", options=("--max-restarts=1",))
    wait_for(lambda: has_reached(run, 10), process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    assert "resumed from" in finish(process)
    finish(start(1, recipe_path, "--run-dir", one, *steps(100)))
    assert_same_run(one, run)


@pytest.mark.slow
@pytest.mark.fault("signals")
def test_a_signal_to_torchrun_stops_after_a_window_with_a_checkpoint(recipe_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(2, recipe_path, "--run-dir", run, *ENDLESS, "--set", "training.checkpoint_every_windows=1000000")
    wait_for(lambda: has_reached(run, 10), process)
    process.send_signal(signal.SIGTERM)
    said = finish(process, status=1)
    assert "stopping after this window and a checkpoint" in said
    # There is no other checkpoint.
    assert newest(run).manifest.step >= 10


def test_lanes_are_split_evenly_or_refused() -> None:
    device = torch.device("cpu")
    shares = [Processes(rank, 3, device).own_lanes(6) for rank in range(3)]
    assert shares == [range(2), range(2, 4), range(4, 6)]
    with pytest.raises(InputError, match=r"training.batch_size=4 must be a multiple of the 3 processes.*try 6"):
        Processes(0, 3, device).own_lanes(4)
