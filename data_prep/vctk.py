"""VCTK 0.92: 110 speakers of English accents read some 400 sentences each, to two microphones at once, FLAC at 48 kHz.

- `wav48_silence_trimmed/p225/p225_001_mic1.flac`, and its text in `txt/p225/p225_001.txt`. mic1 is an omni-directional
  DPA 4035, mic2 a Sennheiser MKH 800 with less noise at low frequencies.
- p315 has no texts, p280 no mic2, p362 lacks some recordings, and one speaker is named s5.
- `speaker-info.txt` has no fixed columns and nothing that is needed here; it is not read.
- There are no official splits.
- The release before, 0.80, has mic1 alone: `wav48/p225/p225_001.wav`.
"""

import re
from pathlib import PurePosixPath

from audio_ct.errors import InputError

from .corpus import Archive, Candidate, Corpus, Gathered, Reject
from .layout import audio_files, corpus_folder, not_there
from .options import PrepOptions
from .source import Source, SourceFile, printable

MICROPHONES = ("mic1", "mic2")
_AUDIO, _OLDER_AUDIO = "wav48_silence_trimmed", "wav48"
_RECORDING = re.compile(r"(\w+)/(\1_\d+)(?:_(mic[12]))?", re.ASCII)


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name the recordings of the chosen microphones by speaker, microphone and sentence.

    Raises:
        InputError: If the source is no VCTK or the options ask for what it does not have.
    """
    root = corpus_folder(
        source,
        names=("VCTK-Corpus-0.92", "VCTK-Corpus"),
        holding=(_AUDIO, _OLDER_AUDIO),
        remedy="Name the folder that VCTK-Corpus-0.92.zip was unpacked in.",
    )
    older = not source.exists(root + _AUDIO)
    microphones = tuple(each for each in MICROPHONES if each in (options.subsets or CORPUS.default_subsets))
    if older and microphones != ("mic1",):
        raise InputError(f"subset={', '.join(microphones)} needs VCTK 0.92; {root}{_OLDER_AUDIO} has mic1 alone.")
    if len(microphones) > 1 and options.split_by == "recording":
        raise InputError(
            f"subset={', '.join(microphones)} with split_by='recording' would put one sentence's two recordings into "
            "two splits; split by speaker, or choose one microphone."
        )
    files, rejects = audio_files(source, root + (_OLDER_AUDIO if older else _AUDIO))
    recordings: dict[tuple[str, str, str], SourceFile] = {}
    for key, file in files.items():
        match = _RECORDING.fullmatch(key)
        if match is None or (match[3] is None) != older:
            rejects.append(Reject(printable(file.path), "unexpected name", "is not named as VCTK's recordings are."))
        elif (match[3] or "mic1") in microphones:
            recordings[match[1], match[3] or "mic1", match[2]] = file
    text_paths = {
        (PurePosixPath(file.path).parent.name, PurePosixPath(file.path).stem): file.path
        for file in source.files(f"{root}txt", suffixes=frozenset({".txt"}))
    }
    candidates = [
        Candidate(
            path=file.path,
            name=f"{sentence}_{microphone}",
            speaker=speaker,
            num_bytes=file.num_bytes,
            text_path=text_paths.get((speaker, sentence)),
        )
        for (speaker, microphone, sentence), file in sorted(recordings.items())
    ]
    gathered = Gathered(candidates, rejects)
    recorded = {(speaker, microphone) for speaker, microphone, _ in recordings}
    for microphone in microphones:
        unrecorded = sorted({speaker for speaker, _ in text_paths if (speaker, microphone) not in recorded})
        if unrecorded:
            gathered.notes.append(f"No recordings by {microphone} of {', '.join(unrecorded)}.")
        gathered.rejects += [
            not_there(f"{sentence}_{microphone}", path)
            for (speaker, sentence), path in sorted(text_paths.items())
            if speaker not in unrecorded and (speaker, microphone, sentence) not in recordings
        ]
    if older:
        gathered.notes.append(
            "This is VCTK 0.80, published under ODC-By-1.0 and not under the licence of 0.92, which the store names."
        )
    return gathered


CORPUS = Corpus(
    name="vctk",
    title="VCTK 0.92: 44 hours of 110 speakers with various accents, two microphones, 48 kHz",
    gather=gather,
    licence="CC-BY-4.0",
    citation="Junichi Yamagishi, Christophe Veaux and Kirsten MacDonald, CSTR VCTK Corpus (version 0.92), 2019",
    address="https://doi.org/10.7488/ds/2645",
    subsets=MICROPHONES,
    default_subsets=("mic1",),
    archives={
        # One archive holds both microphones.
        microphone: (
            Archive(
                "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",
                "sha256:f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
                11_747_302_977,
            ),
        )
        for microphone in MICROPHONES
    },
)
