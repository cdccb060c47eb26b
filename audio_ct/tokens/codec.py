"""The meaning of tokens: mu-law codes of a waveform's samples, or the bytes of any file.

A codec turns prompts into tokens and sampled tokens into files, so that training, scoring and sampling need not know
which kind of tokens they have.
"""

import logging
import math
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from audio_ct.audio import MAXIMUM_RATE_HZ, mu_law
from audio_ct.errors import InputError, MissingError

logger = logging.getLogger("audio_ct")

Encoding = Literal["mu-law", "bytes"]
Tokens = Integer[Tensor | np.ndarray, " time"]

MAX_SECONDS = 36_000
MAX_BYTES = 1 << 30


class _ByteFile:
    """A file of bytes that the operating system has as soon as they are written."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = path
        self._file = path.open("wb" if overwrite else "xb", buffering=0)

    def write(self, content: bytes) -> None:
        try:
            # A disk that is nearly full takes a part.
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise InputError(
                f"{str(self._path)!r}: writing stopped: {error.strerror}; free some space. What was written stays."
            ) from error

    def close(self) -> None:
        self._file.close()


class TokenWriter:
    """An open file, an AudioWriter or one of bytes, that takes tokens and holds what they stand for."""

    def __init__(self, file: Any, decode: Callable[[Tokens], Any]) -> None:
        self._file = file
        self._decode = decode

    def write(self, tokens: Tokens) -> None:
        """Append tokens [time] and hand what they stand for to the operating system; InputError if it takes no more."""
        self._file.write(self._decode(tokens))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class Codec(ABC):
    """The meaning of tokens.

    Attributes:
        sample_rate_hz: Tokens per second; None for bytes, which have no time.
        bits: Bits per token.
        encoding: Name of the codec in stores and checkpoints.
        unit: What a token stands for, as in "bits per sample".
        default_format: Suffix of the files that are written.
    """

    sample_rate_hz: int | None
    bits: int
    encoding: ClassVar[Encoding]
    unit: ClassVar[str]
    default_format: ClassVar[str]

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""
        return 2**self.bits

    @property
    @abstractmethod
    def start_token(self) -> int:
        """The token that stands before the first one of a recording, in training, sampling and evaluation."""

    @abstractmethod
    def num_tokens(self, *, seconds: float | None = None, num_bytes: int | None = None) -> int:
        """The number of tokens in a length in the codec's own unit: by default a second of audio, or 1024 bytes.

        Raises:
            InputError: If the length is in the other unit, or out of range.
        """

    @abstractmethod
    def read_prompt(self, path: Path, *, max_seconds: float | None = None) -> Int[Tensor, " time"]:
        """Read a file that a model shall continue.

        Args:
            path: A recording of any rate and number of channels, or any regular file where tokens are bytes.
            max_seconds: Keep so much of a recording's beginning.

        Returns:
            int64 tokens [time].

        Raises:
            MissingError: If there is no such file.
            InputError: If it cannot be read, nothing is left of it, or bytes are to be cut by seconds.
        """

    @abstractmethod
    def check_format(self, file_format: str) -> None:
        """Raise InputError for a suffix, given without its dot, that files of this codec cannot have."""

    @abstractmethod
    def open_writer(self, path: Path, *, overwrite: bool = False) -> TokenWriter:
        """Open a file for tokens, its format named by its suffix; what was written before an interruption is there.

        Raises:
            InputError: If audio cannot be written there, in this format, or at this rate.
            OSError: If a file of bytes cannot be opened there.
        """

    @abstractmethod
    def decode(self, tokens: Tokens) -> np.ndarray | bytes:
        """Turn tokens [time] into a float32 waveform [time], or into bytes."""

    def check(self, tokens: Tokens) -> list[str]:
        """Describe each audible fault of generated tokens [time] in a line; bytes have none."""
        return []

    def save_picture(self, tokens: Tokens, path: Path) -> bool:
        """Write a PNG of tokens [time], a spectrogram; False where there is nothing to draw, as for bytes."""
        return False


@dataclass(frozen=True)
class MuLawCodec(Codec):
    """Mu-law codes of a waveform's samples.

    Its methods import what reads, checks and draws sound where they use it: training needs none of it.
    """

    sample_rate_hz: int
    encoding = "mu-law"
    unit = "sample"
    default_format = "wav"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 1 <= self.bits <= mu_law.MAXIMUM_BITS or not 1 <= self.sample_rate_hz <= MAXIMUM_RATE_HZ:
            raise InputError(
                f"sample_rate_hz={self.sample_rate_hz}, bits={self.bits}: the rate must be from 1 to "
                f"{MAXIMUM_RATE_HZ}, bits 1 to {mu_law.MAXIMUM_BITS}."
            )

    def __str__(self) -> str:
        """For messages."""
        return f"{self.bits}-bit mu-law codes at {self.sample_rate_hz:,} Hz"

    @property
    def start_token(self) -> int:
        """The code of silence, which is where a waveform comes from."""
        return mu_law.silence_token(self.bits)

    def num_tokens(self, *, seconds: float | None = None, num_bytes: int | None = None) -> int:
        """The number of samples in so many seconds."""
        if num_bytes is not None:
            raise InputError(f"num-bytes={num_bytes}: this is a model of audio; give --seconds.")
        seconds = 1.0 if seconds is None else seconds
        if not 0 < seconds <= MAX_SECONDS or round(seconds * self.sample_rate_hz) == 0:
            raise InputError(f"seconds={seconds} must be above 0 and at most {MAX_SECONDS}.")
        return round(seconds * self.sample_rate_hz)

    def encode(self, waveform: np.ndarray, sample_rate_hz: int | None = None) -> Int[Tensor, " time"]:
        """Turn a waveform into tokens.

        Args:
            waveform: Mono samples [time], float, full scale 1.
            sample_rate_hz: Their rate, if it is not the codec's: they are resampled.

        Returns:
            int64 tokens [time] at the codec's rate.

        Raises:
            InputError: If a sample is not finite.
        """
        from audio_ct.audio import files

        blocks = files.resample_blocks(
            [waveform.astype(np.float32)], sample_rate_hz or self.sample_rate_hz, self.sample_rate_hz
        )
        return mu_law.encode(torch.from_numpy(np.concatenate(list(blocks))), self.bits).long()

    def read_prompt(self, path: Path, *, max_seconds: float | None = None) -> Int[Tensor, " time"]:
        """Read the beginning of a recording."""
        from audio_ct.audio import files

        if max_seconds is not None and not 0 < max_seconds < math.inf:
            raise InputError(f"prompt-seconds={max_seconds} must be above 0; leave it out to keep the whole prompt.")
        with files.AudioReader(path) as reader:
            own_hz = reader.sample_rate_hz
        if own_hz < self.sample_rate_hz:
            logger.warning(
                "prompt %s has %s Hz: brought to the model's %s Hz it is empty above %s Hz, unlike its corpus",
                *(path, f"{own_hz:,}", f"{self.sample_rate_hz:,}", f"{own_hz // 2:,}"),
            )
        tokens = self.encode(files.read(path, self.sample_rate_hz))
        if max_seconds is not None:
            tokens = tokens[: round(max_seconds * self.sample_rate_hz)]
        if len(tokens) == 0:
            raise InputError(f"prompt {str(path)!r} holds no samples; name a longer recording.")
        return tokens

    def check_format(self, file_format: str) -> None:
        """Refuse what is no suffix; the writer knows the formats."""
        if not file_format.isalnum():
            raise InputError(f"format={file_format!r} must be a suffix without its dot; use wav, flac or ogg.")

    def open_writer(self, path: Path, *, overwrite: bool = False) -> TokenWriter:
        """Open an audio file."""
        from audio_ct.audio.files import AudioWriter

        return TokenWriter(AudioWriter(path, self.sample_rate_hz, overwrite=overwrite), self.decode)

    def decode(self, tokens: Tokens) -> np.ndarray:
        """Turn tokens [time] into a float32 waveform [time]."""
        return np.asarray(mu_law.decode(torch.as_tensor(tokens), self.bits))

    def check(self, tokens: Tokens) -> list[str]:
        """Describe each audible fault of the waveform in a line."""
        from audio_ct.audio.checks import check

        return check(self.decode(tokens), self.sample_rate_hz)

    def save_picture(self, tokens: Tokens, path: Path) -> bool:
        """Write the waveform's mel spectrogram."""
        from audio_ct.audio.spectrogram import save_spectrogram

        save_spectrogram(self.decode(tokens), self.sample_rate_hz, path)
        return True


