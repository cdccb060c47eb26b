"""Recordings that are the same: identical ones by the hash of their tokens, near-duplicates by their fingerprints.

A fingerprint is the same, nearly, for a recording at another level, rate or format, with slight noise or a trimmed
edge. Two of them are compared by a distance; those that have to be compared are found by hashing them such that near
ones meet (locality-sensitive hashing), so that it takes no comparison of all with all.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .corpus import SPLITS, Encoded
from .measures import FINGERPRINT_MIDDLES_HZ, MODULATIONS_HZ, places_of

NUM_BANDS = len(FINGERPRINT_MIDDLES_HZ) - 2
FINGERPRINT_LENGTH = NUM_BANDS * len(MODULATIONS_HZ)
DIGEST_BYTES = 16

# Of 2,374 recordings 99 % stay within it as MP3, 6 dB lower, with noise 40 dB below and up to 30 ms cut off; as many do
# at another rate. Of their 2.8 million pairs, many of them syllables of one voice, only such come as near that sound
# the same, and a rise of tones that is another's fall.
NEAR_DISTANCE = 0.08
NEAR_SECONDS = 0.25

# Of each table, what a cell is wide, in distances along a random direction and in seconds.
NUM_TABLES = 8
NUM_DIRECTIONS = 7
CELL_WIDTH = 0.4
CELL_SECONDS = 0.5
# In a cell with many recordings each is compared with so many that come next along one more direction.
MAXIMUM_NEIGHBOURS = 64
ROWS_AT_ONCE = 1 << 16

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Copies:
    """Identical recordings of several splits, by name: the one that stays, and those of the other splits."""

    kept: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Near:
    """A recording and the one added before it that is nearest to it."""

    name: str
    split: str
    other: str
    other_split: str
    distance: float


class Duplicates:
    """Finds recordings that are the same; a recording takes some 130 bytes and its name."""

    def __init__(self) -> None:
        self._splits = array("B")
        self._digests = bytearray()
        self._fingerprints = bytearray()
        self._seconds = array("f")
        self._names = bytearray()
        self._name_ends = array("Q")

    def add(self, split: str, encoded: Encoded) -> None:
        """Take in a recording of a split."""
        self._splits.append(SPLITS.index(split))
        self._digests += bytes.fromhex(encoded.sha256)[:DIGEST_BYTES]
        self._fingerprints += encoded.measures.fingerprint.encode("ascii").ljust(FINGERPRINT_LENGTH)
        self._seconds.append(encoded.measures.seconds)
        self._names += encoded.name.encode("utf-8", "surrogatepass")
        self._name_ends.append(len(self._names))

    def across_splits(self) -> list[Copies]:
        """Identical recordings of more than one split, in the order added.

        Those of the most held-out split stay, of test before validation before training: a recording that is tested on
        must not be trained on.
        """
        found = []
        for group in self._identical():
            stays, left_out = self._most_held_out(group)
            if len(left_out):
                found.append(Copies(self._name(stays[0]), tuple(map(self._name, left_out))))
        return found

    def within_splits(self) -> list[tuple[str, ...]]:
        """Names of identical recordings that stay, since they are of one split, in the order added."""
        groups = (self._most_held_out(group)[0] for group in self._identical())
        return [tuple(map(self._name, group)) for group in groups if len(group) > 1]

    def near(self) -> list[Near]:
        """Near-duplicates that are not identical, the nearest first: each with the nearest one added before it."""
        rows = self._to_compare()
        fingerprints = places_of(np.frombuffer(self._fingerprints, np.uint8).reshape(-1, FINGERPRINT_LENGTH)[rows])
        seconds = np.array(self._seconds)[rows]
        nearest = np.full(len(rows), NEAR_DISTANCE, np.float32)
        partner = np.full(len(rows), -1)
        for low, high in _candidates(fingerprints, seconds):
            as_long = np.abs(seconds[low] - seconds[high]) <= NEAR_SECONDS
            low, high = low[as_long], high[as_long]
            distance = np.linalg.norm(_vectors(fingerprints[low]) - _vectors(fingerprints[high]), axis=1)
            is_near = distance < nearest[high]
            low, high, distance = low[is_near], high[is_near], distance[is_near]
            # The nearest one last: it is what stays.
            order = np.lexsort((-low, -distance))
            nearest[high[order]], partner[high[order]] = distance[order], low[order]
        found = np.flatnonzero(partner >= 0)
        found = found[np.argsort(nearest[found], kind="stable")]
        pairs = ((rows[index], rows[partner[index]], float(nearest[index])) for index in found)
        return [
            Near(self._name(a), SPLITS[self._splits[a]], self._name(b), SPLITS[self._splits[b]], round(distance, 4))
            for a, b, distance in pairs
        ]

    def _identical(self) -> Iterator[Array]:
        """Yield the indices of identical recordings, two or more, by the first of them."""
        digests = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        begins = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.zeros(0, int)
        ends = np.append(begins[1:], len(order))
        several = ends - begins > 1
        groups = [order[begin:end] for begin, end in zip(begins[several], ends[several], strict=True)]
        yield from sorted(groups, key=lambda group: int(group[0]))

    def _most_held_out(self, group: Array) -> tuple[Array, Array]:
        """Part a group's indices into those of its most held-out split and the others."""
        splits = np.array([self._splits[index] for index in group])
        return group[splits == splits.max()], group[splits != splits.max()]

    def _to_compare(self) -> Array:
        """Indices of recordings with a fingerprint, one of each that are identical."""
        chosen = np.frombuffer(self._fingerprints, np.uint8).reshape(-1, FINGERPRINT_LENGTH)[:, 0] != ord(" ")
        for group in self._identical():
            chosen[group] = False
            chosen[self._most_held_out(group)[0][0]] = True
        return np.flatnonzero(chosen)

    def _name(self, index: int) -> str:
        begin = self._name_ends[index - 1] if index else 0
        return self._names[begin : self._name_ends[index]].decode("utf-8", "surrogatepass")


