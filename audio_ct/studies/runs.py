"""One run of a study: trained and scored by the commands a person would use, each only if it has not been done."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import joblib

from audio_ct.durable import write_whole
from audio_ct.errors import AudioCTError
from audio_ct.evaluation.comparison import learning_curve
from audio_ct.recipe import flat, parse_recipe
from audio_ct.studies.plan import BUDGET, Run, StudyOptions
from audio_ct.training import checkpoint
from audio_ct.training.loop import refuse_other_recipe
from audio_ct.training.tracking import METRICS_FILE

EVALUATION_FILE = "evaluation.json"
POLL_SECONDS = 0.2
# Begins the line above what a command prints.
PROMPT = "$ audio-ct "


class Stop:
    """How urgently everything shall end: asked once, runs write a checkpoint; asked again, they are ended."""

    def __init__(self) -> None:
        self._asked = 0

    def ask(self) -> None:
        """Ask, or ask again."""
        self._asked += 1

    @property
    def asked(self) -> int:
        """How often it was asked."""
        return self._asked


class StoppedError(Exception):
    """A run was told to stop, and did."""


@dataclass(frozen=True)
class Outcome:
    """What is known of a run.

    Attributes:
        run: which.
        state: "done"; "failed", by itself; "stopped" on request; "waiting", with whatever it has so far.
        error: one line, where it failed.
        figures: of a run that is done; see `_figures`.
        curve: validation over training, where it is done: [{tokens, training_bits, validation_bits}].
    """

    run: Run
    state: str
    error: str | None = None
    figures: dict[str, Any] | None = None
    curve: Sequence[dict[str, float | None]] = ()


def outcome(run: Run, options: StudyOptions) -> Outcome:
    """Return what stands of a run; changes nothing."""
    scored = _trained_checkpoint(run)
    evaluation = None if scored is None else _evaluation(run, scored, options)
    if scored is None or evaluation is None:
        return Outcome(run, "waiting")
    return Outcome(run, "done", figures=_figures(run, scored, evaluation), curve=learning_curve(scored))


def refusals(run: Run, store_digest: str) -> list[str]:
    """Return why a run that stands is not one of its recipe, budget and store, if it is not."""
    newest = _newest_checkpoint(run)
    if newest is None:
        return []
    try:
        text = (newest / checkpoint.RECIPE_FILE).read_text(encoding="utf-8")
        refuse_other_recipe(run.recipe, newest, text)
        manifest = checkpoint.read_manifest(newest, verify=False)
        before, now = (flat(each.model_dump()) for each in (parse_recipe(text, name=str(newest)), run.recipe))
    except AudioCTError as error:
        return [f"{run.name}: {line}" for line in str(error).splitlines()]
    if manifest.store_digest != store_digest:
        return [
            f"{run.name}: {newest} was trained on another corpus than is in corpus.store now; choose another --out."
        ]
    # A run that is resumed may be longer; in a study its learning rate would rise again where it had decayed.
    return [
        f"{run.name}: {key}={now.get(key)!r} was {before.get(key)!r} in {newest}; choose another --out."
        for key in BUDGET
        if before.get(key) != now.get(key)
    ]


def carry_out(run: Run, options: StudyOptions, stop: Stop, lock: IO[bytes]) -> Outcome:
    """Train and score a run as far as that has not been done, and return what came of it.

    Args:
        run: which.
        options: of the study.
        stop: ends it.
        lock: an open file; as long as the run's commands live, they hold it too.
    """
    if stop.asked:
        return Outcome(run, "stopped")
    try:
        if _trained_checkpoint(run) is None:
            _train(run, options, stop, lock)
        scored = _trained_checkpoint(run)
        if scored is None:
            return Outcome(run, "failed", f"{run.folder}: training ended without its last checkpoint.")
        if _evaluation(run, scored, options) is None:
            _evaluate(run, scored, options, stop, lock)
    except StoppedError:
        return Outcome(run, "stopped")
    # A full disk, or a command that failed, is this run's affair only.
    except (AudioCTError, OSError) as error:
        return Outcome(run, "failed", " ".join(str(error).split()))
    return outcome(run, options)


def _train(run: Run, options: StudyOptions, stop: Stop, lock: IO[bytes]) -> None:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(run.recipe_file, run.recipe.to_yaml().encode())
    resume = ["--resume"] if run.folder.is_dir() else []
    command = ["train", str(run.recipe_file), "--run-dir", str(run.folder), *resume]
    with run.log_file.open("ab") as log:
        _call(command, run, options, stop, lock, stdout=log, stderr=log)


def _evaluate(run: Run, scored: Path, options: StudyOptions, stop: Stop, lock: IO[bytes]) -> None:
    command = ["evaluate", str(scored), "--split", options.split, "--json"]
    command += ["--cold-start-samples", str(options.cold_start_samples)]
    command += [] if options.max_tokens is None else ["--max-tokens", str(options.max_tokens)]
    with run.log_file.open("ab") as log, tempfile.TemporaryFile() as printed:
        _call(command, run, options, stop, lock, stdout=printed, stderr=log)
        printed.seek(0)
        result = json.loads(printed.read())
    record = {"checkpoint": _identity(scored), "settings": _settings(options), "result": result}
    write_whole(run.folder / EVALUATION_FILE, json.dumps(record, indent=1).encode() + b"\n")


def _call(
    arguments: Sequence[str],
    run: Run,
    options: StudyOptions,
    stop: Stop,
    lock: IO[bytes],
    *,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> None:
    """Run an audio-ct command to its end.

    Raises:
        StoppedError: if it ended because it was told to.
        AudioCTError: with the last line that it printed, if it failed.
    """
    stderr.write(f"{PROMPT}{shlex.join(arguments)}\n".encode())
    stderr.flush()
    # Without -P the working folder's audio_ct would go before the one that runs now. A session of its own, so that
    # Ctrl-C reaches this process alone: a second signal would end the command before its checkpoint.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "audio_ct", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | _threads(run, options),
        start_new_session=True,
        pass_fds=[lock.fileno()],
    )
    told = 0
    while True:
        try:
            status = process.wait(POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if stop.asked > told:
                told = stop.asked
                (process.terminate if told == 1 else process.kill)()
    if status and told:
        raise StoppedError
    if status:
        if status < 0:
            raise AudioCTError(f"{arguments[0]} was ended by {signal.Signals(-status).name}; see {run.log_file}.")
        raise AudioCTError(_error_line(run.log_file) or f"{arguments[0]} ended with status {status}.")


def _threads(run: Run, options: StudyOptions) -> dict[str, str]:
    """Return the environment that keeps commands side by side from each taking every core."""
    num_threads = run.recipe.training.num_threads
    if not num_threads and options.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        num_threads = max(1, joblib.cpu_count() // options.jobs)
    return {"OMP_NUM_THREADS": str(num_threads)} if num_threads else {}


def _error_line(log: Path) -> str:
    """Return the last line of a command's log, "" if the command printed none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 10_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return "" if not lines or lines[-1].startswith(PROMPT) else lines[-1].removeprefix("audio-ct: ")[:500]


