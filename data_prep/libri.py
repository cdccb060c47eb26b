"""The tree that LibriSpeech and LibriTTS share: SUBSET/SPEAKER/CHAPTER, and there the utterances and a transcript."""

import re
from dataclasses import dataclass

from audio_ct.errors import InputError, MissingError

from .corpus import SPLITS, Archive, Candidate, Gathered, Reject
from .layout import audio_files, corpus_folder, last_text, not_there
from .options import PrepOptions
from .source import Source, SourceFile, printable

# The published parts; no speaker is in two of them.
SUBSETS = (
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
)
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Tree:
    """How one of the corpora names its files.

    Attributes:
        folder: Of the corpus.
        recording: Its path below the subset, without suffix: an expression with groups for speaker, chapter and name.
        transcript: Name of a chapter's transcript, with places for speaker and chapter.
        separator: Of a transcript's columns: the recording's name, then its text in num_texts forms.
        num_texts: Of which the last that is not empty is taken.
        text_suffix: Of a file beside the recording that has its text, for recordings that no transcript names.
    """

    folder: str
    recording: re.Pattern[str]
    transcript: str
    separator: str
    num_texts: int
    text_suffix: str | None = None


def archives(
    base: str, hashes: dict[str, tuple[str, int | None]], *, algorithm: str, between: str = "-"
) -> dict[str, tuple[Archive, ...]]:
    """The archives of a corpus by subset.

    Args:
        base: Address of the folder they lie in.
        hashes: (hash, size in bytes) by subset.
        algorithm: Of the hashes.
        between: What an archive's name has in place of a subset's hyphens.
    """
    return {
        subset: (Archive(f"{base}/{subset.replace('-', between)}.tar.gz", f"{algorithm}:{digest}", num_bytes),)
        for subset, (digest, num_bytes) in hashes.items()
    }


def gather(source: Source, options: PrepOptions, tree: Tree) -> tuple[Gathered, str]:
    """Name the recordings of the chosen subsets, or of all that are there, by subset, speaker, chapter and utterance.

    They have official splits if there are subsets of all three.

    Args:
        source: The corpus's folder or the one around it.
        options: Its subsets.
        tree: How the files are named.

    Returns:
        The recordings, and what comes before the subsets' names in paths.

    Raises:
        InputError: If the source holds no subset, or those of another corpus.
        MissingError: If it does not hold a chosen one.
    """
    root = corpus_folder(
        source, names=(tree.folder,), holding=SUBSETS, remedy="Name the folder that its archives unpack to."
    )
    there = tuple(subset for subset in SUBSETS if source.exists(root + subset))
    absent = [subset for subset in options.subsets if subset not in there]
    if absent:
        raise MissingError(
            f"subset={', '.join(absent)} must be in {source.address!r}, which holds {', '.join(there)}; "
            "choose of these or unpack more."
        )
    gathered = Gathered([])
    split_of = {subset: _SPLITS[subset.partition("-")[0]] for subset in there if subset in (options.subsets or there)}
    official = set(split_of.values()) == set(SPLITS)
    if not official:
        chosen = ", ".join(split_of)
        gathered.notes.append(f"{chosen} are not all of train, dev and test, so the splits are drawn and not official.")
    for subset, split in split_of.items():
        _gather_subset(source, root + subset, split if official else None, tree, gathered)
    if not gathered.candidates:
        raise InputError(
            f"source={source.address!r} has no recordings named as those of {tree.folder}; name the folder that its "
            "archives unpack to."
        )
    return gathered, root


def _gather_subset(source: Source, subset: str, split: str | None, tree: Tree, gathered: Gathered) -> None:
    """Add the recordings of one subset to what has been gathered."""
    chapters, rejects = _chapters(source, subset, tree)
    gathered.rejects += rejects
    untold = []
    for (speaker, chapter), recordings in sorted(chapters.items(), key=lambda each: [int(part) for part in each[0]]):
        folder = f"{subset}/{speaker}/{chapter}"
        transcript = tree.transcript.format(speaker=speaker, chapter=chapter)
        try:
            texts = _texts(source.read_text(f"{folder}/{transcript}"), tree)
        except MissingError:
            texts = {}
            untold.append(f"{speaker}/{chapter}")
        for name, file in sorted(recordings.items()):
            text, text_path = texts.get(name), None
            if text is None and tree.text_suffix is not None:
                beside = f"{folder}/{name}{tree.text_suffix}"
                text_path = beside if source.exists(beside) else None
            gathered.candidates.append(Candidate(file.path, name, speaker, file.num_bytes, text, text_path, split))
        gathered.rejects += [
            not_there(f"{folder}/{name}", transcript) for name in sorted(texts.keys() - recordings.keys())
        ]
    if untold:
        gathered.notes.append(f"{len(untold)} chapters of {subset} have no transcript, such as {untold[0]}.")


def _chapters(
    source: Source, subset: str, tree: Tree
) -> tuple[dict[tuple[str, str], dict[str, SourceFile]], list[Reject]]:
    """Recordings by name by (speaker, chapter), and rejects for what cannot be used."""
    files, rejects = audio_files(source, subset)
    # A chapter whose recordings have all been lost is known by its folder.
    chapters: dict[tuple[str, str], dict[str, SourceFile]] = {
        (speaker, chapter): {}
        for speaker in filter(str.isdecimal, source.folders(subset))
        for chapter in filter(str.isdecimal, source.folders(f"{subset}/{speaker}"))
    }
    for key, file in files.items():
        match = tree.recording.fullmatch(key)
        if match is None:
            detail = f"is not named as the recordings of {tree.folder} are."
            rejects.append(Reject(printable(file.path), "unexpected name", detail))
        else:
            chapters[match[1], match[2]][match[3]] = file
    return chapters, rejects


def _texts(transcript: str, tree: Tree) -> dict[str, str | None]:
    """Texts by a recording's name; quotes are part of them."""
    texts = {}
    for line in transcript.split("\n"):
        name, *columns = line.split(tree.separator, tree.num_texts)
        if name.strip():
            texts[name.strip()] = last_text(columns)
    return texts
