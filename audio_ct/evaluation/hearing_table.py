"""The table of how generated waveforms sound, beside real speech, its range, and lines to be beaten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from audio_ct.evaluation import embeddings
from audio_ct.evaluation.copying import MAX_SEARCHED_SECONDS, TrainingSpeech
from audio_ct.evaluation.hearing import Figures, Heard, figures, hear, median
from audio_ct.evaluation.windows import LINES, line, real_windows
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore

Ends = tuple[float | None, float | None]

# From so many waveforms of a model on, sets are compared by embeddings, and copying is looked for.
MIN_SET = 16
NUM_DRAWS = 200
# Of held-out pieces so few are nearer to training than a piece that counts as copied.
COPIED_QUANTILE = 0.01

# Label of each figure, and the ends of real speech's range beyond which it is off.
FIGURES = {
    "frechet": ("Fréchet distance", "above"),
    "mos": ("DNSMOS", "below"),
    "voiced": ("voiced share", "both"),
    "f0_hz": ("pitch", "both"),
    "f0_octaves": ("melody", "both"),
    "modulation_depth": ("depth of rhythm", "both"),
    "modulation_hz": ("rate of rhythm", "both"),
    "pauses": ("share of pauses", "both"),
    "pause_seconds": ("length of pauses", "both"),
    "level_dbfs": ("level", "both"),
    "level_iqr_db": ("spread of level", "both"),
    "spectrum_db": ("spectrum", "above"),
    "clipped": ("clipping", "above"),
    "bursts": ("bursts", "above"),
    "unwarned": ("warnings", "below"),
    "diversity": ("diversity", "both"),
    "nearest_db": ("distance from training", "both"),
    "copied": ("copying", "above"),
}

# Kinds of rows that are a model's waveforms: cold starts, and what follows real speech.
GENERATED_KINDS = ("model", "continued")


class Generated(NamedTuple):
    """Waveforms of a model.

    Attributes:
        kind: "model" of cold starts, "continued" of what follows real speech, which is left out.
        name: the model's.
        waveforms: [num, num_samples].
    """

    kind: Literal["model", "continued"]
    name: str
    waveforms: np.ndarray


@dataclass(frozen=True)
class HeardSet:
    """A set of waveforms as heard, by networks only where the extra `eval` is at work.

    Attributes:
        heard: of each waveform.
        embedded: [num, 256].
        scores: [num] by DNSMOS, NaN for those that weren't scored.
    """

    heard: list[Heard]
    embedded: np.ndarray | None = None
    scores: np.ndarray | None = None

    @classmethod
    def of(cls, waveforms: np.ndarray, sample_rate_hz: int, *, by_networks: bool) -> Self:
        """Measure waveforms [num, num_samples]."""
        heard = [hear(waveform, sample_rate_hz) for waveform in waveforms]
        if not by_networks:
            return cls(heard)
        finite = np.nan_to_num(waveforms, nan=0.0, posinf=0.0, neginf=0.0)
        return cls(heard, embeddings.embed(finite, sample_rate_hz), embeddings.mos(finite, sample_rate_hz))

    def chosen(self, indices: np.ndarray) -> "HeardSet":
        """The set of some of the waveforms."""
        heard = [self.heard[index] for index in indices]
        if self.embedded is None or self.scores is None:
            return HeardSet(heard)
        return HeardSet(heard, self.embedded[indices], self.scores[indices])

    def joined(self, other: "HeardSet") -> "HeardSet":
        """Both sets as one."""
        heard = self.heard + other.heard
        if self.embedded is None or self.scores is None or other.embedded is None or other.scores is None:
            return HeardSet(heard)
        return HeardSet(
            heard, np.concatenate([self.embedded, other.embedded]), np.concatenate([self.scores, other.scores])
        )

    def figures(self, reference: "HeardSet", axes: np.ndarray | None) -> Figures:
        """All figures but those of copying, beside a reference of real speech, on the axes of its embeddings."""
        found = figures(self.heard, reference.heard)
        if axes is None or self.embedded is None or self.scores is None or reference.embedded is None:
            return found
        diversity = embeddings.spread(self.embedded) / embeddings.spread(reference.embedded)
        return found | {
            "frechet": embeddings.frechet(self.embedded, reference.embedded, axes),
            "mos": median(self.scores),
            "diversity": diversity,
        }


def hearing_table(
    store: TokenStore,
    codec: MuLawCodec,
    models: Sequence[Generated],
    *,
    split: str,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure models' waveforms beside as many windows of real speech, 16 at least.

    Real speech is that of the training split, which is what models should sound like: as many other windows of it are
    the reference of distances. Both together, divided at random 200 times, tell how far real speech varies: the middle
    95 % of a figure are its range. Only copying is judged by windows of `split`, which models haven't seen.

    Args:
        store: token store, as a rule that which the models were trained on.
        codec: its codec.
        models: waveforms; as many and as long of all.
        split: held-out split, for copying.
        seed: of all choices.
        report: called with a line for each thing done.

    Returns:
        num and num_real; rows: kind (real, line, model or continued), name, figures by key, waveforms, warnings of each
        waveform and, for models, a verdict; names of the real windows; ranges: both ends by key; notes.
    """
    num, num_samples = models[0].waveforms.shape
    num_real, rate_hz = max(num, MIN_SET), codec.sample_rate_hz
    by_networks = num >= MIN_SET and embeddings.installed()
    drawn = real_windows(store, codec, split="train", num=2 * num_real, num_samples=num_samples, seed=seed)
    real = drawn.waveforms[:num_real]
    rows: list[dict[str, Any]] = [
        {"kind": "real", "name": "Real speech", "waveforms": real},
        *({"kind": "line", "name": name, "waveforms": line(name, real, seed=seed)} for name in LINES),
        *(each._asdict() for each in models),
    ]
    report(f"listening to {sum(len(row['waveforms']) for row in rows) + num_real} waveforms")
    reference = HeardSet.of(drawn.waveforms[num_real:], rate_hz, by_networks=by_networks)
    sets = [HeardSet.of(row["waveforms"], rate_hz, by_networks=by_networks) for row in rows]
    pool = sets[0].joined(reference)
    axes = None if pool.embedded is None else embeddings.principal_axes(pool.embedded)
    for row, each in zip(rows, sets, strict=True):
        row["figures"] = each.figures(reference, axes)
        row["warnings"] = [heard.warnings for heard in each.heard]
    ranges = _ranges(pool, num, axes, seed)
    notes = _notes(num, drawn.num_within, num_real)
    if num >= MIN_SET and split != "train":
        held_out = real_windows(store, codec, split=split, num=num_real, num_samples=num_samples, seed=seed).waveforms
        notes.append(_add_copying(rows, ranges, TrainingSpeech(store, codec, seed=seed), held_out, seed))
    for row in rows:
        if row["kind"] in GENERATED_KINDS:
            row["verdict"] = verdict(
                row["figures"],
                ranges,
                real=rows[0]["figures"],
                scrambled=rows[1]["figures"],
                failed=fails_checks(row["warnings"]),
            )
            if num < MIN_SET:
                row["verdict"] += f" Few waveforms can hide much: there are {num}."
    return {
        "num": num,
        "num_real": num_real,
        "rows": rows,
        "names": drawn.names[:num_real],
        "ranges": ranges,
        "notes": notes,
    }


