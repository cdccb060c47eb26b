"""Mu-law coding: waveforms in [-1, 1] to integer tokens and back."""

import torch
import torchaudio.functional
from jaxtyping import Float, Integer
from torch import Tensor

from audio_ct.errors import InputError

MAXIMUM_BITS = 16


def encode(waveform: Float[Tensor, "*shape"], bits: int = 8) -> Integer[Tensor, "*shape"]:
    """Code every sample of a waveform as a mu-law token.

    Samples beyond full scale are clamped first: torchaudio maps 1.5 to 264, which would wrap silently in one byte.

    Args:
        waveform: Samples of any shape; full scale is [-1, 1].
        bits: Bits per token, 1 to 16.

    Returns:
        Tokens from 0 to 2**bits - 1 in the waveform's shape: uint8 up to 8 bits, int32 above.

    Raises:
        InputError: If a sample is NaN or infinite.

    Source:
        ITU-T G.711's companding law in its continuous form, as in WaveNet (van den Oord et al., 2016), section 2.2.
    """
    if not torch.isfinite(waveform).all():
        raise InputError(
            "waveform holds NaN or infinite samples; mu-law needs finite ones: mend or drop the recording."
        )
    tokens: Tensor = torchaudio.functional.mu_law_encoding(waveform.to(torch.float32).clamp(-1.0, 1.0), 2**bits)
    return tokens.to(torch.uint8 if bits <= 8 else torch.int32)


def decode(tokens: Integer[Tensor, "*shape"], bits: int = 8) -> Float[Tensor, "*shape"]:
    """Turn every token into the sample in the middle of its interval.

    Args:
        tokens: Tokens from 0 to 2**bits - 1, of any shape and integer type.
        bits: Bits per token, 1 to 16.

    Returns:
        float32 samples in [-1, 1] in the tokens' shape.

    Raises:
        InputError: If a token is not one of 2**bits.
    """
    wide = tokens.to(torch.int64)
    if wide.numel() and not 0 <= int(wide.min()) <= int(wide.max()) < 2**bits:
        raise InputError(
            f"tokens span {int(wide.min())} to {int(wide.max())}, but bits={bits} allows 0 to {2**bits - 1}; "
            "decode with the bits that they were encoded with."
        )
    waveform: Tensor = torchaudio.functional.mu_law_decoding(wide, 2**bits)
    return waveform.to(torch.float32)


def silence_token(bits: int = 8) -> int:
    """The token of a sample that is exactly zero: 128 for 8 bits."""
    return 1 << (bits - 1)
