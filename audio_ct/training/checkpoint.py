"""Checkpoints: a folder per step, whole or absent, checked by SHA-256 before anything in it is used.

    RUN/checkpoints/step-00012000/
        model.safetensors   weights
        state.safetensors   the lanes' carried states, in the dtype they had
        training.pt         optimiser, scaler, schedule position, random states, lane cursors
        recipe.yaml         the resolved recipe
        manifest.json       step, tokens, metrics, model, store, commit, version; size and SHA-256 of the files above

A folder is written under a temporary name beside its place, its files are synchronised with the disk, the manifest
last, and it is renamed. Nothing here runs code from a checkpoint, and memory stays within the size of the files.
"""

import hashlib
import json
import logging
import os
import pickletools
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, JsonValue, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from audio_ct.durable import synchronise
from audio_ct.errors import AudioCTError, DamagedError, InputError, MissingError

FORMAT = "audio-ct checkpoint"
FORMAT_VERSION = 1
MODEL_FILE, STATE_FILE, TRAINING_FILE, RECIPE_FILE = (
    "model.safetensors",
    "state.safetensors",
    "training.pt",
    "recipe.yaml",
)
FILES = (MODEL_FILE, STATE_FILE, TRAINING_FILE, RECIPE_FILE)
MANIFEST_FILE = "manifest.json"
SAMPLING_FILES = (MODEL_FILE, RECIPE_FILE)
MAX_MANIFEST_BYTES = 1 << 20
MAX_SAFETENSORS_HEADER_BYTES = 16 << 20

_STEP_FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")
_TEMPORARY_FOLDER = re.compile(r"step-\d{8,}\.tmp-.+")
_SAFE_PICKLE_NAMES = {
    "collections OrderedDict",
    "torch Size",
    "torch.storage UntypedStorage",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
}