def _vectors(fingerprints: Array) -> Array:
    """Fingerprints as vectors of which each of the two parts has length 1; [rows, FINGERPRINT_LENGTH] float32."""
    parts = np.split(fingerprints.astype(np.float32), [NUM_BANDS], axis=1)
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True).clip(1e-6) for part in parts], axis=1)


def _candidates(fingerprints: Array, seconds: Array) -> Iterator[tuple[Array, Array]]:
    """Yield pairs of rows that share a cell of a table, [pairs] each: the lower rows, and the higher."""
    random = np.random.default_rng(0)
    for _ in range(NUM_TABLES):
        directions = random.standard_normal((FINGERPRINT_LENGTH, NUM_DIRECTIONS + 1)).astype(np.float32)
        shifts = random.uniform(size=NUM_DIRECTIONS + 1)
        factors = random.integers(1, 1 << 62, NUM_DIRECTIONS + 1) | 1
        keys, along = np.empty(len(seconds), np.int64), np.empty(len(seconds), np.float32)
        for begin in range(0, len(seconds), ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            projected = _vectors(fingerprints[part]) @ directions
            cells = np.column_stack([projected[:, :-1] / CELL_WIDTH, seconds[part] / CELL_SECONDS]) + shifts
            # Sums wrap around: cells are told apart by what is left.
            keys[part] = (np.floor(cells).astype(np.int64) * factors).sum(axis=1)
            along[part] = projected[:, -1]
        order = np.lexsort((along, keys))
        keys = keys[order]
        for step in range(1, MAXIMUM_NEIGHBOURS + 1):
            places = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(places):
                break
            for begin in range(0, len(places), ROWS_AT_ONCE):
                pair = order[places[begin : begin + ROWS_AT_ONCE, None] + [0, step]]
                yield pair.min(axis=1), pair.max(axis=1)
