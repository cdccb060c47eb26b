"""Hi-Fi TTS: 292 hours of audiobooks by ten speakers, chosen for bandwidth and low noise, FLAC at 44.1 kHz.

- `audio/92_clean/BOOK/CHAPTER_0069.flac`; of speakers with a little more noise `audio/6670_other/...`.
- `92_manifest_clean_train.json`, and `dev` and `test` in train's place: on each line a JSON object of `audio_filepath`,
  `text` (lower case, no punctuation), `text_no_preprocessing`, `text_normalized` and `duration`.
- The official splits hold out 50 recordings of each speaker for validation and 100 for test: every speaker is in all.
"""

from audio_ct.errors import InputError

from .corpus import Candidate, Corpus, Gathered, Reject
from .layout import audio_files, corpus_folder, last_text, not_there
from .options import PrepOptions
from .source import Source
from .tables import read_table

QUALITIES = ("clean", "other")
_SPEAKERS = ("92", "6097", "6670", "6671", "8051", "9017", "9136", "11614", "11697", "12787")
# What is held out comes first: a recording that two manifests name belongs there.
_SPLITS = {"test": "test", "dev": "validation", "train": "train"}


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name the recordings of the manifests by speaker, book and name, which is the order of reading.

    Raises:
        InputError: If the source is no Hi-Fi TTS, or a manifest is damaged.
    """
    root = corpus_folder(
        source,
        names=("hi_fi_tts_v0",),
        holding=("audio",),
        remedy="Name the folder that hi_fi_tts_v0.tar.gz unpacks to.",
    )
    qualities = options.subsets or QUALITIES
    manifests = {
        f"{speaker}_manifest_{quality}_{part}.json": (speaker, split)
        for part, split in _SPLITS.items()
        for speaker in _SPEAKERS
        for quality in qualities
        if source.exists(f"{root}{speaker}_manifest_{quality}_{part}.json")
    }
    if not manifests:
        raise InputError(
            f"source={source.address!r} holds no manifest such as {root}92_manifest_{qualities[0]}_train.json; "
            "unpack the corpus whole."
        )
    files, rejects = audio_files(source, f"{root}audio")
    candidates: dict[str, Candidate] = {}
    for manifest, (speaker, split) in manifests.items():
        for row in read_table(source, root + manifest):
            path = row.get("audio_filepath", "")
            name = path.removeprefix("audio/").rpartition(".")[0]
            if name not in files:
                rejects.append(not_there(root + path, manifest))
            elif name in candidates:
                rejects.append(Reject(root + path, "duplicate", f"is named by {manifest} after another line."))
            else:
                text = last_text([row.get("text", ""), row.get("text_normalized", "")])
                file = files[name]
                candidates[name] = Candidate(file.path, name, speaker, file.num_bytes, text=text, split=split)
    notes = ["The official splits share their speakers: likelihoods on them are of known voices."]
    unnamed = [name for name in files.keys() - candidates.keys() if name.split("/")[0].endswith(qualities)]
    if unnamed:
        notes.append(f"{len(unnamed)} recordings are in no manifest and were left out, such as {min(unnamed)!r}.")
    return Gathered(sorted(candidates.values(), key=_reading_order), rejects, notes)


def _reading_order(candidate: Candidate) -> tuple[int, list[tuple[int, str]], str]:
    """By speaker and book as numbers, then by name."""
    folder, _, name = candidate.name.rpartition("/")
    return int(candidate.speaker), [(len(part), part) for part in folder.split("/")], name


CORPUS = Corpus(
    name="hi-fi-tts",
    title="Hi-Fi TTS: 292 hours of audiobooks by ten speakers, 44.1 kHz",
    gather=gather,
    licence="CC-BY-4.0",
    citation="Evelina Bakhturina et al., Hi-Fi Multi-Speaker English TTS Dataset, 2021",
    address="https://www.openslr.org/109",
    subsets=QUALITIES,
    instructions="Get https://www.openslr.org/resources/109/hi_fi_tts_v0.tar.gz (41 GB, no published hash), unpack it.",
)
