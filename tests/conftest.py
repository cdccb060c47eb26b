"""Shared by all tests: shapes checked at run time, one thread of torch, the real command, and small token stores."""

import functools
import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from jaxtyping import install_import_hook
from typeguard import check_type

CHECKED_CALLS = 10
_num_calls: Counter[str] = Counter()


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result against its annotations at every call.

    Not `typeguard.typechecked`: since version 4 that compiles annotations anew from their text, shapes included. Of a
    test's calls the first few are checked: a loop over samples repeats itself, and a check costs more than the call.
    """
    signature = inspect.signature(function)
    name_of_function = f"{function.__module__}.{function.__qualname__}"
    annotated = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _num_calls[name_of_function] += 1
        if _num_calls[name_of_function] > CHECKED_CALLS:
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        for name, annotation in annotated.items():
            if name in given:
                check_type(given[name], annotation)
        result = function(*args, **kwargs)
        if signature.return_annotation is not signature.empty:
            check_type(result, signature.return_annotation)
        return result

    return wrapped


# Before anything imports the models: their shape annotations are checked in every test.
install_import_hook("audio_ct.models", f"{__name__}.{checked.__name__}")

# Before anything imports librosa: two workers that compile its functions into one cache at once leave it such that
# every later process dies of a segmentation fault. Compiled models are kept apart as well. To compile the estimate of
# pitch takes 40 seconds: the tests that reach it are in the group "pitch", which a single worker runs.
_CACHES = Path(__file__).parent.parent / ".pytest_cache" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
os.environ["NUMBA_CACHE_DIR"] = str(_CACHES / "numba")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_CACHES / "inductor")

RATE_HZ = 24_000

# The rows of docs/reliability.md; each is held by the tests that are marked with it, all of them together.
FAULTS = (
    "killed training",
    "signals",
    "full disk",
    "damaged checkpoint",
    "foreign checkpoint",
    "malicious checkpoint",
    "damaged store",
    "hostile manifest",
    "killed preparation",
    "audio",
    "recipe",
    "tracking",
    "not finite",
    "out of memory",
    "a worker dies",
    "another number of processes",
    "two at once",
    "odd environment",
    "sampling",
    "archive",
    "names on pages",
    "soak",
)

MATRIX = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long form of the fault tests, as docs/reliability.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("fault"):
            (row,) = mark.args
            if row not in FAULTS:
                raise pytest.UsageError(f"{item.nodeid}: {row!r} is not among FAULTS in tests/conftest.py")
            item.user_properties.append(("fault", row))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With --long, count the rows: one fell if one of its tests did, or if none was run."""
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not config.getoption("--long") or reporter is None or hasattr(config, "workerinput"):
        return
    outcomes: dict[str, Counter[str]] = {row: Counter() for row in FAULTS}
    measured: dict[str, list[str]] = {row: [] for row in FAULTS}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in reporter.stats.get(outcome, []):
            for row in (value for name, value in report.user_properties if name == "fault"):
                outcomes[row][outcome] += 1
                measured[row] += [value for name, value in report.user_properties if name == "measured"]
    fell = [row for row, counts in outcomes.items() if not counts["passed"] or counts["failed"] or counts["error"]]
    config.stash[MATRIX] = ["| fault | tests | skipped | measured | |", "|---|---|---|---|---|"] + [
        f"| {row} | {counts['passed']} | {counts['skipped']} | {'; '.join(measured[row])} | "
        f"{'FELL' if row in fell else 'held'} |"
        for row, counts in outcomes.items()
    ]
    config.stash[MATRIX].append(f"{len(FAULTS) - len(fell)} rows held, {len(fell)} fell")
    if fell:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the matrix after everything else."""
    for line in config.stash.get(MATRIX, []):
        print(line)


@pytest.fixture(scope="session")
def times(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """How often a fault test does its worst: `times(short, long)`, the long form with --long."""
    return lambda short, long: long if pytestconfig.getoption("--long") else short


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say what a fault test measured, such as "200 of 200 kills: equal weights", for the matrix."""
    return lambda what: record_property("measured", what)


@pytest.fixture(autouse=True)
def _checks_begin_anew() -> None:
    _num_calls.clear()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def command() -> Callable[..., int]:
    """The real command in this process; it returns the exit status."""
    from audio_ct import cli

    def run(*arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["audio-ct", *map(str, arguments)])
            try:
                cli.main()
            except SystemExit as exit_:
                return int(exit_.code or 0)
        return 0

    return run


@pytest.fixture(scope="session")
def recordings_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine recordings of three speakers, of some 1.5 seconds: tones, noise, and pulses through a resonance."""
    folder = tmp_path_factory.mktemp("recordings")
    random = np.random.default_rng(0)
    for number in range(9):
        time = np.arange(round((1.3 + 0.05 * number) * RATE_HZ)) / RATE_HZ
        pitch_hz = 90 + 20 * number
        tone = 0.4 * np.sin(2 * np.pi * pitch_hz * time + 3 * np.sin(2 * np.pi * 4 * time))
        noise = 0.2 * random.standard_normal(len(time)) * (np.sin(2 * np.pi * 3 * time) > 0)
        ringing = np.exp(-time[:400] * 400) * np.sin(2 * np.pi * 700 * time[:400])
        pulses = np.convolve(np.diff(np.floor(time * pitch_hz), prepend=0.0), ringing)[: len(time)]
        waveform = (tone, noise, 0.5 * pulses)[number % 3]
        path = folder / "abc"[number // 3] / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.clip(waveform, -0.99, 0.99), RATE_HZ)
    return folder


@pytest.fixture(scope="session")
def store_path(recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings as a token store: five for training, two each for validation and test."""
    from data_prep.folder import CORPUS
    from data_prep.options import PrepOptions
    from data_prep.skeleton import prepare

    out = tmp_path_factory.mktemp("stores") / "tiny"
    options = PrepOptions(
        split_by="recording", validation_fraction=0.2, test_fraction=0.2, seed=1, licence="CC0", jobs=1
    )
    prepare(CORPUS, recordings_folder, out, options=options)
    return out


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 60,000 bytes, made of words of its own."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("aeinorst"), random.integers(2, 7))) for _ in range(200)]
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_bytes(" ".join(random.choice(words, 15_000)).encode()[:60_000])
    return path


@pytest.fixture(scope="session")
def byte_store_path(text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text as a token store: 48,000 bytes for training, 6,000 each for validation and test."""
    from data_prep.bytes import prepare
    from data_prep.options import PrepOptions

    out = tmp_path_factory.mktemp("stores") / "text"
    prepare(text_path, out, options=PrepOptions(validation_fraction=0.1, test_fraction=0.1))
    return out


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mlflow store without runs; to make one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
