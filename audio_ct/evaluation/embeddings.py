"""What networks trained on speech hear: the Fréchet distance of voices, their diversity, and a mean opinion score.

They come with the extra `eval`: Resemblyzer 0.1.4 (an embedding of 256 by an LSTM trained to tell speakers apart; Wan
et al. 2018, "Generalized end-to-end loss for speaker verification") and DNSMOS P.835 (Reddy et al. 2022, for scoring
noise suppressors). Both hear 16 kHz, and their weights are in their packages.

Why DNSMOS and not DistillMOS 0.9.1, tried on 32 windows of 1.5 s of prompts: DNSMOS gives 2.6 for the speech, 1.8 with
white noise 10 dB below it, 1.1 for phase-scrambled speech and for noise alone (and 1.8 for silence, which other figures
catch); DistillMOS gives 2.9, 2.6, 1.9, 2.2 and 2.0. DNSMOS takes 0.7 s of a core for each, and DistillMOS hardly less.
DNSMOS needs 10 MB and onnxruntime, DistillMOS nearly 200 MB with all of transformers.
"""

from importlib.util import find_spec

import numpy as np
import soxr
import torch
from torchaudio.functional import frechet_distance

INSTALL = "pip install 'audio-ct[eval]'"
SAMPLE_RATE_HZ = 16_000
EMBEDDED_DBFS = -30.0
# Beyond it, axes cost more in noise of the covariances than they tell: see `principal_axes`.
NUM_AXES = 8
# DNSMOS hears 9.01 s and takes 0.7 s for it: more waveforms of a set are left out.
MOS_SAMPLES = int(9.01 * SAMPLE_RATE_HZ)
MAX_MOS_WAVEFORMS = 16


def installed() -> bool:
    """Whether the packages of the extra `eval` are here."""
    return all(find_spec(name) for name in ("resemblyzer", "webrtcvad", "speechmos", "onnxruntime"))


def embed(waveforms: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Embeddings of voices [num, 256], each of length 1, of waveforms [num, num_samples] at their own rate.

    All are brought to the level of -30 dBFS that the network was trained at; silence stays. What is shorter than its
    window of 1.6 s is followed by silence, as the package does.
    """
    from resemblyzer import VoiceEncoder

    encoder = VoiceEncoder("cpu", verbose=False)
    return np.stack([encoder.embed_utterance(_at_level(_resampled(one, sample_rate_hz))) for one in waveforms])


def mos(waveforms: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Overall quality by DNSMOS, 1 to 5, of the first 16 of waveforms [num, num_samples]; NaN for the others [num].

    Waveforms are repeated until they have 9.01 s, which is what the network hears.
    """
    from speechmos import dnsmos

    scores = np.full(len(waveforms), np.nan)
    for index, waveform in enumerate(waveforms[:MAX_MOS_WAVEFORMS]):
        heard = np.clip(_resampled(waveform, sample_rate_hz), -1, 1)
        heard = heard if heard.size > MOS_SAMPLES else np.resize(heard, MOS_SAMPLES)
        scores[index] = dnsmos.run(heard, SAMPLE_RATE_HZ)["ovrl_mos"]
    return scores


def principal_axes(real: np.ndarray) -> np.ndarray:
    """The 8 directions [8, 256] in which embeddings [num, 256] of real speech differ most.

    The covariance of 64 embeddings of 256 numbers has no full rank. On 64 windows of prompts in 19 languages, real
    against other real speech (40 draws), and phase-scrambled speech:

        axes   variance   real      deviation   scrambled
           4       35 %   0.0135       0.0047      0.084
           8       51 %   0.0237       0.0044      0.121
          16       71 %   0.0422       0.0061      0.185
          32       89 %   0.0745       0.0065      0.266
         256      100 %   0.2546       0.0106      0.758

    The floor grows faster than the distance; from 8 axes on the lead in deviations hardly does.
    """
    centred = real - real.mean(axis=0)
    return np.asarray(np.linalg.svd(centred, full_matrices=False)[2][:NUM_AXES])


def frechet(embeddings: np.ndarray, reference: np.ndarray, axes: np.ndarray) -> float:
    """Fréchet distance of two sets of embeddings [num, 256] on axes [num_axes, 256]: of their means and covariances.

    Biased upwards for small sets, so compare sets of one size only.
    """
    moments = []
    for each in (embeddings, reference):
        projected = torch.from_numpy(each.astype(np.float64) @ axes.T.astype(np.float64))
        moments += [projected.mean(dim=0), torch.cov(projected.T)]
    return float(frechet_distance(*moments))


def spread(embeddings: np.ndarray) -> float:
    """Mean cosine distance of the pairs of a set of embeddings [num, 256] of length 1; 0 where all are alike."""
    num = len(embeddings)
    of_pairs = (np.sum(embeddings.sum(axis=0) ** 2) - num) / (num * (num - 1))
    return float(1 - of_pairs)


def _resampled(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    if sample_rate_hz == SAMPLE_RATE_HZ:
        return waveform.astype(np.float32)
    return np.asarray(soxr.resample(waveform.astype(np.float32), sample_rate_hz, SAMPLE_RATE_HZ))


def _at_level(waveform: np.ndarray) -> np.ndarray:
    rms = float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
    return waveform if rms == 0 else (10 ** (EMBEDDED_DBFS / 20) / rms * waveform).astype(np.float32)
