"""Figures that describe a waveform without a reference: level, spectrum, pitch, and warnings where it is no speech."""

from collections.abc import Iterable
from typing import cast

import librosa
import numpy as np

from audio_ct.errors import InputError

Statistics = dict[str, float | None]

STATISTIC_NAMES = (
    "rms_dbfs",
    "peak_dbfs",
    "crest_factor_db",
    "silence_fraction",
    "clipped_fraction",
    "zero_crossing_rate_hz",
    "spectral_centroid_hz",
    "spectral_rolloff_hz",
    "f0_median_hz",
    "f0_iqr_hz",
    "voiced_fraction",
)

FRAME_SECONDS = 0.03
LEVEL_FLOOR_DBFS = -120.0
SILENT_FRAME_DBFS = -60.0
# The outermost 8-bit mu-law codes decode to +-1.0 and their neighbours to +-0.978: this holds the outermost codes only.
CLIPPED_AMPLITUDE = 0.985
ROLLOFF_FRACTION = 0.85
F0_RANGE_HZ = (60.0, 500.0)

NUM_BANDS = 40
BAND_FLOOR_DB = -80.0

# Limits of check(). Real prompts stay clear of them; white noise has a flatness of 0.56 a frame.
SILENCE_DBFS = -60.0
SILENT_FRACTION = 0.6
BURST_CREST_FACTOR_DB = 22.0
CLIPPED_FRACTION = 0.005
DC_OFFSET = 0.02
NOISE_FLATNESS = 0.2
NOISE_DBFS = -45.0


def statistics(waveform: np.ndarray, sample_rate_hz: int) -> Statistics:
    """Level, spectrum and pitch of one waveform.

    Centroid and rolloff are those of the long-term power spectrum, so that pauses don't count. A figure that isn't
    defined (pitch without voiced frames, spectrum of digital silence, anything of an empty waveform) is None.

    Args:
        waveform: [num_samples] float, mono, full scale 1.
        sample_rate_hz: sample rate.

    Returns:
        One entry for each of STATISTIC_NAMES: levels in dB of full scale (not below -120), fractions from 0 to 1,
        the others in Hz.

    Raises:
        InputError: the waveform has several channels or samples that are not finite.
    """
    waveform = _checked(waveform)
    result: Statistics = dict.fromkeys(STATISTIC_NAMES)
    if waveform.size == 0:
        return result
    rms_dbfs, peak_dbfs = _decibels(np.mean(waveform**2)), _decibels(np.max(waveform**2))
    signs = waveform >= 0
    result["rms_dbfs"] = float(rms_dbfs)
    result["peak_dbfs"] = float(peak_dbfs)
    result["silence_fraction"] = float(np.mean(_frame_levels_dbfs(waveform, sample_rate_hz) < SILENT_FRAME_DBFS))
    result["clipped_fraction"] = float(np.mean(np.abs(waveform) >= CLIPPED_AMPLITUDE))
    result["zero_crossing_rate_hz"] = float(np.count_nonzero(signs[1:] != signs[:-1]) * sample_rate_hz / waveform.size)
    if not np.any(waveform):
        result["voiced_fraction"] = 0.0
        return result
    result["crest_factor_db"] = float(peak_dbfs - rms_dbfs)
    power = _power_spectrogram(waveform, sample_rate_hz).mean(axis=1)
    frequencies_hz = np.linspace(0, sample_rate_hz / 2, power.size)
    result["spectral_centroid_hz"] = float(frequencies_hz @ power / power.sum())
    cumulative = np.cumsum(power)
    result["spectral_rolloff_hz"] = float(
        frequencies_hz[np.searchsorted(cumulative, ROLLOFF_FRACTION * cumulative[-1])]
    )
    f0_hz, num_frames = _voiced_f0_hz(waveform, sample_rate_hz)
    result["voiced_fraction"] = f0_hz.size / num_frames
    if f0_hz.size:
        low, median, high = np.percentile(f0_hz, (25, 50, 75))
        result["f0_median_hz"], result["f0_iqr_hz"] = float(median), float(high - low)
    return result


