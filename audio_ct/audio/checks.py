"""Audible faults of a waveform, as generated ones can have."""

import numpy as np

from audio_ct.audio.levels import SILENT_FRAME_DBFS, levels
from audio_ct.audio.spectrogram import power_spectrogram

# Real prompts stay clear of these limits; white noise has a flatness of 0.56 a frame.
SILENCE_DBFS = -60.0
SILENT_FRACTION = 0.6
BURST_CREST_FACTOR_DB = 22.0
CLIPPED_FRACTION = 0.005
DC_OFFSET = 0.02
NOISE_FLATNESS = 0.2
NOISE_DBFS = -45.0


def check(waveform: np.ndarray, sample_rate_hz: int) -> list[str]:
    """Describe each audible fault of a waveform in a line; ordinary speech has none.

    Silence: level below -60 dBFS, or over 60 % of frames (in 558 real prompts 43 % are below -50 at most). Bursts: a
    peak over 22 dB above the level (of 1,160 real seconds 19.1 dB at most), as clicks and runaway oscillations have.
    Clipping: over 0.5 % of samples at full scale. DC: mean beyond 0.02 of full scale.
    Noise: over the frames above -45 dBFS, half or more of all frames, a median spectral flatness over 0.2 (white
    noise 0.56, the flattest of 558 real prompts 0.08).

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
    offset = float(np.mean(waveform))
    if abs(offset) > DC_OFFSET:
        warnings.append(f"DC: mean {offset:+.3f} of full scale")
    power = power_spectrogram(waveform - offset, sample_rate_hz)[1:]
    loud = 10 * np.log10(np.maximum(_mean_square(power), 1e-12)) > NOISE_DBFS
    if 2 * loud.sum() >= loud.size:
        flatness = float(np.median(_flatness(power[:, loud])))
        if flatness > NOISE_FLATNESS:
            warnings.append(f"noise: spectral flatness {flatness:.2f} at {level.rms_dbfs:.0f} dBFS")
    return warnings


def _mean_square(power: np.ndarray) -> np.ndarray:
    """Mean square of the waveform in each frame by Parseval: 0.375 is that of a Hann window; [num_frames]."""
    fft_length = 2 * power.shape[0]
    return np.asarray(2 * power.sum(axis=0) / (0.375 * fft_length**2))


def _flatness(power: np.ndarray) -> np.ndarray:
    """Geometric over arithmetic mean of the bins of each frame; [num_frames]."""
    return np.asarray(np.exp(np.mean(np.log(np.maximum(power, 1e-20)), axis=0)) / np.maximum(power.mean(axis=0), 1e-20))
