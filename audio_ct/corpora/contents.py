"""The contents of a token store in lines of text."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from audio_ct.tokens.store import TokenStore, printable

# Keys of a manifest that say how the store is laid out, and the warnings of its preparation; all others are about what
# it holds, and hold for its parts.
OF_THE_STORE = ("format", "format_version", "encoding", "sample_rate_hz", "bits", "splits", "files", "warnings")
SPEAKERS_SHOWN = 3


def metadata(store: TokenStore) -> dict[str, Any]:
    """The keys of a store's manifest that are about what it holds, and so hold for a part of it too."""
    return {key: value for key, value in store.corpus.items() if key not in OF_THE_STORE}


def describe(store: TokenStore) -> Iterator[str]:
    """Yield lines: what is in each split, what tokens stand for, and what the manifest says of the corpus."""
    rate_hz = store.codec.sample_rate_hz
    for split in store.splits:
        num_tokens, num_recordings = store.num_tokens(split), len(store.recordings(split))
        if rate_hz is None:
            yield f"{split}: {num_tokens:,} bytes in {num_recordings} stretches"
        else:
            yield from _describe_recordings(store, split, rate_hz)
    kind = "bytes" if rate_hz is None else f"{rate_hz} Hz, {store.codec.bits} bit mu-law"
    yield f"{kind}, digest {store.digest[:16]}"
    for key, value in metadata(store).items():
        values = value if isinstance(value, list) else [value]
        yield from (f"{key.replace('_', ' ')}: {_words(each)}" for each in values)
    yield from (f"warning: {line}" for line in store.warnings)


def _describe_recordings(store: TokenStore, split: str, rate_hz: int) -> Iterator[str]:
    recordings = store.recordings(split)
    shards = store.shards(split)
    num_speakers = len(recordings.speakers)
    yield (
        f"{split}: {len(recordings)} recordings, {_duration(store.num_tokens(split) / rate_hz)}, "
        f"{num_speakers} speaker{'s' * (num_speakers > 1)}, {_size(sum(shard.num_bytes for shard in shards))} in "
        f"{len(shards)} shard{'s' * (len(shards) > 1)}"
    )
    if num_speakers > 1:
        seconds = np.bincount(recordings.speaker_codes, weights=recordings.lengths) / rate_hz
        # Of speakers with the same length, the first by name.
        by_length = np.argsort(-seconds, kind="stable")
        shown = [f"{recordings.speakers[code]!r} {_duration(seconds[code])}" for code in by_length]
        if num_speakers <= 2 * SPEAKERS_SHOWN:
            yield f"  by speaker: {', '.join(shown)}"
        else:
            yield f"  most by {', '.join(shown[:SPEAKERS_SHOWN])}; least by {', '.join(shown[-SPEAKERS_SHOWN:])}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def _words(value: Any) -> str:
    """A value of the manifest in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_words, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not stated"}[value]
    return printable(value)
