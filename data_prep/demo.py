"""A synthetic corpus that needs no download: our own sentences, spoken by a small text-to-speech model.

One bundled voice becomes several pseudo-speakers by resampling, which moves pitch, formants and pace together. Meant
for a first try and for tests; the store is marked synthetic, and so must every result on it be.
"""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import soxr

from audio_ct.audio.files import AudioWriter
from audio_ct.errors import InputError, MissingError
from data_prep import folder
from data_prep.plan import PrepOptions
from data_prep.skeleton import Gathered, build

# A voice resampled to more samples than it had sounds lower and slower when played at the old rate.
SPEAKER_RATIOS = {"alder": 0.84, "birch": 0.95, "cedar": 1.07, "daphne": 1.21}


def prepare(source: Path | None, out: Path, *, options: PrepOptions, progress: bool = False) -> dict[str, Any]:
    """Prepare a token store of some three to four minutes of synthetic speech.

    Args:
        source: None; the corpus makes its own recordings.
        out: Where the store shall stand.
        options: How to prepare it; the seed also chooses the sentences' renderings.
        progress: Show progress on standard error.

    Returns:
        The summary that `data_prep.skeleton.build` gives.

    Raises:
        InputError: If a source is given.
        MissingError: If hibari-tts is not installed.
    """
    if source is not None:
        raise InputError(f"source={str(source)!r}: corpus=demo makes its own recordings; leave the source out.")
    if importlib.util.find_spec("hibari") is None:
        raise MissingError("corpus=demo needs hibari-tts, which is not installed; pip install 'audio-ct[demo]'.")
    return build(partial(_gather, options=options), out, options=options, corpus="demo", progress=progress)


def _gather(work_folder: Path, options: PrepOptions) -> Gathered:
    recordings = work_folder / "recordings"
    sentences = (Path(__file__).parent / "demo_text.txt").read_text(encoding="utf-8").splitlines()
    speak = joblib.delayed(_speak)
    joblib.Parallel(n_jobs=options.jobs)(
        # No sentence has two speakers: resampled copies of one rendering must not stand in two splits.
        speak(recordings / speaker, ratio, sentences[index :: len(SPEAKER_RATIOS)], seed=options.seed * 1000 + index)
        for index, (speaker, ratio) in enumerate(SPEAKER_RATIOS.items())
    )
    gathered = folder.gather(recordings)
    gathered.sources = [{"name": "hibari-tts 0.2.1", "kind": "synthetic", "speaker_ratios": SPEAKER_RATIOS}]
    gathered.synthetic = True
    return gathered


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
