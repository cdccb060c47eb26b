"""On a disk without room every writer says so in one line, leaves what was whole as it was, and works again later."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Module

from audio_ct import checkpoint
from audio_ct.errors import AudioCTError
from audio_ct.evaluation.page import write_page as write_comparison
from audio_ct.record import Record, read_record
from audio_ct.sampling import writing
from audio_ct.studies.report import write_figures, write_table
from audio_ct.tokens.codec import ByteCodec, Codec, MuLawCodec
from audio_ct.tokens.store import Recording
from audio_ct.tokens.store_builder import TokenStoreBuilder
from audio_ct.training.mlflow_store import read_note, write_note
from tests.evaluation.test_page import comparison, model
from tests.faults import runs
from tests.faults.conftest import PAGE_BYTES, Disk

pytestmark = pytest.mark.fault("full disk")

Write = Callable[[Path, int], object]


def write_store(folder: Path, seed: int) -> None:
    with TokenStoreBuilder(folder / "store", MuLawCodec(24_000, 8), overwrite=True) as builder:
        for split in ("train", "train", "validation"):
            tokens = np.random.default_rng(seed).integers(0, 256, 20_000).astype(np.uint8)
            rows = [Recording(f"{split}/{i}", "anna", f"{i}.wav", None, 0, 100 * i, 100) for i in range(200)]
            builder.add_shard(split, tokens, rows)
        builder.commit()


def write_checkpoint(folder: Path, seed: int) -> None:
    weights = {name: torch.full((100, 50), float(seed)) for name in ("a", "b")}
    manifest = {"tokens": seed, "metrics": {}, "model": {}, "store_digest": "", "commit": None, "version": "0"}
    parts = {"weights": weights, "state": {"a": weights}, "training": {"a": weights}}
    checkpoint.save(folder / "checkpoints", step=seed, recipe="#" * 5000, manifest=manifest, **parts)


class Sampler:
    """In the place of the engine: blocks of a token that is the seed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def generate(self, *, num_samples: int, seed: int, **_: Any) -> Iterator[Tensor]:
        yield from torch.full((2, num_samples), 100 + seed).split(5000, dim=1)


def write_sounds(folder: Path, seed: int, *, codec: Codec = MuLawCodec(24_000, 8)) -> None:  # noqa: B008
    writing.write_samples(
        Module(),  # type: ignore[arg-type]
        codec,
        folder / "samples",
        stem="voice",
        num=2,
        num_tokens=20_000,
        seed=seed,
        overwrite=True,
    )


def write_texts(folder: Path, seed: int) -> None:
    write_sounds(folder, seed, codec=ByteCodec())


def write_comparison_page(folder: Path, seed: int) -> None:
    write_comparison(comparison(model("wavenet", 2.0 + seed), model("other", 3.0)), folder)


def write_study(folder: Path, seed: int) -> None:
    curve = [{"tokens": tokens, "mean": 3.0, "lowest": 2.0, "highest": 4.0} for tokens in (1000, 10_000)]
    variants = [
        {
            "name": name,
            "description": "",
            "changes": {},
            "budget_differs": {},
            "parameters": 1000,
            "num_seeds": 1,
            "bits_per_sample": 3.0 + seed,
            "half_width": None,
            "difference": None,
            "validation_bits_per_sample": 3.0,
            "training_tokens_per_second": 1000.0,
            "curve": curve,
            "runs": [{"seed": 0, "state": "finished", "error": None, "bits_per_sample": 3.0}],
        }
        for name in ("base", "other")
    ]
    summary: dict[str, Any] = {"study": "rates", "unit": "sample", "baseline": "base", "training_tokens": 1000}
    summary |= {"variants": variants, "seeds": [0], "split": "test", "command": "audio-ct study", "created": ""}
    summary |= {"version": "0", "commit": None, "store": "demo", "settings": [], "cold_start_samples": 0}
    summary |= {"max_tokens": None, "store_digest": "ab" * 32}
    write_table(summary, folder)
    write_figures(summary, folder)


