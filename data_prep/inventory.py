"""What a corpus holds, as it was found when its preparation began; one that was stopped goes on with it."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from audio_ct.errors import InputError
from audio_ct.storage import Storage
from audio_ct.tokens.store_builder import WORK

from .corpus import Candidate, Gathered, Reject, plain

FILE = f"{WORK}/inventory.jsonl"


def is_of(storage: Storage, wanted: dict[str, Any]) -> bool:
    """Whether the preparation that began is this one; FileNotFoundError if none did."""
    with _lines(storage) as lines:
        return bool(json.loads(next(lines)) == wanted)


def take(storage: Storage, wanted: dict[str, Any], gather: Callable[[], Gathered]) -> tuple[Gathered, bool]:
    """Gather a corpus, or read what was gathered when this preparation began.

    Args:
        storage: The store in the making.
        wanted: Corpus, source and options of this preparation.
        gather: Names the recordings.

    Returns:
        What was gathered, and whether that was before.

    Raises:
        InputError: If the preparation that began was another one; the options that differ are named.
    """
    try:
        with _lines(storage) as lines:
            return _read(lines, wanted), True
    except FileNotFoundError:
        gathered = gather()
        with tempfile.TemporaryDirectory(prefix="audio-ct-inventory-") as folder:
            # Line by line: a corpus may have a million recordings.
            file = Path(folder, "inventory.jsonl")
            with file.open("w", encoding="ascii") as content:
                content.writelines(line + "\n" for line in _written(wanted, gathered))
            storage.put(file, FILE)
        return gathered, False


@contextlib.contextmanager
def _lines(storage: Storage) -> Iterator[Iterator[str]]:
    with tempfile.TemporaryDirectory(prefix="audio-ct-inventory-") as folder:
        storage.get(FILE, file := Path(folder, "inventory.jsonl"))
        with file.open(encoding="ascii") as lines:
            yield lines


def _read(lines: Iterator[str], wanted: dict[str, Any]) -> Gathered:
    there = json.loads(next(lines))
    changed = [f"{k}={there.get(k)!r} there, {v!r} here" for k, v in wanted.items() if there.get(k) != v]
    if changed:
        raise InputError(
            f"an unfinished preparation stands there with other options ({'; '.join(changed)}); give the same ones to "
            "finish it, or overwrite to begin anew."
        )
    gathered = Gathered([])
    for line in lines:
        kind, content = json.loads(line)
        if kind == "candidate":
            spans = tuple((start, end) for start, end in content.pop("spans"))
            gathered.candidates.append(Candidate(**content, spans=spans))
        elif kind == "reject":
            gathered.rejects.append(Reject(**content))
        else:
            gathered.notes.append(content)
    return gathered


def _written(wanted: dict[str, Any], gathered: Gathered) -> Iterator[str]:
    yield json.dumps(wanted)
    for candidate in gathered.candidates:
        yield json.dumps(["candidate", plain(candidate)])
    for reject in gathered.rejects:
        yield json.dumps(["reject", plain(reject)])
    for note in gathered.notes:
        yield json.dumps(["note", note])
