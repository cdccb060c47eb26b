"""The comparison page: figures, curves and players of several models in one HTML file that needs nothing else."""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import librosa
import matplotlib
import numpy as np
import soundfile
from matplotlib.image import imsave

from audio_ct.durable import write_whole
from audio_ct.evaluation.spectrogram import COLOUR_MAP, COLOUR_RANGE_DB, mel_db

MODEL_KEYS = (
    "name",
    "kind",
    "parameters",
    "bits_per_sample",
    "interval",
    "cold_start_bits_per_sample",
    "trained_tokens",
    "training_tokens_per_second",
    "evaluation_tokens_per_second",
    "sampling_samples_per_second",
    "checkpoint",
    "recipe_name",
    "seed",
    "spectrum_distance_db",
)

REFERENCE_LABELS = {
    "uniform": "Uniform",
    "unigram": "Counting, order 0",
    "order_1": "Counting, order 1",
    "order_2": "Counting, order 2",
    "linear_prediction": "Linear prediction, no network",
}

# Key, label, unit, factor from the statistic to what is shown, decimals.
STATISTIC_ROWS = (
    ("rms_dbfs", "Level", "dBFS", 1, 1),
    ("peak_dbfs", "Peak", "dBFS", 1, 1),
    ("crest_factor_db", "Crest factor", "dB", 1, 1),
    ("silence_fraction", "Silent frames", "%", 100, 1),
    ("clipped_fraction", "Clipped samples", "%", 100, 2),
    ("zero_crossing_rate_hz", "Zero crossings", "Hz", 1, 0),
    ("spectral_centroid_hz", "Spectral centroid", "Hz", 1, 0),
    ("spectral_rolloff_hz", "Roll-off, 85 %", "Hz", 1, 0),
    ("f0_median_hz", "Pitch, median", "Hz", 1, 0),
    ("f0_iqr_hz", "Pitch, interquartile range", "Hz", 1, 0),
    ("voiced_fraction", "Voiced frames", "%", 100, 1),
)

UNKNOWN = "\N{EN DASH}"

MAX_CURVE_POINTS = 500
MAX_LISTED_RECORDINGS = 12


def write_page(comparison: Mapping[str, Any], out: Path) -> Path:
    """Write out/index.html, which carries its own pictures and sound, and out/comparison.json with all figures.

    Each file is written whole or not at all. Figures that are not finite count as unknown.

    Args:
        comparison: the figures and samples of one to eight models; any value but title, sample_rate_hz, models and the
            models' names may be None.
            title, split, store, tokens, cold_start_samples, created, version, commit, synthetic, sample_rate_hz, bits;
            reference_lines: {uniform, unigram, order_1, order_2, linear_prediction}, bits per sample;
            models: list of {each of MODEL_KEYS, curve: [{tokens, training_bits, validation_bits}], statistics,
            recordings: [{name, bits_per_sample, tokens}], samples};
            differences: [{a, b, bits, interval}], a and b names of models, bits and 95 % interval of a less b;
            notes: list of str; real: {statistics, samples}, real speech passed through the same mu-law.
            samples: [{label, waveform, warnings}], waveform [num_samples] float32; statistics: as waveform_statistics.
        out: folder, made if missing; the two files in it are replaced.

    Returns:
        Path of index.html.
    """
    plain = _plain(comparison)
    pictures = _Pictures(comparison)
    models = [
        {
            **dict.fromkeys(MODEL_KEYS),
            **model,
            "index": index % 8,
            "interval": _known_interval(model.get("interval")),
            "players": pictures.players(source.get("samples") or ()),
        }
        for index, (model, source) in enumerate(zip(plain["models"], comparison["models"], strict=True))
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, count=_count)
    ranked = sorted((m for m in models if m["bits_per_sample"] is not None), key=lambda m: m["bits_per_sample"])
    page = environment.get_template("page.html.jinja").render(
        comparison=plain,
        models=models,
        ranked=ranked,
        lead=_lead(ranked, plain.get("differences") or ()),
        differences=[{**d, "interval": _known_interval(d["interval"])} for d in plain.get("differences") or ()],
        overview=_overview(plain.get("reference_lines") or {}, ranked),
        closeup=_closeup(plain.get("reference_lines") or {}, ranked),
        curves=_curves(models, plain.get("reference_lines") or {}),
        statistic_rows=_statistic_rows((plain.get("real") or {}).get("statistics"), models),
        hardest=_hardest_recordings(ranked),
        real_players=pictures.players((comparison.get("real") or {}).get("samples") or ()),
        pictures=pictures,
        best={key: _best(models, key, sign) for key, sign in _BETTER.items()},
    )
    out.mkdir(parents=True, exist_ok=True)
    record = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    # Names that are no Unicode become "?".
    write_whole(out / "comparison.json", record.encode("utf-8", errors="replace"))
    write_whole(out / "index.html", page.encode("utf-8", errors="replace"))
    return out / "index.html"


