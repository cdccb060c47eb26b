"""Audio files: whatever libsndfile reads, decoded in blocks, resampled and mixed to mono in bounded memory."""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from audio_ct.audio import MAXIMUM_RATE_HZ
from audio_ct.errors import InputError, MissingError

MINIMUM_RATE_HZ = 4_000
# Float files may overshoot full scale a little; integers stored as floats reach thousands and would only clip.
MAXIMUM_AMPLITUDE = 8.0
# Bounds a block whatever rate and channel count a header claims: 16 MiB of float32.
MAXIMUM_BLOCK_VALUES = 1 << 22
# libsndfile gives 2**63 - 1 frames where the header names no length, as in FLAC that was streamed or interrupted.
UNKNOWN_FRAMES = 1 << 62
# An MPEG header's length may count a packet of padding that the decoder drops.
MPEG_SLACK_FRAMES = 1152
# Formats in which libsndfile finds a sample without decoding what is before it.
SEEKING_FORMATS = frozenset({"WAV", "WAVEX", "FLAC", "AIFF", "AU", "W64", "RF64", "CAF"})
# A mean that is 40 dB below the loudest channel is what is left of channels in opposite phase.
CANCELLED = 1e-2
# libsndfile's code for what the operating system refused.
SYSTEM_ERROR = 2
MAXIMUM_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# Tags with a cover stand before an MPEG stream; where they are longer than this, its own length is not read.
MAXIMUM_MPEG_HEAD_BYTES = 1 << 20
# Writers that cannot know a size put the largest into the header: 0x7FFFF000, 0xFFFFFFFF and others of this pattern.
STREAMED_SIZE_BYTES = 0x7FFF_0000
CAF_EDIT_COUNT_BYTES = 4
_CAF_SIZES = re.compile(r"^\s*Bytes / packet\s*:\s*([1-9]\d*)\n(?:.*\n)*data : (\d+)\n", re.MULTILINE)
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)

Samples = npt.NDArray[np.float32]


