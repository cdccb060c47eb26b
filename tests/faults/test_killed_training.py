"""A run that is killed, whatever it is doing, and resumed, again and again, ends as the unbroken one bit for bit."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from audio_ct import checkpoint
from tests.faults import runs

pytestmark = pytest.mark.xdist_group("kills")

RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "writing": (runs.COMPRESSIVE, {"checkpoint_every_windows": 1}),
    "float16": (runs.COMPRESSIVE, {"precision": "float16", "update_every": "{0: 2}"}),
    "bfloat16": (runs.WAVENET, {"precision": "bfloat16", "average_decay": 0.9}),
    "wavenet": (runs.WAVENET, {"update_every": "{0: 1, 4: 2}", "average_decay": 0.9}),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "short"
    runs.build_store(path)
    return path


@pytest.mark.fault("killed training")
@pytest.mark.parametrize("kind", RUNS)
def test_killed_again_and_again(
    store: Path, tmp_path: Path, kind: str, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    model, training = RUNS[kind]
    recipe = runs.write_recipe(tmp_path / "recipe.yaml", store, model, **training)
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    began = time.monotonic()
    assert runs.exit_status(runs.train(recipe, unbroken)) == 0
    seconds = time.monotonic() - began

    moments = random.Random(kind)
    num_kills = times(1, 50)
    kills = while_writing = after_the_last = num_finished = 0
    while kills < num_kills or not runs.last_checkpoint(run).exists():
        before = runs.being_written(run)
        process = runs.train(recipe, run)
        if kills < num_kills:
            wait_for_a_moment(process, run, moments, seconds)
            process.kill()
        status = runs.exit_status(process)
        assert status in (0, -signal.SIGKILL), run.with_suffix(".log").read_text()
        if status == 0:
            # It was done before it was killed: begin another one.
            runs.assert_same_runs(unbroken, run)
            num_finished += 1
            if kills < num_kills:
                shutil.rmtree(run)
            continue
        kills += 1
        while_writing += bool(runs.being_written(run) - before)
        after_the_last += runs.last_checkpoint(run).exists()
        if whole := runs.checkpoints(run):
            assert checkpoint.find(run) == whole[-1]
    assert runs.exit_status(runs.train(recipe, run)) == 0
    runs.assert_same_runs(unbroken, run)
    log = run.with_suffix(".log").read_text()
    assert "Traceback" not in log, log
    if num_kills > 1:
        assert while_writing >= num_kills / 5
        assert after_the_last > 0
    measured(
        f"{kind}: {kills} kills, {while_writing} while a checkpoint was written, {after_the_last} after the last one, "
        f"{num_finished + 1} runs, all equal"
    )


def wait_for_a_moment(process: runs.BaseProcess, run: Path, moments: random.Random, seconds: float) -> None:
    """Wait for any moment of a run, for one while a checkpoint is written, or for one after the last was."""
    aim = moments.choice(["anywhere", "anywhere", "writing", "writing", "last"])
    if aim == "anywhere":
        time.sleep(moments.uniform(0, seconds))
    elif aim == "last":
        runs.wait_until(runs.last_checkpoint(run).exists, process)
    else:
        for _ in range(moments.randint(1, 4)):
            runs.wait_until(partial(has_another, run, runs.being_written(run)), process)
        time.sleep(moments.uniform(0, 0.02))


def has_another(run: Path, seen: set[str]) -> bool:
    """True once a checkpoint is being written that was not seen."""
    return not runs.being_written(run) <= seen
