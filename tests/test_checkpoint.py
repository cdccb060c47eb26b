"""A checkpoint is whole or absent, what was changed is never accepted, and pruning leaves something to resume from."""

import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from audio_ct import checkpoint
from audio_ct.errors import AudioCTError, DamagedError, MissingError

ALL_FILES = (*checkpoint.FILES, checkpoint.MANIFEST_FILE)
RECIPE = "model:\n  kind: wavenet  # ünïcode\n"


def save(folder: Path, step: int, bits: float | None = None, **changes: Any) -> Path:
    tied = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    parts: dict[str, Any] = {
        "weights": {
            "embedding": tied,
            "head": tied,
            "transposed": torch.rand(3, 2).T,
            "half": torch.ones(2).bfloat16(),
        },
        "state": {"0": {"memory": torch.rand(2, 4, 3), "empty": torch.zeros(2, 0, 3)}, "usage": torch.tensor([step])},
        "training": {"random": torch.get_rng_state(), "optimizer": {"0": {"step": torch.tensor(2.0)}}},
        "recipe": RECIPE,
        "manifest": {
            "tokens": 10 * step,
            "metrics": {"validation_bits_per_sample": bits},
            "model": {"kind": "wavenet", "vocabulary_size": 256},
            "store_digest": "ab" * 32,
            "commit": None,
            "version": "0.1.0",
        },
    }
    return checkpoint.save(folder, step=step, **(parts | changes))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def rewrite_with_true_hashes(path: Path, name: str, content: bytes) -> None:
    """Do what someone who means harm would: change a file and make the manifest agree."""
    (path / name).write_bytes(content)
    fields = json.loads((path / checkpoint.MANIFEST_FILE).read_bytes())
    fields = {key: fields[key] for key in fields if key not in ("format", "format_version", "sha256")}
    fields["files"][name] = checkpoint._record(path / name)
    manifest = checkpoint.Manifest(**fields)
    (path / checkpoint.MANIFEST_FILE).write_bytes(checkpoint._manifest_bytes(manifest))


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    weights = {"a": torch.rand(3, 4), "view": torch.rand(4, 4)[1:3], "scalar": torch.tensor(1.5, dtype=torch.float64)}
    state = {"transformer": {"0": {"memory": torch.rand(2, 3, 4).half()}}, "count": torch.tensor([2**40])}
    training = {"random": {"cpu": torch.get_rng_state()}, "seconds": torch.tensor(0.1, dtype=torch.float64)}
    path = save(tmp_path, 5, bits=3.25, weights=weights, state=state, training=training)
    loaded = checkpoint.load(path)
    assert path.name == "step-00000005"
    for saved, found in ((weights, loaded.weights), (state, loaded.state), (training, loaded.training)):
        torch.testing.assert_close(found, saved, rtol=0, atol=0)
    assert loaded.recipe == RECIPE
    assert loaded.manifest.step == 5
    assert loaded.manifest.tokens == 50
    assert loaded.manifest.validation_bits_per_sample == 3.25
    assert loaded.manifest.model == {"kind": "wavenet", "vocabulary_size": 256}


def test_tied_and_transposed_and_empty_tensors_survive(tmp_path: Path) -> None:
    loaded = checkpoint.load(save(tmp_path, 1))
    assert torch.equal(loaded.weights["embedding"], loaded.weights["head"])
    assert loaded.weights["transposed"].shape == (2, 3)
    assert loaded.state is not None
    assert loaded.state["0"]["empty"].shape == (2, 0, 3)


def test_sampling_needs_only_model_and_recipe(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / checkpoint.TRAINING_FILE).unlink()
    (path / checkpoint.STATE_FILE).unlink()
    loaded = checkpoint.load(checkpoint.find(path), with_training=False)
    assert loaded.training is None
    assert loaded.state is None
    assert "embedding" in loaded.weights
    with pytest.raises(DamagedError, match="missing"):
        checkpoint.load(path)


@pytest.mark.fault("damaged checkpoint")
@pytest.mark.parametrize("name", ALL_FILES)
def test_every_kind_of_damage_is_detected_and_names_the_file(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    generator = random.Random(0)
    mutations = [b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0", b"\0" * len(whole), whole[::-1]]
    for _ in range(100):
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        mutations.append(bytes(changed))
    for mutation in mutations:
        (path / name).write_bytes(mutation)
        with pytest.raises(DamagedError, match=name):
            checkpoint.load(path)
    (path / name).unlink()
    with pytest.raises(DamagedError, match=f"{name}: missing"):
        checkpoint.load(path)
    (path / name).write_bytes(whole)
    checkpoint.load(path)


@pytest.mark.fault("damaged checkpoint")
@pytest.mark.parametrize("name", ALL_FILES)
def test_files_swapped_with_another_runs_are_detected(tmp_path: Path, name: str) -> None:
    path, other = save(tmp_path / "a", 1), save(tmp_path / "b", 2, recipe="other")
    (path / name).write_bytes((other / name).read_bytes())
    with pytest.raises(DamagedError):
        checkpoint.load(path)


@pytest.mark.fault("malicious checkpoint")
@pytest.mark.parametrize("name", ALL_FILES)
def test_links_and_pipes_are_refused_without_waiting(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError, match="symbolic link"):
        checkpoint.load(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(DamagedError, match="not a regular file"):
        checkpoint.load(path)


@pytest.mark.fault("foreign checkpoint")
@pytest.mark.parametrize(
    ("version", "remedy"), [(1, "train the model again, or read it with .* before-one-house"), (3, "upgrade audio-ct")]
)
def test_another_format_is_refused_by_name_and_version(tmp_path: Path, version: int, remedy: str) -> None:
    path = save(tmp_path, 1)
    file = path / checkpoint.MANIFEST_FILE
    file.write_text(json.dumps({"format": checkpoint.FORMAT, "format_version": version, "unknown": 1}))
    with pytest.raises(DamagedError, match=rf"audio-ct checkpoint format_version={version} .* {remedy}") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("malicious checkpoint")
@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"null", b"{}", b"\xff", b"1" * 10_000, b" " * (2 << 20)])
def test_manifests_from_elsewhere_are_refused(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, 1)
    (path / checkpoint.MANIFEST_FILE).write_bytes(content)
    with pytest.raises(DamagedError, match="manifest"):
        checkpoint.load(path)


@pytest.mark.fault("malicious checkpoint")
@pytest.mark.parametrize(
    "content",
    [
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + bytes(10),
        b"",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'[:60],
        (66).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}' + bytes(4),
    ],
)
@pytest.mark.parametrize("name", [checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE])
def test_tensors_made_to_harm_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = save(tmp_path, 1)
    rewrite_with_true_hashes(path, name, content)
    with pytest.raises(DamagedError, match=name):
        checkpoint.load(path)


