"""Intervals of bits per sample by resampling whole recordings: samples of one recording are not independent."""

import numpy as np

from audio_ct.errors import InputError

Interval = tuple[float, float]

LEVEL = 0.95
NUM_RESAMPLES = 2000
# Resampled indices held at a time, which bounds memory for splits of many recordings.
CHUNK_INDICES = 1 << 22


def interval(bits_per_recording: np.ndarray, tokens_per_recording: np.ndarray, *, seed: int = 0) -> Interval:
    """The 95 % percentile bootstrap interval of bits per sample, sum(bits) / sum(tokens), over recordings.

    Args:
        bits_per_recording: [num_recordings] float, total bits of each recording.
        tokens_per_recording: [num_recordings] tokens scored in each, positive.
        seed: the same seed draws the same recordings.

    Returns:
        Lower and upper end in bits per sample; the whole line for a single recording, which says nothing about others.

    Raises:
        InputError: if the arrays are empty or disagree, or a value is impossible.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife"; percentile method.
    """
    bits, tokens = np.asarray(bits_per_recording, np.float64), np.asarray(tokens_per_recording, np.float64)
    if bits.shape != tokens.shape or bits.ndim != 1 or bits.size == 0:
        raise InputError(f"recordings: bits {bits.shape} and tokens {tokens.shape} must be one figure per recording.")
    if not (np.isfinite(bits).all() and (tokens > 0).all()):
        raise InputError("recordings: bits must be finite and tokens positive; leave out recordings without a score.")
    if bits.size == 1:
        return -np.inf, np.inf
    generator = np.random.default_rng(seed)
    ratios = np.empty(NUM_RESAMPLES)
    chunk = max(1, CHUNK_INDICES // bits.size)
    for begin in range(0, NUM_RESAMPLES, chunk):
        drawn = generator.integers(bits.size, size=(min(chunk, NUM_RESAMPLES - begin), bits.size))
        ratios[begin : begin + chunk] = bits[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(
    bits_a: np.ndarray, bits_b: np.ndarray, tokens_per_recording: np.ndarray, *, seed: int = 0
) -> tuple[float, Interval]:
    """Bits per sample of model a less those of model b, with the interval of that difference.

    Both models are scored on the same resampled recordings, so what makes a recording hard for both cancels out.

    Args:
        bits_a: [num_recordings] float, total bits of each recording under model a.
        bits_b: [num_recordings] float, the same recordings under model b.
        tokens_per_recording: [num_recordings] tokens scored in each.
        seed: as for `interval`.

    Returns:
        The difference (negative: a is ahead) and its interval in bits per sample.

    Raises:
        InputError: as for `interval`.
    """
    bits_a, bits_b = np.asarray(bits_a, np.float64), np.asarray(bits_b, np.float64)
    if bits_a.shape != bits_b.shape:
        raise InputError(f"recordings: {bits_a.shape} of a and {bits_b.shape} of b must be the same recordings.")
    difference = bits_a - bits_b
    ends = interval(difference, tokens_per_recording, seed=seed)
    return float(difference.sum() / np.sum(tokens_per_recording)), ends
