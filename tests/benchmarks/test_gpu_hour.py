"""The GPU's hour in small: budgets, a part that fails, a training that is cut and gone on with, the page at the end."""

import json
import shutil
import time
from pathlib import Path

import pytest

from audio_ct import checkpoint
from benchmarks import gpu_hour
from benchmarks.gpu_hour import BEGUN, CUT, DONE, FAILED, STOPPED, Hour, Part, _plan, main, tokens_per_second

RECIPES = Path(__file__).parent.parent.parent / "recipes" / "headline"
SMALL = (
    *("training.batch_size=2", "training.window_length=192", "training.precision=float32", "training.compile=false"),
    *("training.num_threads=1", "training.checkpoint_every_windows=5", "evaluation.max_validation_tokens=2000"),
    "evaluation.cold_start_samples=16",
)


def test_minutes_are_shared_so_that_each_trains_as_long_and_faster_ones_also_as_much() -> None:
    runs = _plan({"ours": 50.0, "theirs": 100.0}, seconds=250)
    assert runs == {
        "ours-equal-minutes": ("ours", 5000),
        "theirs-equal-minutes": ("theirs", 10_000),
        "theirs-equal-tokens": ("theirs", 5000),
    }
    assert sum(tokens / {"ours": 50, "theirs": 100}[name] for name, tokens in runs.values()) == 250
    assert _plan({}, seconds=250) == {}


def test_a_part_is_done_once_and_its_limit_and_its_failure_are_written_down(tmp_path: Path) -> None:
    hour = Hour(tmp_path, deadline=float("inf"))
    assert hour.do(Part("quick", ("calendar", "2026", "1"), 60))
    assert not hour.do(Part("wrong", ("calendar", "--no-such-option"), 60))
    assert not hour.do(Part("long", ("http.server", "--bind", "127.0.0.1", "0"), 1))
    states = {name: part["state"] for name, part in json.loads((tmp_path / "hour.json").read_text())["parts"].items()}
    assert states == {"quick": DONE, "wrong": FAILED, "long": STOPPED}
    assert "January 2026" in (tmp_path / "quick.log").read_text()
    again = Hour(tmp_path, deadline=float("inf"), found=hour.found)
    assert again.do(Part("quick", ("no_such_module",), 60))
    assert not again.do(Part("long", ("no_such_module",), 60))


def test_a_part_that_the_end_of_the_call_cut_or_that_died_with_it_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_hour, "GRACE_SECONDS", 5)
    hour = Hour(tmp_path, deadline=time.monotonic() + 6)
    assert not hour.do(Part("cut", ("http.server", "--bind", "127.0.0.1", "0"), 60))
    assert hour.found["parts"]["cut"]["state"] == CUT
    assert not hour.do(Part("late", ("calendar", "2026", "1"), 60))
    assert "late" not in hour.found["parts"]
    hour.found["parts"]["killed"] = {"state": BEGUN, "seconds": 0.0}
    again = Hour(tmp_path, deadline=float("inf"), found=hour.found)
    assert again.do(Part("cut", ("calendar", "2026", "1"), 60))
    # The calendar knows no --resume, which a training is given.
    assert not again.do(Part("killed", ("calendar", "2026", "1"), 60, goes_on=True))
    assert "--resume" in (tmp_path / "killed.log").read_text()


def test_the_first_log_is_no_speed(tmp_path: Path) -> None:
    assert tokens_per_second(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens_per_second": 2.0}\n')
    assert tokens_per_second(tmp_path) == 0
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 2, "tokens_per_second": 30.0}\n{"step": 2, "validation": 1.0}\n')
    assert tokens_per_second(tmp_path) == 30


@pytest.mark.slow
def test_the_hour_in_small_from_probes_to_the_page(store_path: Path, tmp_path: Path) -> None:
    out, recipes = tmp_path / "hour", tmp_path / "recipes"
    recipes.mkdir()
    for name in ("compressive_transformer.yaml", "wavenet.yaml"):
        shutil.copy(RECIPES / name, recipes)
    shrink = {
        "compressive_transformer.yaml": ("d_model: 512", "d_model: 16", "num_heads: 8", "num_heads: 2"),
        "wavenet.yaml": ("residual_channels: 480", "residual_channels: 8", "skip_channels: 352", "skip_channels: 8"),
    }
    for name, (old, new, old_too, new_too) in shrink.items():
        text = (recipes / name).read_text().replace(old, new).replace(old_too, new_too)
        for length in ("segment_length", "memory_length"):
            text = text.replace(f"{length}: 512", f"{length}: 96")
        (recipes / name).write_text(
            text.replace("d_ff: 2048", "d_ff: 16").replace("warmup_steps: 100", "warmup_steps: 2")
        )
    arguments = ["--out", str(out), "--store", str(store_path), "--recipes", str(recipes), "--no-speed"]
    arguments += ["--tests=--version", "--probe-windows", "9", "--compare=--num 1 --seconds 0.02"]
    arguments += [argument for setting in SMALL for argument in ("--set", setting)]
    # Two calls: what the first one's time does not suffice for, the second one does.
    main(["--plan-minutes", "5", "--train-share", "0.3", "--minutes", "1.2", *arguments])
    main(["--minutes", "5", "--train-share", "0.3", *arguments])
    found = json.loads((out / "hour.json").read_text())
    assert found["planned_seconds"] == 300
    assert {part["state"] for part in found["parts"].values()} == {DONE}
    trained = {path.name for path in (out / "runs").iterdir() if path.is_dir()}
    assert len(trained) == 3
    for name in trained:
        assert checkpoint.find(out / "runs" / name, "newest").is_dir()
    assert (out / "comparison" / "index.html").is_file()
