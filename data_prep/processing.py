"""What is done to a recording's samples between decoding and mu-law, block by block.

Every function takes and yields blocks of mono float32 samples at the store's rate. Levels within a recording keep their
relations: it is filtered and scaled as a whole, or not at all.
"""

import functools
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import scipy.signal

from audio_ct.audio.files import Samples, resample_blocks
from audio_ct.errors import MissingError

HIGH_PASS_HZ = 20.0
# The loudness of a recording is that of its first minutes, so that one of any length fits memory.
HEAD_SECONDS = 300.0
SHORTEST_LOUDNESS_SECONDS = 0.4
VAD_RATE_HZ = 16_000
VAD_FRAME_SAMPLES = 512
VAD_FRAMES = 1875
# A voice activity detector that begins anew in the middle of speech needs a moment to hear it.
VAD_RUN_UP_FRAMES = 32
SPEECH_PROBABILITY = 0.5
QUIET_SECONDS = 0.05


def remove_offset(blocks: Iterable[Samples], sample_rate_hz: int) -> Iterator[Samples]:
    """Take a constant offset away, and what else lies below hearing, by a high-pass at 20 Hz (Butterworth, order 2).

    The mean of a recording would do for an offset that is everywhere; where pauses are digital silence and speech has
    an offset, subtracting it would give the pauses one.

    Args:
        blocks: Of a recording.
        sample_rate_hz: Their rate.
    """
    sections, settled = _high_pass(sample_rate_hz)
    state = None
    for block in blocks:
        if state is None:
            # As if the first sample had always been there: an offset does not begin with a step.
            state = settled * block[0]
        filtered, state = scipy.signal.sosfilt(sections, block.astype(np.float64), zi=state)
        yield filtered.astype(np.float32)


