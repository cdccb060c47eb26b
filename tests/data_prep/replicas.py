"""Pieces of which the tests build small replicas of corpora, with real file names."""

import zlib
from pathlib import Path

import numpy as np
import soundfile

from audio_ct.tokens.store import TokenStore


def write_audio(path: Path, *, rate_hz: int, seconds: float = 0.2) -> None:
    """A recording of noise, another for every name; the suffix gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(zlib.crc32(path.stem.encode()))
    soundfile.write(path, 0.3 * random.uniform(-1, 1, round(seconds * rate_hz)), rate_hz)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def stored(store: Path) -> dict[str, tuple[str, str | None]]:
    """(split, text) by name of a store's recordings, in its order; its shards have been verified."""
    opened = TokenStore.open(store)
    opened.verify()
    return {each.name: (split, each.text) for split in opened.splits for each in opened.recordings(split)}
