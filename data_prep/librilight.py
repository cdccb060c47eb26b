"""Libri-Light: 60,000 hours of LibriVox audiobooks in English at 16 kHz, without texts.

`SIZE/SPEAKER/BOOK_64kb_mp3/CHAPTER_64kb.flac`, a chapter each, and beside it a JSON with the speaker, the book, the
signal-to-noise ratio and `voice_activity`, the (start, end) in seconds of its stretches of speech. The sizes small,
medium and large do not overlap: 577, 5,193 and 51,934 hours. `duplicate`, 4,500 hours, may repeat books of the others
and is taken only where it is named. There are no official splits; the authors test on LibriSpeech.

A chapter lasts minutes to hours. As the authors' `cut_by_vad.py` does, stretches of speech are put end to end, up to
`maximum_seconds`, and what is between them is left out; a stretch that is longer than that stands alone. A chapter
without `voice_activity` is one candidate, which the stages cut at its quietest places.
"""

import json
import math
from collections.abc import Iterator

from audio_ct.errors import InputError, MissingError

from .corpus import Archive, Candidate, Corpus, Gathered, Reject
from .layout import corpus_folder
from .options import PrepOptions
from .source import Source, SourceFile, printable

SIZES = ("small", "medium", "large")
DUPLICATE = "duplicate"
ADDRESS = "https://dl.fbaipublicfiles.com/librilight/data"

Spans = tuple[tuple[float, float], ...]


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name the pieces of the chapters by speaker, size, book and chapter.

    Args:
        source: The folder that holds small or other sizes, or the one around it.
        options: `subsets`, the sizes, by default those that are there but for duplicate; `maximum_seconds` of a piece.

    Raises:
        InputError: If the source is no Libri-Light.
        MissingError: If a chosen size is not there.
    """
    root = corpus_folder(
        source,
        names=("librilight",),
        holding=(*SIZES, DUPLICATE),
        remedy="Give the folder in which small.tar or other sizes were unpacked.",
    )
    there = [size for size in (*SIZES, DUPLICATE) if source.exists(root + size)]
    wanted = options.subsets or tuple(size for size in there if size != DUPLICATE)
    if absent := [size for size in wanted or SIZES if size not in there]:
        raise MissingError(
            f"subsets={', '.join(absent)} must be in {source.address!r}, which holds {', '.join(there)}; "
            "choose of these or unpack more."
        )
    gathered = Gathered([])
    num_unsegmented = 0
    for size in wanted:
        files = source.files(root + size, suffixes=frozenset({".flac", ".json"}))
        paths = {file.path for file in files}
        for file in files:
            if file.path.endswith(".json"):
                continue
            metadata = f"{file.path.removesuffix('.flac')}.json"
            speech = _speech(source, metadata) if metadata in paths else None
            num_unsegmented += speech is None
            if speech == ():
                gathered.rejects.append(Reject(printable(file.path), "no speech", "its voice_activity is empty."))
                continue
            gathered.candidates += _pieces(file, root, speech or (), options.maximum_seconds or math.inf)
    if num_unsegmented:
        gathered.notes.append(
            f"Chapters without a voice_activity that can be used, which keep their pauses: {num_unsegmented}."
        )
    # Stable: a speaker's chapters and their pieces stay in order, and those of all sizes come together.
    gathered.candidates.sort(key=lambda each: each.speaker)
    return gathered


def _speech(source: Source, path: str) -> Spans | None:
    """The stretches of speech of a chapter's JSON, in order and apart; None if it has none that can be used."""
    try:
        stretches = json.loads(source.read_text(path))["voice_activity"]
        pairs = [(float(start), float(end)) for start, end in stretches]
    except (InputError, ValueError, TypeError, KeyError):
        return None
    spans: list[tuple[float, float]] = []
    for start, end in pairs:
        if not 0 <= start <= end < math.inf:
            return None
        start = max(start, spans[-1][1] if spans else 0.0)
        if start < end:
            spans.append((start, end))
    return tuple(spans)


def _pieces(file: SourceFile, root: str, speech: Spans, maximum_seconds: float) -> Iterator[Candidate]:
    """Yield a chapter's pieces of speech, in order; the whole chapter where there is no segmentation."""
    name = printable(file.path.removeprefix(root).removesuffix(".flac"))
    speaker = name.split("/")[1]
    if not speech:
        yield Candidate(file.path, name, speaker, file.num_bytes)
        return
    pieces: list[list[tuple[float, float]]] = []
    seconds = 0.0
    for start, end in speech:
        if not pieces or seconds + (end - start) > maximum_seconds:
            pieces.append([])
            seconds = 0.0
        pieces[-1].append((start, end))
        seconds += end - start
    bytes_per_second = file.num_bytes / sum(end - start for start, end in speech)
    for number, spans in enumerate(pieces):
        num_bytes = round(bytes_per_second * sum(end - start for start, end in spans))
        yield Candidate(file.path, f"{name}_{number:04d}", speaker, num_bytes, spans=tuple(spans))


CORPUS = Corpus(
    name="librilight",
    title="Libri-Light: 60,000 hours of audiobooks without texts, 16 kHz",
    gather=gather,
    licence="public domain (LibriVox)",
    citation="Kahn et al., Libri-Light: A Benchmark for ASR with Limited or No Supervision, ICASSP 2020",
    address="https://github.com/facebookresearch/libri-light",
    defaults={"sample_rate_hz": 16_000, "maximum_seconds": 60.0},
    subsets=(*SIZES, DUPLICATE),
    default_subsets=SIZES,
    archives={
        "small": (Archive(f"{ADDRESS}/small.tar", "md5:c49207eb86a8e8ac895561c37232041e"),),
        "medium": (Archive(f"{ADDRESS}/medium.tar", "md5:c75e7ac62471bfbf2db77528d62a9b74"),),
        "large": (Archive(f"{ADDRESS}/large.tar", "md5:4dfbac018f50b99797ece101fc9f0c30"),),
    },
    instructions=(
        f"duplicate has no published hash: get {ADDRESS}/duplicate.tar (274 GB) and unpack it beside the other sizes."
    ),
)