def write_tracking_note(folder: Path, seed: int) -> None:
    write_note(folder / "tracking.json", "http://127.0.0.1", run_id=str(seed), experiment="x" * 5000)
    assert read_note(folder / "tracking.json", "http://127.0.0.1")["run_id"] == str(seed)


WRITERS: dict[str, Write] = {
    "store": write_store,
    "checkpoint": write_checkpoint,
    "samples": write_sounds,
    "texts": write_texts,
    "comparison": write_comparison_page,
    "study": write_study,
    "tracking note": write_tracking_note,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_was_whole_stays_whole(
    disk: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    times: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    monkeypatch.setattr(writing, "Sampler", Sampler)
    write, elsewhere = WRITERS[kind], Disk(tmp_path / "elsewhere")
    elsewhere.path.mkdir()
    write(elsewhere.path, 2)
    new = elsewhere.content()
    num_pages = sum(-(-len(content) // PAGE_BYTES) for content in new.values())
    write(disk.path, 1)
    num_levels, num_refused = min(times(3, 12), num_pages), 0
    for level in range(num_levels):
        old = disk.content()
        disk.leave(level * num_pages // num_levels)
        try:
            write(disk.path, 2)
        except (AudioCTError, OSError) as error:
            line = str(error) if isinstance(error, AudioCTError) else f"{error.filename}: {error.strerror}"
            num_refused += 1
        else:
            # Where a file takes the place of another, less room is needed than for all of them.
            line = ""
        after = disk.content()
        torn = {name for name in old if after.get(name) not in ((old[name], new.get(name)) if line else (new[name],))}
        assert not torn, line
        assert not line or (len(line.splitlines()) == 1 and str(disk.path) in line)
        disk.free()
        write(disk.path, 1)
        assert disk.content().keys() >= old.keys()
    assert num_refused >= num_levels / 2
    measured(f"{kind}: refused at {num_refused} of {num_levels} fill levels up to {num_pages * PAGE_BYTES >> 10} KiB")


def test_a_record_is_completed_once_there_is_room(
    disk: Disk, caplog: pytest.LogCaptureFixture, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    num_levels = times(1, 5)
    for level in range(num_levels):
        run = disk.path / f"run-{level}"
        record = Record(run)
        disk.leave(level)
        caplog.clear()
        for step in range(300):
            record.append({"training_bits_per_sample": 1.0}, step=step, tokens=step)
        assert len(caplog.messages) == 1
        # To resume rewrites it.
        old = (run / "metrics.jsonl").read_bytes()
        if old:
            with pytest.raises(AudioCTError, match="No space left on device"):
                Record(run, resume_step=300)
            assert (run / "metrics.jsonl").read_bytes() == old
        disk.free()
        record.close()
        assert [line["step"] for line in read_record(run)] == list(range(300))
    measured(f"record: {num_levels} fill levels, no line lost")


@pytest.mark.xdist_group("kills")
def test_a_run_goes_on_once_there_is_room(
    disk: Disk, tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    store = runs.build_store(tmp_path / "store")
    recipe = runs.write_recipe(tmp_path / "recipe.yaml", Path(store.address), runs.COMPRESSIVE)
    unbroken = tmp_path / "unbroken"
    assert runs.exit_status(runs.train(recipe, unbroken)) == 0
    num_levels, most_pages = times(1, 10), 60
    for level in range(num_levels):
        run = disk.path / f"run-{level}"
        disk.leave(level * most_pages // num_levels)
        log = tmp_path / f"{level}.log"
        status = runs.exit_status(runs.train(recipe, run, log=log))
        disk.free()
        *_, line = log.read_text().splitlines()
        assert status == 2, line
        assert line.startswith("audio-ct: ")
        assert "No space left on device" in line
        assert "Traceback" not in log.read_text()
        runs.checkpoints(run)
        assert runs.exit_status(runs.train(recipe, run, log=log)) == 0, log.read_text()
        runs.assert_same_runs(unbroken, run)
        shutil.rmtree(run)
    measured(f"training: {num_levels} fill levels, all equal once there was room")
