"""The picture of a report. No names are in it: fonts do not have all characters that names do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from audio_ct.audio.spectrum_end import BAND_HZ
from audio_ct.html import duration

COLOUR = "#2f6db3"
SOFT = "#a9c3e2"
MARK = "#c4551a"
DURATION_TICKS_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 36_000)
MAXIMUM_LINES = 40
MAXIMUM_BARS = 40
LOWEST_SPECTRUM_DB = -80.0
LOWEST_LEVEL_DBFS = -80.0

Array = npt.NDArray[Any]


def draw(content: Mapping[str, Any], table: Mapping[str, Array], spectra: Array) -> Figure:
    """Draw durations, levels, where spectra end, long-term spectra, speakers, splits, source rates and rejects.

    Args:
        content: Of report.json.
        table: Columns of figures of the recordings.
        spectra: Long-term power of the groups, [groups, bands].
    """
    figure = Figure(figsize=(12.5, 6.4), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    (seconds, level, ends, spectrum), (speakers, splits, rates, rejects) = figure.subplots(2, 4)
    half_khz = content["sample_rate_hz"] / 2000
    unit, unit_seconds = ("hours", 3600) if content["audio_seconds"] >= 7200 else ("minutes", 60)
    _histogram(
        seconds,
        table["seconds"],
        np.geomspace(content["seconds"]["minimum"] * 0.9, content["seconds"]["maximum"] * 1.1, 41),
    )
    seconds.set(title="Duration (s)", ylabel="recordings", xscale="log")
    ticks = [tick for tick in DURATION_TICKS_S if seconds.get_xlim()[0] <= tick <= seconds.get_xlim()[1]]
    seconds.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    seconds.minorticks_off()
    lowest_dbfs = max(LOWEST_LEVEL_DBFS, 10 * np.floor(content["level_dbfs"]["minimum"] / 10))
    _histogram(level, table["level_dbfs"], np.linspace(lowest_dbfs, 0, 41))
    level.set(title="Level (dBFS, RMS)", ylabel="recordings")
    widest_khz = max(half_khz, content["end_hz"]["maximum"] / 1000)
    edges_khz = np.linspace(0, 1.02 * widest_khz, 41)
    _histogram(ends, table["end_hz"] / 1000, edges_khz, table["seconds"] / unit_seconds)
    ends.axvline(half_khz, color=MARK, linestyle="--")
    ends.set(title="Where the spectrum ends (kHz)", ylabel=unit, xlabel="dashed: half the store's rate")
    _spectra(spectrum, content, spectra, half_khz)
    _speakers(speakers, [group["seconds"] / unit_seconds for group in content["groups"]], unit)
    _bars(splits, {name: row["seconds"] for name, row in content["splits"].items()}, duration)
    splits.set_title("Splits")
    kilohertz = {f"{int(rate) / 1000:g} kHz": total for rate, total in content["source_seconds"].items()}
    _bars(rates, kilohertz, duration)
    rates.set_title("Source sample rates")
    _bars(rejects, content["rejects"], lambda count: f"{count:g}")
    rejects.set_title("Rejected files")
    return figure


def _histogram(axes: Axes, values: Array, edges: Array, weights: Array | None = None) -> None:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=weights)
    axes.stairs(counts, edges, fill=True, color=COLOUR)
    axes.spines[["top", "right"]].set_visible(False)


def _spectra(axes: Axes, content: Mapping[str, Any], spectra: Array, half_khz: float) -> None:
    """Groups with most audio thin, all together thick, each relative to its strongest band."""
    sums = spectra.sum(axis=1)
    khz = (np.arange(spectra.shape[1]) + 0.5) * BAND_HZ / 1000
    lines = [(spectra[index], SOFT, 0.8) for index in np.argsort(-sums, kind="stable")[:MAXIMUM_LINES] if sums[index]]
    for power, colour, width in [*lines, (spectra.sum(axis=0), COLOUR, 2.0)]:
        heard = power > 0
        axes.plot(khz[heard], 10 * np.log10(power[heard] / power.max()), color=colour, linewidth=width)
    axes.axvline(half_khz, color=MARK, linestyle="--")
    axes.set_ylim(LOWEST_SPECTRUM_DB, 3)
    axes.set(title="Long-term spectrum (kHz)", ylabel="dB below the strongest band")
    axes.spines[["top", "right"]].set_visible(False)


def _speakers(axes: Axes, lengths: list[float], unit: str) -> None:
    """The length of each one's audio, the longest first: bars, or an area where there are too many."""
    axes.set(
        title="Audio of each speaker", ylabel=unit, xlabel="speakers, the longest first", ylim=(0, 1.05 * lengths[0])
    )
    if len(lengths) <= MAXIMUM_BARS:
        axes.bar(range(1, len(lengths) + 1), lengths, color=COLOUR)
        axes.set_xlim(0.3, max(len(lengths), 5) + 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.fill_between(range(1, len(lengths) + 1), lengths, color=COLOUR, linewidth=0)
        axes.set_xlim(1, len(lengths))
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, values: Mapping[str, float], text: Any) -> None:
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.set_xticks([])
    if not values:
        axes.axis("off")
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        return
    bars = axes.barh(range(len(values)), list(values.values()), color=COLOUR, height=0.6)
    axes.bar_label(bars, [text(value) for value in values.values()], padding=4)
    axes.set_yticks(range(len(values)), list(values))
    axes.tick_params(length=0)
    axes.margins(x=0.25)
    axes.set_ylim(max(len(values), 5) - 0.4, -0.6)
