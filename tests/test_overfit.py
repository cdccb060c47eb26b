"""The recipe that a worried user runs first keeps its promise, through the real commands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [str(Path(sys.executable).parent / "audio-ct")]


@pytest.mark.slow
def test_three_seconds_are_learned_by_heart_and_spoken_back(tmp_path: Path) -> None:
    """Below 0.5 bits per sample, and a continuation nearer to the clip than the clip is to itself half moved."""
    store, run = tmp_path / "store", tmp_path / "run"
    subprocess.run([*COMMAND, "prep", "demo", "--out", str(store)], check=True)
    recipe = ROOT / "recipes/demo/overfit_one_clip.yaml"
    settings = ["--set", f"corpus.store={store}", "--set", "tracking.enabled=false"]
    subprocess.run([*COMMAND, "train", str(recipe), "--run-dir", str(run), *settings], check=True)
    evaluated = subprocess.run(
        [*COMMAND, "evaluate", str(run), "--split", "train", "--json"], check=True, capture_output=True, text=True
    )
    assert json.loads(evaluated.stdout)["bits_per_sample"] < 0.5
    script = [sys.executable, str(ROOT / "samples/continue_clip.py"), str(run), "--out", str(tmp_path / "out")]
    spoken = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    distance = {name: float(found) for name, found in re.findall(r"^(.*): ([\d.]+) dB from the clip$", spoken, re.M)}
    assert distance["continuation"] < 0.5 * distance["the clip itself, moved by half its length"]