logger = logging.getLogger("audio_ct")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class FileRecord:
    """Size and SHA-256 of one file of a checkpoint."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Manifest:
    """What a checkpoint says about itself.

    `tokens` counts training tokens so far; `metrics` holds at least validation_bits_per_sample where it was measured;
    `model` holds at least kind and vocabulary_size; `store_digest` is the token store's; `commit` may be unknown.
    """

    step: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=0)]
    metrics: dict[str, float | None]
    model: dict[str, JsonValue]
    store_digest: str
    commit: str | None
    version: str
    files: dict[str, FileRecord]

    @property
    def validation_bits_per_sample(self) -> float | None:
        """The validation likelihood in bits per sample, or None where it was not measured."""
        return self.metrics.get("validation_bits_per_sample")


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class Checkpoint:
    """A checkpoint read into CPU memory; `state` and `training` are None where only the model was asked for."""

    path: Path
    manifest: Manifest
    recipe: str
    weights: dict[str, Tensor]
    state: dict[str, Tensor] | None
    training: dict[str, Any] | None


def save(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    training: Mapping[str, Any],
    recipe: str,
    manifest: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step`, verify what was written, then prune older ones.

    Kept are this one, the newest `keep` and the best by validation_bits_per_sample. Folders which this version cannot
    read are never removed. A process killed at any moment leaves every earlier checkpoint as it was.

    Args:
        folder: the run's checkpoints folder; made where it is missing.
        step: optimiser steps done.
        weights: the model's tensors by name.
        state: the lanes' carried states by name.
        training: what resuming needs besides; nested dicts, lists and tuples of tensors, numbers and text only.
        recipe: the resolved recipe as YAML.
        manifest: tokens, metrics, model, store_digest, commit, version, as in `Manifest`.
        keep: how many of the newest checkpoints stay, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: a value cannot be stored.
        AudioCTError: the disk is full, read-only or broken; what was whole stays whole.
        DamagedError: what was read back is not what was written; nothing is pruned.
    """
    if keep < 1:
        raise InputError(f"keep={keep} must be at least 1, or there would be nothing to resume from")
    target = folder / f"step-{step:08d}"
    temporary = folder / f"{target.name}.tmp-{os.getpid()}"
    replaced = folder / f"{target.name}.replaced"
    with _disk_errors(target, "writing the checkpoint"):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        try:
            save_file(_storable(weights), temporary / MODEL_FILE)
            save_file(_storable(state), temporary / STATE_FILE)
            with (temporary / TRAINING_FILE).open("wb") as file:
                torch.save(dict(training), file)
            _check_training_file(temporary / TRAINING_FILE, InputError)
            (temporary / RECIPE_FILE).write_bytes(recipe.encode())
            records = {name: _record(temporary / name) for name in FILES}
            for name in FILES:
                synchronise(temporary / name)
            (temporary / MANIFEST_FILE).write_bytes(_manifest_bytes(_manifest(step, manifest, records)))
            synchronise(temporary / MANIFEST_FILE)
            synchronise(temporary)
            # A folder cannot be renamed onto another; `find` knows the name in between, so a kill here loses nothing.
            if target.exists():
                target.rename(replaced)
            temporary.rename(target)
            synchronise(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    read_manifest(target)
    _prune(folder, target, keep)
    return target


def read_manifest(path: Path, verify: bool = True, files: tuple[str, ...] = FILES) -> Manifest:
    """Return a checkpoint's manifest, once its own digest and, with `verify`, those of `files` have been checked.

    Without `verify` sizes are still compared.

    Raises:
        MissingError: there is no such folder.
        DamagedError: a file is missing, changed, a link, or of a newer format.
    """
    if not path.is_dir():
        raise MissingError(f"{path}: no such checkpoint folder; give a run's folder or one of its checkpoints")
    with _disk_errors(path, "reading the checkpoint"):
        manifest = _parse_manifest(path / MANIFEST_FILE)
        named = _STEP_FOLDER.fullmatch(path.name)
        if named and int(named[1]) != manifest.step:
            raise DamagedError(f"{path}: its manifest says step {manifest.step}; the folder was renamed or swapped")
        for name in files:
            with _open_regular(path / name) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                expected = manifest.files[name]
                if size_bytes != expected.size_bytes:
                    raise DamagedError(
                        f"{path / name}: {size_bytes} bytes, written {expected.size_bytes}; use another checkpoint"
                    )
                if verify and hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                    raise DamagedError(
                        f"{path / name}: content differs from its manifest's SHA-256; use another checkpoint"
                    )
    return manifest


def load(path: Path, *, with_training: bool = True) -> Checkpoint:
    """Return a checkpoint's content in CPU memory, after checking every file that is read.

    Args:
        path: the checkpoint's folder, as `find` returns it.
        with_training: also read the lanes' states and the training state. Sampling and evaluation leave them out, and
            need neither file to be there.

    Raises:
        MissingError: there is no such folder.
        DamagedError: a file is missing, changed, of a newer format, or not safe to read.
    """
    manifest = read_manifest(path, files=FILES if with_training else SAMPLING_FILES)
    with _disk_errors(path, "reading the checkpoint"):
        return Checkpoint(
            path=path,
            manifest=manifest,
            recipe=(path / RECIPE_FILE).read_bytes().decode(),
            weights=_load_tensors(path / MODEL_FILE),
            state=_load_tensors(path / STATE_FILE) if with_training else None,
            training=_load_training(path / TRAINING_FILE) if with_training else None,
        )


def find(path: Path, which: str = "newest") -> Path:
    """Return the checkpoint folder meant by `path`: itself, or the newest or best whole one of a run.

    Every candidate of a run is checked by SHA-256; damaged ones are passed over with a one-line warning each.

    Args:
        path: a checkpoint's folder, a run's folder, or a run's checkpoints folder.
        which: "newest" (highest step) or "best" (lowest validation_bits_per_sample; ties and unmeasured: newest).

    Raises:
        InputError: `which` is neither.
        MissingError: nothing whole is there.
    """
    if which not in ("newest", "best"):
        raise InputError(f"which={which!r} must be 'newest' or 'best'")
    if _STEP_FOLDER.fullmatch(path.name) or (path / MANIFEST_FILE).exists():
        read_manifest(path, verify=False, files=())
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    manifests = {}
    for candidate in _step_folders(folder):
        try:
            manifests[candidate] = read_manifest(candidate)
        except AudioCTError as error:
            logger.warning("passed over a checkpoint: %s", error)
    if not manifests:
        raise MissingError(f"{path}: no whole checkpoint there; give a run's folder that has one, or train first")
    if which == "newest":
        return max(manifests, key=lambda candidate: manifests[candidate].step)
    return min(manifests, key=lambda candidate: _best_rank(manifests[candidate]))


def _best_rank(manifest: Manifest) -> tuple[float, int]:
    bits = manifest.validation_bits_per_sample
    return (float("inf") if bits is None else bits), -manifest.step


def _step_folders(folder: Path) -> list[Path]:
    """List the checkpoint folders, whole or not; one being replaced counts only where its successor is missing."""
    if not folder.is_dir():
        return []
    with _disk_errors(folder, "listing checkpoints"):
        names = {entry.name for entry in folder.iterdir() if _STEP_FOLDER.fullmatch(entry.name)}
    return [folder / name for name in sorted(names) if name.removesuffix(".replaced") not in names - {name}]


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left: temporary folders, and replaced ones whose successor is there."""
    for entry in list(folder.iterdir()):
        successor = entry.with_name(entry.name.removesuffix(".replaced"))
        if _TEMPORARY_FOLDER.fullmatch(entry.name) or (
            _STEP_FOLDER.fullmatch(entry.name) and successor != entry and successor.exists()
        ):
            shutil.rmtree(entry)


def _prune(folder: Path, saved: Path, keep: int) -> None:
    manifests = {}
    for candidate in _step_folders(folder):
        # What cannot be read is left alone: it may be of a newer version, or all that is left of something.
        try:
            manifests[candidate] = read_manifest(candidate, verify=False)
        except AudioCTError as error:
            logger.warning("left a checkpoint in place: %s", error)
    newest_first = sorted(manifests, key=lambda candidate: -manifests[candidate].step)
    kept = {saved, min(manifests, key=lambda candidate: _best_rank(manifests[candidate])), *newest_first[:keep]}
    try:
        for candidate in manifests.keys() - kept:
            # Renamed first, so that a kill halfway leaves a temporary folder and not half a checkpoint.
            doomed = candidate.with_name(f"{candidate.name.removesuffix('.replaced')}.tmp-{os.getpid()}")
            candidate.rename(doomed)
            shutil.rmtree(doomed)
        _remove_leftovers(folder)
    except OSError as error:
        # The checkpoint itself is safe on disk; training need not stop because an old one could not be removed.
        logger.warning("%s: could not remove an old checkpoint (%s); remove it by hand", folder, error.strerror)


@contextmanager
def _disk_errors(path: Path, action: str) -> Iterator[None]:
    """Turn what the system and the file libraries raise into one line with the path and the remedy."""
    try:
        yield
    except AudioCTError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save reports a failed write as a RuntimeError about positions; the system's reason is behind it.
        reason: BaseException = error
        while not isinstance(reason, OSError) and reason.__context__ is not None:
            reason = reason.__context__
        text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason).partition("\n")[0]
        raise AudioCTError(f"{path}: {action} failed: {text}; check free space, quota and permissions there") from error


def _open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading: a link could lead anywhere, and a pipe would wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: missing from the checkpoint; use another checkpoint") from error
    except OSError as error:
        if path.is_symlink():
            raise DamagedError(f"{path}: a symbolic link; a checkpoint holds regular files only") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path}: not a regular file; a checkpoint holds regular files only")
    return os.fdopen(descriptor, "rb")


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(size_bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _manifest(step: int, given: Mapping[str, Any], records: dict[str, FileRecord]) -> Manifest:
    try:
        return Manifest(step=step, files=records, **given)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise InputError(f"manifest {name}={fault['input']!r} cannot be stored: {fault['msg']}") from error


def _manifest_bytes(manifest: Manifest) -> bytes:
    """Return the one spelling a manifest has on disk, its own SHA-256 included, so that any changed bit shows."""
    fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    body = json.dumps(fields, sort_keys=True, allow_nan=False)
    fields["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    return (json.dumps(fields, sort_keys=True, allow_nan=False, indent=2) + "\n").encode()


def _parse_manifest(path: Path) -> Manifest:
    with _open_regular(path) as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise DamagedError(f"{path}: longer than {MAX_MANIFEST_BYTES} bytes; not a manifest of audio-ct")
    try:
        fields = json.loads(content)
        kind, version = fields.pop("format"), fields.pop("format_version")
        if kind == FORMAT and isinstance(version, int) and version > FORMAT_VERSION:
            raise DamagedError(
                f"{path}: {FORMAT} format_version={version} must be at most {FORMAT_VERSION} here; upgrade audio-ct"
            )
        fields.pop("sha256")
        records = {name: FileRecord(**record) for name, record in fields.pop("files").items()}
        manifest = Manifest(files=records, **fields)
        whole = _manifest_bytes(manifest) == content and set(manifest.files) == set(FILES)
    except DamagedError:
        raise
    # Bytes from outside: not UTF-8, not JSON, nested too deeply, not an object, keys missing, or of another type.
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a manifest of audio-ct, or damaged; use another checkpoint") from error
    if not whole:
        raise DamagedError(f"{path}: content differs from its own SHA-256; use another checkpoint")
    return manifest


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors takes them: contiguous, and no two (tied weights, views) in one storage."""
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        address = value.untyped_storage().data_ptr()
        stored[name] = value.clone() if address in storages else value
        storages.add(address)
    return stored


def _load_tensors(path: Path) -> dict[str, Tensor]:
    with _open_regular(path) as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > MAX_SAFETENSORS_HEADER_BYTES:
        raise DamagedError(f"{path}: a header of {header_bytes} bytes, the limit is {MAX_SAFETENSORS_HEADER_BYTES}")
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedError(f"{path}: not a readable safetensors file; use another checkpoint") from error


def _check_training_file(path: Path, refusal: type[AudioCTError]) -> None:
    """Refuse a training file that holds more than plain values and tensors, or unpacks to more than its own size.

    `weights_only` already keeps code from running. It still lets a few constructors allocate what a number says.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise refusal(f"{path}: compressed entries; a checkpoint's are stored as they are")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise refusal(f"{path}: its entries claim more bytes than the file has")
        program = next(archive.read(entry) for entry in entries if entry.filename.endswith("/data.pkl"))
    for operation, argument, _ in pickletools.genops(program):
        if "GLOBAL" in operation.name:
            name = str(argument)
            torch_name = name.removeprefix("torch ")
            is_torch_type = torch_name.endswith("Storage") or isinstance(getattr(torch, torch_name, None), torch.dtype)
            if name not in _SAFE_PICKLE_NAMES and not (name.startswith("torch ") and is_torch_type):
                raise refusal(f"{path}: holds {name!r}; a training state holds plain values and tensors only")


def _load_training(path: Path) -> dict[str, Any]:
    try:
        _check_training_file(path, DamagedError)
        training = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(training, dict):
            raise DamagedError(f"{path}: not a dictionary; use another checkpoint")
        limit_bytes = path.stat().st_size
        if any(tensor.numel() * tensor.element_size() > limit_bytes for tensor in _tensors(training)):
            raise DamagedError(f"{path}: a tensor claims more bytes than the file has")
    except AudioCTError:
        raise
    # A file made to harm can fail anywhere inside the zip reader, the unpickler or torch.
    except Exception as error:
        raise DamagedError(f"{path}: not a readable training state; use another checkpoint") from error
    return training


def _tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(item)
