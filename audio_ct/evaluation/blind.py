"""Pairs of sounds to be judged without knowing what they are: which is real, which is better."""

import hashlib
from collections.abc import Sequence
from itertools import combinations, zip_longest
from typing import Any, NamedTuple

import numpy as np

from audio_ct.audio.levels import ACTIVE_DBFS, FRAME_SECONDS, decibels
from audio_ct.evaluation.players import finite

# Of each question: some minutes of listening.
MAX_PAIRS = 24
# Both sounds of a pair have this level, or the highest below it at which neither is clipped.
MATCHED_DBFS = -23.0


class Sound(NamedTuple):
    """A sound of the page.

    Attributes:
        id: of its player.
        model: whose it is; None of real speech.
        label: its name.
        waveform: [num_samples].
    """

    id: str
    model: str | None
    label: str
    waveform: np.ndarray


def draw_pairs(
    real: Sequence[Sound], models: Sequence[Sequence[Sound]], *, sample_rate_hz: int, seed: int
) -> dict[str, Any]:
    """Draw pairs for both questions, at most 24 of each, as many of each model or pair of models as of any other.

    Args:
        real: sounds of real speech.
        models: of each model its sounds.
        sample_rate_hz: of all.
        seed: the same seed, the same pairs in the same order.

    Returns:
        comparison, a digest of all sounds that answers are kept under, and questions: "real", pairs of a real and a
        model's sound, and "better", pairs of two models' sounds. A pair is first and second, in random order, each with
        id, model, label and the gain that levels it with the other.
    """
    random = np.random.default_rng(seed)
    real = [sound for sound in real if sound.waveform.size]
    models = [[sound for sound in sounds if sound.waveform.size] for sounds in models]
    of_real = [_matched(random, real, sounds) for sounds in models]
    of_models = [_matched(random, one, other) for one, other in combinations(models, 2)]
    digest = hashlib.sha256()
    for sound in (*real, *(sound for sounds in models for sound in sounds)):
        digest.update(repr((sound.id, sound.model, sound.label)).encode("utf-8", errors="replace"))
        digest.update(np.ascontiguousarray(sound.waveform, dtype=np.float32).tobytes())
    return {
        "comparison": digest.hexdigest()[:16],
        "questions": {
            "real": _in_random_order(random, of_real, sample_rate_hz),
            "better": _in_random_order(random, of_models, sample_rate_hz),
        },
    }


def gains(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> tuple[float, float]:
    """Factors that bring two waveforms [num_samples] to one level of what sounds in them, neither of them clipped.

    The level is that of the frames of 30 ms above -45 dBFS. A waveform without any is silence, and stays as it is.
    """
    levels_dbfs = [_level_dbfs(waveform, sample_rate_hz) for waveform in (a, b)]
    peaks_dbfs = [float(decibels(np.max(waveform**2))) for waveform in (a, b)]
    known = [(level, peak) for level, peak in zip(levels_dbfs, peaks_dbfs, strict=True) if level is not None]
    common = min([MATCHED_DBFS, *(level - peak for level, peak in known)])
    first, second = (1.0 if level is None else float(10 ** ((common - level) / 20)) for level in levels_dbfs)
    return first, second


def _matched(random: np.random.Generator, one: Sequence[Sound], other: Sequence[Sound]) -> list[tuple[Sound, Sound]]:
    """Each sound of `other` with one of `one`, which come again only when all have come."""
    if not one or not other:
        return []
    partners = np.concatenate([random.permutation(len(one)) for _ in range(-(-len(other) // len(one)))])
    return [(one[int(partner)], sound) for partner, sound in zip(partners, other, strict=False)]


def _in_random_order(
    random: np.random.Generator, groups: Sequence[Sequence[tuple[Sound, Sound]]], sample_rate_hz: int
) -> list[dict[str, Any]]:
    """The first pairs of all groups in turn, shuffled; which sound of a pair comes first is as often the one."""
    in_turn = [pair for each in zip_longest(*groups) for pair in each if pair is not None][:MAX_PAIRS]
    swapped = random.permutation(np.arange(len(in_turn)) % 2)
    pairs = []
    for place in random.permutation(len(in_turn)):
        pair = in_turn[place][::-1] if swapped[place] else in_turn[place]
        factors = gains(finite(pair[0].waveform), finite(pair[1].waveform), sample_rate_hz)
        first, second = (
            {"id": sound.id, "model": sound.model, "label": sound.label, "gain": round(gain, 4)}
            for sound, gain in zip(pair, factors, strict=True)
        )
        pairs.append({"first": first, "second": second})
    return pairs


def _level_dbfs(waveform: np.ndarray, sample_rate_hz: int) -> float | None:
    """Level of the frames above -45 dBFS; None without any."""
    length = min(waveform.size, round(FRAME_SECONDS * sample_rate_hz))
    frames = waveform[: waveform.size // length * length].astype(np.float64).reshape(-1, length)
    mean_squares = np.mean(frames**2, axis=1)
    sounding = mean_squares[decibels(mean_squares) > ACTIVE_DBFS]
    return float(decibels(np.mean(sounding))) if sounding.size else None