# The sign says which way is better.
_BETTER = {
    "bits_per_sample": -1,
    "cold_start_bits_per_sample": -1,
    "training_tokens_per_second": 1,
    "evaluation_tokens_per_second": 1,
    "sampling_samples_per_second": 1,
}


class _Pictures:
    """Spectrograms of all samples on one colour scale, and the players that stand beneath them."""

    def __init__(self, comparison: Mapping[str, Any]) -> None:
        self.sample_rate_hz = int(comparison["sample_rate_hz"])
        rows = [comparison.get("real") or {}, *comparison["models"]]
        levels_db = [
            mel_db(_finite(sample["waveform"]), self.sample_rate_hz)
            for row in rows
            for sample in row.get("samples") or ()
        ]
        self.highest_db = max((float(level_db.max()) for level_db in levels_db if level_db.size), default=0.0)
        self.lowest_db = self.highest_db - COLOUR_RANGE_DB
        stops = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, 9))
        self.gradient = ", ".join(matplotlib.colors.to_hex(stop) for stop in stops)
        highest_mel = librosa.hz_to_mel(self.sample_rate_hz / 2)
        shown_hz = (frequency_hz for frequency_hz in (1000, 2000, 4000, 8000, 16000))
        self.frequency_ticks = [
            (f"{frequency_hz / 1000:g}", round(100 * float(librosa.hz_to_mel(frequency_hz) / highest_mel), 2))
            for frequency_hz in shown_hz
            if frequency_hz < 0.45 * self.sample_rate_hz
        ]

    def players(self, samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the template shows of each sample: label, warnings, seconds, time ticks, sound and picture as URIs."""
        return [self._player(sample) for sample in samples]

    def _player(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        waveform = _finite(sample["waveform"])
        player = {"label": sample["label"], "warnings": list(sample.get("warnings") or ()), "seconds": None}
        if waveform.size == 0:
            return player
        seconds = waveform.size / self.sample_rate_hz
        step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 600, math.inf) if seconds / step < 8)
        times = [] if math.isinf(step) else [step * k for k in range(1, 8) if step * k < 0.96 * seconds]
        flac, png = io.BytesIO(), io.BytesIO()
        soundfile.write(flac, np.clip(waveform, -1, 1), self.sample_rate_hz, format="FLAC", subtype="PCM_16")
        level_db = mel_db(waveform, self.sample_rate_hz)
        # An explicit origin, and rows as bands: the lowest band lies at the bottom.
        imsave(png, level_db, cmap=COLOUR_MAP, vmin=self.lowest_db, vmax=self.highest_db, origin="lower", format="png")
        return {
            **player,
            "seconds": seconds,
            "time_ticks": [(f"{time:g}", round(100 * time / seconds, 2)) for time in times],
            "sound": _data_uri("audio/flac", flac.getvalue()),
            "picture": _data_uri("image/png", png.getvalue()),
        }


def _finite(waveform: np.ndarray) -> np.ndarray:
    """Mono samples with the ones that are no number as silence: a broken sample is shown with its warning."""
    return np.nan_to_num(np.asarray(waveform, dtype=np.float32).reshape(-1), nan=0.0, posinf=1.0, neginf=-1.0)


def _lead(ranked: Sequence[Mapping[str, Any]], differences: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The two best models, by how many bits the first is ahead, its interval, and whether that excludes 0."""
    if len(ranked) < 2:
        return None
    first, second = ranked[:2]
    lead = {"bits": second["bits_per_sample"] - first["bits_per_sample"], "interval": None, "settled": None}
    for difference in differences:
        if {difference["a"], difference["b"]} == {first["name"], second["name"]}:
            ends = _known_interval(difference["interval"])
            if difference["a"] == first["name"]:
                ends = ends and [-ends[1], -ends[0]]
            return {**lead, "interval": ends, "settled": bool(ends and ends[0] > 0)}
    return lead


def _overview(lines: Mapping[str, float | None], ranked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bars from 0 for the reference lines and every model, as percent of the longest."""
    rows: list[dict[str, Any]] = [
        {"label": label, "bits": lines[key], "index": None}
        for key, label in REFERENCE_LABELS.items()
        if lines.get(key) is not None
    ]
    # The best at the bottom: the bars go down as models get better.
    rows += [{"label": m["name"], "bits": m["bits_per_sample"], "index": m["index"]} for m in reversed(ranked)]
    longest = max((row["bits"] for row in rows), default=1.0) or 1.0
    return [{**row, "percent": round(100 * max(row["bits"], 0) / longest, 3)} for row in rows]


def _closeup(lines: Mapping[str, float | None], ranked: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Models with their intervals on an axis that just holds them, and the reference lines that fall into it."""
    if not any(model["interval"] for model in ranked):
        return None
    ends = [end for model in ranked for end in (model["bits_per_sample"], *(model["interval"] or ()))]
    axis = _Axis(min(ends), max(ends), margin=0.08)
    return {
        "rows": [
            {
                **model,
                "at": axis.percent(model["bits_per_sample"]),
                "ends": [axis.percent(end) for end in model["interval"] or ()],
            }
            for model in ranked
        ],
        "ticks": axis.ticks(),
        "lines": [
            (label, axis.percent(bits))
            for key, label in REFERENCE_LABELS.items()
            if (bits := lines.get(key)) is not None and axis.low <= bits <= axis.high
        ],
    }


def _curves(models: Sequence[Mapping[str, Any]], lines: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Polylines in a box of 1000 x 400: bits per sample over tokens trained on, logarithmic."""
    measured: list[tuple[Mapping[str, Any], dict[str, list[tuple[float, float]]]]] = []
    scored: dict[str, list[tuple[float, float]]] = {}
    for model in models:
        series = {
            kind: [
                (p["tokens"], p[key]) for p in model.get("curve") or () if p.get("tokens") and p.get(key) is not None
            ]
            for kind, key in (("training", "training_bits"), ("validation", "validation_bits"))
        }
        scored[model["name"]] = [point for point in series["validation"] if point[0] == model.get("trained_tokens")]
        measured.append((model, {kind: _thinned(points) for kind, points in series.items()}))
    points = [point for _, series in measured for kind in series.values() for point in kind]
    if len(points) < 2:
        return None
    # Nothing is learned yet above the unigram line; showing it would flatten what matters.
    highest = min(max(bits for _, bits in points), lines.get("unigram") or math.inf)
    y = _Axis(min(bits for _, bits in points), max(highest, min(bits for _, bits in points)), margin=0.06)
    x = _Axis(math.log10(min(t for t, _ in points)), math.log10(max(t for t, _ in points)), margin=0.02)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return round(10 * x.percent(math.log10(point[0])), 1), round(400 - 4 * y.percent(point[1]), 1)

    decades = range(math.floor(x.low), math.ceil(x.high) + 1)
    x_ticks = [
        (_count(step * 10**decade).replace(".00", "").replace(".0 ", " "), x.percent(decade + math.log10(step)))
        for decade in decades
        for step in ((1, 2, 5) if x.high - x.low < 2.2 else (1,))
        if 2 <= x.percent(decade + math.log10(step)) <= 98
    ]
    return {
        "models": [
            {
                "name": model["name"],
                "index": model["index"],
                "training": " ".join("{},{}".format(*place(point)) for point in series["training"]),
                "validation": [place(point) for point in series["validation"]],
                "scored": [place(point) for point in scored[model["name"]]],
            }
            for model, series in measured
            if series["training"] or series["validation"]
        ],
        "scored": any(scored.values()),
        "x_ticks": x_ticks,
        "y_ticks": y.ticks(),
    }


class _Axis:
    """A linear scale from low to high, in percent of its length."""

    def __init__(self, low: float, high: float, margin: float) -> None:
        spread = (high - low) or max(abs(low), 1.0) * 0.01
        self.low, self.high = low - margin * spread, high + margin * spread

    def percent(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self) -> list[tuple[str, float]]:
        """Three to six round values as (label, percent)."""
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        decimals = max(0, 1 - math.floor(math.log10(step)))
        first = math.ceil(self.low / step)
        values = [step * k for k in range(first, math.floor(self.high / step) + 1)]
        labels = [f"{value:.{decimals}f}" for value in values]
        if all(label.endswith("0") for label in labels) and decimals:
            labels = [label[:-1].rstrip(".") for label in labels]
        return [(label, self.percent(value)) for label, value in zip(labels, values, strict=True)]


def _statistic_rows(
    real: Mapping[str, float | None] | None, models: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the table of statistics: a label, its unit, and what _beside_real shows."""
    rows = []
    for key, label, unit, factor, decimals in STATISTIC_ROWS:
        target = (real or {}).get(key)
        values = [(model.get("statistics") or {}).get(key) for model in models]
        rows.append({"label": label, "unit": unit, **_beside_real(target, values, factor, decimals)})
    distances = [model["spectrum_distance_db"] for model in models]
    rows.append({"label": "Distance of long-term spectra", "unit": "dB", **_beside_real(0.0, distances, 1, 1)})
    return rows


def _beside_real(real: float | None, values: Sequence[float | None], factor: float, decimals: int) -> dict[str, Any]:
    """What is shown of one statistic; nearest holds what the nearest model shows, unless all models show the same."""
    known = [value for value in values if value is not None]
    shown = [_number(None if value is None else factor * value, decimals) for value in (real, *values)]
    nearest = None
    if real is not None and known and len(set(shown[1:])) > 1:
        nearest = _number(factor * min(known, key=lambda value: abs(value - real)), decimals)
    return {"real": shown[0], "values": shown[1:], "nearest": nearest}


def _hardest_recordings(ranked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Recordings that cost the leading model most bits per sample, with what every model pays."""
    if not ranked:
        return []
    tables = [{r["name"]: r["bits_per_sample"] for r in model.get("recordings") or ()} for model in ranked]
    known = [r for r in ranked[0].get("recordings") or () if r["bits_per_sample"] is not None]
    hardest = sorted(known, key=lambda r: -r["bits_per_sample"])[:MAX_LISTED_RECORDINGS]
    return [{**r, "bits": [table.get(r["name"]) for table in tables]} for r in hardest]


def _best(models: Sequence[Mapping[str, Any]], key: str, sign: int) -> float | None:
    known = [model[key] for model in models if model[key] is not None]
    return max(known, key=lambda value: sign * value) if len(known) > 1 else None


def _known_interval(ends: Sequence[float | None] | None) -> list[float] | None:
    known = [end for end in ends or () if end is not None]
    return known if len(known) == 2 else None


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_CURVE_POINTS:
        return points
    return [points[index] for index in np.linspace(0, len(points) - 1, MAX_CURVE_POINTS).astype(int)]


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
    if abs(value) < 1000:
        return f"{value:g}" if value == round(value) else f"{value:#.3g}"
    factor, prefix = next(unit for unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= 0.9995 * unit[0])
    scaled = value / factor
    return f"{scaled:,.0f} {prefix}" if abs(scaled) >= 99.95 else f"{scaled:#.3g} {prefix}"


def _plain(value: Any) -> Any:
    """The same value from JSON's own types, without waveforms; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key != "waveform"}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
