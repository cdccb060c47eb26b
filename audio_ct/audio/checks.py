"""Audible faults of a waveform, as generated ones can have."""

import numpy as np

from audio_ct.audio.levels import ACTIVE_DBFS, SILENT_FRAME_DBFS, decibels, levels
from audio_ct.audio.spectrogram import power_spectrogram

# Real prompts stay clear of these limits; white noise has a flatness of 0.56 a frame.
SILENCE_DBFS = -60.0
SILENT_FRACTION = 0.6
BURST_CREST_FACTOR_DB = 22.0
CLIPPED_FRACTION = 0.005
DC_OFFSET = 0.02
NOISE_FLATNESS = 0.2
LOUD_DBFS = -10.0
UNVOICED_SECONDS = 1.0
UNVOICED_SOUND_SECONDS = 0.5
VOICED_FRACTION = 0.1
# A frame is voiced if it repeats itself so well at a distance of some pitch from 60 to 400 Hz.
VOICED_CORRELATION = 0.7
VOICED_HZ = (60.0, 400.0)
VOICED_FRAME_SECONDS = 0.04
VOICED_HOP_SECONDS = 0.02


def check(waveform: np.ndarray, sample_rate_hz: int) -> list[str]:
    """Describe each audible fault of a waveform in a line; ordinary speech has none.

    Silence: level below -60 dBFS, or over 60 % of frames (in 558 real prompts 43 % are below -50 at most). Bursts: a
    peak over 22 dB above the level (of 1,160 real seconds 19.1 dB at most), as clicks and runaway oscillations have.
    Clipping: over 0.5 % of samples at full scale. DC: mean beyond 0.02 of full scale.
    Noise: over the frames above -45 dBFS, half or more of all frames, a median spectral flatness over 0.2 (white
    noise 0.56, the flattest of 558 real prompts 0.08).
    Loud: level over -10 dBFS without clipping (4 of 2,609 windows of 1 to 1.5 s of two corpora of prompts, and 11 of
    their 1,850 recordings, all of them single letters or syllables).
    No voice: in a second or more with half a second of frames above -45 dBFS, under 10 % of those repeat themselves as
    voiced sounds do (12 of the same windows, 0.5 %; 7 of the recordings, of the letters f, l, s and x). It hears noise
    with formants, of which flatness tells nothing: of 400 windows whose excitation was replaced by noise it finds 53 %,
    the other checks 19 %.

    Args:
        waveform: [num_samples], full scale 1.
        sample_rate_hz: Its sample rate.
    """
    if waveform.size == 0:
        return ["empty: no samples"]
    num_not_finite = int(np.count_nonzero(~np.isfinite(waveform)))
    if num_not_finite:
        return [f"not finite: {num_not_finite} of {waveform.size} samples"]
    waveform = waveform.astype(np.float64)
    level = levels(waveform, sample_rate_hz)
    if level.rms_dbfs < SILENCE_DBFS:
        return [f"silence: level {level.rms_dbfs:.0f} dBFS"]
    warnings = []
    if level.silence_fraction > SILENT_FRACTION:
        warnings.append(f"mostly silence: {level.silence_fraction:.0%} of frames below {SILENT_FRAME_DBFS:.0f} dBFS")
    if level.crest_factor_db > BURST_CREST_FACTOR_DB:
        warnings.append(f"bursts: peak {level.crest_factor_db:.0f} dB above the level")
    if level.clipped_fraction > CLIPPED_FRACTION:
        warnings.append(f"clipping: {level.clipped_fraction:.1%} of samples at full scale")
    elif level.rms_dbfs > LOUD_DBFS:
        warnings.append(f"loud: level {level.rms_dbfs:.0f} dBFS")
    offset = float(np.mean(waveform))
    if abs(offset) > DC_OFFSET:
        warnings.append(f"DC: mean {offset:+.3f} of full scale")
    waveform = waveform - offset
    power = power_spectrogram(waveform, sample_rate_hz)[1:]
    loud = decibels(_mean_square(power)) > ACTIVE_DBFS
    flatness = float(np.median(_flatness(power[:, loud]))) if 2 * loud.sum() >= loud.size else 0.0
    if flatness > NOISE_FLATNESS:
        warnings.append(f"noise: spectral flatness {flatness:.2f} at {level.rms_dbfs:.0f} dBFS")
    elif waveform.size >= UNVOICED_SECONDS * sample_rate_hz:
        correlation = _periodicity(waveform, sample_rate_hz)
        if correlation.size * VOICED_HOP_SECONDS >= UNVOICED_SOUND_SECONDS:
            voiced = float(np.mean(correlation > VOICED_CORRELATION))
            if voiced < VOICED_FRACTION:
                warnings.append(f"no voice: {voiced:.0%} of sounding frames are voiced")
    return warnings


def _mean_square(power: np.ndarray) -> np.ndarray:
    """Mean square of the waveform in each frame by Parseval: 0.375 is that of a Hann window; [num_frames]."""
    fft_length = 2 * power.shape[0]
    return np.asarray(2 * power.sum(axis=0) / (0.375 * fft_length**2))


def _flatness(power: np.ndarray) -> np.ndarray:
    """Geometric over arithmetic mean of the bins of each frame; [num_frames]."""
    return np.asarray(np.exp(np.mean(np.log(np.maximum(power, 1e-20)), axis=0)) / np.maximum(power.mean(axis=0), 1e-20))


def _periodicity(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """How well each frame above -45 dBFS repeats itself at the best distance of a pitch, at most 1; [num_sounding].

    The normalised cross-correlation of a frame of 40 ms with the waveform as far later. It takes 1 ms for each second
    of audio, a hundredth of what `audio_ct.audio.pitch` takes.

    Source: Talkin 1995, "A robust algorithm for pitch tracking (RAPT)", section 3.
    """
    length, hop = (round(seconds * sample_rate_hz) for seconds in (VOICED_FRAME_SECONDS, VOICED_HOP_SECONDS))
    furthest, nearest = (round(sample_rate_hz / pitch_hz) for pitch_hz in VOICED_HZ)
    padded = np.pad(waveform, (0, furthest))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length + furthest)[::hop]
    energies = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    energies = energies[:, length:] - energies[:, : furthest + 1]
    sounding = decibels(energies[:, 0] / length) > ACTIVE_DBFS
    frames, energies = frames[sounding], np.maximum(energies[sounding], 1e-12)
    fft_length = 1 << (length + furthest - 1).bit_length()
    spectra = np.fft.rfft(frames, fft_length) * np.conj(np.fft.rfft(frames[:, :length], fft_length))
    correlations = np.fft.irfft(spectra, fft_length)[:, : furthest + 1] / np.sqrt(energies * energies[:, :1])
    return np.asarray(correlations[:, nearest:].max(axis=1, initial=0))