def within(value: float | None, ends: Sequence[float | None]) -> bool:
    """Whether a figure is in a range, whose ends may be open; one that isn't defined is not."""
    low, high = ends
    return (
        value is not None and not np.isnan(value) and (low is None or value >= low) and (high is None or value <= high)
    )


def fails_checks(warnings: Sequence[Sequence[str]]) -> bool:
    """Whether half or more of a model's waveforms have a warning; such a model is called best or near in nothing."""
    return 2 * sum(bool(each) for each in warnings) >= len(warnings)


def verdict(
    of_model: Figures, ranges: Mapping[str, Ends], *, real: Figures, scrambled: Figures, failed: bool = False
) -> str:
    """How far from speech a model is: the figures that are out of real speech's range, and its Fréchet distance.

    What has `failed` the checks, such as silence, is not called near to speech.
    """
    off = [FIGURES[key][0] for key, ends in ranges.items() if not within(of_model[key], ends)]
    text = f"{len(ranges) - len(off)} of {len(ranges)} figures are within the range of real speech"
    text += f"; not so: {', '.join(off)}." if off else "."
    if "frechet" in ranges:
        side = "nearer to speech than" if of_model["frechet"] < scrambled["frechet"] else "no nearer to speech than"
        times = of_model["frechet"] / max(real["frechet"], 1e-9)
        text += f" Its Fréchet distance is {times:.1f} times that of other real speech"
        text += "." if failed else f": {side} phase-scrambled speech."
    if failed:
        text += " Half or more of its waveforms fail the checks, so it is not called near to speech in anything."
    return text


