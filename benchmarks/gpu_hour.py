"""One hour of a GPU, planned to the minute: tests, speed, and the headline's models trained, scored and heard.

    python -m benchmarks.gpu_hour --minutes 40 --out runs/hour --store stores/speech16k
    python -m benchmarks.gpu_hour --plan-minutes 40 --minutes 9 --out ...      # the same in pieces: again and again

Parts in order, each a command of its own with a limit of its own, its output in OUT/PART.log and what came of it in
OUT/hour.json at once:

1. tests: `pytest -m gpu`
2. speed: `benchmarks.run --gpu-only`, training and sampling at the paper's size beside the peers and measured ceilings
3. probe: every recipe of --recipes for --probe-windows, to learn its tokens/s; from these follow the budgets
4. train: every recipe for equal minutes, and all for the tokens of the slowest; learning rates fall to their end
5. compare: test bits on the same samples, waveforms, one page

Called again, it goes on: a part that is done is not done again, one that the end of the last call cut, or that was
killed with it, begins anew, and training resumes from its checkpoint. What fails or runs into its own limit is written
down and the next part begins. The status is 1 where something failed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from audio_ct.durable import write_whole
from audio_ct.recipe import load_recipe
from audio_ct.record import read_record
from benchmarks import measure

# Shares of all minutes; training has the rest.
TESTS_SHARE, SPEED_SHARE, PROBE_SHARE, COMPARE_SHARE = 0.1, 0.2, 0.15, 0.12
# Seconds that a command has to end after SIGINT, a training to write its checkpoint.
GRACE_SECONDS = 45
DONE, STOPPED, FAILED = "done", "stopped at its limit", "failed"
# A part in one of these states is begun again by the next call.
BEGUN, CUT = "begun", "cut by the end of the call"


@dataclass(frozen=True)
class Part:
    """A command with a limit.

    Attributes:
        name: in hour.json, and of its log.
        command: arguments after `python -m`.
        seconds: its limit.
        goes_on: where it was stopped, the same command is called again with --resume.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    goes_on: bool = False


@dataclass
class Hour:
    """The parts done so far, kept in OUT/hour.json.

    Attributes:
        out: the folder.
        deadline: when this call ends, by `time.monotonic`.
        found: the content of hour.json.
    """

    out: Path
    deadline: float
    found: dict[str, Any] = field(default_factory=dict)

    def do(self, part: Part) -> bool:
        """Run a part unless it is done; return whether it is done now."""
        parts = self.found.setdefault("parts", {})
        before = parts.get(part.name, {})
        if before.get("state") in (DONE, STOPPED, FAILED):
            return bool(before["state"] == DONE)
        spent = before.get("seconds", 0.0) if part.goes_on else 0.0
        own, call = part.seconds - spent, self.deadline - GRACE_SECONDS - time.monotonic()
        if min(own, call) <= 0:
            return False
        command = [sys.executable, "-m", *part.command, *(["--resume"] if before and part.goes_on else [])]
        print(f"{part.name}: at most {min(own, call):.0f} s: {' '.join(part.command)}", flush=True)
        # Before it begins: whoever is killed with it leaves a part that the next call goes on with.
        parts[part.name] = {"state": BEGUN, "seconds": spent, "command": part.command}
        self.write()
        began = time.monotonic()
        with (self.out / f"{part.name}.log").open("ab") as log:
            status = _limited(command, log, min(own, call))
        spent += time.monotonic() - began
        state = {None: CUT if call < own else STOPPED, 0: DONE}.get(status, FAILED)
        parts[part.name] |= {"state": state, "status": status, "seconds": round(spent, 1)}
        self.write()
        print(f"{part.name}: {state} after {spent:.0f} s", flush=True)
        return state == DONE

    def write(self) -> None:
        """Write hour.json."""
        write_whole(self.out / "hour.json", json.dumps(self.found, indent=1).encode())


def _limited(command: list[str], log: Any, seconds: float) -> int | None:
    """Run a command and return its status; None where it was ended after so many seconds, as Ctrl-C does.

    It never outlives this process's own Ctrl-C or SIGTERM.
    """
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_SECONDS)
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tokens_per_second(run_folder: Path) -> float:
    """Read the speed of a run's last log; 0 where it has one only, which has compiling in it."""
    speeds = [float(speed) for line in read_record(run_folder) if (speed := line.get("tokens_per_second"))]
    return speeds[-1] if len(speeds) > 1 else 0.0


