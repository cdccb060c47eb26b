"""Any folder of recordings: every audio file below it, the speaker named by the folder that the file lies in.

`speaker_pattern` finds the speaker in a file's path instead, and `metadata` is a table within the folder with a row for
each recording: its file, and where there are such columns its speaker, text and split.
"""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from audio_ct.errors import InputError

from .corpus import Candidate, Corpus, Gathered, Reject
from .layout import not_there
from .options import PrepOptions
from .source import Source, Unlisted, printable
from .tables import Row, read_table

SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"}
    | {".nist", ".sph", ".voc", ".paf", ".svx", ".avr"}
)
# Audio that would be dropped without a word.
UNREADABLE_SUFFIXES = frozenset({".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".ape", ".wv", ".mka"})

FILE_COLUMNS = ("path", "file", "file_name", "audio", "audio_filepath")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
TEXT_COLUMNS = ("text", "sentence", "transcript")
SPLIT_OF = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("dev", "valid", "validation", "val"), "validation")
    | dict.fromkeys(("test", "testing"), "test")
)


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name every audio file below a folder, or those that a table names, by speaker and path.

    Args:
        source: The folder, searched to any depth; hidden entries are left out.
        options: `speaker_pattern` and `metadata`.

    Raises:
        InputError: If the pattern or the table is wrong.
        MissingError: If the table is not there.
    """
    sizes, texts, unusable = _inventory(source)
    rows: dict[str, Row] = {path: {} for path in sizes}
    rejects = list(unusable.values())
    if options.metadata is not None:
        rows, rejects = _named_by_table(source, options.metadata, sizes, unusable)
    # A recording's name leaves the suffix out, so that a corpus converted to another format keeps its splits.
    stems = Counter(_stem(path) for path in sizes)
    speaker_of = _speaker_of(options.speaker_pattern)
    candidates = [
        Candidate(
            path=path,
            name=printable(_stem(path) if stems[_stem(path)] == 1 else path),
            speaker=_first(row, SPEAKER_COLUMNS) or printable(speaker_of(path)),
            num_bytes=sizes[path],
            text=_first(row, TEXT_COLUMNS),
            text_path=f"{_stem(path)}.txt" if f"{_stem(path)}.txt" in texts else None,
            split=_split(row),
        )
        for path, row in rows.items()
    ]
    candidates.sort(key=lambda candidate: (candidate.speaker, candidate.name))
    return Gathered(candidates, rejects)


def _inventory(source: Source) -> tuple[dict[str, int], set[str], dict[str, Reject]]:
    """Sizes of the recordings and rejects of what cannot be used, by path, and paths of text files."""
    sizes: dict[str, int] = {}
    texts: set[str] = set()
    unusable: dict[str, Reject] = {}
    for each in source.walk():
        suffix = PurePosixPath(each.path).suffix.lower()
        if isinstance(each, Unlisted):
            # A link to a file that is no recording doubles nothing.
            if suffix in SUFFIXES or each.reason != "duplicate":
                unusable[each.path] = Reject(printable(each.path), each.reason, each.detail)
        elif suffix in UNREADABLE_SUFFIXES:
            detail = "libsndfile does not read this format; convert it to FLAC."
            unusable[each.path] = Reject(printable(each.path), "unknown format", detail)
        elif suffix in SUFFIXES:
            sizes[each.path] = each.num_bytes
        elif suffix == ".txt":
            texts.add(each.path)
    return sizes, texts, unusable


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _first(row: Row, columns: tuple[str, ...]) -> str | None:
    """The first of several columns that a row has a text in."""
    return next((row[column] for column in columns if row.get(column)), None)


def _split(row: Row) -> str | None:
    name = row.get("split")
    if not name:
        return None
    if name.lower() not in SPLIT_OF:
        raise InputError(f"split={name!r} in the metadata must be one of {', '.join(SPLIT_OF)}, or empty.")
    return SPLIT_OF[name.lower()]


def _speaker_of(pattern: str | None) -> Callable[[str], str]:
    """A function that finds a path's speaker: what the pattern's first group matches, or the folder it lies in."""
    if pattern is None:
        return lambda path: posixpath.dirname(path) or "unknown"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"speaker_pattern={pattern!r} is no regular expression: {error}.") from error
    if not compiled.groups:
        raise InputError(f"speaker_pattern={pattern!r} must have a group for the speaker, such as '^([^_/]+)_'.")

    def found(path: str) -> str:
        match = compiled.search(path)
        return (match and match[1]) or "unknown"

    return found


def _named_by_table(
    source: Source, metadata: str, sizes: Mapping[str, int], unusable: Mapping[str, Reject]
) -> tuple[dict[str, Row], list[Reject]]:
    """The rows of a table by the recording that each names, and rejects for those that cannot be had.

    Files are named relative to the source, or by their whole address.
    """
    address = os.path.abspath(source.address) if source.is_local else source.address.rstrip("/")
    rows: dict[str, Row] = {}
    rejects = []
    for number, row in enumerate(read_table(source, metadata), 1):
        where = f"row {number} of {PurePosixPath(metadata).name}"
        if not row.keys() & set(FILE_COLUMNS):
            raise InputError(
                f"metadata={metadata!r} must have a column {' or '.join(FILE_COLUMNS)} for the file; row {number} has "
                f"{', '.join(row) or 'none'}."
            )
        path = posixpath.normpath((_first(row, FILE_COLUMNS) or "").removeprefix(f"{address}/"))
        if path in rows:
            rejects.append(Reject(printable(path), "duplicate", f"is named again by {where}."))
        elif path in sizes:
            rows[path] = row
        else:
            rejects.append(unusable.get(path) or not_there(printable(path), where))
    return rows, rejects


CORPUS = Corpus(
    name="folder",
    title="Any folder of recordings in the formats that libsndfile reads",
    gather=gather,
)
