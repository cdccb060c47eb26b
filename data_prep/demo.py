"""A synthetic corpus that needs no download: our own sentences, spoken by a small text-to-speech model.

One bundled voice becomes several pseudo-speakers by resampling, which moves pitch, formants and pace together. Meant
for a first try and for tests; the store is marked synthetic, and so must every result on it be.
"""

import importlib.util
from pathlib import Path

import joblib
import soxr

from audio_ct.audio.files import AudioWriter
from audio_ct.errors import MissingError
from data_prep import folder
from data_prep.corpus import Corpus
from data_prep.options import PrepOptions

# A voice resampled to more samples than it had sounds lower and slower when played at the old rate.
SPEAKER_RATIOS = {"alder": 0.84, "birch": 0.95, "cedar": 1.07, "daphne": 1.21}


def make(folder_of_recordings: Path, options: PrepOptions) -> None:
    """Write some three to four minutes of synthetic speech; the seed also chooses the sentences' renderings.

    Raises:
        MissingError: If hibari-tts is not installed.
    """
    if importlib.util.find_spec("hibari") is None:
        raise MissingError("the demo needs hibari-tts, which is not installed; pip install 'audio-ct[demo]'.")
    sentences = (Path(__file__).parent / "demo_text.txt").read_text(encoding="utf-8").splitlines()
    speak = joblib.delayed(_speak)
    joblib.Parallel(n_jobs=options.jobs)(
        # No sentence has two speakers: resampled copies of one rendering must not stand in two splits.
        speak(
            folder_of_recordings / speaker,
            ratio,
            sentences[index :: len(SPEAKER_RATIOS)],
            seed=options.seed * 1000 + index,
        )
        for index, (speaker, ratio) in enumerate(SPEAKER_RATIOS.items())
    )


def _speak(target: Path, ratio: float, sentences: list[str], seed: int) -> None:
    """Write one pseudo-speaker's recordings and their texts."""
    # Optional, and it loads onnxruntime: only where it is used.
    from hibari import Hibari

    voice = Hibari(threads=1)
    target.mkdir(parents=True)
    for number, text in enumerate(sentences):
        waveform = voice(text, seed=seed * 1000 + number)
        shifted = soxr.resample(waveform, 1.0, 1 / ratio, quality="HQ")
        with AudioWriter(target / f"{number:03d}.flac", voice.sample_rate) as writer:
            writer.write(shifted)
        (target / f"{number:03d}.txt").write_text(text + "\n", encoding="utf-8")


CORPUS = Corpus(
    name="demo",
    title="A few minutes of synthetic speech of several voices, made on this machine by hibari-tts 0.2.1",
    gather=folder.gather,
    # Its speakers are one voice at several speeds, and few.
    defaults={"split_by": "recording"},
    synthetic=True,
    make=make,
)
