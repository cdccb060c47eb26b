"""Means over seeds, with intervals by Student's t, since there are few of them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; formatted it reads "1.2346 ± 0.0012"."""

    value: float
    half_width: float | None
    """Half of the 95 % interval, with the value in its middle; None for one seed, which says nothing about others."""
    num_seeds: int

    def __format__(self, specification: str) -> str:
        """Format the mean by the specification, and the half width by it without a sign."""
        text = format(self.value, specification)
        return text if self.half_width is None else f"{text} ± {self.half_width:{specification.lstrip('+')}}"


def mean_over_seeds(values: Sequence[float]) -> Mean | None:
    """The mean of one value for each seed, with its 95 % t interval; None without values.

    Example: 1, 2 and 3 have mean 2, standard deviation 1 and half width 4.303 * 1 / sqrt(3) = 2.484.

    Source: Student 1908, "The probable error of a mean".
    """
    if not values:
        return None
    mean, num_seeds = statistics.fmean(values), len(values)
    if num_seeds == 1:
        return Mean(mean, None, 1)
    # scipy.stats takes a second to import: only where there is something to compute.
    from scipy.stats import t

    quantile = float(t.ppf(0.975, num_seeds - 1))
    return Mean(mean, quantile * statistics.stdev(values) / math.sqrt(num_seeds), num_seeds)


def difference_over_seeds(a: Mapping[int, float], b: Mapping[int, float]) -> Mean | None:
    """The mean of a less b over the seeds that both have: a seed's effect on both cancels out."""
    return mean_over_seeds([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])
