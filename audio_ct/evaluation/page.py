"""The comparison page: figures, curves and players of several models in one HTML file that needs nothing else."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.ticker import MaxNLocator

from audio_ct.durable import write_whole
from audio_ct.evaluation.blind import Sound, draw_pairs
from audio_ct.evaluation.hearing_table import GENERATED_KINDS, fails_checks, within
from audio_ct.evaluation.players import Players

REFERENCE_LABELS = {
    "uniform": "Uniform",
    "unigram": "Counting, order 0",
    "order_1": "Counting, order 1",
    "order_2": "Counting, order 2",
    "linear_prediction": "Linear prediction, no network",
}

# Columns of the table of hearing: title, and the figures in a cell as key, unit, factor to what is shown, decimals.
HEARING_COLUMNS = (
    ("Fréchet distance", (("frechet", "", 1, 3),)),
    ("DNSMOS", (("mos", "", 1, 2),)),
    ("Voiced, of sound", (("voiced", "%", 100, 0),)),
    ("Pitch, melody", (("f0_hz", "Hz", 1, 0), ("f0_octaves", "octaves", 1, 2))),
    ("Rhythm, depth and rate", (("modulation_depth", "", 1, 2), ("modulation_hz", "Hz", 1, 1))),
    ("Pauses, length", (("pauses", "%", 100, 0), ("pause_seconds", "s", 1, 2))),
    ("Level, spread", (("level_dbfs", "dBFS", 1, 1), ("level_iqr_db", "dB", 1, 1))),
    ("Spectrum, off by", (("spectrum_db", "dB", 1, 1),)),
    ("Clipped, bursts", (("clipped", "%", 100, 2), ("bursts", "%", 100, 0))),
    ("Without a warning", (("unwarned", "%", 100, 0),)),
    ("Diversity, of real", (("diversity", "\N{MULTIPLICATION SIGN}", 1, 2),)),
    ("From training, copied", (("nearest_db", "dB", 1, 1), ("copied", "%", 100, 1))),
)

# Columns of the table of models whose best figure is bold, and the function that picks it. What fails the checks by ear
# is never bold.
BEST_OF = {
    "bits_per_sample": min,
    "cold_start_bits_per_sample": min,
    "training_tokens_per_second": max,
    "evaluation_tokens_per_second": max,
    "sampling_samples_per_second": max,
}

UNKNOWN = "\N{EN DASH}"
MAX_CURVE_POINTS = 500
MAX_LISTED_RECORDINGS = 12
NUM_COLOURS = 8

Rows = Sequence[Mapping[str, Any]]


def write_page(comparison: Mapping[str, Any], out: Path) -> Path:
    """Write `out`/index.html, which carries its own pictures and sound, and `out`/comparison.json with all figures.

    Each file is written whole or not at all. Figures that are None or not finite count as unknown. A sample is {label,
    waveform, warnings}, its waveform [num_samples] float32; a continuation has prompt_seconds too, the length of what
    it begins with. Returns the path of index.html.
    """
    plain = _plain(comparison)
    pictures = Players(comparison)
    of_models = [row for row in plain["hearing"]["rows"] if row["kind"] == "model"]
    models = [
        {
            **model,
            "index": index % NUM_COLOURS,
            "interval": _known(model["interval"]),
            "failed": sum(bool(warnings) for warnings in row["warnings"]),
            "heard": len(row["warnings"]),
            "fails_checks": fails_checks(row["warnings"]),
        }
        for index, (model, row) in enumerate(zip(plain["models"], of_models, strict=True))
    ]
    for place, (model, source) in enumerate(zip(models, comparison["models"], strict=True)):
        model["players"] = _players(pictures, source["samples"], f"m{place}")
        model["continuations"] = _players(pictures, source["continuations"], f"c{place}")
    ranked = sorted(models, key=lambda model: model["bits_per_sample"])
    differences = [{**difference, "interval": _known(difference["interval"])} for difference in plain["differences"]]
    lines = {REFERENCE_LABELS[key]: bits for key, bits in plain["reference_lines"].items() if bits is not None}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, count=_count)
    page = environment.get_template("page.html.jinja").render(
        comparison=plain,
        models=models,
        ranked=ranked,
        lead=_lead(ranked, differences),
        differences=differences,
        overview=_overview(lines, ranked),
        closeup=_closeup(lines, ranked),
        curves=_curves(models, plain["reference_lines"]["unigram"]),
        hearing=_hearing(plain["hearing"], models),
        hardest=_hardest_recordings(ranked),
        real_players=_players(pictures, comparison["real"]["samples"], "r"),
        blind=draw_pairs(
            _sounds(comparison["real"]["samples"], "r", None),
            [_sounds(model["samples"], f"m{place}", model["name"]) for place, model in enumerate(comparison["models"])],
            sample_rate_hz=pictures.sample_rate_hz,
            seed=comparison["seed"],
        ),
        pictures=pictures,
        best={key: _best(models, key) for key in BEST_OF},
    )
    record = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    # Names that are no Unicode become "?".
    write_whole(out / "comparison.json", record.encode("utf-8", errors="replace"))
    write_whole(out / "index.html", page.encode("utf-8", errors="replace"))
    return out / "index.html"


def _players(pictures: Players, samples: Rows, prefix: str) -> list[dict[str, Any]]:
    return [pictures.player(sample, f"{prefix}-{index}") for index, sample in enumerate(samples)]


def _sounds(samples: Rows, prefix: str, model: str | None) -> list[Sound]:
    """Samples for pairs, by the identifiers of their players."""
    return [
        Sound(f"{prefix}-{index}", model, sample["label"], sample["waveform"]) for index, sample in enumerate(samples)
    ]


class _Axis:
    """A linear scale in percent of its length, with a margin at both ends."""

    def __init__(self, low: float, high: float, margin: float) -> None:
        spread = (high - low) or max(abs(low), 1.0) * 0.01
        self.low, self.high = low - margin * spread, high + margin * spread

    def percent(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self) -> list[tuple[str, float]]:
        """Three to six round values as (label, percent), all with the same number of decimals."""
        values = MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)).tick_values(self.low, self.high)
        values = [value for value in values if self.low <= value <= self.high]
        decimals = max(len(f"{value:g}".partition(".")[2]) for value in values)
        return [(f"{value:.{decimals}f}", self.percent(value)) for value in values]


def _lead(ranked: Rows, differences: Rows) -> dict[str, Any] | None:
    """The bits by which the best model is ahead of the second, the interval, and whether that excludes 0."""
    if len(ranked) < 2:
        return None
    first, second = ranked[:2]
    ends = None
    for difference in differences:
        if {difference["a"], difference["b"]} == {first["name"], second["name"]}:
            ends = difference["interval"]
            if ends and difference["a"] == first["name"]:
                ends = [-ends[1], -ends[0]]
    bits = second["bits_per_sample"] - first["bits_per_sample"]
    return {"bits": bits, "interval": ends, "settled": bool(ends and ends[0] > 0)}


def _overview(lines: Mapping[str, float], ranked: Rows) -> list[dict[str, Any]]:
    """Bars from 0 for the reference lines and every model, as percent of the longest."""
    rows: list[dict[str, Any]] = [{"label": label, "bits": bits, "index": None} for label, bits in lines.items()]
    # The best at the bottom: the bars go down as models get better.
    rows += [{"label": m["name"], "bits": m["bits_per_sample"], "index": m["index"]} for m in reversed(ranked)]
    longest = max(row["bits"] for row in rows)
    return [{**row, "percent": round(100 * row["bits"] / longest, 3)} for row in rows]


def _closeup(lines: Mapping[str, float], ranked: Rows) -> dict[str, Any] | None:
    """Models with their intervals on an axis that just holds them, and the reference lines that fall into it."""
    if not any(model["interval"] for model in ranked):
        return None
    ends = [end for model in ranked for end in (model["bits_per_sample"], *(model["interval"] or ()))]
    axis = _Axis(min(ends), max(ends), margin=0.08)
    rows = [
        {
            **model,
            "at": axis.percent(model["bits_per_sample"]),
            "ends": [axis.percent(end) for end in model["interval"] or ()],
        }
        for model in ranked
    ]
    within = [(label, axis.percent(bits)) for label, bits in lines.items() if axis.low <= bits <= axis.high]
    return {"rows": rows, "ticks": axis.ticks(), "lines": within}


def _curves(models: Rows, unigram_bits: float) -> dict[str, Any] | None:
    """Polylines in a box of 1000 x 400: bits per sample over tokens trained on, logarithmic.

    Above the unigram line nothing is learned yet; showing it would flatten the rest.
    """
    training = [_points(model, "training_bits") for model in models]
    validation = [_points(model, "validation_bits") for model in models]
    points = [point for series in (*training, *validation) for point in series]
    if len(points) < 2:
        return None
    times, bits = zip(*points, strict=True)
    y = _Axis(min(bits), max(min(max(bits), unigram_bits), min(bits)), margin=0.06)
    x = _Axis(math.log10(min(times)), math.log10(max(times)), margin=0.02)

    def placed(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(round(10 * x.percent(math.log10(t)), 1), round(400 - 4 * y.percent(b), 1)) for t, b in series]

    tick_values = [
        factor * 10**decade
        for decade in range(math.floor(x.low), math.ceil(x.high) + 1)
        for factor in ((1, 2, 5) if x.high - x.low < 2.2 else (1,))
    ]
    x_ticks = [(_count(value), x.percent(math.log10(value))) for value in tick_values]
    return {
        "models": [
            {
                "name": model["name"],
                "index": model["index"],
                "training": placed(_thinned(thin)),
                "validation": placed(_thinned(thick)),
                "scored": placed([point for point in thick if point[0] == model["trained_tokens"]]),
            }
            for model, thin, thick in zip(models, training, validation, strict=True)
            if thin or thick
        ],
        "x_ticks": [(label, percent) for label, percent in x_ticks if 2 <= percent <= 98],
        "y_ticks": y.ticks(),
    }


def _points(model: Mapping[str, Any], key: str) -> list[tuple[float, float]]:
    """(tokens, bits) of a model's learning curve."""
    return [(point["tokens"], point[key]) for point in model["curve"] if point["tokens"] and point[key] is not None]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_CURVE_POINTS:
        return points
    return [points[index] for index in np.linspace(0, len(points) - 1, MAX_CURVE_POINTS).astype(int)]


