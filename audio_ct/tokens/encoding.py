"""What a token stands for: a mu-law code of a waveform's sample, or a byte of any file."""

from typing import Literal

from audio_ct.errors import InputError

Encoding = Literal["mu-law", "bytes"]


def start_token(encoding: Encoding, bits: int) -> int:
    """Return the token that stands before the first one of a recording, in training, sampling and evaluation.

    Before a waveform it is the code of silence, which is where a waveform comes from. Before bytes it is 0: no text
    holds that byte, so it says that nothing comes before, and the vocabulary stays the 256 bytes themselves.

    Args:
        encoding: What tokens stand for.
        bits: Bits per token.
    """
    return 0 if encoding == "bytes" else 1 << (bits - 1)


def unit(encoding: Encoding) -> str:
    """Return the word for what one token stands for, as in "bits per sample" and "bits per byte"."""
    return "byte" if encoding == "bytes" else "sample"


def check_encoding(encoding: Encoding, *, sample_rate_hz: int | None, bits: int) -> None:
    """Refuse a rate or a depth that tokens of this kind cannot have.

    Args:
        encoding: What tokens stand for.
        sample_rate_hz: Tokens per second; None for bytes, which have no time.
        bits: Bits per token.

    Raises:
        InputError: Naming the values and the rule.
    """
    if encoding == "bytes" and (sample_rate_hz is not None or bits != 8):
        raise InputError(f"sample_rate_hz={sample_rate_hz}, bits={bits}: bytes have 8 bits and no sample rate.")
    if encoding == "mu-law" and sample_rate_hz is None:
        raise InputError("sample_rate_hz=None: mu-law codes need a sample rate; give one, or encoding='bytes'.")
