"""Several token stores into one."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audio_ct.corpora.contents import metadata
from audio_ct.corpora.shard_writer import Part, write_parts
from audio_ct.errors import InputError
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder

# From the least held out to the most: a recording that is in several splits stays in the last of them alone.
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Merged:
    """A merged store, and what the user should know of it."""

    store: TokenStore
    num_left_out: int
    """Recordings whose tokens are also in a split that is held out more."""
    renamed: bool
    """Names clashed, and each begins with its store's now."""
    speakers_in_several_splits: tuple[str, ...]
    """Those that are in no more than one split of each of the stores."""


def merge(stores: Sequence[TokenStore], out: str | os.PathLike[str], *, overwrite: bool = False) -> Merged:
    """Put the recordings of several stores into one, each in its split.

    Where two stores have a name in common, all names get their store's in front. A speaker's name stands for the same
    speaker in all stores. A recording whose tokens are in several splits is kept only in the one that is held out most,
    the test split before the validation split before others.

    Args:
        stores: Two or more, of the same kind of tokens.
        out: Where the merged store shall stand.
        overwrite: Replace a token store that stands there.

    Raises:
        InputError: If the stores do not fit together, nothing is left of a split, or `out` cannot be written.
        DamagedError: If a shard is not what was written.
    """
    first = stores[0]
    if len(stores) < 2 or len({store.digest for store in stores}) < len(stores):
        raise InputError(f"{', '.join(store.address for store in stores)}: name two or more different stores.")
    for store in stores:
        if store.codec != first.codec:
            raise InputError(
                f"{store.address!r} holds {store.codec}, {first.address!r} {first.codec}; prepare one of them as the "
                "other."
            )
    prefixes = _prefixes(stores)
    splits = dict.fromkeys(split for store in stores for split in store.splits)
    parts = {
        split: [
            Part.whole(store, split, prefix)
            for store, prefix in zip(stores, prefixes, strict=True)
            if split in store.splits
        ]
        for split in splits
    }
    num_left_out = _leave_out_what_is_held_out(parts)
    for split, its_parts in parts.items():
        if not any(part.keep.any() for part in its_parts):
            raise InputError(f"split {split!r} would be empty: all that it holds is in a split that is held out more.")
    with TokenStoreBuilder(out, first.codec, overwrite=overwrite) as builder:
        builder.metadata |= _metadata(stores) | {
            "merge": {"left_out": num_left_out, "names_with_store": any(prefixes)},
        }
        write_parts(builder, parts)
        merged = builder.commit()
    several = _speakers_in_several_splits(merged).difference(*map(_speakers_in_several_splits, stores))
    return Merged(merged, num_left_out, any(prefixes), tuple(sorted(several)))


def _speakers_in_several_splits(store: TokenStore) -> set[str]:
    times = Counter(speaker for split in store.splits for speaker in store.recordings(split).speakers)
    return {speaker for speaker, number in times.items() if number > 1}


def _prefixes(stores: Sequence[TokenStore]) -> list[str]:
    """What stands before each store's names: nothing where no two stores have one in common."""
    names = [{name for split in store.splits for name in store.recordings(split).names} for store in stores]
    if len(set().union(*names)) == sum(map(len, names)):
        return [""] * len(stores)
    folders = [store.name for store in stores]
    return [
        f"{folder}-{folders[:index].count(folder) + 1}/" if folders.count(folder) > 1 else f"{folder}/"
        for index, folder in enumerate(folders)
    ]


def _leave_out_what_is_held_out(parts: dict[str, list[Part]]) -> int:
    """Unmark recordings whose tokens are also in a split that is held out more; return their number."""
    lengths = {
        split: np.unique(np.concatenate([part.store.recordings(part.split).lengths for part in its_parts]))
        for split, its_parts in parts.items()
    }
    # Only recordings of the same length can be the same: others need not be read.
    found, times = np.unique(np.concatenate(list(lengths.values())), return_counts=True)
    shared = found[times > 1]
    held_out: set[bytes] = set()
    num_left_out = 0
    for split in sorted(parts, key=lambda name: SPLITS.index(name) if name in SPLITS else -1, reverse=True):
        its_own: set[bytes] = set()
        for part in parts[split]:
            for index in np.flatnonzero(np.isin(part.store.recordings(part.split).lengths, shared)):
                digest = hashlib.sha256()
                for block in part.blocks(int(index)):
                    digest.update(block)
                if digest.digest() in held_out:
                    part.keep[index] = False
                    num_left_out += 1
                its_own.add(digest.digest())
        held_out |= its_own
    return num_left_out


def _metadata(stores: Sequence[TokenStore]) -> dict[str, Any]:
    """What the stores are, each with its digest; their licences all at once, since all hold for the whole."""
    descriptions = [metadata(store) for store in stores]
    licences = [each.get("licence") or "not stated" for each in descriptions]
    citations = [each["citation"] for each in descriptions if each.get("citation")]
    return {
        "corpus": "merge",
        "licence": " AND ".join(dict.fromkeys(licences)),
        "citation": "; ".join(dict.fromkeys(citations)) or None,
        "synthetic": any(each.get("synthetic", False) for each in descriptions),
        "sources": [
            {"kind": "token store", "name": store.name, "digest": store.digest} | description
            for store, description in zip(stores, descriptions, strict=True)
        ],
    }
