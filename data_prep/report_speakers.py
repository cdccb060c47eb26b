"""Who speaks in a corpus: how long in each split, and who in several, whose voice is known where it is held out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .corpus import SPLITS

MAXIMUM_NAMED = 20

Array = npt.NDArray[Any]


def seconds_by_split(split: Array, group: Array, seconds: Array, num_groups: int) -> Array:
    """The seconds of each group in each split, [groups, splits], of recordings with their splits and groups."""
    cells = np.bincount(group * len(SPLITS) + split, seconds, minlength=num_groups * len(SPLITS))
    return cells.reshape(num_groups, len(SPLITS))


def named(seconds: Array) -> dict[str, float]:
    """A group's seconds by the names of splits."""
    return {split: round(float(each), 3) for split, each in zip(SPLITS, seconds, strict=True)}


def about_speakers(groups: Sequence[tuple[str, str]], by_split: Array) -> dict[str, Any]:
    """What report.json says of all speakers together, and of those with most audio among those in several splits.

    Args:
        groups: Kind ("speaker", or "folder" of recordings whose speaker is not known) and name of each.
        by_split: As `seconds_by_split` has it.
    """
    known = np.array([kind == "speaker" for kind, _ in groups], bool)
    several = np.flatnonzero(known & (np.count_nonzero(by_split, axis=1) > 1))
    order = several[np.argsort(-by_split[several].sum(axis=1), kind="stable")]
    return {
        "num_known": int(np.count_nonzero(known)),
        "unknown_seconds": round(float(by_split[~known].sum()), 3),
        "num_in_several_splits": len(several),
        "in_several_splits_seconds": round(float(by_split[several].sum()), 3),
        "in_several_splits": [{"name": groups[index][1], **named(by_split[index])} for index in order[:MAXIMUM_NAMED]],
    }
