"""LibriSpeech: 982 hours of audiobooks by 2,484 speakers, cut into utterances for recognition, FLAC at 16 kHz.

- `LibriSpeech/train-clean-100/84/121123/84-121123-0007.flac`: subset, speaker, chapter; utterances in reading order.
- `84-121123.trans.txt` in each chapter's folder: an utterance's name, a blank, its text in capitals.
- The audiobooks were MP3 of various rates, so the top of the band is often empty.
"""

import re

from . import libri
from .corpus import Corpus, Gathered
from .options import PrepOptions
from .source import Source

_TREE = libri.Tree(
    folder="LibriSpeech",
    recording=re.compile(r"(\d+)/(\d+)/(\1-\2-\d+)"),
    transcript="{speaker}-{chapter}.trans.txt",
    separator=" ",
    num_texts=1,
)


def gather(source: Source, options: PrepOptions) -> Gathered:
    """See `libri.gather`."""
    return libri.gather(source, options, _TREE)[0]


CORPUS = Corpus(
    name="librispeech",
    title="LibriSpeech: 982 hours of audiobooks by 2,484 speakers, 16 kHz",
    gather=gather,
    licence="CC-BY-4.0",
    citation="Vassil Panayotov et al., Librispeech: an ASR corpus based on public domain audio books, 2015",
    address="https://www.openslr.org/12",
    defaults={"sample_rate_hz": 16_000},
    subsets=libri.SUBSETS,
    archives=libri.archives(
        "https://www.openslr.org/resources/12",
        {
            "dev-clean": ("76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3", 337_926_286),
            "dev-other": ("12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365", 314_305_928),
            "test-clean": ("39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23", 346_663_984),
            "test-other": ("d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29", 328_757_843),
            "train-clean-100": ("d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2", 6_387_309_499),
            "train-clean-360": ("146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf", 23_049_477_885),
            "train-other-500": ("ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2", 30_593_501_606),
        },
        algorithm="sha256",
    ),
)