def _newest_checkpoint(run: Run) -> Path | None:
    if not run.folder.is_dir():
        return None
    try:
        return checkpoint.find(run.folder / "checkpoints", "newest")
    except AudioCTError:
        return None


def _trained_checkpoint(run: Run) -> Path | None:
    """Return the checkpoint that is scored, the best by validation, once training has come to its end."""
    newest = _newest_checkpoint(run)
    if newest is None or checkpoint.read_manifest(newest, verify=False).step < run.recipe.training.num_steps:
        return None
    return checkpoint.find(run.folder, "best")


def _identity(path: Path) -> dict[str, Any]:
    """Return what tells a checkpoint from every other; its manifest has the digests of all its files."""
    manifest = path / checkpoint.MANIFEST_FILE
    return {"name": path.name, "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}


def _settings(options: StudyOptions) -> dict[str, Any]:
    return {
        "split": options.split,
        "max_tokens": options.max_tokens,
        "cold_start_samples": options.cold_start_samples,
    }


def _evaluation(run: Run, scored: Path, options: StudyOptions) -> dict[str, Any] | None:
    """Return the figures of a checkpoint if they stand, measured with the same settings."""
    try:
        record = json.loads((run.folder / EVALUATION_FILE).read_bytes())
        is_same = record["checkpoint"] == _identity(scored) and record["settings"] == _settings(options)
        return dict(record["result"]) if is_same else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _figures(run: Run, scored: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return what the study tells of a run that is done.

    Returns:
        bits_per_sample and its interval over recordings; evaluation, all that was measured; checkpoint, step and tokens
        of what was scored; validation_bits_per_sample at that step; parameters; training_tokens_per_second;
        final_metrics, the record's last line of training, with auxiliary losses; store_digest, commit and version.
    """
    manifest = checkpoint.read_manifest(scored, verify=False)
    final_metrics: dict[str, Any] = {}
    for line in (run.folder / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "training_bits_per_sample" in values:
            final_metrics = values
    return {
        "bits_per_sample": evaluation["bits_per_sample"],
        "interval": evaluation["interval"],
        "evaluation": evaluation,
        "checkpoint": f"{run.name}/checkpoints/{scored.name}",
        "step": manifest.step,
        "tokens": manifest.tokens,
        "validation_bits_per_sample": manifest.validation_bits_per_sample,
        "parameters": manifest.model.get("parameters"),
        "training_tokens_per_second": manifest.metrics.get("training_tokens_per_second"),
        "final_metrics": final_metrics,
        "store_digest": manifest.store_digest,
        "commit": manifest.commit,
        "version": manifest.version,
    }