def _ranges(pool: HeardSet, num: int, axes: np.ndarray | None, seed: int) -> dict[str, Ends]:
    """Range of each figure that real speech has: of `num` windows of the pool beside the other half of it."""
    random = np.random.default_rng(seed)
    half = len(pool.heard) // 2
    orders = [random.permutation(2 * half) for _ in range(NUM_DRAWS)]
    draws = [pool.chosen(order[:num]).figures(pool.chosen(order[half:]), axes) for order in orders]
    ranges = {key: _ends([draw[key] for draw in draws], FIGURES[key][1]) for key in FIGURES if key in draws[0]}
    return {key: ends for key, ends in ranges.items() if ends is not None}


def _ends(values: Sequence[float], side: str) -> Ends | None:
    """The middle 95 % of values that are finite, or the better 95 %; None without any."""
    finite = np.array(values)[np.isfinite(values)]
    if not finite.size:
        return None
    if side == "both":
        low, high = np.quantile(finite, (0.025, 0.975))
        return float(low), float(high)
    return (None, float(np.quantile(finite, 0.95))) if side == "above" else (float(np.quantile(finite, 0.05)), None)


def _add_copying(
    rows: Sequence[dict[str, Any]], ranges: dict[str, Ends], training: TrainingSpeech, held_out: np.ndarray, seed: int
) -> str:
    """Add the distances from training to all rows and to the ranges; return a note on what was searched."""
    of_held_out = training.nearest_db(list(held_out))
    known = np.concatenate(of_held_out)
    if not known.size:
        return "Copying was not looked for: held-out speech has no piece of 0.3 s that sounds."
    copied_db = float(np.quantile(known, COPIED_QUANTILE))

    def copying(nearest_db: Sequence[np.ndarray]) -> Figures:
        joined = np.concatenate(nearest_db)
        return {"nearest_db": median(joined), "copied": float(np.mean(joined < copied_db)) if joined.size else 0.0}

    for row in rows:
        # The row of real speech is from training, and would find itself.
        nearest = of_held_out if row["kind"] == "real" else training.nearest_db(list(row["waveforms"]))
        row["figures"] |= copying(nearest)
    random = np.random.default_rng(seed)
    orders = [random.integers(len(held_out), size=len(held_out)) for _ in range(NUM_DRAWS)]
    draws = [copying([of_held_out[index] for index in order]) for order in orders]
    for key in ("nearest_db", "copied"):
        ends = _ends([draw[key] for draw in draws], FIGURES[key][1])
        if ends is not None:
            ranges[key] = ends
    part = "all" if training.searched == 1 else f"{training.searched:.0%} ({MAX_SEARCHED_SECONDS / 60:g} minutes)"
    return (
        f"Copying: pieces of 0.3 s were looked for in {part} of the training split; the figures of real speech are "
        f"those of held-out speech. A piece nearer than {copied_db:.1f} dB, as {COPIED_QUANTILE:.0%} of held-out ones "
        "are, counts as copied."
    )


def _notes(num: int, num_within: int, num_real: int) -> list[str]:
    notes = []
    if num_within:
        notes.append(
            f"{num_within} of {2 * num_real} windows of real speech begin within recordings, for want of beginnings."
        )
    if num < MIN_SET:
        notes.append(
            f"The Fréchet distance, DNSMOS, diversity and copying take {MIN_SET} waveforms of each model or more "
            f"(--num {MIN_SET}); here there are {num}."
        )
    elif not embeddings.installed():
        notes.append(f"For the Fréchet distance, DNSMOS and diversity: {embeddings.INSTALL}")
    return notes
