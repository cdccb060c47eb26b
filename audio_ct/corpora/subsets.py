"""Parts of a token store as a store of their own."""

import hashlib
import os
from collections.abc import Collection

import numpy as np

from audio_ct.corpora.contents import metadata
from audio_ct.corpora.shard_writer import Part, write_parts
from audio_ct.errors import InputError
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder


def subset(
    store: TokenStore,
    out: str | os.PathLike[str],
    *,
    splits: Collection[str] = (),
    speakers: Collection[str] = (),
    hours: float | None = None,
    overwrite: bool = False,
) -> TokenStore:
    """Put some recordings of a store into one of their own, in the same order and splits.

    Args:
        store: The store.
        out: Where the new one shall stand.
        splits: Only these; by default all.
        speakers: Only these; by default all. A split that has none of them is left out.
        hours: So much of that, every split by the same share and at least one recording of each. Recordings are taken
            by a hash of their names: more hours take the same ones and others, and so does a store that has grown.
        overwrite: Replace a token store that stands there.

    Raises:
        InputError: If nothing is to be chosen, there are no such splits, speakers or hours, or `out` cannot be written.
        DamagedError: If a shard is not what was written.
    """
    if not splits and not speakers and hours is None:
        raise InputError("a subset needs a choice: give hours, speakers or splits.")
    parts = [Part.whole(store, split) for split in dict.fromkeys(splits or store.splits)]
    if speakers:
        parts = _of_speakers(parts, speakers)
    if hours is not None:
        _shorten(parts, hours)
    choice = {"splits": sorted(splits) or None, "speakers": sorted(speakers) or None, "hours": hours}
    with TokenStoreBuilder(out, store.codec, overwrite=overwrite) as builder:
        builder.metadata |= metadata(store) | {"subset_of": {"name": store.name, "digest": store.digest} | choice}
        write_parts(builder, {part.split: [part] for part in parts})
        return builder.commit()


def _of_speakers(parts: list[Part], speakers: Collection[str]) -> list[Part]:
    """Keep the recordings of some speakers, and the splits that have any."""
    known = {speaker for part in parts for speaker in part.store.recordings(part.split).speakers}
    if unknown := sorted(set(speakers) - known):
        raise InputError(f"speakers={unknown[0]!r} is not there; `audio-ct corpus` shows who is.")
    for part in parts:
        recordings = part.store.recordings(part.split)
        codes = [code for code, speaker in enumerate(recordings.speakers) if speaker in speakers]
        part.keep &= np.isin(recordings.speaker_codes, codes)
    return [part for part in parts if part.keep.any()]


def _shorten(parts: list[Part], hours: float) -> None:
    """Keep whole recordings of every part, until each holds its share of so many hours."""
    store = parts[0].store
    if store.codec.sample_rate_hz is None:
        raise InputError(f"hours={hours}: {store.address!r} holds bytes, which have no time; choose splits.")
    total = sum(part.num_tokens() for part in parts)
    wanted = hours * 3600 * store.codec.sample_rate_hz
    if not 0 < wanted <= total:
        raise InputError(
            f"hours={hours} must be above 0 and at most the {total / store.codec.sample_rate_hz / 3600:.4g} hours that "
            "there are."
        )
    for part in parts:
        recordings = part.store.recordings(part.split)
        names = recordings.names
        turns = sorted(np.flatnonzero(part.keep), key=lambda index: hashlib.sha256(names[index].encode()).digest())
        held = np.cumsum(recordings.lengths[turns])
        enough = int(np.searchsorted(held, wanted / total * held[-1])) + 1
        part.keep[turns[enough:]] = False