@dataclass(frozen=True)
class ByteCodec(Codec):
    """The bytes of any file."""

    sample_rate_hz: None = field(default=None, init=False)
    bits: int = field(default=8, init=False)
    encoding = "bytes"
    unit = "byte"
    default_format = "txt"

    FORMATS: ClassVar[tuple[str, ...]] = ("txt", "bin")

    def __str__(self) -> str:
        """For messages."""
        return "bytes"

    @property
    def start_token(self) -> int:
        """The byte 0, which no text holds: nothing comes before, and the vocabulary stays the 256 bytes themselves."""
        return 0

    def num_tokens(self, *, seconds: float | None = None, num_bytes: int | None = None) -> int:
        """The number of bytes."""
        if seconds is not None:
            raise InputError(f"seconds={seconds}: this is a model of bytes; give --num-bytes.")
        num_bytes = 1024 if num_bytes is None else num_bytes
        if not 1 <= num_bytes <= MAX_BYTES:
            raise InputError(f"num-bytes={num_bytes} must be from 1 to {MAX_BYTES}.")
        return num_bytes

    def read_prompt(self, path: Path, *, max_seconds: float | None = None) -> Int[Tensor, " time"]:
        """Read a whole file."""
        if max_seconds is not None:
            raise InputError(f"prompt-seconds={max_seconds}: this is a model of bytes; shorten the prompt's file.")
        file, _ = open_bytes(path, name="prompt")
        with file:
            return torch.from_numpy(np.frombuffer(file.read(), dtype=np.uint8).astype(np.int64))

    def check_format(self, file_format: str) -> None:
        """Refuse other suffixes than txt and bin."""
        if file_format not in self.FORMATS:
            raise InputError(f"format={file_format!r}: bytes are written as {' or '.join(self.FORMATS)}.")

    def open_writer(self, path: Path, *, overwrite: bool = False) -> TokenWriter:
        """Open a file that holds the bytes as they are, whatever its suffix: a model may write what is not UTF-8."""
        return TokenWriter(_ByteFile(path, overwrite=overwrite), self.decode)

    def decode(self, tokens: Tokens) -> bytes:
        """Turn tokens [time] into bytes."""
        return np.asarray(tokens).astype(np.uint8).tobytes()


