"""On an odd machine the real command trains and samples as on any other."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from audio_ct import checkpoint
from tests.faults import runs

pytestmark = [pytest.mark.xdist_group("kills"), pytest.mark.fault("odd environment")]

# What is done in a process before the command; the long form sets the environment before Python starts, too.
ODD = {
    "no HOME": "import os; os.environ.pop('HOME', None)",
    "HOME that cannot be written": "import os; os.environ['HOME'] = '/proc'",
    "TMPDIR that is missing": "import os; os.environ['TMPDIR'] = '/absent'",
    "TMPDIR that cannot be written": "import os; os.environ['TMPDIR'] = '/proc'",
    "umask 077": "import os; os.umask(0o077)",
    "decimal comma": "import locale, os; os.environ['LOCPATH'] = 'FOLDER'; "
    "locale.setlocale(locale.LC_ALL, 'de_DE.UTF-8')",
    "another time zone": "import os, time; os.environ['TZ'] = 'Pacific/Kiritimati'; time.tzset()",
    "one CPU": "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "a clock that goes back": "import time; past = iter(range(10**9, 0, -3600)); time.time = lambda: next(past)",
}
NUM_WINDOWS = 2


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    store = runs.build_store(folder / "store")
    max_tokens = NUM_WINDOWS * runs.LANES * runs.WINDOW
    return runs.write_recipe(folder / "recipe.yaml", Path(store.address), runs.COMPRESSIVE, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def usual(recipe: Path) -> Path:
    """A run on a machine that is not odd, and samples of it."""
    run, log = recipe.parent / "usual", recipe.parent / "usual.log"
    assert runs.exit_status(runs.train(recipe, run)) == 0
    assert runs.exit_status(runs.start(log, *sampling(run))) == 0, log.read_text()
    return run


def sampling(run: Path) -> list[object]:
    return ["sample", run, "--seconds", 0.002, "--out", run / "out"]


def test_it_trains_and_samples(
    recipe: Path, usual: Path, tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """All oddities at once, or in the long form each by itself."""
    everything = "; ".join(before for oddity, before in ODD.items() if oddity != "decimal comma")
    oddities = ODD if times(0, 1) else {"all but the comma": everything}
    if "decimal comma" in oddities and not makes_decimal_comma(tmp_path):
        oddities = {oddity: before for oddity, before in oddities.items() if oddity != "decimal comma"}
    for oddity, before in oddities.items():
        before = before.replace("FOLDER", str(tmp_path))
        run = tmp_path / oddity
        for arguments in (["train", recipe, "--run-dir", run], sampling(run)):
            status, said = (afresh if times(0, 1) else forked)(arguments, before, tmp_path / "log")
            assert status == 0, said
            assert "Traceback" not in said, said
        ours, theirs = (checkpoint.load(checkpoint.find(each)).weights for each in (run, usual))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        sounds = [soundfile.read(each / "out/tiny-00.wav")[0] for each in (run, usual)]
        assert len(sounds[0]) == 48
        assert (sounds[0] == sounds[1]).all()
    measured(", ".join(oddities))


def afresh(arguments: list[object], before: str, log: Path) -> tuple[int, str]:
    """The command in a new Python, which a program that changed its environment has become."""
    program = f"{before}\nfrom audio_ct.cli import main\nmain()"
    become = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', {program!r}, *sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\n{become}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=runs.PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def forked(arguments: list[object], before: str, log: Path) -> tuple[int, str]:
    return runs.exit_status(runs.start(log, *arguments, before=before)), log.read_text()


def makes_decimal_comma(folder: Path) -> bool:
    """Make a locale with a decimal comma, where this machine has what it takes."""
    make = ["localedef", "-i", "de_DE", "-f", "UTF-8", folder / "de_DE.UTF-8"]
    return (
        shutil.which("localedef") is not None and subprocess.run(make, capture_output=True, check=False).returncode == 0
    )
