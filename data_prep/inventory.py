"""What a corpus holds, as it was found when its preparation began; one that was stopped goes on with it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from audio_ct.errors import InputError
from audio_ct.storage import Storage
from audio_ct.tokens.store_builder import WORK
from data_prep.corpus import Candidate, Gathered, Reject

FILE = f"{WORK}/inventory.jsonl"


def is_of(storage: Storage, wanted: dict[str, Any]) -> bool:
    """Whether the preparation that began is this one; FileNotFoundError if none did."""
    return bool(json.loads(storage.read(FILE).splitlines()[0]) == wanted)


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
        kind, *lines = storage.read(FILE).decode().splitlines()
    except FileNotFoundError:
        gathered = gather()
        storage.write(FILE, _content(wanted, gathered))
        return gathered, False
    there = json.loads(kind)
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
    return gathered, True


def _content(wanted: dict[str, Any], gathered: Gathered) -> bytes:
    lines = [json.dumps(wanted)]
    lines += [json.dumps(["candidate", asdict(candidate)]) for candidate in gathered.candidates]
    lines += [json.dumps(["reject", asdict(reject)]) for reject in gathered.rejects]
    lines += [json.dumps(["note", note]) for note in gathered.notes]
    return "".join(line + "\n" for line in lines).encode()
