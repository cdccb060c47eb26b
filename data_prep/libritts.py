"""LibriTTS: 585 hours of audiobooks by 2,456 speakers, cut at sentences, WAV at 24 kHz; LibriTTS-R: the same restored.

- `LibriTTS/train-clean-100/84/121123/84_121123_000007_000001.wav`: subset, speaker, chapter, paragraph, sentence; its
  texts beside it as `.original.txt` and `.normalized.txt`. Sentences that the corpus left out are gaps in the reading.
- `84_121123.trans.tsv` in each chapter's folder: a recording's name, its text, its normalised text; quotes are letters.
- `84_121123.book.tsv` has every sentence of the chapter, though not quite all recordings, and irregular columns. It and
  the tables of speakers hold nothing that is needed here, and are not read.
- LibriTTS-R lies in `LibriTTS_R`. It lacks some recordings that its transcripts name and has hidden files `._*.wav`.
  Lists of failed restorations are a download of their own; what they name is left out if they lie within the source.
"""

import re
from dataclasses import replace
from pathlib import PurePosixPath

from . import libri
from .corpus import Corpus, Gathered, Reject
from .options import PrepOptions
from .source import Source

_TREE = libri.Tree(
    folder="LibriTTS",
    recording=re.compile(r"(\d+)/(\d+)/(\1_\2_\d+_\d+)"),
    transcript="{speaker}_{chapter}.trans.tsv",
    separator="\t",
    num_texts=2,
    text_suffix=".normalized.txt",
)
_FAILED = "libritts_r_failed_speech_restoration_examples"


def gather(source: Source, options: PrepOptions) -> Gathered:
    """See `libri.gather`."""
    return libri.gather(source, options, _TREE)[0]


def gather_restored(source: Source, options: PrepOptions) -> Gathered:
    """See `libri.gather`; without the recordings whose restoration failed, where the lists of them are there."""
    gathered, root = libri.gather(source, options, replace(_TREE, folder="LibriTTS_R"))
    folder = next((each for each in (_FAILED, root + _FAILED) if source.exists(each)), None)
    if folder is None:
        note = f"Recordings whose restoration failed are included; unpack {_FAILED}.tar.gz of "
        gathered.notes.append(f"{note}{LIBRITTS_R.address} into the source to leave them out.")
        return gathered
    failed = set()
    for file in source.files(folder, suffixes=frozenset({".txt"})):
        failed |= {PurePosixPath(line).stem for line in source.read_text(file.path).split()}
    gathered.rejects += [
        Reject(candidate.path, "failed restoration", "is in the corpus's list of failures.")
        for candidate in gathered.candidates
        if candidate.name in failed
    ]
    return replace(gathered, candidates=[each for each in gathered.candidates if each.name not in failed])


LIBRITTS = Corpus(
    name="libritts",
    title="LibriTTS: 585 hours of audiobooks by 2,456 speakers, cut at sentences, 24 kHz",
    gather=gather,
    licence="CC-BY-4.0",
    citation="Heiga Zen et al., LibriTTS: A Corpus Derived from LibriSpeech for Text-to-Speech, 2019",
    address="https://www.openslr.org/60",
    subsets=libri.SUBSETS,
    archives=libri.archives(
        "https://www.openslr.org/resources/60",
        {
            "dev-clean": ("da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a", 1_291_469_655),
            "dev-other": ("d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c", 924_804_676),
            "test-clean": ("234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5", 1_230_670_113),
            "test-other": ("33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d", 964_502_297),
            "train-clean-100": ("c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b", 7_723_686_890),
            "train-clean-360": ("ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886", 27_504_073_644),
            "train-other-500": ("e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df", 44_565_031_479),
        },
        algorithm="sha256",
    ),
)

LIBRITTS_R = Corpus(
    name="libritts-r",
    title="LibriTTS-R: LibriTTS restored by a model to studio quality, 24 kHz",
    gather=gather_restored,
    licence="CC-BY-4.0",
    citation="Yuma Koizumi et al., LibriTTS-R: A Restored Multi-Speaker Text-to-Speech Corpus, 2023",
    address="https://www.openslr.org/141",
    subsets=libri.SUBSETS,
    archives=libri.archives(
        "https://www.openslr.org/resources/141",
        {
            "dev-clean": ("2c1f5312914890634cc2d15783032ff3", None),
            "dev-other": ("62d3a80ad8a282b6f31b3904f0507e4f", None),
            "test-clean": ("4d373d453eb96c0691e598061bbafab7", None),
            "test-other": ("dbc0959d8bdb6d52200595cabc9995ae", None),
            "train-clean-100": ("6df668d8f5f33e70876bfa33862ad02b", None),
            "train-clean-360": ("382eb3e64394b3da6a559f864339b22c", None),
            "train-other-500": ("a37a8e9f4fe79d20601639bf23d1add8", None),
        },
        algorithm="md5",
        between="_",
    ),
)
