"""Windows of real speech, and what any model of speech must beat: the same speech without order, noise, silence."""

from typing import NamedTuple

import numpy as np

from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore

LINES = ("Phase-scrambled speech", "White noise", "Silence")


class Windows(NamedTuple):
    """Windows of a split.

    Attributes:
        tokens: [num, num_samples].
        waveforms: [num, num_samples] float32, what the tokens stand for.
        names: of the recordings that they begin in.
        num_within: how many of them begin within a recording.
    """

    tokens: np.ndarray
    waveforms: np.ndarray
    names: list[str]
    num_within: int


def real_windows(
    store: TokenStore, codec: MuLawCodec, *, split: str, num: int, num_samples: int, seed: int = 0
) -> Windows:
    """Draw windows that begin where recordings begin, as generated waveforms do, and read on where these are shorter.

    A window reads on into the same speaker's next recordings. Where too few beginnings have so much speech of a speaker
    after them, the other windows begin anywhere that does; and where no place has, windows read on into the next
    speaker's recordings, past the split's end from its beginning. So there are always `num`, of full length.

    Example, recordings of 3, 4 and 2 samples, the last by another speaker, windows of 5:
        aaa bbbb cc: only the first beginning has 5 samples of its speaker; others start at samples 1 and 2.
    """
    lengths = store.recordings(split).lengths
    speakers = store.recordings(split).speaker_codes
    begins = np.concatenate([[0], np.cumsum(lengths)])
    is_last = np.append(speakers[1:] != speakers[:-1], True)
    # Of each recording, the index of its speaker's last one in a row, and with it what may be read from its beginning.
    last = np.flatnonzero(is_last)[np.cumsum(is_last) - is_last]
    room = begins[last + 1] - begins[:-1] - num_samples
    random = np.random.default_rng(seed)
    places = begins[:-1][room >= 0]
    places = places[random.permutation(len(places))[:num]]
    # Anywhere: of the rows of a speaker's recordings, in proportion to the places that each has.
    firsts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    if not len(places):
        firsts, room = np.arange(1), begins[-1:] - 1
    num_places = np.maximum(room[firsts] + 1, 0)
    drawn = random.choice(len(firsts), size=num - len(places), p=num_places / num_places.sum())
    within = begins[firsts[drawn]] + random.integers(num_places[drawn])
    chosen = [int(place) for place in (*places, *within)]
    tokens = np.stack([_read_on(store, split, begins, place, num_samples) for place in chosen])
    waveforms = np.stack([codec.decode(each) for each in tokens])
    indices = np.searchsorted(begins, chosen, side="right") - 1
    return Windows(tokens, waveforms, [store.recordings(split)[int(i)].name for i in indices], len(within))


def line(name: str, real: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The waveforms of one of LINES beside windows of real speech [num, num_samples]; as many, of the same level.

    Phase-scrambled speech has the magnitude spectrum of each window and random phases: its colour, and neither pitch
    pulses nor syllables.
    """
    random = np.random.default_rng(seed)
    if name == "Silence":
        return np.zeros_like(real)
    if name == "White noise":
        noise = random.standard_normal(real.shape)
        gain = np.sqrt(np.mean(real**2, axis=1) / np.mean(noise**2, axis=1))
        return np.asarray(np.clip(gain[:, None] * noise, -1, 1), dtype=np.float32)
    assert name == "Phase-scrambled speech"
    spectrum = np.fft.rfft(real, axis=1)
    turned = np.abs(spectrum) * np.exp(2j * np.pi * random.random(spectrum.shape))
    # A constant part has no phase, and so stays.
    turned[:, 0] = spectrum[:, 0]
    return np.asarray(np.clip(np.fft.irfft(turned, real.shape[1], axis=1), -1, 1), dtype=np.float32)


def _read_on(store: TokenStore, split: str, begins: np.ndarray, place: int, num_tokens: int) -> np.ndarray:
    """Tokens from a place in the split, counted from its first token, over recordings' ends and that of the split."""
    pieces, missing = [], num_tokens
    while missing:
        index = int(np.searchsorted(begins, place, side="right")) - 1
        start = place - int(begins[index])
        stop = min(start + missing, int(begins[index + 1] - begins[index]))
        pieces.append(store.tokens(split, index, start, stop))
        missing -= stop - start
        place = int((begins[index] + stop) % begins[-1])
    return np.concatenate(pieces)
