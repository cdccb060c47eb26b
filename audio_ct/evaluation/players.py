"""What stands around a sound on the comparison page: its spectrogram, and beneath it its pitch and its level."""

import io
import math
from collections.abc import Mapping
from typing import Any

import librosa
import matplotlib
import numpy as np
import soundfile
from matplotlib.image import imsave

from audio_ct.audio.pitch import HIGHEST_HZ, LOWEST_HZ
from audio_ct.audio.spectrogram import COLOUR_MAP, COLOUR_RANGE_DB, mel_db
from audio_ct.evaluation.hearing import HOP_SECONDS, contours, median
from audio_ct.html import data_uri

# The contours' box, in units of its own: 1000 x 100, time to the right.
BOX_WIDTH = 1000
BOX_HEIGHT = 100
LOWEST_DBFS = -60.0
MAX_CONTOUR_FRAMES = 500
TICK_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Players:
    """All samples of a comparison as players, their spectrograms on one colour scale.

    Attributes:
        lowest_db, highest_db: ends of the colour scale.
        gradient: its colours, for CSS.
        frequency_ticks: (label in kHz, percent of a spectrogram's height).
        pitch_ends_hz, level_ends_dbfs: what the contours' box holds from bottom to top; pitch is logarithmic.
    """

    pitch_ends_hz = (LOWEST_HZ, HIGHEST_HZ)
    level_ends_dbfs = (LOWEST_DBFS, 0.0)

    def __init__(self, comparison: Mapping[str, Any]) -> None:
        self.sample_rate_hz = int(comparison["sample_rate_hz"])
        rows = (comparison["real"], *comparison["models"])
        samples = [sample for row in rows for sample in (*row["samples"], *row.get("continuations", ()))]
        levels_db = [mel_db(finite(sample["waveform"]), self.sample_rate_hz) for sample in samples]
        self.highest_db = max((float(level_db.max()) for level_db in levels_db if level_db.size), default=0.0)
        self.lowest_db = self.highest_db - COLOUR_RANGE_DB
        stops = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, 9))
        self.gradient = ", ".join(matplotlib.colors.to_hex(stop) for stop in stops)
        highest_mel = librosa.hz_to_mel(self.sample_rate_hz / 2)
        self.frequency_ticks = [
            (f"{frequency_hz / 1000:g}", round(100 * float(librosa.hz_to_mel(frequency_hz) / highest_mel), 2))
            for frequency_hz in (1000, 2000, 4000, 8000, 16000)
            if frequency_hz < 0.45 * self.sample_rate_hz
        ]

    def player(self, sample: Mapping[str, Any], identifier: str) -> dict[str, Any]:
        """A sample for the template: its label, warnings, seconds, time ticks, sound, picture and contours.

        Args:
            sample: label, waveform [num_samples] float32, warnings and, of a continuation, prompt_seconds.
            identifier: of its sound on the page.
        """
        waveform = finite(sample["waveform"])
        player = {
            "id": identifier,
            "label": sample["label"],
            "warnings": sample["warnings"],
            "seconds": None,
            "prompt_percent": None,
        }
        if waveform.size == 0:
            return player
        seconds = waveform.size / self.sample_rate_hz
        step = next((step for step in TICK_SECONDS if seconds / step < 8), 600)
        flac, png = io.BytesIO(), io.BytesIO()
        soundfile.write(flac, np.clip(waveform, -1, 1), self.sample_rate_hz, format="FLAC", subtype="PCM_16")
        level_db = mel_db(waveform, self.sample_rate_hz)
        # An explicit origin, and rows as bands: the lowest band lies at the bottom.
        imsave(png, level_db, cmap=COLOUR_MAP, vmin=self.lowest_db, vmax=self.highest_db, origin="lower", format="png")
        if "prompt_seconds" in sample:
            player["prompt_percent"] = round(100 * sample["prompt_seconds"] / seconds, 2)
        return {
            **player,
            "seconds": seconds,
            "time_ticks": [
                (f"{time:g}", round(100 * time / seconds, 2))
                for time in (step * k for k in range(1, 8))
                if time < 0.96 * seconds
            ],
            "sound": data_uri("audio/flac", flac.getvalue()),
            "picture": data_uri("image/png", png.getvalue()),
            "contours": self._contours(waveform, seconds),
        }

    def _contours(self, waveform: np.ndarray, seconds: float) -> dict[str, Any]:
        """Pitch and level as SVG paths in the box, and in words."""
        hop_seconds = max(HOP_SECONDS, seconds / MAX_CONTOUR_FRAMES)
        f0_hz, frames_dbfs = contours(waveform.astype(np.float64), self.sample_rate_hz, hop_seconds=hop_seconds)
        hop_seconds = round(hop_seconds * self.sample_rate_hz) / self.sample_rate_hz
        times = np.minimum(BOX_WIDTH * np.arange(frames_dbfs.size) * hop_seconds / seconds, BOX_WIDTH)
        shares = np.clip(1 - frames_dbfs / LOWEST_DBFS, 0, 1)
        level = " ".join(f"L{x:.0f} {BOX_HEIGHT * (1 - y):.0f}" for x, y in zip(times, shares, strict=True))
        octaves = math.log2(HIGHEST_HZ / LOWEST_HZ)
        heights = BOX_HEIGHT * (1 - np.log2(f0_hz / LOWEST_HZ) / octaves)
        voiced = np.isfinite(f0_hz)
        follows = np.append(False, voiced[:-1])
        # A frame alone is a dot, which takes a line of some length.
        pitch = " ".join(
            f"L{x:.0f} {y:.0f}" if after else f"M{x:.0f} {y:.0f}h.1"
            for x, y, after in zip(times[voiced], heights[voiced], follows[voiced], strict=True)
        )
        middle_hz = median(f0_hz)
        words = f"pitch {middle_hz:.0f} Hz in the middle" if voiced.any() else "no pitch"
        words += f", level from {frames_dbfs.min():.0f} to {frames_dbfs.max():.0f} dBFS"
        return {"pitch": pitch, "level": f"M0 {BOX_HEIGHT} {level} L{times[-1]:.0f} {BOX_HEIGHT}Z", "words": words}


def finite(waveform: np.ndarray) -> np.ndarray:
    """Samples that are no numbers as silence: a broken sample is shown with its warning."""
    return np.nan_to_num(waveform, nan=0.0, posinf=1.0, neginf=-1.0)
