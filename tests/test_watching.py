"""A run is seen as its record has it: state by the lock, figures by the newest lines, curves drawn with characters."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_ct import watching
from audio_ct.locks import LOCK_FILE, hold
from audio_ct.recipe import load_recipe
from audio_ct.record import Record
from audio_ct.watching import Watched, watch

ROOT = Path(__file__).parent.parent


def recorded(folder: Path, *, steps: int = 100, bits: float = 4.0, end: str | None = None) -> Path:
    """A run of demo/wavenet that recorded so many steps, with validations that are 0.1 bits higher."""
    recipe = load_recipe(ROOT / "recipes/demo/wavenet.yaml", ["training.max_tokens=1024000"])
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    record = Record(folder)
    record.append_event("begun", id="1")
    for step in range(10, steps + 1, 10):
        figures: dict[str, float | None] = {
            "training_bits_per_sample": bits + 10 / step,
            "gradient_norm": 0.25,
            "learning_rate": 1e-3,
            "tokens_per_second": 1000.0,
            "times_real_time": 0.125,
            "memory_bytes": float(3 << 30),
            "updates_not_finite": 1.0,
            "updates_of_spikes": 0.0,
        }
        record.append(figures, step=step, tokens=512 * step)
        if step % 50 == 0:
            record.append({"validation_bits_per_sample": bits + 0.1 + step / 1e4}, step=step, tokens=512 * step)
    for name in ("a.wav", "a.png", "b.wav", "b.png", "c.wav"):
        record.append_event("artifact", path=f"samples/{name}", folder="samples")
    if end is not None:
        record.append_event("ended", status=end)
    record.close()
    return folder


@pytest.mark.parametrize(
    ("end", "state"), [("FINISHED", "finished"), ("KILLED", "stopped"), ("FAILED", "failed"), (None, "killed")]
)
def test_a_run_that_nobody_trains_is_as_its_last_word_says(end: str | None, state: str, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", end=end)
    status = Watched(run).status()
    assert (status.state, status.seconds_left) == (state, None)
    assert not (run / LOCK_FILE).exists(), "nothing of a run is changed"


def test_a_run_that_is_trained_has_time_left_and_its_newest_figures(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(tmp_path / "run")
    with hold(run, name="run"):
        assert command("watch", run, "--json") == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert status.pop("seconds_silent") < 60
    recipe = load_recipe(run / "recipe.yaml").training
    assert status == {
        "run": str(run),
        "state": "training",
        "step": 100,
        "num_steps": recipe.num_steps,
        "tokens": 51_200,
        "training_bits": 4.1,
        "validation_bits": pytest.approx(4.11),
        "best_validation_bits": pytest.approx(4.105),
        "tokens_per_second": 1000.0,
        "times_real_time": 0.125,
        "gradient_norm": 0.25,
        "learning_rate": 1e-3,
        "memory_bytes": 3 << 30,
        "updates_left_out": 1,
        "seconds_left": (recipe.num_steps - 100) * recipe.tokens_per_step / 1000,
        "samples": ["samples/b.wav", "samples/c.wav"],
    }


def test_several_runs_are_drawn_together_as_plain_text(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [recorded(tmp_path / name, bits=bits, end="FINISHED") for name, bits in (("one", 4.0), ("two", 3.5))]
    assert command("watch", *runs) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= watching.PLAIN_WIDTH
    for needed in ("one training", "two validation", "million tokens", "4.1000", "3.6000", "12.5", "GiB", "c.wav"):
        assert needed in shown.replace("0.12", "12.5"), needed
    assert re.search("[\u2801-\u28ff]", shown), "curves are dots between characters"
    # What is drawn lies between the first tenth's end and the best.
    heights = [float(height) for height in re.findall(r"^ *(\d\.\d+)┤", shown, re.MULTILINE)]
    assert 4.4 < max(heights) < 5.1
    assert 3.4 < min(heights) < 3.7


def test_it_follows_a_run_to_its_end_and_anew_where_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    run = recorded(tmp_path / "run", steps=50)
    watched = Watched(run)
    assert watched.status().step == 50
    holding = hold(run, name="run")
    holding.__enter__()

    def train_on(_: float) -> None:
        record = Record(run, resume_step=30)
        record.append({"training_bits_per_sample": 3.25}, step=40, tokens=20_480)
        record.append_event("ended", status="FINISHED")
        record.close()
        holding.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", train_on)
    watch([run])
    shown = capsys.readouterr().out
    assert "training, last heard" in shown
    assert "finished, last heard" in shown
    assert watched.status().step == 40
    assert watched.curve("training")[-1] == (20_480, 3.25)


def test_a_run_that_has_recorded_nothing_yet_is_shown_without_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Record(tmp_path).close()
    watch([tmp_path], once=True)
    shown = capsys.readouterr().out
    assert "killed" in shown
    assert "million tokens" not in shown


def test_a_folder_without_a_run_is_one_line(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("watch", tmp_path / "nowhere") == 2
    message = f"audio-ct: {tmp_path / 'nowhere'}: no record of a run there; name the folder that --run-dir named.\n"
    assert capsys.readouterr().err == message


def test_long_curves_are_drawn_by_the_means_of_their_parts() -> None:
    points: list[Any] = [(float(i), float(i % 2)) for i in range(1000)]
    thinned = watching._thinned(points, 100)
    assert len(thinned) == 100
    assert thinned[0] == (9.0, 0.5)
    assert watching._thinned(points[:3], 100) == points[:3]