def make_codec(encoding: Encoding, *, sample_rate_hz: int | None, bits: int) -> Codec:
    """Build the codec that a store or a checkpoint names.

    Raises:
        InputError: If tokens of this kind cannot have this rate or depth.
    """
    if encoding == "bytes":
        if sample_rate_hz is not None or bits != 8:
            raise InputError(f"sample_rate_hz={sample_rate_hz}, bits={bits}: bytes have 8 bits and no sample rate.")
        return ByteCodec()
    if sample_rate_hz is None:
        raise InputError("sample_rate_hz=None: mu-law codes need a sample rate; give one, or encoding='bytes'.")
    return MuLawCodec(sample_rate_hz, bits)


def open_bytes(path: Path, *, name: str) -> tuple[BinaryIO, int]:
    """Open a regular file that is not empty.

    Args:
        path: The file.
        name: What the user calls it, for messages.

    Returns:
        The file, to be closed by the caller, and how many bytes it holds now.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is a folder, a pipe or a device, cannot be read, or is empty.
    """
    try:
        # Not blocking: a pipe that nobody writes into would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingError(f"{name}={str(path)!r} is not there; check the name.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{name}={str(path)!r} cannot be read: {why}.") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(descriptor)
        kind = "a regular file that is not empty" if stat.S_ISREG(status.st_mode) else "a regular file"
        raise InputError(f"{name}={str(path)!r} must be {kind}; name a file of text or of any bytes.")
    return os.fdopen(descriptor, "rb"), status.st_size
