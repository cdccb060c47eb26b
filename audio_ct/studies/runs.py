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

from audio_ct import checkpoint
from audio_ct.durable import write_whole
from audio_ct.errors import AudioCTError
from audio_ct.recipe import flat, load_recipe, parse_recipe
from audio_ct.record import learning_curve, read_record
from audio_ct.signals import Stop
from audio_ct.studies.plan import BUDGET, Run, StudyOptions
from audio_ct.training.setup import refuse_other_recipe

EVALUATION_FILE = "evaluation.json"
POLL_SECONDS = 0.2
# Begins the line above a command's output in the log.
PROMPT = "$ audio-ct "


class StoppedError(Exception):
    """A command ended because of a stop request."""


@dataclass(frozen=True)
class Outcome:
    """The state of a run, with its figures."""

    run: Run
    state: str
    """One of "done", "failed", "stopped" on request, and "waiting" with whatever it has so far."""
    error: str | None = None
    """One line, where it failed."""
    figures: dict[str, Any] | None = None
    """Of a run that is done; see `_figures`."""
    curve: Sequence[dict[str, float | None]] = ()
    """Validation over training, where it is done: [{tokens, training_bits, validation_bits}]."""


class Commands:
    """Starts audio-ct commands, and ends them on a stop request: with a checkpoint first, at once when it is repeated.

    Args:
        stop: the requests.
        lock: the descriptor of the study's lock, which the commands hold as long as they live.
        jobs: commands side by side, which share the processor's cores.
    """

    def __init__(self, stop: Stop, lock: int, jobs: int) -> None:
        self.stop = stop
        self._lock = lock
        self._jobs = jobs

    def __call__(self, arguments: Sequence[str], run: Run, *, output: IO[bytes] | None = None) -> None:
        """Run an audio-ct command to its end; what it prints goes into the run's log, standard output into `output`.

        Raises:
            StoppedError: if the command ended because of a stop request.
            AudioCTError: with the last line that it printed, if it failed.
        """
        with run.log_file.open("ab") as log:
            log.write(f"{PROMPT}{shlex.join(arguments)}\n".encode())
            log.flush()
            # Without -P the working folder's audio_ct would go before the one that runs now. A session of its own, so
            # that Ctrl-C reaches this process alone: a second signal would end the command before its checkpoint.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "audio_ct", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output or log,
                stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | self._threads(run),
                start_new_session=True,
                pass_fds=[self._lock],
            )
        requests_passed_on = 0
        while True:
            try:
                status = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if self.stop.asked > requests_passed_on:
                    requests_passed_on = self.stop.asked
                    (process.terminate if requests_passed_on == 1 else process.kill)()
        if status and requests_passed_on:
            raise StoppedError
        if status < 0:
            raise AudioCTError(f"{arguments[0]} was ended by {signal.Signals(-status).name}; see {run.log_file}.")
        if status:
            raise AudioCTError(_last_line(run.log_file) or f"{arguments[0]} ended with status {status}.")

    def _threads(self, run: Run) -> dict[str, str]:
        """The environment that keeps commands side by side from each taking every core."""
        num_threads = run.recipe.training.num_threads
        if not num_threads and self._jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            num_threads = max(1, joblib.cpu_count() // self._jobs)
        return {"OMP_NUM_THREADS": str(num_threads)} if num_threads else {}


def outcome(run: Run, options: StudyOptions) -> Outcome:
    """The outcome of a run as it stands; changes nothing."""
    scored = _trained_checkpoint(run)
    if scored is None or (evaluation := _evaluation(run, scored, options)) is None:
        return Outcome(run, "waiting")
    return Outcome(run, "done", figures=_figures(run, scored, evaluation), curve=learning_curve(scored))


def refusals(run: Run, store_digest: str) -> list[str]:
    """A line for each way in which a run that stands is not one of its recipe, budget and store."""
    newest = _newest_checkpoint(run)
    if newest is None:
        return []
    try:
        text = (newest / checkpoint.RECIPE_FILE).read_text(encoding="utf-8")
        refuse_other_recipe(run.recipe, newest, text)
        manifest = checkpoint.read_manifest(newest, verify=False)
        before, now = (flat(recipe.model_dump()) for recipe in (parse_recipe(text, name=str(newest)), run.recipe))
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


def carry_out(run: Run, options: StudyOptions, commands: Commands) -> Outcome:
    """Train and score a run as far as that has not been done, and return its outcome."""
    if commands.stop.asked:
        return Outcome(run, "stopped")
    try:
        if _trained_checkpoint(run) is None:
            _train(run, commands)
        scored = _trained_checkpoint(run)
        if scored is None:
            return Outcome(run, "failed", f"{run.folder}: training ended without its last checkpoint.")
        if _evaluation(run, scored, options) is None:
            _evaluate(run, scored, options, commands)
    except StoppedError:
        return Outcome(run, "stopped")
    # A full disk, or a command that failed, is this run's affair only.
    except (AudioCTError, OSError) as error:
        return Outcome(run, "failed", " ".join(str(error).split()))
    return outcome(run, options)


def _train(run: Run, commands: Commands) -> None:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(run.recipe_file, run.recipe.to_yaml().encode())
    arguments = ["train", str(run.recipe_file), "--run-dir", str(run.folder)]
    if run.folder.is_dir():
        arguments += ["--resume", *_changes(run)]
    commands(arguments, run)


def _changes(run: Run) -> list[str]:
    """The options by which a run's own recipe, as it was begun, becomes that of the study now."""
    saved = run.folder / checkpoint.RECIPE_FILE
    if not saved.is_file():
        return []
    before, now = flat(load_recipe(saved).model_dump()), flat(run.recipe.model_dump())
    changed = [f"{key}={json.dumps(value)}" for key, value in now.items() if before.get(key) != value]
    return [word for change in changed for word in ("--set", change)]


def _evaluate(run: Run, scored: Path, options: StudyOptions, commands: Commands) -> None:
    arguments = ["evaluate", str(scored), "--split", options.split, "--json"]
    arguments += ["--cold-start-samples", str(options.cold_start_samples)]
    arguments += [] if options.max_tokens is None else ["--max-tokens", str(options.max_tokens)]
    with tempfile.TemporaryFile() as output:
        commands(arguments, run, output=output)
        output.seek(0)
        result = json.loads(output.read())
    record = {"checkpoint": _identity(scored), "settings": options.scoring, "result": result}
    write_whole(run.folder / EVALUATION_FILE, json.dumps(record, indent=1).encode() + b"\n")


def _last_line(log: Path) -> str:
    """The last line of a command's log, "" if the command printed none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 10_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return "" if not lines or lines[-1].startswith(PROMPT) else lines[-1].removeprefix("audio-ct: ")[:500]


def _newest_checkpoint(run: Run) -> Path | None:
    try:
        return checkpoint.find(run.folder / "checkpoints", "newest")
    except AudioCTError:
        return None


def _trained_checkpoint(run: Run) -> Path | None:
    """The checkpoint that is scored, the best by validation, once training has come to its end."""
    newest = _newest_checkpoint(run)
    if newest is None or checkpoint.read_manifest(newest, verify=False).step < run.recipe.training.num_steps:
        return None
    return checkpoint.find(run.folder, "best")


def _identity(path: Path) -> dict[str, Any]:
    """A checkpoint's name and its manifest's digest, which covers the digests of all its files."""
    manifest = path / checkpoint.MANIFEST_FILE
    return {"name": path.name, "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}


def _evaluation(run: Run, scored: Path, options: StudyOptions) -> dict[str, Any] | None:
    """The evaluation of a checkpoint if there is one, measured with the same settings."""
    try:
        record = json.loads((run.folder / EVALUATION_FILE).read_bytes())
        is_same = record["checkpoint"] == _identity(scored) and record["settings"] == options.scoring
        return dict(record["result"]) if is_same else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _figures(run: Run, scored: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run that is done: of the checkpoint that is scored, and the record's last line of training."""
    manifest = checkpoint.read_manifest(scored, verify=False)
    training_lines = [line for line in read_record(run.folder) if "training_bits_per_sample" in line]
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
        "final_metrics": training_lines[-1] if training_lines else {},
        "store_digest": manifest.store_digest,
        "commit": manifest.commit,
        "version": manifest.version,
    }
