"""A run that is asked to stop ends its window, writes a checkpoint and ends with status 130; asked again, at once."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct import checkpoint
from audio_ct.record import read_record
from tests.faults import runs

pytestmark = [pytest.mark.xdist_group("kills"), pytest.mark.fault("signals")]

STOPPED = 130


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    store = runs.build_store(folder / "store")
    return runs.write_recipe(folder / "recipe.yaml", Path(store.address), runs.COMPRESSIVE, update_every="{0: 2}")


@pytest.fixture(scope="module")
def unbroken(recipe: Path) -> Path:
    assert runs.exit_status(runs.train(recipe, recipe.parent / "unbroken")) == 0
    return recipe.parent / "unbroken"


def begun(recipe: Path, run: Path) -> runs.BaseProcess:
    """A run that has trained some windows since it was begun or resumed."""
    num_lines = len(read_record(run))
    process = runs.train(recipe, run)
    runs.wait_until(lambda: len(read_record(run)) > num_lines or runs.last_checkpoint(run).exists(), process)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_again_and_again(
    recipe: Path,
    unbroken: Path,
    tmp_path: Path,
    number: signal.Signals,
    times: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    run, moments = tmp_path / "run", random.Random(number)
    num_stops, slowest_seconds = 0, 0.0
    while num_stops < times(1, 20):
        process = begun(recipe, run)
        time.sleep(moments.uniform(0, 0.3))
        began = time.monotonic()
        runs.send(process, number)
        status = runs.exit_status(process)
        log = run.with_suffix(".log").read_text()
        assert "Traceback" not in log, log
        if runs.last_checkpoint(run).exists():
            # It came too late: the run was done, or as good as.
            assert status in (0, STOPPED, -number), log
            assert runs.exit_status(runs.train(recipe, run)) == 0
            runs.assert_same_runs(unbroken, run)
            shutil.rmtree(run)
            continue
        assert status == STOPPED, log
        assert "stopping after this window and a checkpoint" in log
        slowest_seconds = max(slowest_seconds, time.monotonic() - began)
        num_stops += 1
        # Nothing that was trained is trained again.
        newest = checkpoint.load(checkpoint.find(run))
        assert newest.manifest.step >= read_record(run)[-1]["step"]
    assert runs.exit_status(runs.train(recipe, run)) == 0
    runs.assert_same_runs(unbroken, run)
    measured(
        f"{number.name}: {num_stops} of {num_stops} with status {STOPPED} and a checkpoint, the slowest after "
        f"{slowest_seconds:.1f} s, all equal"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_twice_it_stops_at_once(
    recipe: Path,
    unbroken: Path,
    tmp_path: Path,
    number: signal.Signals,
    times: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    run, moments = tmp_path / "run", random.Random(number)
    num_stops, slowest_seconds = times(1, 20), 0.0
    for _ in range(num_stops):
        process = begun(recipe, run)
        before = runs.checkpoints(run)
        runs.send(process, number)
        time.sleep(moments.uniform(0, 0.1))
        began = time.monotonic()
        runs.send(process, number)
        status = runs.exit_status(process)
        log = run.with_suffix(".log").read_text()
        assert status in (0, STOPPED, -number), log
        assert "Traceback" not in log, log
        slowest_seconds = max(slowest_seconds, time.monotonic() - began)
        after = runs.checkpoints(run)
        if before:
            # Older ones may have been pruned.
            assert after
            assert after[-1] >= before[-1]
        if runs.last_checkpoint(run).exists():
            assert runs.exit_status(runs.train(recipe, run)) == 0
            runs.assert_same_runs(unbroken, run)
            shutil.rmtree(run)
    assert runs.exit_status(runs.train(recipe, run)) == 0
    runs.assert_same_runs(unbroken, run)
    measured(f"{number.name} twice: {num_stops} stops, the slowest after {slowest_seconds:.1f} s, all equal")