def run(options: argparse.Namespace) -> Hour:
    """Do what the time allows."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    found = json.loads((out / "hour.json").read_text()) if (out / "hour.json").is_file() else {}
    whole = found.setdefault("planned_seconds", (options.plan_minutes or options.minutes) * 60)
    found["machine"] = measure.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    hour = Hour(out, time.monotonic() + options.minutes * 60, found)
    hour.write()
    hour.do(Part("tests", ("pytest", "-q", *options.tests), whole * TESTS_SHARE))
    if options.speed:
        minutes = whole * SPEED_SHARE / 60
        speed = ("benchmarks.run", "--gpu-only", "--minutes", f"{minutes:.2f}", "--out", str(out / "speed.json"))
        # A section that has begun is finished.
        hour.do(Part("speed", speed, whole * SPEED_SHARE * 1.5))

    recipes = {path.stem: path for path in sorted(options.recipes.glob("*.yaml"))}
    settings = [f"corpus.store={options.store}", "tracking.enabled=false", *options.settings]
    given = [argument for setting in settings for argument in ("--set", setting)]
    speeds: dict[str, float] = found.setdefault("tokens_per_second", {})
    for name, path in recipes.items():
        tokens = options.probe_windows * load_recipe(path, settings).training.tokens_per_step
        changes = (f"training.max_tokens={tokens}", f"training.log_every_windows={max(1, options.probe_windows // 3)}")
        changes += ("evaluation.max_validation_tokens=1",)
        folder = out / "probes" / name
        command = ("audio_ct", "train", str(path), "--run-dir", str(folder), *given)
        command += tuple(argument for change in changes for argument in ("--set", change))
        if hour.do(Part(f"probe-{name}", command, whole * PROBE_SHARE / len(recipes), goes_on=True)):
            speeds[name] = tokens_per_second(folder)
    hour.write()

    shares = TESTS_SHARE + PROBE_SHARE + COMPARE_SHARE + (SPEED_SHARE * 1.5 if options.speed else 0)
    known = {name: speed for name, speed in speeds.items() if speed}
    runs = _plan(known, seconds=whole * (1 - shares) * options.train_share)
    for label, (name, tokens) in runs.items():
        folder = out / "runs" / label
        command = ("audio_ct", "train", str(recipes[name]), "--run-dir", str(folder), *given)
        command += ("--set", f"training.max_tokens={tokens}")
        # Compiling, validation and checkpoints come on top of what was planned.
        hour.do(Part(f"train-{label}", command, 1.5 * tokens / known[name] + 120, goes_on=True))
    done = [out / "runs" / label for label in runs if found["parts"].get(f"train-{label}", {}).get("state") == DONE]
    # Where this call's time is up, the next one may still finish the others.
    is_last = all(found["parts"].get(f"train-{label}", {}).get("state") in (DONE, STOPPED, FAILED) for label in runs)
    if done and is_last:
        compare = ("audio_ct", "compare", *map(str, done), "--out", str(out / "comparison"), *options.compare)
        hour.do(Part("compare", compare, whole * COMPARE_SHARE))
    return hour


def _plan(speeds: dict[str, float], *, seconds: float) -> dict[str, tuple[str, int]]:
    """Runs by label: the recipe and its tokens, so that all together take so many seconds.

    Every recipe trains for equal minutes; those that are faster than the slowest also for its tokens.
    """
    if not speeds:
        return {}
    slowest = min(speeds.values())
    each = seconds / sum(1 + (slowest / speed if speed > slowest else 0) for speed in speeds.values())
    runs = {}
    for name, speed in speeds.items():
        runs[f"{name}-equal-minutes"] = (name, int(speed * each))
        if speed > slowest:
            runs[f"{name}-equal-tokens"] = (name, int(slowest * each))
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40, help="of this call (%(default)s)")
    parser.add_argument("--plan-minutes", type=float, help="of all calls together; the first call's counts (--minutes)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", required=True, help="of recordings, as --recipes need it")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/headline"), help="folder (%(default)s)")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="section.key=value, for all recipes"
    )
    parser.add_argument("--tests", type=shlex.split, default="-m gpu", help='of pytest: --tests="-m gpu" (%(default)s)')
    parser.add_argument("--compare", type=shlex.split, default="--num 8 --seconds 2", help="options (%(default)s)")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="leave the benchmarks out")
    parser.add_argument("--probe-windows", type=int, default=60, help="(%(default)s)")
    parser.add_argument(
        "--train-share", type=float, default=0.8, help="of training's time that is planned (%(default)s)"
    )
    # Its own end takes the running command along, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hour = run(parser.parse_args(arguments))
    states = {name: part["state"] for name, part in hour.found["parts"].items()}
    print("\n".join(f"{name:<44}{state}" for name, state in states.items()))
    if FAILED in states.values():
        sys.exit(1)


if __name__ == "__main__":
    main()
