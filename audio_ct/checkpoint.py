"""Checkpoints: a folder per step, whole or absent, checked by SHA-256 before anything in it is used.

    RUN/checkpoints/step-00012000/
        model.safetensors      weights
        state.safetensors      what the lanes carry from window to window, by dotted names
        training.safetensors   optimizer, gradient scaler, random states, running figures, by dotted names
        recipe.yaml            the resolved recipe
        manifest.json          step, tokens, metrics, model, store, commit, version; size and SHA-256 of the files above

What is published (`audio_ct.publication`) has weights, recipe and manifest of these, and perhaps step.pt2.

A folder is written under a temporary name beside its place, synchronised with the disk, and renamed. Nothing in it is a
pickle, so reading one runs no code and takes no more memory than its files have bytes.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from audio_ct.durable import install, open_regular, sha256_of
from audio_ct.errors import AudioCTError, DamagedError, MissingError
from audio_ct.models.stage import State, flatten, unflatten

FORMAT = "audio-ct checkpoint"
FORMAT_VERSION = 2
MODEL_FILE, STATE_FILE, TRAINING_FILE = "model.safetensors", "state.safetensors", "training.safetensors"
RECIPE_FILE, MANIFEST_FILE = "recipe.yaml", "manifest.json"
FILES = (MODEL_FILE, STATE_FILE, TRAINING_FILE, RECIPE_FILE)
# What sampling and evaluation read, and what may stand beside it.
PUBLISHED_FILES = (MODEL_FILE, RECIPE_FILE)
PROGRAM_FILE = "step.pt2"
KEPT_NEWEST = 2
MAX_MANIFEST_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20
# A resolved recipe has every default and a line for each entry of a list.
MAX_RECIPE_BYTES = 1 << 18

_STEP_FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")
_TEMPORARY_FOLDER = re.compile(r"\.step-\d{8,}\.tmp-.+")

logger = logging.getLogger("audio_ct")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileRecord(_Strict):
    """Size and SHA-256 of one file of a checkpoint."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Strict):
    """The manifest of a checkpoint."""

    step: Annotated[int, Field(ge=0)]
    """Windows trained so far."""
    tokens: Annotated[int, Field(ge=0)]
    """Training tokens so far, over all lanes."""
    metrics: dict[str, float | None]
    """At least validation_bits_per_sample where it was measured."""
    model: dict[str, JsonValue]
    """At least kind and vocabulary_size."""
    store_digest: str
    """Of the token store."""
    commit: str | None
    """Of the code; None where it is unknown."""
    version: str
    files: dict[str, FileRecord]

    @property
    def validation_bits_per_sample(self) -> float | None:
        """The validation likelihood in bits per sample, or None where it was not measured."""
        return self.metrics.get("validation_bits_per_sample")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read into CPU memory; `state` and `training` are None where only the model was asked for."""

    path: Path
    manifest: Manifest
    recipe: str
    weights: dict[str, Tensor]
    state: State | None
    training: State | None


def save(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    state: State,
    training: State,
    recipe: str,
    manifest: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a step, verify it, prune older ones, and return its folder.

    Kept are this one, the newest KEPT_NEWEST and the best by validation_bits_per_sample. Folders which this version
    cannot read are never removed. A process killed at any moment leaves every earlier checkpoint as it was.

    Args:
        folder: the run's checkpoints folder; made where it is missing.
        step: windows trained so far.
        weights: the model's tensors by name.
        state: of the lanes.
        training: all else that resuming needs, in nested dictionaries of tensors too; empty ones are lost.
        recipe: the resolved recipe as YAML.
        manifest: the other fields of `Manifest`, without `files`.

    Raises:
        AudioCTError: the disk is full, read-only or broken; all that was whole stays whole.
        DamagedError: the content read back is not that written; nothing is pruned.
    """
    target = folder / f"step-{step:08d}"
    temporary = _temporary(target)
    with _disk_errors(target, "writing the checkpoint"):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        try:
            save_file(_storable(weights), temporary / MODEL_FILE)
            save_file(_storable(flatten(state)), temporary / STATE_FILE)
            save_file(_storable(flatten(training)), temporary / TRAINING_FILE)
            (temporary / RECIPE_FILE).write_bytes(recipe.encode())
            write_manifest(temporary, FILES, {"step": step, **manifest})
            # `find` knows the name that a folder in the way has in between, so a kill there loses nothing.
            install(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    read_manifest(target)
    _prune(folder, target)
    return target


def write_manifest(folder: Path, files: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Write the manifest of files that stand in a folder; `fields` are the others of `Manifest`."""
    records = {name: _record(folder / name) for name in files}
    (folder / MANIFEST_FILE).write_bytes(_manifest_bytes(Manifest(**{**fields, "files": records})))


def read_manifest(path: Path, verify: bool = True, files: tuple[str, ...] = FILES) -> Manifest:
    """Read a checkpoint's manifest, and check its own digest, the sizes of `files` and, with `verify`, their digests.

    Raises:
        MissingError: there is no such folder.
        DamagedError: a file is missing, changed, a link, or of another format.
    """
    if not path.is_dir():
        raise MissingError(f"{path}: no such checkpoint folder; give a run's folder or one of its checkpoints")
    with _disk_errors(path, "reading the checkpoint"):
        manifest = _parse_manifest(path / MANIFEST_FILE)
        named = _STEP_FOLDER.fullmatch(path.name)
        if named and int(named[1]) != manifest.step:
            raise DamagedError(f"{path}: its manifest says step {manifest.step}; the folder was renamed or swapped")
        for name in files:
            with open_regular(path / name, whole="checkpoint") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                if (expected := manifest.files.get(name)) is None:
                    raise DamagedError(f"{path / name}: not in the manifest; use a checkpoint of a run")
                if size_bytes != expected.size_bytes:
                    raise DamagedError(
                        f"{path / name}: {size_bytes} bytes, written {expected.size_bytes}; use another checkpoint"
                    )
                if verify and sha256_of(file) != expected.sha256:
                    raise DamagedError(
                        f"{path / name}: content differs from its manifest's SHA-256; use another checkpoint"
                    )
    return manifest


def load(path: Path, *, with_training: bool = True) -> Checkpoint:
    """Read a checkpoint's folder into CPU memory, after checking every file that is read.

    Args:
        path: as `find` returns it.
        with_training: also read the lanes' state and the training state. Sampling and evaluation leave them out, and
            need neither file to be there.

    Raises:
        MissingError: there is no such folder.
        DamagedError: a file is missing, changed, of another format, or not safe to read.
    """
    manifest = read_manifest(path, files=FILES if with_training else PUBLISHED_FILES)
    with _disk_errors(path, "reading the checkpoint"):
        return Checkpoint(
            path=path,
            manifest=manifest,
            recipe=_load_recipe(path / RECIPE_FILE),
            weights=_load_tensors(path / MODEL_FILE),
            state=_load_nested(path / STATE_FILE) if with_training else None,
            training=_load_nested(path / TRAINING_FILE) if with_training else None,
        )


def find(path: Path, which: Literal["newest", "best"] = "newest") -> Path:
    """Find the checkpoint folder meant by `path`: itself, or the newest or best whole one of a run.

    Every candidate of a run is checked by SHA-256; damaged ones are passed over with a one-line warning each.

    Args:
        path: a checkpoint's folder, a run's folder, or a run's checkpoints folder.
        which: "newest" (highest step) or "best" (lowest validation_bits_per_sample; ties and unmeasured: newest).

    Raises:
        MissingError: nothing whole is there.
    """
    if _STEP_FOLDER.fullmatch(path.name) or (path / MANIFEST_FILE).exists():
        read_manifest(path, verify=False, files=())
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    manifests = _readable(folder, "passed over a checkpoint", verify=True)
    if not manifests:
        raise MissingError(f"{path}: no whole checkpoint there; give a run's folder that has one, or train first")
    return next(iter(manifests)) if which == "newest" else _best(manifests)


def _readable(folder: Path, otherwise: str, *, verify: bool) -> dict[Path, Manifest]:
    """The manifests of a run's checkpoints, newest first; where one cannot be read, warn of what is done `otherwise`.

    A checkpoint that was being replaced counts only where its successor is missing.
    """
    manifests = {}
    with _disk_errors(folder, "listing checkpoints"):
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for candidate in entries:
        successor = candidate.with_name(candidate.name.removesuffix(".replaced"))
        if not _STEP_FOLDER.fullmatch(candidate.name) or (successor != candidate and successor in entries):
            continue
        try:
            manifests[candidate] = read_manifest(candidate, verify=verify)
        except AudioCTError as error:
            logger.warning("%s: %s", otherwise, error)
    return dict(sorted(manifests.items(), key=lambda found: -found[1].step))


def _best(manifests: Mapping[Path, Manifest]) -> Path:
    """The first of those with the fewest bits; one that was not measured has infinitely many."""
    measured = {candidate: manifest.validation_bits_per_sample for candidate, manifest in manifests.items()}
    bits = {candidate: math.inf if value is None else value for candidate, value in measured.items()}
    return min(bits, key=bits.__getitem__)


def _temporary(path: Path) -> Path:
    """The place of a checkpoint that is written or removed; hidden, so that nothing takes it for one of the run's."""
    return path.with_name(f".{path.name.removesuffix('.replaced')}.tmp-{os.getpid()}")


def _remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed processes: temporary folders, and replaced ones whose successor is there."""
    for entry in list(folder.iterdir()):
        successor = entry.with_name(entry.name.removesuffix(".replaced"))
        if _TEMPORARY_FOLDER.fullmatch(entry.name) or (
            _STEP_FOLDER.fullmatch(entry.name) and successor != entry and successor.exists()
        ):
            shutil.rmtree(entry)


def _prune(folder: Path, saved: Path) -> None:
    # A folder that cannot be read may be of a newer version, or all that is left of a run.
    manifests = _readable(folder, "left a checkpoint in place", verify=False)
    kept = {saved, _best(manifests), *list(manifests)[:KEPT_NEWEST]}
    try:
        for candidate in manifests.keys() - kept:
            # Renamed first, so that a kill halfway leaves a temporary folder and not half a checkpoint.
            doomed = _temporary(candidate)
            candidate.rename(doomed)
            shutil.rmtree(doomed)
        _remove_leftovers(folder)
    except OSError as error:
        # The checkpoint itself is safe on disk; training need not stop because an old one could not be removed.
        logger.warning("%s: could not remove an old checkpoint (%s); remove it by hand", folder, error.strerror)


@contextmanager
def _disk_errors(path: Path, action: str) -> Iterator[None]:
    """Turn errors of the system and of safetensors into one line with the path and the remedy."""
    try:
        yield
    except AudioCTError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise AudioCTError(
            f"{path}: {action} failed: {reason}; check free space, quota and permissions there"
        ) from error


def _record(path: Path) -> FileRecord:
    return FileRecord(size_bytes=path.stat().st_size, sha256=sha256_of(path))


def _manifest_bytes(manifest: Manifest) -> bytes:
    """The only spelling that a manifest has on disk, its own SHA-256 included, so that any changed bit shows."""
    fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest.model_dump()}
    body = json.dumps(fields, sort_keys=True, allow_nan=False)
    fields["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    return (json.dumps(fields, sort_keys=True, allow_nan=False, indent=2) + "\n").encode()


def _parse_manifest(path: Path) -> Manifest:
    with open_regular(path, whole="checkpoint") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise DamagedError(f"{path}: longer than {MAX_MANIFEST_BYTES} bytes; not a manifest of audio-ct")
    try:
        fields = json.loads(content)
        kind, version = fields.pop("format"), fields.pop("format_version")
        if kind == FORMAT and isinstance(version, int):
            _check_version(path, version)
        fields.pop("sha256")
        manifest = Manifest.model_validate(fields)
        names = set(manifest.files)
        is_whole = _manifest_bytes(manifest) == content and {*PUBLISHED_FILES} <= names <= {*FILES, PROGRAM_FILE}
    except DamagedError:
        raise
    # Bytes from outside: not UTF-8, not JSON, nested too deeply, not an object, keys missing, or of another type.
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a manifest of audio-ct, or damaged; use another checkpoint") from error
    if not is_whole:
        raise DamagedError(f"{path}: content differs from its own SHA-256; use another checkpoint")
    return manifest


def _check_version(path: Path, version: int) -> None:
    if version > FORMAT_VERSION:
        raise DamagedError(
            f"{path}: {FORMAT} format_version={version} must be at most {FORMAT_VERSION} here; upgrade audio-ct"
        )
    if version < FORMAT_VERSION:
        raise DamagedError(
            f"{path}: {FORMAT} format_version={version} was written before the models were redesigned; train the model "
            "again, or read it with the version that is tagged before-one-house"
        )


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: contiguous, and no two (tied weights, views) in one storage."""
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        address = value.untyped_storage().data_ptr()
        stored[name] = value.clone() if address in storages else value
        storages.add(address)
    return stored


def _load_tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise DamagedError(f"{path}: a header of {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedError(f"{path}: not a readable safetensors file; use another checkpoint") from error


def _load_recipe(path: Path) -> str:
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise DamagedError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_RECIPE_BYTES}; is it a recipe?")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DamagedError(
            f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; use another checkpoint"
        ) from error


def _load_nested(path: Path) -> State:
    tensors = _load_tensors(path)
    try:
        return unflatten(tensors)
    # A name that is both a tensor's and the beginning of another's.
    except (AttributeError, IndexError, TypeError) as error:
        raise DamagedError(f"{path}: names that do not nest; use another checkpoint") from error
