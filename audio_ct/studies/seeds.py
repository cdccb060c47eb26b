"""How sure a mean over seeds is: Student's t, since there are few of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        half_width: the interval is value - half_width to value + half_width; None for one seed, which says nothing
            about others.
        num_seeds: how many.
    """

    value: float
    half_width: float | None
    num_seeds: int


def mean_over_seeds(values: Sequence[float], level: float = 0.95) -> Mean | None:
    """Return the mean of one value for each seed, with its t interval; None without values.

    Example: 1, 2 and 3 have mean 2, standard deviation 1 and, at 95 %, half width 4.303 * 1 / sqrt(3) = 2.484.

    Source: Student 1908, "The probable error of a mean".
    """
    if not values:
        return None
    num_seeds = len(values)
    mean = math.fsum(values) / num_seeds
    if num_seeds == 1:
        return Mean(mean, None, 1)
    # scipy.stats takes a second to import: only where there is something to compute.
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num_seeds - 1))
    return Mean(mean, float(t.ppf((1 + level) / 2, num_seeds - 1)) * deviation / math.sqrt(num_seeds), num_seeds)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Mean | None:
    """Return the mean of a less b over the seeds that both have: what a seed does to both cancels out.

    Args:
        a: {seed: value}.
        b: {seed: value}.
    """
    return mean_over_seeds([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])