@functools.cache
def _high_pass(sample_rate_hz: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The filter's sections, and their state after a long time of ones."""
    sections = scipy.signal.butter(2, HIGH_PASS_HZ, "highpass", fs=sample_rate_hz, output="sos")
    return sections, scipy.signal.sosfilt_zi(sections)


def level(blocks: Iterable[Samples], sample_rate_hz: int, loudness_lufs: float) -> Iterator[Samples]:
    """Bring a recording to a loudness by one gain, as near to it as full scale allows.

    The loudness is that of its first five minutes, which also stay within full scale.

    Args:
        blocks: Of the recording.
        sample_rate_hz: Their rate.
        loudness_lufs: Integrated loudness wanted (ITU-R BS.1770).

    Raises:
        MissingError: If pyloudnorm is not installed.
    """
    rest = iter(blocks)
    head: list[Samples] = []
    while sum(map(len, head)) < HEAD_SECONDS * sample_rate_hz and (block := next(rest, None)) is not None:
        head.append(block)
    if not head:
        return
    gain = np.float32(_gain(np.concatenate(head), sample_rate_hz, loudness_lufs))
    for block in (*head, *rest):
        yield block * gain


def _gain(waveform: Samples, sample_rate_hz: int, loudness_lufs: float) -> float:
    """The factor that brings a waveform to a loudness, or as near to it as full scale allows."""
    try:
        # Optional: wanted for this alone.
        import pyloudnorm
    except ImportError as error:
        raise MissingError(
            "loudness_lufs needs pyloudnorm, which is not installed; pip install 'audio-ct[prep]'."
        ) from error
    shortest = round(SHORTEST_LOUDNESS_SECONDS * sample_rate_hz)
    if len(waveform) < shortest:
        waveform = np.resize(waveform, shortest)
    found = pyloudnorm.Meter(sample_rate_hz).integrated_loudness(waveform)
    if not np.isfinite(found):
        return 1.0
    peak = float(np.abs(waveform).max())
    return float(min(10 ** ((loudness_lufs - found) / 20), max(1 / peak, 1e-6)))


def shorten_pauses(blocks: Iterable[Samples], sample_rate_hz: int, maximum_seconds: float) -> Iterator[Samples]:
    """Leave out the middle of long pauses, and all but half a pause at both edges.

    Source: silero-vad's probabilities of speech, a frame of 32 ms each.

    Args:
        blocks: Of a recording.
        sample_rate_hz: Their rate.
        maximum_seconds: Longest pause that is left.

    Raises:
        MissingError: If silero-vad is not installed.
    """
    frame_seconds = VAD_FRAME_SAMPLES / VAD_RATE_HZ
    half = max(1, round(maximum_seconds / 2 / frame_seconds))
    # The last frames of a pause so far: they are wanted if speech follows.
    waiting: deque[Samples] = deque(maxlen=half)
    silent_frames = half
    for frame, is_speech in _frames(blocks, sample_rate_hz):
        if is_speech:
            yield from waiting
            waiting.clear()
            silent_frames = 0
        if is_speech or silent_frames < half:
            yield frame
        else:
            waiting.append(frame)
        silent_frames += not is_speech


def _frames(blocks: Iterable[Samples], sample_rate_hz: int) -> Iterator[tuple[Samples, bool]]:
    """Cut a recording into the detector's frames, at the recording's own rate, and say which of them are speech."""
    try:
        # Optional: wanted for this alone.
        from silero_vad import load_silero_vad

        detector = load_silero_vad(sequence=True)
    except ImportError as error:
        raise MissingError(
            "maximum_pause_seconds needs silero-vad and onnxruntime; pip install 'audio-ct[prep]'."
        ) from error
    run_up = np.zeros(0, np.float32)
    for part in _in_parts(blocks, round(VAD_FRAMES * VAD_FRAME_SAMPLES / VAD_RATE_HZ * sample_rate_hz)):
        heard = np.concatenate(list(resample_blocks([part], sample_rate_hz, VAD_RATE_HZ)))
        num_run_up = len(run_up) // VAD_FRAME_SAMPLES
        with_run_up = np.concatenate([run_up, heard])
        speech = detector.audio_forward(with_run_up)[num_run_up:] >= SPEECH_PROBABILITY
        run_up = with_run_up[-VAD_RUN_UP_FRAMES * VAD_FRAME_SAMPLES :] if len(heard) >= VAD_FRAME_SAMPLES else run_up
        edges = np.arange(len(speech) + 1) * VAD_FRAME_SAMPLES * sample_rate_hz // VAD_RATE_HZ
        edges[-1] = len(part)
        for start, end, is_speech in zip(edges[:-1], edges[1:], speech, strict=True):
            yield part[start:end], bool(is_speech)


def _in_parts(blocks: Iterable[Samples], length: int) -> Iterator[Samples]:
    """Cut a stream into parts of one length; the last may be shorter."""
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= length:
            yield held[:length]
            held = held[length:]
    if len(held):
        yield held


def cut(blocks: Iterable[Samples], sample_rate_hz: int, maximum_seconds: float) -> Iterator[tuple[int | None, Samples]]:
    """Cut a long recording at its quietest places into pieces between a third of a length and the length.

    Args:
        blocks: Of the recording.
        sample_rate_hz: Their rate.
        maximum_seconds: Length of the longest piece.

    Yields:
        A whole piece and its number; a recording that needs no cut is one piece without a number.
    """
    longest = max(1, int(maximum_seconds * sample_rate_hz))
    held = np.zeros(0, np.float32)
    number = 0
    for block in blocks:
        held = np.concatenate([held, block])
        # So much is held that what is left makes a piece of no less than half the length.
        while len(held) >= longest + longest // 2:
            place = _quietest(held, longest // 2, longest, sample_rate_hz)
            yield number, held[:place]
            held = held[place:]
            number += 1
    if len(held) > longest:
        low, high = max(len(held) - longest, len(held) // 3), min(longest, 2 * len(held) // 3)
        place = _quietest(held, low, high, sample_rate_hz)
        yield number, held[:place]
        yield number + 1, held[place:]
    elif len(held):
        yield (number if number else None), held


def _quietest(waveform: Samples, low: int, high: int, sample_rate_hz: int) -> int:
    """The middle of the quietest 50 ms of a waveform from low to high."""
    width = min(max(1, round(QUIET_SECONDS * sample_rate_hz)), high - low)
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform[low:high], dtype=np.float64))])
    return low + int(np.argmin(energy[width:] - energy[:-width])) + width // 2


def pad(blocks: Iterable[Samples], num_samples: int) -> Iterator[Samples]:
    """Lengthen a recording by silence to a number of samples; a longer one passes."""
    missing = num_samples
    for block in blocks:
        missing -= len(block)
        yield block
    if 0 < missing < num_samples:
        yield np.zeros(missing, np.float32)
