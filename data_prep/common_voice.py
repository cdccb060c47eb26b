"""Common Voice: sentences read by volunteers into their own microphones, in more than a hundred languages.

A release has a folder for each language, with `clips/` and TSVs that name them. `train.tsv`, `dev.tsv` and `test.tsv`
are the official splits, without a speaker in two; as they hold each sentence once, they are much less than
`validated.tsv`, which is taken where none of the three is there, as in the "delta" releases.

- Sentences hold quotation marks that nobody closes, so a reader that knows quoting swallows the rows that follow.
- The clips are MP3 at 32 or 48 kHz, from microphones of every kind: their bandwidth differs from speaker to speaker.
- Some listed clips are missing or, in releases 3, 4 and 16.0, empty.
- In the first release the TSVs name clips without ".mp3".
- `client_id` is a hash of 128 characters; 16 of them tell speakers apart.
"""

from audio_ct.errors import InputError

from .corpus import Candidate, Corpus, Gathered
from .layout import not_there
from .options import PrepOptions
from .source import Source
from .tables import read_table

OFFICIAL_SPLITS = {"train.tsv": "train", "dev.tsv": "validation", "test.tsv": "test"}
# Where there is none of them.
UNSPLIT = "validated.tsv"
SPEAKER_CHARACTERS = 16


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name the clips of a language's TSVs, or of several languages, by speaker.

    Args:
        source: A language's folder, or that of a release.
        options: `subsets` are the languages of a release, by default all that are there.

    Raises:
        InputError: If the source is neither, or lacks a language or the clips, or a TSV is not one of Common Voice.
    """
    gathered = Gathered([])
    for folder in _language_folders(source, options.subsets):
        _gather_language(source, folder, gathered)
    # Clips are numbered in the order in which they came in.
    gathered.candidates.sort(key=lambda each: (each.speaker, len(each.path), each.path))
    return gathered


def _language_folders(source: Source, subsets: tuple[str, ...]) -> list[str]:
    """What comes before the paths of the wanted languages: "en/", or "" where the source is a language's folder."""
    if _tables(source, ""):
        if any(subset != source.name for subset in subsets):
            raise InputError(
                f"subsets={', '.join(subsets)}: source={source.address!r} is the folder of {source.name} alone; name "
                "the folder around it, or leave subsets out."
            )
        return [""]
    languages = [folder for folder in source.folders() if _tables(source, f"{folder}/")]
    if not languages:
        raise InputError(
            f"source={source.address!r} has neither train.tsv nor folders that have; name a language's folder, such as "
            "cv-corpus-17.0-2024-03-15/en, or the one around it."
        )
    if absent := [subset for subset in subsets if subset not in languages]:
        raise InputError(
            f"subsets={', '.join(absent)} must be among the languages in {source.address!r}: {', '.join(languages)}; "
            "choose of these or unpack more."
        )
    return [f"{language}/" for language in subsets or languages]


def _tables(source: Source, folder: str) -> dict[str, str | None]:
    """Splits by the TSV that names their clips; none if this is not a language's folder."""
    official: dict[str, str | None] = {
        name: split for name, split in OFFICIAL_SPLITS.items() if source.exists(folder + name)
    }
    return official or ({UNSPLIT: None} if source.exists(folder + UNSPLIT) else {})


def _gather_language(source: Source, folder: str, gathered: Gathered) -> None:
    clips = f"{folder}clips"
    if not source.exists(clips):
        raise InputError(f"source={source.address!r} has no folder {clips}; unpack the language's archive whole.")
    sizes = {file.path: file.num_bytes for file in source.files(clips, suffixes=frozenset({".mp3"}))}
    for table, split in _tables(source, folder).items():
        for number, row in enumerate(read_table(source, folder + table), 2):
            where = f"row {number} of {folder}{table}"
            if not row.keys() >= {"client_id", "path"}:
                raise InputError(
                    f"source={source.address!r}: {where} has no client_id and path, but {', '.join(row)}; take "
                    "the TSVs of the release."
                )
            name = f"{clips}/{row['path'].removesuffix('.mp3')}"
            path = f"{name}.mp3"
            num_bytes = sizes.pop(path, None)
            if num_bytes is None:
                gathered.rejects.append(not_there(path, where))
                continue
            speaker = row["client_id"][:SPEAKER_CHARACTERS]
            candidate = Candidate(path, name, speaker, num_bytes, text=row.get("sentence") or None, split=split)
            gathered.candidates.append(candidate)


CORPUS = Corpus(
    name="common-voice",
    subsets=None,
    title="Common Voice: volunteers' sentences in many languages, 32 and 48 kHz MP3",
    gather=gather,
    licence="CC0-1.0",
    citation="Ardila et al., Common Voice: A Massively-Multilingual Speech Corpus, LREC 2020",
    address="https://commonvoice.mozilla.org/datasets",
    instructions=(
        "Since October 2025 it is to be had from https://datacollective.mozillafoundation.org alone, with an account "
        "and agreement to terms; unpack a language's archive and name the folder that holds clips/ and train.tsv."
    ),
)