def average(of_waveforms: Iterable[Statistics]) -> Statistics:
    """Mean of every statistic over the waveforms for which it is defined; None where it is for none."""
    rows = list(of_waveforms)
    known = {name: [value for row in rows if (value := row[name]) is not None] for name in STATISTIC_NAMES}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def long_term_spectrum_db(waveforms: Iterable[np.ndarray], sample_rate_hz: int) -> np.ndarray:
    """Average power in each of 40 mel bands over all frames of all waveforms, relative to the total power.

    Relative, so that two sets that differ in loudness only have the same spectrum.

    Returns:
        [40] float64, dB; not below -80, so that an empty band of the real speech doesn't decide a distance.

    Raises:
        InputError: the waveforms hold no sound at all, or a sample that is not finite.
    """
    total = np.zeros(NUM_BANDS)
    for waveform in waveforms:
        if waveform.size:
            total += _band_power(_checked(waveform), sample_rate_hz).sum(axis=1)
    if not total.sum() > 0:
        raise InputError("long_term_spectrum_db: waveforms=silent, must hold some sound; leave silent ones out.")
    return np.asarray(10 * np.log10(np.maximum(total / total.sum(), 10 ** (BAND_FLOOR_DB / 10))))


def spectrum_distance_db(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference in dB over the bands of two long-term spectra."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


def log_spectral_distance_db(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> float:
    """How far two aligned waveforms are apart, frame by frame: small where one is recognisable in the other.

    For each frame the root mean square over 40 mel bands of the difference in dB; the mean over frames in which either
    is above the floor, which is 80 dB below the strongest band of the two waveforms. Level counts.

    Args:
        a: [num_samples] float.
        b: [num_samples] float, sample for sample beside a.
        sample_rate_hz: sample rate of both.

    Returns:
        Distance in dB; 0 where both are silent.

    Raises:
        InputError: the lengths differ, or a sample is not finite.
    """
    if a.shape != b.shape:
        raise InputError(
            f"log_spectral_distance_db: lengths {a.size} and {b.size} must agree; cut both to the shorter."
        )
    power = np.stack([_band_power(_checked(a), sample_rate_hz), _band_power(_checked(b), sample_rate_hz)])
    floor = power.max(initial=0.0) * 10 ** (BAND_FLOOR_DB / 10)
    audible = (power > floor).any(axis=(0, 1))
    if not audible.any():
        return 0.0
    level_db = 10 * np.log10(np.maximum(power[:, :, audible], floor))
    return float(np.mean(np.sqrt(np.mean((level_db[0] - level_db[1]) ** 2, axis=0))))


def check(waveform: np.ndarray, sample_rate_hz: int) -> list[str]:
    """What is audibly wrong with a waveform: one line a fault, none for ordinary speech.

    Silence: level below -60 dBFS, or over 60 % of frames (in 558 real prompts 43 % are below -50 at most). Bursts: a
    peak over 22 dB above the level (of 1,160 real seconds 19.1 dB at most), as clicks and runaway oscillations have.
    Clipping: over 0.5 % of samples at full scale. DC: mean beyond 0.02 of full scale.
    Noise: over the frames above -45 dBFS, half or more of all frames, a median spectral flatness over 0.2 (white
    noise 0.56, the flattest of 558 real prompts 0.08).
    """
    if waveform.size == 0:
        return ["empty: no samples"]
    num_not_finite = int(np.count_nonzero(~np.isfinite(waveform)))
    if num_not_finite:
        return [f"not finite: {num_not_finite} of {waveform.size} samples"]
    waveform = _checked(waveform)
    level_dbfs = float(_decibels(np.mean(waveform**2)))
    if level_dbfs < SILENCE_DBFS:
        return [f"silence: level {level_dbfs:.0f} dBFS"]
    warnings = []
    silent = float(np.mean(_frame_levels_dbfs(waveform, sample_rate_hz) < SILENT_FRAME_DBFS))
    if silent > SILENT_FRACTION:
        warnings.append(f"mostly silence: {silent:.0%} of frames below {SILENT_FRAME_DBFS:.0f} dBFS")
    crest_factor_db = float(_decibels(np.max(np.abs(waveform)) ** 2)) - level_dbfs
    if crest_factor_db > BURST_CREST_FACTOR_DB:
        warnings.append(f"bursts: peak {crest_factor_db:.0f} dB above the level")
    clipped = float(np.mean(np.abs(waveform) >= CLIPPED_AMPLITUDE))
    if clipped > CLIPPED_FRACTION:
        warnings.append(f"clipping: {clipped:.1%} of samples at full scale")
    offset = float(np.mean(waveform))
    if abs(offset) > DC_OFFSET:
        warnings.append(f"DC: mean {offset:+.3f} of full scale")
    power = _power_spectrogram(waveform - offset, sample_rate_hz)[1:]
    loud = 10 * np.log10(np.maximum(_frame_mean_square(power), 1e-12)) > NOISE_DBFS
    if 2 * loud.sum() >= loud.size:
        flatness = float(np.median(_flatness(power[:, loud])))
        if flatness > NOISE_FLATNESS:
            warnings.append(f"noise: spectral flatness {flatness:.2f} at {level_dbfs:.0f} dBFS")
    return warnings


def _checked(waveform: np.ndarray) -> np.ndarray:
    if waveform.ndim != 1:
        raise InputError(f"waveform: shape {waveform.shape} must be mono, [num_samples]; mix the channels first.")
    if not np.isfinite(waveform).all():
        raise InputError(f"waveform: {waveform.size} samples must all be finite; drop this waveform.")
    return waveform.astype(np.float64)


def _decibels(mean_square: np.ndarray | np.floating) -> np.ndarray:
    return np.asarray(10 * np.log10(np.maximum(mean_square, 10 ** (LEVEL_FLOOR_DBFS / 10))))


def _frame_levels_dbfs(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Level of each whole frame of 30 ms, or of the one shorter frame that a short waveform is; [num_frames]."""
    frame_length = min(waveform.size, max(1, round(FRAME_SECONDS * sample_rate_hz)))
    num_frames = waveform.size // frame_length
    return _decibels(np.mean(waveform[: num_frames * frame_length].reshape(num_frames, frame_length) ** 2, axis=1))


def _fft_length(sample_rate_hz: int) -> int:
    """Power of two that spans 32 to 64 ms at any rate, so that the narrowest mel band always holds a bin."""
    return 1 << int(np.ceil(np.log2(0.032 * sample_rate_hz)))


def _power_spectrogram(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Hann-windowed power, [1 + fft_length // 2, num_frames], frames covering every sample; zeros beyond the ends."""
    length = _fft_length(sample_rate_hz)
    padded = np.pad(waveform, (0, max(0, length - waveform.size)))
    spectrum = librosa.stft(padded, n_fft=length, hop_length=length // 2, pad_mode="constant")
    return cast(np.ndarray, np.abs(spectrum) ** 2)


def _frame_mean_square(power: np.ndarray) -> np.ndarray:
    """Mean square of the waveform in each frame by Parseval: 0.375 is that of a Hann window; [num_frames]."""
    fft_length = 2 * power.shape[0]
    return np.asarray(2 * power.sum(axis=0) / (0.375 * fft_length**2))


def _flatness(power: np.ndarray) -> np.ndarray:
    """Geometric over arithmetic mean of the bins of each frame; [num_frames]."""
    return np.asarray(np.exp(np.mean(np.log(np.maximum(power, 1e-20)), axis=0)) / np.maximum(power.mean(axis=0), 1e-20))


def _band_power(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    filters = librosa.filters.mel(sr=sample_rate_hz, n_fft=_fft_length(sample_rate_hz), n_mels=NUM_BANDS, norm=None)
    return cast(np.ndarray, filters @ _power_spectrogram(waveform, sample_rate_hz))


def _voiced_f0_hz(waveform: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, int]:
    """Pitch of the voiced frames, [num_voiced], and the number of all frames, by probabilistic YIN every 16 ms."""
    # YIN must see two periods of the lowest pitch; 64 ms hold nearly four.
    frame_length = 4 * round(0.016 * sample_rate_hz)
    highest_hz = min(F0_RANGE_HZ[1], sample_rate_hz / 4)
    padded = np.pad(waveform, (0, max(0, frame_length - waveform.size)))
    f0_hz, voiced, _ = librosa.pyin(
        padded, fmin=F0_RANGE_HZ[0], fmax=highest_hz, sr=sample_rate_hz, frame_length=frame_length
    )
    return f0_hz[voiced], voiced.size
