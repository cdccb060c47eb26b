"""What corpus files share: where a corpus lies within its source, and its audio files by name."""

import posixpath
from collections.abc import Iterable, Sequence

from audio_ct.errors import InputError, MissingError

from .corpus import Reject
from .source import Source, SourceFile, Unlisted, printable

# What corpora are published in, and what people convert them to.
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})


def corpus_folder(source: Source, *, names: Sequence[str], holding: Sequence[str], remedy: str) -> str:
    """Return what comes before a corpus's own paths: "" if the source is its folder, "LibriTTS/" if it is in there.

    Args:
        source: The corpus's folder or the one around it, as its archive unpacks.
        names: Of the corpus's folder.
        holding: Files and folders, any of which tells the corpus's folder.
        remedy: What to give instead; the end of the error's line.

    Raises:
        InputError: If the source holds none of them.
    """
    for folder in ("", *(f"{name}/" for name in names)):
        if any(source.exists(folder + entry) for entry in holding):
            return folder
    raise InputError(
        f"source={source.address!r} must be the folder {' or '.join(names)}, or the one around it; it holds no "
        f"{' or '.join(holding)}. {remedy}"
    )


def audio_files(source: Source, folder: str) -> tuple[dict[str, SourceFile], list[Reject]]:
    """Return audio files by their path within a folder, without suffix, and rejects for what cannot be used of them.

    Of a recording that is there in several formats, the first by name is taken.

    Raises:
        MissingError: If there is no such folder.
    """
    if not source.exists(folder):
        raise MissingError(f"source={source.address!r} holds no folder {folder}; unpack the corpus whole.")
    files: dict[str, SourceFile] = {}
    rejects = []
    for entry in source.walk(folder, suffixes=AUDIO_SUFFIXES):
        if isinstance(entry, Unlisted):
            # A folder, or a recording; texts that are links to each other double nothing.
            if posixpath.splitext(entry.path)[1].lower() in {"", *AUDIO_SUFFIXES}:
                rejects.append(Reject(printable(entry.path), entry.reason, entry.detail))
            continue
        # As strings: there may be hundreds of thousands, and paths take longer than to list them.
        key = posixpath.splitext(entry.path.removeprefix(f"{folder}/"))[0]
        if files.setdefault(key, entry) is not entry:
            detail = f"is there as {printable(files[key].path)} too."
            rejects.append(Reject(printable(entry.path), "duplicate", detail))
    return files, rejects


def not_there(path: str, metadata: str) -> Reject:
    """A recording that the corpus's own metadata names and that is not there."""
    return Reject(path, "missing", f"is named by {metadata} and not there.")


def last_text(columns: Iterable[str]) -> str | None:
    """The last of several forms of a text that is not empty: corpora have the normalised form after the raw one."""
    texts = [" ".join(column.split()) for column in columns]
    return next((text for text in reversed(texts) if text), None)
