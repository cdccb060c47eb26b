"""Any folder of recordings: every audio file below it, the speaker named by the folder that the file lies in."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from audio_ct.errors import InputError, MissingError
from data_prep.encoding import Reject
from data_prep.plan import Candidate, PrepOptions
from data_prep.skeleton import Gathered, build

SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"}
    | {".nist", ".sph", ".voc", ".paf", ".svx", ".avr"}
)

# Audio that would be dropped without a word.
UNREADABLE_SUFFIXES = frozenset({".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".ape", ".wv", ".mka"})


def prepare(source: Path | None, out: Path, *, options: PrepOptions, progress: bool = False) -> dict[str, Any]:
    """Prepare a token store from every audio file below a folder.

    Args:
        source: The folder; searched to any depth, hidden entries left out.
        out: Where the store shall stand.
        options: How to prepare it.
        progress: Show progress on standard error.

    Returns:
        The summary that `data_prep.skeleton.build` gives.

    Raises:
        InputError: If the source is no folder or holds fewer than three usable recordings.
        MissingError: If the source is not there.
    """
    if source is None:
        raise InputError("corpus=folder needs a source: the folder that holds the recordings.")
    if not source.exists():
        raise MissingError(f"source={str(source)!r} is not there; check the name.")
    if not source.is_dir():
        raise InputError(f"source={str(source)!r} must be a folder; put the recordings into one.")
    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"out={str(out)!r} contains the source; choose a place outside it.")
    return build(lambda _: gather(source), out, options=options, corpus="folder", progress=progress)


def gather(source: Path) -> Gathered:
    """Name every audio file below a folder, in the order of their paths.

    A file or folder that is reached twice, through links, counts once: a recording in two splits would make the test
    split worthless.

    Args:
        source: The folder.

    Returns:
        The candidates, and rejects for what cannot be listed.
    """
    rejects: list[Reject] = []
    found: list[tuple[Path, int]] = []
    seen: set[tuple[int, int]] = set()

    def unlisted(error: OSError) -> None:
        rejects.append(Reject(_text(Path(error.filename), source), "unreadable", f"folder: {error.strerror}"))

    def originals_first(folder: str, names: list[str]) -> list[str]:
        shown = [name for name in names if not name.startswith(".")]
        return sorted(shown, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))

    for folder, subfolders, names in os.walk(source, followlinks=True, onerror=unlisted):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = originals_first(folder, subfolders)
        for name in originals_first(folder, names):
            path = Path(folder, name)
            if path.suffix.lower() in UNREADABLE_SUFFIXES:
                detail = "libsndfile does not read this format; convert it to FLAC."
                rejects.append(Reject(_text(path, source), "unknown format", detail))
            if path.suffix.lower() not in SUFFIXES:
                continue
            try:
                status = path.stat()
            except OSError as error:
                rejects.append(Reject(_text(path, source), "unreadable", f"cannot be reached: {error.strerror}."))
                continue
            if (status.st_dev, status.st_ino) in seen:
                rejects.append(Reject(_text(path, source), "duplicate", "is a link to another recording."))
                continue
            seen.add((status.st_dev, status.st_ino))
            found.append((path, status.st_size))
    # A recording's name leaves the suffix out, so that a corpus converted to another format keeps its splits.
    stems = [_text(path.with_suffix(""), source) for path, _ in found]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    candidates = []
    for (path, num_bytes), stem in zip(found, stems, strict=True):
        text_path = path.with_suffix(".txt")
        candidates.append(
            Candidate(
                path=path,
                name=_text(path, source) if stem in twice else stem,
                speaker=_text(path.parent, source) if path.parent != source else "unknown",
                source=_text(path, source),
                num_bytes=num_bytes,
                text_path=text_path if text_path.exists() else None,
            )
        )
    candidates.sort(key=lambda candidate: (candidate.speaker, candidate.name))
    return Gathered(candidates, rejects, sources=[{"name": source.resolve().name, "kind": "folder"}])


def _text(path: Path, source: Path) -> str:
    """A path relative to the source as text that JSON and UTF-8 can hold, whatever bytes the name has."""
    return os.fsencode(path.relative_to(source).as_posix()).decode("utf-8", "backslashreplace")
