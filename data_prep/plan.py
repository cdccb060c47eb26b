"""The plan of a preparation: options, recordings, and which split and shard each recording goes to.

A plan depends on the recordings and the options alone, never on the number of jobs, so the same input gives the same
bytes however it is prepared.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from audio_ct.audio import files, mu_law
from audio_ct.errors import InputError

SPLITS = ("train", "validation", "test")
# A shard takes at most this much of the sources (64 MiB of FLAC are some 100 million tokens), and small corpora are cut
# finer, so that several jobs have work.
MAXIMUM_SHARD_BYTES = 64 << 20
MINIMUM_SHARD_BYTES = 1 << 20
SHARDS_OF_A_SMALL_CORPUS = 16


@dataclass(frozen=True)
class PrepOptions:
    """The options of a preparation."""

    sample_rate_hz: int = 24_000
    bits: int = 8
    jobs: int = 1
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    """Shares of the recordings, or of a file's bytes; validation and test get at least one each."""
    seed: int = 0
    """Chooses the recordings of each split, and the voices of a synthetic corpus."""
    overwrite: bool = False
    minimum_seconds: float = 0.1
    """Shorter recordings are rejected."""
    licence: str | None = None
    """The sources' licence, kept in the store."""

    def __post_init__(self) -> None:
        """Refuse values that no preparation can use.

        Raises:
            InputError: Naming the option, its value and the rule.
        """
        held_out = self.validation_fraction + self.test_fraction
        rules = {
            "sample_rate_hz": (files.MINIMUM_RATE_HZ <= self.sample_rate_hz <= files.MAXIMUM_RATE_HZ, "4000 to 768000"),
            "bits": (1 <= self.bits <= mu_law.MAXIMUM_BITS, "1 to 16; 8 is usual"),
            "jobs": (self.jobs >= 1, "at least 1"),
            "validation_fraction": (0 < self.validation_fraction < 1, "between 0 and 1"),
            "test_fraction": (self.test_fraction > 0 and held_out < 1, "above 0, and below 1 with validation_fraction"),
            "minimum_seconds": (0 <= self.minimum_seconds < float("inf"), "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={getattr(self, name)!r} must be {rule}.")

    def preparation(self) -> dict[str, Any]:
        """The options that decide on the store's bytes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("jobs", "overwrite", "licence")}


@dataclass(frozen=True)
class Candidate:
    """A recording to be encoded, as a corpus file names it."""

    path: Path
    name: str
    speaker: str
    source: str
    num_bytes: int
    text_path: Path | None = None


def plan_splits(names: Sequence[str], options: PrepOptions) -> dict[str, str]:
    """Assign every recording to a split by its rank among the hashes of seed and name.

    A rank, unlike a threshold on the hash, gives every split its share exactly, and at least one recording.

    Args:
        names: Names of the recordings, all different.
        options: The seed and the fractions.

    Returns:
        Split by name.

    Raises:
        InputError: If there are fewer than three recordings.
    """
    if len(names) < len(SPLITS):
        raise InputError(f"{len(names)} usable recordings; at least 3 are needed, one for each of {', '.join(SPLITS)}.")
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{options.seed}\0{name}".encode()).digest())
    num_validation, num_test = count_held_out(len(names), options)
    held_out = dict.fromkeys(ranked[:num_validation], "validation")
    held_out |= dict.fromkeys(ranked[num_validation : num_validation + num_test], "test")
    return {name: held_out.get(name, "train") for name in names}


def count_held_out(total: int, options: PrepOptions) -> tuple[int, int]:
    """Count the things for validation and for test: their shares, and at least one each.

    Args:
        total: Number of all things, three or more.
        options: The fractions.
    """
    num_validation = min(max(1, round(options.validation_fraction * total)), total - 2)
    return num_validation, min(max(1, round(options.test_fraction * total)), total - 1 - num_validation)


def plan_shards(candidates: Sequence[Candidate], options: PrepOptions) -> list[tuple[str, list[Candidate]]]:
    """Cut every split into shards by the sources' bytes.

    Args:
        candidates: In reading order.
        options: The seed and the fractions.

    Returns:
        (split, candidates in reading order) of every shard, split after split.

    Raises:
        InputError: If there are fewer than three candidates.
    """
    split_of = plan_splits([candidate.name for candidate in candidates], options)
    share = sum(candidate.num_bytes for candidate in candidates) // SHARDS_OF_A_SMALL_CORPUS
    shard_bytes = min(max(share, MINIMUM_SHARD_BYTES), MAXIMUM_SHARD_BYTES)
    shards: list[tuple[str, list[Candidate]]] = []
    for split in SPLITS:
        filled = shard_bytes
        for candidate in candidates:
            if split_of[candidate.name] != split:
                continue
            if filled + candidate.num_bytes > shard_bytes:
                shards.append((split, []))
                filled = 0
            shards[-1][1].append(candidate)
            filled += candidate.num_bytes
    return shards