@pytest.mark.fault("malicious checkpoint")
@pytest.mark.parametrize("names", [("a", "a.b"), ("a", "a.b.c")])
def test_names_that_do_not_nest_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    path = save(tmp_path, 1)
    rewrite_with_true_hashes(
        path, checkpoint.STATE_FILE, safetensors.torch.save({name: torch.ones(1) for name in names})
    )
    with pytest.raises(DamagedError, match="do not nest"):
        checkpoint.load(path)


@pytest.mark.fault("killed training")
def test_files_reach_the_disk_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    save(tmp_path, 1)
    assert set(events[:5]) == set(ALL_FILES)
    assert events[5:] == [f".step-00000001.tmp-{os.getpid()}", "rename", tmp_path.name]


@pytest.mark.fault("killed training")
def test_leftovers_of_a_killed_save_are_ignored_then_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = run / "checkpoints"
    first = save(folder, 1)
    leftover = folder / ".step-00000002.tmp-4242"
    leftover.mkdir()
    for name in ALL_FILES:
        (leftover / name).write_bytes((first / name).read_bytes())
    assert checkpoint.find(run) == first
    assert save(folder, 3) == checkpoint.find(run)
    assert names(folder) == ["step-00000001", "step-00000003"]


@pytest.mark.fault("killed training")
def test_a_kill_while_one_step_is_written_again_loses_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    replaced = path.rename(tmp_path / "step-00000001.replaced")
    assert checkpoint.find(tmp_path) == replaced
    assert checkpoint.load(replaced).manifest.step == 1
    for recipe in ("new", "newer"):
        assert checkpoint.load(save(tmp_path, 1, recipe=recipe)).recipe == recipe
        assert names(tmp_path) == [path.name]


def test_pruning_keeps_the_newest_two_and_the_best(tmp_path: Path) -> None:
    for step, bits in enumerate([4.0, 3.0, 3.5, None, 3.6, 3.7], start=1):
        save(tmp_path, step, bits)
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert checkpoint.find(tmp_path, "best").name == "step-00000002"
    assert checkpoint.find(tmp_path, "newest").name == "step-00000006"


def test_pruning_never_removes_what_was_just_saved_or_cannot_be_read(tmp_path: Path) -> None:
    for step in (8, 9):
        save(tmp_path, step, 1.0)
    newer = tmp_path / "step-00000002"
    newer.mkdir()
    save(tmp_path, 3, 2.0)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000008", "step-00000009"]


@pytest.mark.fault("damaged checkpoint")
def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-00000002" / checkpoint.MODEL_FILE).write_bytes(b"")
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]


@pytest.mark.fault("damaged checkpoint")
def test_find_passes_over_damage_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        save(tmp_path, step, bits=5.0 - step)
    file = tmp_path / "step-00000002" / checkpoint.STATE_FILE
    file.write_bytes(bytes(file.stat().st_size))
    for which in ("best", "newest"):
        caplog.clear()
        assert checkpoint.find(tmp_path, which).name == "step-00000001"
        assert len(caplog.messages) == 1
        assert checkpoint.STATE_FILE in caplog.messages[0]
        assert "\n" not in caplog.messages[0]


def test_best_falls_back_to_newest(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, None)
    assert checkpoint.find(tmp_path, "best").name == "step-00000002"
    for step in (3, 4):
        save(tmp_path, step, 2.5)
    assert checkpoint.find(tmp_path, "best").name == "step-00000004"


def test_nothing_there_is_said_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "step-00000009"):
        with pytest.raises(MissingError, match=str(path)):
            checkpoint.find(path)


def test_a_renamed_step_is_refused_and_a_free_name_is_not(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    published = path.rename(tmp_path / "wavenet")
    assert checkpoint.find(published) == published
    assert checkpoint.load(published).manifest.step == 1
    with pytest.raises(DamagedError, match="step 1"):
        checkpoint.load(published.rename(tmp_path / "step-00000007"))


@pytest.mark.fault("full disk")
@pytest.mark.parametrize("limit_bytes", [0, 300, 700, 1500, 5000])
def test_a_full_disk_is_one_line_and_leaves_what_was_whole(tmp_path: Path, limit_bytes: int) -> None:
    path = save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(AudioCTError, match="check free space") as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert "step-00000002" in str(caught.value)
    assert names(tmp_path) == ["step-00000001"]
    checkpoint.load(path)
    save(tmp_path, 2)


def test_a_value_that_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(ValueError, match="validation_bits_per_sample"):
        save(tmp_path, 2, bits=float("nan"))
    assert names(tmp_path) == [path.name]
