"""A synthetic corpus that needs no download: our own sentences, spoken by a small text-to-speech model.

Meant for a first try and for tests: one voice in a telephone's band, its levels alike and its pauses short, so that a
model has learned something of it in a minute. The store is marked synthetic, and so must every result on it be.
"""

import importlib.util
from pathlib import Path

import joblib

from audio_ct.audio.files import AudioWriter
from audio_ct.errors import MissingError

from . import folder
from .corpus import Corpus
from .options import PrepOptions

SPEAKER = "hibari"
# A voice loads in seconds: each process makes so many sentences.
SENTENCES_PER_TASK = 13


def make(folder_of_recordings: Path, options: PrepOptions) -> None:
    """Write some three minutes of synthetic speech; the seed also chooses the sentences' renderings.

    Raises:
        MissingError: If hibari-tts is not installed.
    """
    if importlib.util.find_spec("hibari") is None:
        raise MissingError("the demo needs hibari-tts, which is not installed; pip install 'audio-ct[demo]'.")
    sentences = (Path(__file__).parent / "demo_text.txt").read_text(encoding="utf-8").splitlines()
    target = folder_of_recordings / SPEAKER
    target.mkdir(parents=True)
    numbered = list(enumerate(sentences))
    speak = joblib.delayed(_speak)
    joblib.Parallel(n_jobs=options.jobs)(
        speak(target, numbered[begin : begin + SENTENCES_PER_TASK], seed=options.seed * 1000)
        for begin in range(0, len(numbered), SENTENCES_PER_TASK)
    )


def _speak(target: Path, numbered: list[tuple[int, str]], seed: int) -> None:
    """Write some sentences' recordings and their texts."""
    # Optional, and it loads onnxruntime: only where it is used.
    from hibari import Hibari

    voice = Hibari(threads=1)
    for number, text in numbered:
        with AudioWriter(target / f"{number:03d}.flac", voice.sample_rate) as writer:
            writer.write(voice(text, seed=seed + number))
        (target / f"{number:03d}.txt").write_text(text + "\n", encoding="utf-8")


CORPUS = Corpus(
    name="demo",
    title="A few minutes of synthetic speech of one voice at 8 kHz, made on this machine by hibari-tts 0.2.1",
    gather=folder.gather,
    defaults={
        "sample_rate_hz": 8000,
        "loudness_lufs": -23.0,
        "maximum_pause_seconds": 0.2,
        "split_by": "recording",
        # By this seed three of the sentences are for testing.
        "validation_fraction": 0.06,
        "test_fraction": 0.06,
        "seed": 5,
    },
    synthetic=True,
    make=make,
)
