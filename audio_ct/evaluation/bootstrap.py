"""Intervals of bits per sample by resampling whole recordings: samples of one recording are not independent."""

import numpy as np
import scipy.stats

from audio_ct.errors import InputError

Interval = tuple[float, float]

NUM_RESAMPLES = 2000
# Resampled indices held at a time, which bounds memory for splits of many recordings.
CHUNK_INDICES = 1 << 22


def interval(bits_per_recording: np.ndarray, tokens_per_recording: np.ndarray, *, seed: int = 0) -> Interval:
    """The 95 % percentile bootstrap interval of bits per sample, sum(bits) / sum(tokens), over recordings.

    Args:
        bits_per_recording: [num_recordings] float64, total bits of each recording.
        tokens_per_recording: [num_recordings] tokens scored in each, positive.
        seed: the same seed draws the same recordings.

    Returns:
        Lower and upper end in bits per sample; the whole line for a single recording, which says nothing about others.

    Raises:
        InputError: if bits are not finite.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife"; percentile method.
    """
    bits, tokens = bits_per_recording, tokens_per_recording
    assert bits.shape == tokens.shape == (bits.size,)
    assert bits.size > 0
    assert (tokens > 0).all()
    if not np.isfinite(bits).all():
        raise InputError("recordings: bits must be finite and tokens positive; leave out recordings without a score.")
    if bits.size == 1:
        return -np.inf, np.inf
    found = scipy.stats.bootstrap(
        (bits, tokens),
        lambda drawn_bits, drawn_tokens, axis: drawn_bits.sum(axis=axis) / drawn_tokens.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, CHUNK_INDICES // bits.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_difference(
    bits_a: np.ndarray, bits_b: np.ndarray, tokens_per_recording: np.ndarray, *, seed: int = 0
) -> tuple[float, Interval]:
    """Bits per sample of model a less those of model b, negative where a is ahead, with that difference's interval.

    Both models are scored on the same resampled recordings, so what makes a recording hard for both cancels out.
    Arguments are those of `interval`.
    """
    difference = bits_a - bits_b
    ends = interval(difference, tokens_per_recording, seed=seed)
    return float(difference.sum() / tokens_per_recording.sum()), ends