def _hearing(hearing: Mapping[str, Any], models: Rows) -> dict[str, Any]:
    """The table of hearing as text: titles of the columns that are known, rows of cells, models and their verdicts.

    A cell is a list of (text, off), off for a model's figure that is out of real speech's range.
    """
    ranges = hearing["ranges"]
    columns = [(title, parts) for title, parts in HEARING_COLUMNS if any(part[0] in ranges for part in parts)]
    by_place = {kind: iter(models) for kind in GENERATED_KINDS}
    rows = [
        {
            **row,
            "model": next(by_place[row["kind"]]) if row["kind"] in GENERATED_KINDS else None,
            "cells": [
                [
                    (
                        _with_unit(row["figures"].get(key), unit, factor, decimals),
                        row["kind"] in GENERATED_KINDS
                        and key in ranges
                        and not within(row["figures"].get(key), ranges[key]),
                    )
                    for key, unit, factor, decimals in parts
                ]
                for _, parts in columns
            ],
        }
        for row in hearing["rows"]
    ]
    cells = [
        [(_range_text(ranges.get(key), factor, decimals), False) for key, _, factor, decimals in parts]
        for _, parts in columns
    ]
    rows.insert(1, {"kind": "range", "name": "its range", "model": None, "cells": cells})
    return {
        "titles": [title for title, _ in columns],
        "rows": rows,
        **{key: hearing[key] for key in ("num", "num_real", "notes")},
    }


