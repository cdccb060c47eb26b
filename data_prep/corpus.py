"""What a corpus file declares, and what it hands to the stages of `data_prep.skeleton`.

A corpus file has a module constant `CORPUS` and a function `gather` that names the recordings; everything else is the
same for all corpora.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_ct.errors import InputError

from .options import PrepOptions
from .source import Source

if TYPE_CHECKING:
    # It comes with scipy, and the command line reads this module.
    from .measures import Measures

SPLITS = ("train", "validation", "test")


def plain(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass by name; `dataclasses.asdict` copies deeply, which tells with a million recordings."""
    return {name: getattr(instance, name) for name in instance.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recording to be encoded.

    Attributes:
        path: Of its file, relative to the source; bytes that are no UTF-8 as `os.fsdecode` gives them.
        name: Unique within the corpus; without the suffix, so that a corpus in another format keeps its splits.
        speaker: "unknown" where the corpus does not say.
        num_bytes: Size of the file (its share of it, where a file holds several recordings).
        text: What is said.
        text_path: A file, relative to the source, that holds the text, where `text` is None.
        split: "train", "validation" or "test" where the corpus has official splits.
        spans: (start, end) in seconds of the file's parts that make the recording, end to end; empty for all of it.
    """

    path: str
    name: str
    speaker: str
    num_bytes: int
    text: str | None = None
    text_path: str | None = None
    split: str | None = None
    spans: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Reject:
    """A source that was left out: a short reason to count by, and the whole line."""

    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Encoded:
    """A recording as it stands in a shard.

    Attributes:
        name: Of the recording.
        speaker: Its speaker.
        source: Path of its file within the corpus, printable.
        text: What is said, where that is known.
        length: In tokens.
        sha256: Of its tokens.
        measures: Of its source, at the source's rate.
        num_limited: Samples that were beyond full scale and have been limited to it.
        truncated: Its file ended early and was kept.
    """

    name: str
    speaker: str
    source: str
    text: str | None
    length: int
    sha256: str
    measures: "Measures"
    num_limited: int = 0
    truncated: bool = False


@dataclass
class Gathered:
    """The recordings of a corpus, as its file names them."""

    candidates: list[Candidate]
    """In reading order: a speaker's together, and in the order in which they were spoken where that is known."""
    rejects: list[Reject] = field(default_factory=list)
    """What the corpus names and does not hold, or holds and cannot be used."""
    notes: list[str] = field(default_factory=list)
    """Warnings for the report, a line each."""


@dataclass(frozen=True)
class Archive:
    """A published file of a corpus.

    Attributes:
        url: Its address.
        known_hash: "sha256:..." or "md5:...", as published.
        num_bytes: Its size, for the disk's and the reader's sake.
    """

    url: str
    known_hash: str
    num_bytes: int | None = None


@dataclass(frozen=True)
class Corpus:
    """A corpus, as its file declares it.

    Attributes:
        name: Of the command, such as "libritts-r".
        title: One line for `--help`.
        gather: Names the recordings of a source.
        licence: SPDX name where there is one.
        citation: One line: authors, title, year.
        address: Where it is published.
        defaults: Options of `PrepOptions` that this corpus has other defaults for.
        subsets: Names that `subsets` may have; None where they are not known beforehand.
        default_subsets: What is taken where none is named; empty for everything that is there.
        archives: By subset ("" where there are none), what `--download` fetches and unpacks.
        instructions: One line that says how to get it where there is no archive.
        synthetic: Made by a machine; said with every result.
        make: Makes the recordings in a folder where there is no source, as the demo does.
    """

    name: str
    title: str
    gather: Callable[[Source, PrepOptions], Gathered]
    licence: str | None = None
    citation: str | None = None
    address: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    subsets: tuple[str, ...] | None = ()
    default_subsets: tuple[str, ...] = ()
    archives: Mapping[str, tuple[Archive, ...]] = field(default_factory=dict)
    instructions: str = ""
    synthetic: bool = False
    make: Callable[[Path, PrepOptions], None] | None = None


def options_for(corpus: Corpus, **given: Any) -> PrepOptions:
    """The options of a corpus: those given, else its own defaults, else those of `PrepOptions`.

    Raises:
        InputError: If a value breaks its rule, or a subset is none of the corpus's.
    """
    options = PrepOptions(**{**corpus.defaults, **given})
    for subset in options.subsets:
        if corpus.subsets is not None and subset not in corpus.subsets:
            known = ", ".join(corpus.subsets) or "none, it has no subsets"
            raise InputError(f"subset={subset!r} is none of {corpus.name}'s; choose from {known}.")
    return options
