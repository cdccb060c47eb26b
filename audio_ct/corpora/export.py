"""Recordings of a token store as files again: audio, or bytes."""

import re
from pathlib import Path

import numpy as np

from audio_ct.durable import make_folder
from audio_ct.errors import InputError
from audio_ct.tokens.store import TokenStore

TOKENS_AT_ONCE = 1 << 20
MAX_NAME_LENGTH = 80


def find(store: TokenStore, name: str, split: str | None = None) -> tuple[str, int]:
    """The split and index of the recording of a name, in one split or in any.

    Raises:
        InputError: If there is none, or there are several.
    """
    splits = store.splits if split is None else (split,)
    found = [(each, index) for each in splits for index, its in enumerate(store.recordings(each).names) if its == name]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(f"{each} {index}" for each, index in found)
        raise InputError(f"name={name!r} is that of several recordings: {places}; give --split and --index.")
    like = store.recordings(splits[0])[0].name
    raise InputError(f"name={name!r} is not in {', '.join(splits)} of {store.address!r}; names are like {like!r}.")


def export(store: TokenStore, split: str, index: int, out: Path, *, overwrite: bool = False) -> Path:
    """Write a recording to a file, its format named by its suffix; return the file.

    Raises:
        InputError: If there is no such recording, or the file cannot be written.
        OSError: If bytes cannot be written.
    """
    recordings = store.recordings(split)
    if not 0 <= index < len(recordings):
        raise InputError(f"index={index}: split {split!r} has recordings 0 to {len(recordings) - 1}.")
    store.codec.check_format(out.suffix.removeprefix("."))
    length = recordings.place(index).length
    with store.codec.open_writer(out, overwrite=overwrite) as writer:
        for start in range(0, length, TOKENS_AT_ONCE):
            writer.write(store.tokens(split, index, start, min(start + TOKENS_AT_ONCE, length)))
    return out


def export_speaker(
    store: TokenStore,
    speaker: str,
    folder: Path,
    *,
    split: str | None = None,
    file_format: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write all recordings of a speaker into a folder; return the files.

    Args:
        store: The store.
        speaker: One of its speakers.
        folder: Gets SPLIT-INDEX-NAME.FORMAT of every recording.
        split: Of this split only.
        file_format: A suffix; by default the codec's.
        overwrite: Replace files that are there.

    Raises:
        InputError: If there is no such speaker, or a file cannot be written.
        OSError: If bytes cannot be written.
    """
    file_format = file_format or store.codec.default_format
    store.codec.check_format(file_format)
    wanted: list[tuple[str, int]] = []
    for each in store.splits if split is None else (split,):
        recordings = store.recordings(each)
        if speaker in recordings.speakers:
            code = recordings.speakers.index(speaker)
            wanted += [(each, int(index)) for index in np.flatnonzero(recordings.speaker_codes == code)]
    if not wanted:
        raise InputError(f"speaker={speaker!r} is not in {store.address!r}; `audio-ct corpus` shows who is.")
    make_folder(folder)
    written = []
    for each, index in wanted:
        # A name may hold anything, "../" too.
        name = re.sub(r"[^\w.-]+", "_", store.recordings(each)[index].name)[:MAX_NAME_LENGTH]
        out = folder / f"{each}-{index:06d}-{name}.{file_format}"
        written.append(export(store, each, index, out, overwrite=overwrite))
    return written