def _with_unit(value: float | None, unit: str, factor: float, decimals: int) -> str:
    return UNKNOWN if value is None else f"{_number(factor * value, decimals)} {unit}".strip()


def _range_text(ends: Sequence[float | None] | None, factor: float, decimals: int) -> str:
    """A range in words: 1.0 to 2.0, up to 2.0, from 1.0."""
    if ends is None:
        return UNKNOWN
    low, high = (None if end is None else _number(factor * end, decimals) for end in ends)
    if low is None:
        return f"up to {high}"
    return f"from {low}" if high is None else f"{low} to {high}"


def _hardest_recordings(ranked: Rows) -> list[dict[str, Any]]:
    """Recordings that cost the best model most bits per sample, with the bits of every model."""
    tables = [{row["name"]: row["bits_per_sample"] for row in model["recordings"]} for model in ranked]
    hardest = sorted(ranked[0]["recordings"], key=lambda row: -row["bits_per_sample"])[:MAX_LISTED_RECORDINGS]
    return [{**row, "bits": [table[row["name"]] for table in tables]} for row in hardest]


def _best(models: Rows, key: str) -> float | None:
    known = [model[key] for model in models if model[key] is not None]
    return BEST_OF[key](known) if len(known) > 1 else None


def _known(ends: Sequence[float | None]) -> list[float] | None:
    """Ends of an interval; None of one that is unknown, as that of a single recording is, or that has no width."""
    return None if None in ends or ends[0] == ends[1] else list(ends)  # type: ignore[arg-type]


def _number(value: float | None, decimals: int = 3, signed: bool = False) -> str:
    if value is None:
        return UNKNOWN
    value = round(value, decimals) + 0.0  # no minus sign before a zero
    text = f"{value:+,.{decimals}f}" if signed else f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


def _count(value: float | None) -> str:
    """Three significant digits with a prefix: 1234567 is 1.23 M."""
    if value is None:
        return UNKNOWN
    prefixes = ((1e9, " G"), (1e6, " M"), (1e3, " k"))
    factor, prefix = next((each for each in prefixes if abs(value) >= 0.9995 * each[0]), (1, ""))
    return f"{float(f'{value / factor:.3g}'):,g}{prefix}"


def _plain(value: Any) -> Any:
    """The same value for JSON: without waveforms, None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key != "waveform"}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
