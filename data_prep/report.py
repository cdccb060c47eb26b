"""The report on a corpus: durations, levels, source rates and bandwidths, rejects, as JSON and as a picture."""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from audio_ct.audio.files import Samples

FFT_SAMPLES = 2048
BANDWIDTH_FLOOR_DB = -60.0
# A band that ends this close below the target's own is called full.
FULL_BAND = 0.85


@dataclass(frozen=True)
class Measures:
    """Figures of a source recording at its own rate; level in dB relative to full scale."""

    seconds: float
    sample_rate_hz: int
    level_dbfs: float
    bandwidth_hz: float
    rolloff_hz: float


class Meter:
    """Measures a recording block by block, in memory that does not grow with it."""

    def __init__(self) -> None:
        """Start with nothing heard."""
        self.sample_rate_hz = 0
        self.lowest, self.highest = np.inf, -np.inf
        self._num_samples = 0
        self._sum_of_squares = 0.0
        self._power = np.zeros(FFT_SAMPLES // 2 + 1)

    def update(self, block: Samples) -> None:
        """Take in samples [time] at the source's rate."""
        self.lowest = min(self.lowest, float(block.min()))
        self.highest = max(self.highest, float(block.max()))
        self._num_samples += len(block)
        self._sum_of_squares += float(np.dot(block, block.astype(np.float64)))
        whole = len(block) // FFT_SAMPLES * FFT_SAMPLES
        frames = block[:whole] if whole else np.pad(block, (0, FFT_SAMPLES - len(block)))
        windowed = frames.reshape(-1, FFT_SAMPLES) * np.hanning(FFT_SAMPLES).astype(np.float32)
        self._power += (np.abs(np.fft.rfft(windowed)) ** 2).sum(axis=0)

    def result(self) -> Measures:
        """Compute the measures of all that was heard.

        Returns:
            Bandwidth is the highest frequency whose mean power is within 60 dB of the strongest one's; rolloff is the
            frequency below which 99 % of the energy lies.
        """
        frequencies_hz = np.fft.rfftfreq(FFT_SAMPLES, 1 / max(self.sample_rate_hz, 1))
        # An offset is no sound: the first bins do not count.
        power = self._power[2:]
        audible = np.flatnonzero(power > power.max() * 10 ** (BANDWIDTH_FLOOR_DB / 10))
        cumulative = np.cumsum(power)
        return Measures(
            seconds=self._num_samples / max(self.sample_rate_hz, 1),
            sample_rate_hz=self.sample_rate_hz,
            level_dbfs=float(10 * np.log10(max(self._sum_of_squares / max(self._num_samples, 1), 1e-20))),
            bandwidth_hz=float(frequencies_hz[2:][audible[-1]]) if len(audible) else 0.0,
            rolloff_hz=float(frequencies_hz[2:][np.searchsorted(cumulative, 0.99 * cumulative[-1])]),
        )


def write(measures: Sequence[Measures], reasons: Sequence[str], target_rate_hz: int, folder: Path) -> dict[str, Any]:
    """Write report.json and report.png.

    Args:
        measures: Of every recording that was kept.
        reasons: Of every reject.
        target_rate_hz: The store's rate.
        folder: Where to write.

    Returns:
        num_recordings, audio_seconds, num_rejects, rejects (count by reason) and warnings.
    """
    summary = {
        "num_recordings": len(measures),
        "audio_seconds": round(sum(measure.seconds for measure in measures), 3),
        "num_rejects": len(reasons),
        "rejects": dict(sorted(Counter(reasons).items())),
        "warnings": _warnings(measures, target_rate_hz),
    }
    rates = Counter(measure.sample_rate_hz for measure in measures)
    content = summary | {
        "source_sample_rates_hz": {str(rate): count for rate, count in sorted(rates.items())},
        "seconds": _quantiles([measure.seconds for measure in measures]),
        "level_dbfs": _quantiles([measure.level_dbfs for measure in measures]),
        "bandwidth_hz": _quantiles([measure.bandwidth_hz for measure in measures]),
        "rolloff_hz": _quantiles([measure.rolloff_hz for measure in measures]),
        "software": {"soxr": soxr.__version__, "libsndfile": soundfile.__libsndfile_version__},
    }
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _draw(measures, summary, target_rate_hz).savefig(folder / "report.png", dpi=120)
    return summary


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    names = ("minimum", "5%", "median", "95%", "maximum")
    return {name: round(float(value), 3) for name, value in zip(names, quantiles, strict=True)}


def _warnings(measures: Sequence[Measures], target_rate_hz: int) -> list[str]:
    total = sum(measure.seconds for measure in measures)
    slow = [measure for measure in measures if measure.sample_rate_hz < target_rate_hz]
    warnings = []
    if slow:
        lowest = min(measure.sample_rate_hz for measure in slow)
        share = sum(measure.seconds for measure in slow) / total
        warnings.append(
            f"{share:.0%} of the audio was sampled below {target_rate_hz} Hz (lowest: {lowest} Hz): above "
            f"{lowest // 2} Hz its band is empty, and a model learns that too."
        )
    full_hz = FULL_BAND * target_rate_hz / 2
    narrow = [m for m in measures if m.bandwidth_hz < full_hz and m.sample_rate_hz >= target_rate_hz]
    share = sum(measure.seconds for measure in narrow) / total
    if share > 0.5:
        median = float(np.median([measure.bandwidth_hz for measure in narrow]))
        warnings.append(
            f"{share:.0%} of the audio has the rate but not the band: its spectrum ends near {median:.0f} Hz of "
            f"{target_rate_hz // 2} Hz, so it may have been upsampled or filtered."
        )
    return warnings


def _draw(measures: Sequence[Measures], summary: dict[str, Any], target_rate_hz: int) -> Figure:
    figure = Figure(figsize=(12, 6.5), layout=ConstrainedLayoutEngine(h_pad=0.15, w_pad=0.1))
    seconds, level, band, rates, rejects, notes = figure.subplots(2, 3).flat
    minutes = summary["audio_seconds"] / 60
    length = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    figure.suptitle(f"{summary['num_recordings']} recordings, {length}, {summary['num_rejects']} rejected", size=14)
    durations = [measure.seconds for measure in measures]
    _histogram(seconds, durations, np.geomspace(min(durations) * 0.9, max(durations) * 1.1, 41), "Duration (s)")
    seconds.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 36000) if tick <= max(durations) * 1.1]
    seconds.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    seconds.minorticks_off()
    _histogram(level, [measure.level_dbfs for measure in measures], np.linspace(-80, 0, 41), "Level (dBFS, RMS)")
    nyquist_khz = target_rate_hz / 2000
    widest_khz = max(nyquist_khz, *(measure.sample_rate_hz / 2000 for measure in measures)) * 1.05
    bandwidths = [measure.bandwidth_hz / 1000 for measure in measures]
    _histogram(band, bandwidths, np.linspace(0, widest_khz, 41), "Source bandwidth (kHz, -60 dB)")
    band.axvline(nyquist_khz, color="tab:red", linestyle="--", label="half the store's rate")
    band.legend(loc="best", fontsize=8)
    counted = sorted(Counter(measure.sample_rate_hz for measure in measures).items())
    _bars(rates, {f"{rate / 1000:g} kHz": count for rate, count in counted}, "Source sample rate")
    _bars(rejects, summary["rejects"], "Rejected files")
    notes.axis("off")
    notes.set_title("Warnings")
    text = "\n\n".join(textwrap.fill(warning, 52) for warning in summary["warnings"]) or "none"
    notes.text(0, 0.95, text, va="top", fontsize=9, transform=notes.transAxes)
    return figure


def _histogram(axes: Axes, values: Sequence[float], edges: npt.NDArray[np.float64], title: str) -> None:
    axes.hist(np.clip(values, edges[0], edges[-1]), bins=edges.tolist(), color="tab:blue")
    axes.set(title=title, ylabel="recordings")
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, counts: dict[str, int], title: str) -> None:
    axes.set_title(title)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.set_xticks([])
    if not counts:
        axes.axis("off")
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        return
    positions = range(len(counts))
    axes.bar_label(axes.barh(positions, list(counts.values()), color="tab:blue", height=0.6), padding=4)
    axes.set_yticks(positions, list(counts))
    axes.tick_params(length=0)
    axes.margins(x=0.15)
    axes.set_ylim(max(len(counts), 5) - 0.4, -0.6)
