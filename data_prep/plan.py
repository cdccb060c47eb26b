"""The plan of a preparation: which split and which shard each recording goes to.

A plan depends on the recordings and the options alone, never on the number of jobs, so the same input gives the same
bytes however it is prepared.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from audio_ct.errors import InputError

from .corpus import SPLITS, Candidate, plain
from .options import PrepOptions

# A shard takes at most this much of the sources (64 MiB of FLAC are some 100 million tokens), and small corpora are cut
# finer, so that several jobs have work.
MAXIMUM_SHARD_BYTES = 64 << 20
MINIMUM_SHARD_BYTES = 1 << 20
SHARDS_OF_A_SMALL_CORPUS = 16


@dataclass(frozen=True)
class Shard:
    """A shard to be encoded.

    Attributes:
        name: Of its file of tokens.
        split: Its split.
        candidates: Its recordings, in reading order.
        key: Hash of all that decides on its bytes.
    """

    name: str
    split: str
    candidates: tuple[Candidate, ...]
    key: str


def plan_splits(candidates: Sequence[Candidate], options: PrepOptions) -> list[str]:
    """Assign every recording to a split: the official one, or one drawn by a hash.

    Without official splits, each speaker is hashed to a place between 0 and 1; where there are fewer than
    three speakers, or the options say so, each recording. What lies below the validation fraction is for validation,
    what lies within the test fraction of 1 is for the test. So nothing moves when recordings are added. A split that
    nothing falls into gets the lowest, or the highest.

    Args:
        candidates: All recordings.
        options: The seed, the fractions, and what is drawn.

    Returns:
        The split of each recording.

    Raises:
        InputError: If there are fewer than three recordings without official splits.
    """
    official = {candidate.split for candidate in candidates if candidate.split is not None}
    missing = set(SPLITS) - official
    pool = [c for c in candidates if c.split is None or (c.split == "train" and missing)]
    if not pool:
        return [candidate.split or "train" for candidate in candidates]
    if not official and len(pool) < len(SPLITS):
        raise InputError(f"{len(pool)} usable recordings; at least 3 are needed, one for each of {', '.join(SPLITS)}.")
    by_speaker = options.split_by == "speaker" and len({c.speaker for c in pool}) >= len(SPLITS)
    place_of = {_unit(c, by_speaker): _place(_unit(c, by_speaker), options.seed) for c in pool}
    ranked = sorted(place_of, key=lambda unit: place_of[unit])
    drawn = dict.fromkeys(ranked, "train")
    if "test" in missing:
        drawn |= {unit: "test" for unit in ranked if place_of[unit] >= 1 - options.test_fraction}
        drawn[ranked[-1]] = "test"
    if "validation" in missing:
        drawn |= {unit: "validation" for unit in ranked if place_of[unit] < options.validation_fraction}
        drawn[ranked[0]] = "validation"
    if "train" not in drawn.values() and len(ranked) >= len(SPLITS):
        drawn[ranked[len(ranked) // 2]] = "train"
    drawn_from = {id(c) for c in pool}
    return [drawn[_unit(c, by_speaker)] if id(c) in drawn_from else c.split or "train" for c in candidates]


def _unit(candidate: Candidate, by_speaker: bool) -> str:
    """What is drawn: a speaker or a recording."""
    if by_speaker:
        return candidate.speaker
    # Parts of one file stay together.
    return candidate.path if candidate.spans else candidate.name


def _place(unit: str, seed: int) -> float:
    """A place between 0 and 1 that a seed and a name decide on."""
    digest = hashlib.sha256(f"{seed}\0{unit}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def count_held_out(total: int, options: PrepOptions) -> tuple[int, int]:
    """Count the bytes for validation and for test: their shares, and at least one each.

    Args:
        total: Number of all, three or more.
        options: The fractions.
    """
    num_validation = min(max(1, round(options.validation_fraction * total)), total - 2)
    return num_validation, min(max(1, round(options.test_fraction * total)), total - 1 - num_validation)


def plan_shards(candidates: Sequence[Candidate], options: PrepOptions) -> list[Shard]:
    """Cut every split into shards by the sources' bytes.

    Args:
        candidates: In reading order.
        options: All that decide on the store's bytes.

    Returns:
        The shards, split after split.

    Raises:
        InputError: As `plan_splits` does.
    """
    splits = plan_splits(candidates, options)
    share = sum(candidate.num_bytes for candidate in candidates) // SHARDS_OF_A_SMALL_CORPUS
    shard_bytes = min(max(share, MINIMUM_SHARD_BYTES), MAXIMUM_SHARD_BYTES)
    preparation = json.dumps(options.preparation(), sort_keys=True)
    shards: list[Shard] = []
    for split in SPLITS:
        of_split = (candidate for candidate, its in zip(candidates, splits, strict=True) if its == split)
        for number, group in enumerate(_groups(of_split, shard_bytes)):
            content = json.dumps([preparation, split, [plain(candidate) for candidate in group]])
            key = hashlib.sha256(content.encode()).hexdigest()
            shards.append(Shard(f"{split}-{number:05d}.bin", split, tuple(group), key))
    return shards


def _groups(candidates: Iterable[Candidate], shard_bytes: int) -> Iterable[list[Candidate]]:
    """Candidates in groups of at most so many bytes, or of one that is larger."""
    group: list[Candidate] = []
    filled = 0
    for candidate in candidates:
        if group and filled + candidate.num_bytes > shard_bytes:
            yield group
            group, filled = [], 0
        group.append(candidate)
        filled += candidate.num_bytes
    if group:
        yield group
