"""How sure a figure is: intervals by resampling whole recordings, since samples of one recording aren't independent."""

import numpy as np

from audio_ct.errors import InputError

Interval = tuple[float, float]

# Resampled indices held at a time; bounds memory for splits of many recordings.
CHUNK_INDICES = 1 << 22


def interval(
    bits_per_recording: np.ndarray,
    tokens_per_recording: np.ndarray,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of bits per sample, sum(bits) / sum(tokens), over resampled recordings.

    Args:
        bits_per_recording: [num_recordings] float, total bits of each.
        tokens_per_recording: [num_recordings] number of tokens scored in each, positive.
        num_resamples: how often num_recordings recordings are drawn with replacement.
        seed: the same seed draws the same recordings.
        level: coverage, between 0 and 1.

    Returns:
        Lower and upper end in bits per sample; the whole line for a single recording, which says nothing about others.

    Raises:
        InputError: the arrays are empty or disagree, or a value is impossible.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife"; percentile method.
    """
    bits, tokens = np.asarray(bits_per_recording, np.float64), np.asarray(tokens_per_recording, np.float64)
    if bits.shape != tokens.shape or bits.ndim != 1 or bits.size == 0:
        raise InputError(f"recordings: bits {bits.shape} and tokens {tokens.shape} must be one figure per recording.")
    if not (np.isfinite(bits).all() and (tokens > 0).all()):
        raise InputError("recordings: bits must be finite and tokens positive; leave out recordings without a score.")
    if num_resamples < 1 or not 0 < level < 1:
        raise InputError(f"num_resamples={num_resamples} must be positive, level={level} between 0 and 1.")
    if bits.size == 1:
        return -np.inf, np.inf
    generator = np.random.default_rng(seed)
    ratios = np.empty(num_resamples)
    chunk = max(1, CHUNK_INDICES // bits.size)
    for begin in range(0, num_resamples, chunk):
        drawn = generator.integers(bits.size, size=(min(chunk, num_resamples - begin), bits.size))
        ratios[begin : begin + chunk] = bits[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    bits_a: np.ndarray,
    bits_b: np.ndarray,
    tokens_per_recording: np.ndarray,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, Interval]:
    """Bits per sample of model a less those of model b, with the interval of that difference.

    Both models are scored on the same resampled recordings, so what makes a recording hard for both cancels out.

    Args:
        bits_a: [num_recordings] float, total bits of each recording under model a.
        bits_b: [num_recordings] float, the same recordings under model b.
        tokens_per_recording: [num_recordings] number of tokens scored in each.
        num_resamples: as for interval.
        seed: as for interval.
        level: as for interval.

    Returns:
        The difference (negative: a is ahead) and its interval in bits per sample.

    Raises:
        InputError: as for interval.
    """
    bits_a, bits_b = np.asarray(bits_a, np.float64), np.asarray(bits_b, np.float64)
    if bits_a.shape != bits_b.shape:
        raise InputError(f"recordings: {bits_a.shape} of a and {bits_b.shape} of b must be the same recordings.")
    ends = interval(bits_a - bits_b, tokens_per_recording, num_resamples=num_resamples, seed=seed, level=level)
    return float((bits_a - bits_b).sum() / np.sum(tokens_per_recording)), ends
