"""Prompts: recordings or files that a model continues."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from audio_ct.audio.files import read
from audio_ct.audio.mu_law import encode
from audio_ct.errors import InputError
from audio_ct.tokens.byte_file import open_bytes


def read_prompt(
    path: Path, sample_rate_hz: int, bits: int, *, max_seconds: float | None = None
) -> Int[Tensor, " time"]:
    """Return a recording as tokens [time], whatever its rate and channels.

    Args:
        path: any file that libsndfile reads.
        sample_rate_hz: of the model.
        bits: of the model's tokens.
        max_seconds: keep the recording's beginning, so long.

    Raises:
        InputError: if nothing is left or the file cannot be read.
    """
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise InputError(f"prompt-seconds={max_seconds} must be above 0; leave it out to keep the whole prompt.")
    tokens = encode(torch.from_numpy(read(path, sample_rate_hz)), bits).long()
    if max_seconds is not None:
        tokens = tokens[: round(max_seconds * sample_rate_hz)]
    if len(tokens) == 0:
        raise InputError(f"prompt {str(path)!r} holds no samples; name a longer recording.")
    return tokens


def read_byte_prompt(path: Path) -> Int[Tensor, " time"]:
    """Return a file's bytes as tokens [time].

    Args:
        path: any regular file.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is empty, no regular file, or cannot be read.
    """
    file, _ = open_bytes(path, name="prompt")
    with file:
        return torch.from_numpy(np.frombuffer(file.read(), dtype=np.uint8).astype(np.int64))