class RejectedAudioError(InputError):
    """An audio file that cannot be used; `reason` is a short category for counting."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class AudioReader:
    """An audio file opened for reading; use as a context manager.

    Args:
        path: A file of any format that libsndfile reads.
        channel: The channel that is read, from 0; None for the mean of all.
        keep_truncated: Read what is there of a file that ends early; `truncated` then says how much that was.

    Attributes:
        sample_rate_hz: Its own rate.
        truncated: A line about what is missing, once that is known; None of a whole file.

    Raises:
        MissingError: If there is no such file.
        RejectedAudioError: If it is not a regular file, empty, unreadable, truncated, of an absurd sample rate, or
            lacks the channel.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, channel: int | None = None, keep_truncated: bool = False
    ) -> None:
        self.path = path
        self.truncated: str | None = None
        self._channel = channel
        self._keep_truncated = keep_truncated
        self._loudest = 0.0
        with contextlib.ExitStack() as stack:
            self._file = _open(path, stack)
            self.sample_rate_hz = int(self._file.samplerate)
            if channel is not None and channel >= self._file.channels:
                raise _rejected(path, "channel", f"has {self._file.channels} channels, not channel={channel}, from 0")
            if cut := _cut_short(path, self._file):
                self._cut(cut)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def blocks(self, block_seconds: float = 10.0, *, spans: Sequence[tuple[float, float]] = ()) -> Iterator[Samples]:
        """Yield the samples at the file's own rate; once only.

        Args:
            block_seconds: Length of a block; shorter where rate times channels would make it exceed 16 MiB.
            spans: (start, end) in seconds of the parts to read, in order and apart; the whole file by default.

        Yields:
            float32 blocks, one-dimensional, not clamped.

        Raises:
            RejectedAudioError: If decoding fails, if samples are not finite or far beyond full scale, if channels
                cancel each other, or if fewer samples come out than the header promises; the last two only once all
                blocks have been yielded.
        """
        file = self._file
        at_most = max(1, min(round(block_seconds * file.samplerate), MAXIMUM_BLOCK_VALUES // file.channels))
        pieces = [(round(start * file.samplerate), round(end * file.samplerate)) for start, end in spans]
        position = num_yielded = 0
        loudest = 0.0
        for start, end in pieces or [(0, UNKNOWN_FRAMES)]:
            if start - position > at_most and file.format in SEEKING_FORMATS:
                # soundfile's own method asks whether the file can be sought in, and is told that it cannot.
                position = soundfile.SoundFile.seek(file, start)
            while position < end and len(block := self._read(min(at_most, end - position))):
                skipped = max(0, start - position)
                position += len(block)
                if skipped >= len(block):
                    continue
                block = block[skipped:]
                if file.channels == 1:
                    mono = block[:, 0]
                    loudest = self._loudest
                else:
                    mono = block.mean(axis=1) if self._channel is None else block[:, self._channel].copy()
                    loudest = max(loudest, _amplitude(mono))
                num_yielded += len(mono)
                yield mono
        if not num_yielded:
            raise _rejected(self.path, "empty", "holds no samples")
        if self._channel is None and loudest < CANCELLED * self._loudest:
            remedy = "prepare with --channel 0, or make a file of one of them"
            detail = f"is not silent: its {file.channels} channels cancel each other in their mean; {remedy}"
            raise _rejected(self.path, "channels cancel", detail)
        slack = MPEG_SLACK_FRAMES if "MPEG" in file.subtype else 0
        promised = pieces[-1][1] if pieces else file.frames
        if position + slack < promised < UNKNOWN_FRAMES and not self.truncated:
            self._cut(f"{position} of {promised} samples decode")

    def _read(self, num_frames: int) -> Samples:
        """Decode frames [frames, channels], fewer at the file's end."""
        try:
            block: Samples = self._file.read(num_frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _rejected(self.path, "unreadable", f"decoding fails: {error.error_string.strip()}") from error
        amplitude = _amplitude(block) if len(block) else 0.0
        if not np.isfinite(amplitude):
            raise _rejected(self.path, "non-finite", "holds NaN or infinite samples")
        if amplitude > MAXIMUM_AMPLITUDE:
            raise _rejected(self.path, "amplitude", f"reaches {amplitude:.4g}; full scale is 1.0: scale it down")
        self._loudest = max(self._loudest, amplitude)
        return block

    def _cut(self, detail: str) -> None:
        """Note that the file ends early, or reject it."""
        if not self._keep_truncated:
            raise _rejected(self.path, "truncated", f"{detail}; get a whole copy")
        self.truncated = detail


def resample_blocks(blocks: Iterable[Samples], from_hz: int, to_hz: int) -> Iterator[Samples]:
    """Yield the stream of blocks at another rate, equal to resampling it in one piece.

    Args:
        blocks: Mono float32 blocks.
        from_hz: Their sample rate.
        to_hz: The sample rate wanted; equal rates pass blocks through untouched.

    Yields:
        float32 blocks; those that the filter still holds back are left out, not yielded empty.
    """
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="VHQ")
    for block in blocks:
        if len(resampled := stream.resample_chunk(block)):
            yield resampled
    if len(tail := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield tail


def read(path: str | os.PathLike[str], sample_rate_hz: int) -> Samples:
    """Read a whole file as one mono waveform at the wanted rate.

    Returns:
        float32 samples [time], not clamped: resampling may overshoot full scale.

    Raises:
        MissingError: If there is no such file.
        RejectedAudioError: As `AudioReader` does.
    """
    with AudioReader(path) as reader:
        return np.concatenate(list(resample_blocks(reader.blocks(), reader.sample_rate_hz, sample_rate_hz)))


class AudioWriter:
    """A file of mono audio, written as it is made and playable up to the last write when interrupted.

    Of a process that is killed, WAV and FLAC stay readable to the last block, OGG and MP3 to the last page that
    libsndfile passed on; AIFF and CAF name their length only when closed.

    Args:
        path: The file to write; its suffix names the format (.wav, .flac, .ogg, .mp3, ...).
        sample_rate_hz: The rate of what will be written.
        overwrite: Replace a file that exists.

    Raises:
        InputError: If the suffix is unknown, the format does not take this rate, the file exists, or the folder cannot
            be written.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate_hz: int, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        name = str(self.path)
        container = {"OPUS": "OGG", "OGA": "OGG", "AIF": "AIFF"}.get(suffix := self.path.suffix[1:].upper(), suffix)
        if container not in soundfile.available_formats() or container == "RAW":
            raise InputError(f"{name!r}: suffix {self.path.suffix!r} names no audio format; use .wav, .flac or .ogg.")
        if self.path.exists() and not overwrite:
            raise InputError(f"{name!r} exists already; choose another name or ask to overwrite.")
        subtype, is_new = "OPUS" if suffix == "OPUS" else None, not self.path.exists()
        try:
            self._file = soundfile.SoundFile(name, "w", sample_rate_hz, 1, subtype=subtype, format=container)
        except (soundfile.LibsndfileError, ValueError) as error:
            if is_new:
                self.path.unlink(missing_ok=True)
            if isinstance(error, soundfile.LibsndfileError) and error.code == SYSTEM_ERROR:
                raise InputError(f"{name!r} cannot be written; is the disk full, or the folder protected?") from error
            detail = error.error_string.strip() if isinstance(error, soundfile.LibsndfileError) else str(error)
            raise InputError(f"{name!r} cannot be written at {sample_rate_hz} Hz: {detail}") from error

    def write(self, waveform: npt.NDArray[np.floating]) -> None:
        """Append samples [time], clamped to [-1, 1], and hand them to the operating system.

        Raises:
            InputError: If the waveform is not one-dimensional or not finite, or if the disk takes no more.
        """
        if waveform.ndim != 1 or not np.isfinite(waveform).all():
            raise InputError(f"waveform of shape {waveform.shape} must be [time] and finite to be written.")
        try:
            self._file.write(np.clip(waveform, -1.0, 1.0).astype(np.float32))
            self._file.flush()
        except (soundfile.LibsndfileError, AssertionError) as error:
            # soundfile states a short write, as on a full disk, by a bare assertion.
            raise self._stopped() from error

    def close(self) -> None:
        """Complete the header and close the file.

        Raises:
            InputError: If the disk takes no more.
        """
        try:
            self._file.close()
        except soundfile.LibsndfileError as error:
            raise self._stopped() from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stopped(self) -> InputError:
        return InputError(f"{str(self.path)!r}: writing stopped; is the disk full? What was written stays.")


def _amplitude(block: Samples) -> float:
    """The largest absolute value, or NaN; without the copy that an absolute value takes."""
    return max(-float(block.min()), float(block.max()))


def _open(path: str | os.PathLike[str], stack: contextlib.ExitStack) -> soundfile.SoundFile:
    """Open a regular audio file by descriptor: a FIFO would hang libsndfile, odd names would confuse it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingError(f"{os.fspath(path)!r} is not there; check the name.") from error
    except (OSError, ValueError) as error:
        raise _rejected(path, "unreadable", f"cannot be opened: {error.__class__.__name__}") from error
    stack.callback(os.close, descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _rejected(path, "not a regular file", "is a folder, FIFO or device; only regular files are read")
    if not status.st_size:
        raise _rejected(path, "empty", "has zero bytes")
    try:
        file = soundfile.SoundFile(descriptor, closefd=False)
    except soundfile.LibsndfileError as error:
        raise _rejected(path, "unreadable", f"is no audio that can be read: {error.error_string.strip()}") from error
    stack.enter_context(file)
    # soundfile seeks after every read where it can: that costs an MP3 decoder its bit reservoir, audibly, at every
    # block's start, and fails in FLAC of unknown length.
    file.seekable = lambda: False
    if not MINIMUM_RATE_HZ <= file.samplerate <= MAXIMUM_RATE_HZ:
        rule = f"has sample rate {file.samplerate} Hz; {MINIMUM_RATE_HZ} to {MAXIMUM_RATE_HZ} Hz can be speech"
        raise _rejected(path, "absurd rate", rule)
    return file


def _cut_short(path: str | os.PathLike[str], file: soundfile.SoundFile) -> str | None:
    """What is missing of a file whose container says so, though libsndfile takes what is there for all of it."""
    # libsndfile shortens the length to what is there and leaves the header's claim in its log only.
    for claimed, actual in _SHORT_CHUNK.findall(file.extra_info):
        streamed = int(claimed) < 1 << 32 and int(claimed) & STREAMED_SIZE_BYTES == STREAMED_SIZE_BYTES
        if int(claimed) > int(actual) and not streamed:
            return f"has {actual} of {claimed} bytes of audio"
    # Of Apple's container it notices no loss that is smaller than the header of a chunk.
    if file.format == "CAF" and (sizes := _CAF_SIZES.search(file.extra_info)):
        packet_bytes, data_bytes = map(int, sizes.groups())
        promised = (data_bytes - CAF_EDIT_COUNT_BYTES) // packet_bytes
        if file.frames < promised:
            return f"has {file.frames} of {promised} samples"
    if file.format == "OGG":
        with open(path, "rb") as content:
            content.seek(-min(MAXIMUM_OGG_PAGE_BYTES, os.fstat(content.fileno()).st_size), os.SEEK_END)
            tail = content.read()
        page = tail.rfind(b"OggS")
        # Whether the page is marked as the last tells nothing: many writers forget it.
        num_segments = tail[page + 26] if page + 26 < len(tail) else 0
        table = tail[page + 27 : page + 27 + num_segments]
        if page < 0 or page + 27 + num_segments + sum(table) > len(tail):
            return "ends within an Ogg page"
    if file.format == "MP3":
        with open(path, "rb") as content:
            stated = _stated_mpeg_end(content.read(MAXIMUM_MPEG_HEAD_BYTES))
            num_bytes = os.fstat(content.fileno()).st_size
        if stated is not None and num_bytes < stated:
            return f"has {num_bytes} of {stated} bytes"
    return None


def _stated_mpeg_end(head: bytes) -> int | None:
    """Where an MPEG stream ends by its own first frame; None where it does not say.

    Samples do not tell: the last packets may be padding, and libsndfile takes padding off the length before it counts.

    Source: the header of Xing and LAME, "Xing" or "Info", flags, number of frames, number of bytes from the frame on.
    """
    # What stands between a frame's header and the tag has one of three lengths, by version and channels.
    found = re.search(rb"\xff[\xe0-\xff]..(?:.{32}|.{17}|.{9})(?:Xing|Info)(?=.{16})", head, re.DOTALL)
    if found is None:
        return None
    flags = int.from_bytes(head[found.end() : found.end() + 4])
    place = found.end() + 4 + 4 * (flags & 1)
    return found.start() + int.from_bytes(head[place : place + 4]) if flags & 2 else None


def _rejected(path: str | os.PathLike[str], reason: str, detail: str) -> RejectedAudioError:
    return RejectedAudioError(f"{os.fspath(path)!r} {detail.rstrip('.')}.", reason)
