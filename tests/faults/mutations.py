"""Harm done to files at random: what a bad disk, a cut transfer or somebody of ill will leaves of them."""

import random
from collections.abc import Callable

# Headers are where small changes do most.
HEAD_BYTES = 128


def _flipped(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content)
    reach = len(content) if source.random() < 0.5 else min(len(content), HEAD_BYTES)
    for _ in range(source.randint(1, 8)):
        changed[source.randrange(reach)] ^= 1 << source.randrange(8)
    return bytes(changed)


def _cut(content: bytes, source: random.Random) -> bytes:
    return content[: source.randrange(len(content))]


def _grown(content: bytes, source: random.Random) -> bytes:
    start, _ = _span(content, source)
    return content[:start] + source.randbytes(source.randint(1, 64)) + content[start:]


def _shortened(content: bytes, source: random.Random) -> bytes:
    start, end = _span(content, source)
    return content[:start] + content[end:]


def _blanked(content: bytes, source: random.Random) -> bytes:
    start, end = _span(content, source)
    return content[:start] + source.choice([b"\0", b"\xff"]) * (end - start) + content[end:]


def _swapped(content: bytes, source: random.Random) -> bytes:
    a, b, c, d = sorted(source.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _doubled(content: bytes, source: random.Random) -> bytes:
    return content + _cut(content, source)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": _flipped,
    "cut": _cut,
    "grown": _grown,
    "shortened": _shortened,
    "blanked": _blanked,
    "swapped": _swapped,
    "doubled": _doubled,
}


def mutated(content: bytes, source: random.Random) -> tuple[str, bytes]:
    """The name of a mutation, and what it makes of a content that is not empty; seldom the content itself."""
    name = source.choice(list(MUTATIONS))
    return name, MUTATIONS[name](content, source)


def _span(content: bytes, source: random.Random) -> tuple[int, int]:
    start = source.randrange(len(content))
    return start, start + source.randint(1, 1 + len(content) // 8)
