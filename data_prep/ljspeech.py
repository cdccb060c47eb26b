"""LJSpeech 1.1: one speaker reads 13,100 passages of seven non-fiction books, 24 hours at 22.05 kHz.

metadata.csv has a row for each recording, id|text|normalised text, without a header. Its quotes are part of the texts
and often without a partner, so nothing is unquoted. Some copies leave the normalised text empty; the raw one stands in.
The ids follow the books, so their order is that of reading.
"""

from audio_ct.errors import MissingError

from .corpus import Archive, Candidate, Corpus, Gathered
from .layout import audio_files, corpus_folder, last_text, not_there
from .options import PrepOptions
from .source import Source, printable

SPEAKER = "LJ"
METADATA = "metadata.csv"


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name the recordings in the order of their ids; those without a row in the metadata have no text.

    Raises:
        InputError: If the source is no LJSpeech.
        MissingError: If its recordings are not there.
    """
    root = corpus_folder(
        source,
        names=("LJSpeech-1.1",),
        holding=(METADATA,),
        remedy="Name the folder that LJSpeech-1.1.tar.bz2 unpacks to.",
    )
    files, rejects = audio_files(source, f"{root}wavs")
    if not files:
        raise MissingError(f"source={source.address!r} holds no recordings in {root}wavs; unpack the corpus whole.")
    texts = _texts(source.read_text(root + METADATA))
    rejects += [not_there(f"{root}wavs/{name}.wav", METADATA) for name in sorted(texts) if name not in files]
    candidates = [
        Candidate(file.path, printable(name), SPEAKER, file.num_bytes, text=texts.get(name))
        for name, file in sorted(files.items())
    ]
    return Gathered(candidates, rejects)


def _texts(metadata: str) -> dict[str, str | None]:
    """Texts by id. Rows end with a line feed alone: texts may hold characters that `splitlines` would cut at."""
    texts = {}
    for row in metadata.split("\n"):
        name, *columns = row.split("|")
        if name.strip():
            texts[name.strip()] = last_text(columns[:2])
    return texts


CORPUS = Corpus(
    name="ljspeech",
    title="LJSpeech: 24 hours of one speaker reading books, 22.05 kHz",
    gather=gather,
    licence="public domain",
    citation="Keith Ito and Linda Johnson, The LJ Speech Dataset, 2017",
    address="https://keithito.com/LJ-Speech-Dataset/",
    defaults={"sample_rate_hz": 22_050},
    archives={
        "": (
            Archive(
                "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
                "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
                2_748_572_632,
            ),
        )
    },
)
