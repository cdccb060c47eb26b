"""Linear prediction that listens to itself, without a network: what its ridge does to the level and the spectrum.

Every sample is the forecast and Laplace noise as large as the expected error, times --noise, as if a network had
learned nothing but that. Waveforms go on from half a second of real speech.

    python -m benchmarks.closed_loop stores/speech24 stores/speech16 --out benchmarks/results/closed_loop.json
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audio_ct.audio.levels import decibels
from audio_ct.audio.spectrogram import power_spectrogram
from audio_ct.evaluation.windows import Windows, real_windows
from audio_ct.models import linear_prediction
from audio_ct.models.settings import LinearPredictionSettings
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore

NUM_WAVEFORMS = 16
RIDGES = (1e-7, 1e-5, 1e-3)
CHUNK_TOKENS = 4000
# Less than rounding to a token leaves, the root of 1/12.
LEAST_ERROR_TOKENS = 0.25


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.8, 0.9, 1.0])
    parser.add_argument("--window", type=int, default=200, help="of the predictor, in samples")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for address in arguments.stores:
        store = TokenStore.open(address)
        codec = store.codec
        assert isinstance(codec, MuLawCodec)
        frame_length = LinearPredictionSettings().frame_length
        half = codec.sample_rate_hz // 2 // frame_length * frame_length
        windows = real_windows(store, codec, split="train", num=NUM_WAVEFORMS, num_samples=3 * half, seed=1)
        for ridge in RIDGES:
            # The module's constant is what is asked about.
            linear_prediction.RELATIVE_RIDGE = ridge
            settings = LinearPredictionSettings(order=32, windows=[arguments.window])
            predictor = linear_prediction.BackwardPredictor(codec.vocabulary_size, settings)
            bits = bits_of(predictor, codec, windows)
            for noise in arguments.noise:
                made = continue_alone(predictor, codec, windows, num_prompt=half, noise=noise)
                real = windows.waveforms[:, half:]
                row = {"store": store.name, "ridge": ridge, "noise": noise, "bits": bits, **figures(made, real, codec)}
                rows.append(row)
                print(" ".join(f"{key}={value:g}" if key != "store" else value for key, value in row.items()))
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def width(expected_error: Tensor) -> Tensor:
    """The mean distance of a Laplace distribution of tokens; the error was measured on rounded samples."""
    return expected_error.clamp_min(LEAST_ERROR_TOKENS) / math.sqrt(2)


@torch.no_grad()
def bits_of(predictor: linear_prediction.BackwardPredictor, codec: MuLawCodec, windows: Windows) -> float:
    """Bits per sample of the windows under the same Laplace distribution, without tails below e^-12 of its peak."""
    tokens = torch.from_numpy(windows.tokens.astype(np.int64))
    state = predictor.initial_state(len(tokens), "cpu")
    predicted, expected, _ = predictor(F.pad(tokens[:, :-1], (1, 0), value=codec.start_token), state)
    forecast, mean_distance = predicted[..., :1] + (codec.vocabulary_size - 1) / 2, width(expected[..., :1])
    nats, places = 0.0, torch.arange(codec.vocabulary_size)
    for begin in range(0, tokens.shape[1], CHUNK_TOKENS):
        part = slice(begin, begin + CHUNK_TOKENS)
        logits = (-(places - forecast[:, part]).abs() / mean_distance[:, part]).clamp_min(-12)
        nats += float(F.cross_entropy(logits.flatten(0, 1), tokens[:, part].flatten(), reduction="sum"))
    return nats / math.log(2) / tokens.numel()


@torch.no_grad()
def continue_alone(
    predictor: linear_prediction.BackwardPredictor,
    codec: MuLawCodec,
    windows: Windows,
    *,
    num_prompt: int,
    noise: float,
) -> np.ndarray:
    """Waveforms [num, num_samples - num_prompt] that go on from the windows' beginnings."""
    tokens = torch.from_numpy(windows.tokens.astype(np.int64))
    num_samples = tokens.shape[1] - num_prompt
    heard = F.pad(tokens[:, : num_prompt - 1], (1, 0), value=codec.start_token)
    _, _, state = predictor(heard, predictor.initial_state(len(tokens), "cpu"))
    caches = predictor.open_cache(state, num_samples)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(tokens), num_samples, generator=generator, dtype=torch.float64) - 0.5
    last, made = tokens[:, num_prompt - 1 : num_prompt], []
    for place, drawn in enumerate(uniform.unbind(1)):
        predicted, expected = predictor.read(last, caches, torch.tensor([place]))
        error = -noise * width(expected[:, 0, 0]) * drawn.sign() * torch.log1p(-2 * drawn.abs())
        forecast = predicted[:, 0, 0] + (codec.vocabulary_size - 1) / 2
        last = (forecast + error).round().clamp(0, codec.vocabulary_size - 1).long()[:, None]
        made.append(last)
        if (place + 1) % predictor.frame_length == 0 and place + 1 < num_samples:
            predictor.advance(caches, place + 1)
    return np.stack([codec.decode(each) for each in torch.cat(made, dim=1)])


def figures(made: np.ndarray, real: np.ndarray, codec: MuLawCodec) -> dict[str, Any]:
    """How far levels and the top of the band are from the real continuations, and how many run away or die."""
    off_db = decibels(np.mean(made**2, axis=1)) - decibels(np.mean(real**2, axis=1))

    def top_db(waveforms: np.ndarray) -> float:
        power = sum(power_spectrogram(each.astype(np.float64), codec.sample_rate_hz).sum(axis=1) for each in waveforms)
        assert isinstance(power, np.ndarray)
        return float(10 * np.log10(power[-len(power) // 4 :].sum() / power.sum()))

    return {
        "level_off_db": float(np.median(off_db)),
        "louder_by_6_db": float(np.mean(off_db > 6)),
        "quieter_by_20_db": float(np.mean(off_db < -20)),
        "full_scale": float(np.mean(np.abs(made) > 0.99)),
        "top_quarter_db": top_db(made),
        "top_quarter_real_db": top_db(real),
    }


if __name__ == "__main__":
    main()
