"""On a GPU a captured step makes the samples of a plain one.

The shape checks that all tests run under cannot be compiled, so this file is run as a program of its own.
"""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings, LinearPredictionSettings, WaveNetSettings
from audio_ct.sampling.engine import EngineOptions, Sampler

pytestmark = pytest.mark.gpu

PREDICTING = LinearPredictionSettings(order=8, windows=[100, 25], frame_length=16)
TRANSFORMER = CompressiveTransformerSettings(
    **{"num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 128, "segment_length": 64, "memory_length": 64},
    compressed_memory_length=32,
    front_dilations=[1, 2, 4],
    linear_prediction=PREDICTING,
)
WAVENET = WaveNetSettings(
    num_stacks=1, layers_per_stack=6, residual_channels=32, skip_channels=32, linear_prediction=PREDICTING
)
# Over several frames and segments, and into a second block.
LENGTH = 2100


def made(sampler: Sampler, seed: int) -> Tensor:
    return torch.cat(list(sampler.generate(num_samples=LENGTH, start_token=128, seed=seed)), dim=1)


def same(plain: Tensor, captured: Tensor, length: int) -> None:
    """Fail where waveforms part at once; rounding sends them another way sooner or later."""
    assert captured.shape == plain.shape
    assert (plain == captured)[:, :length].float().mean() > 0.8


def check_steps(weights: str) -> None:
    for settings in (TRANSFORMER, WAVENET):
        torch.manual_seed(0)
        model = build_model(settings, vocabulary_size=256).to("cuda")
        plain, captured = (
            Sampler(model, num_waveforms=3, options=EngineOptions(compiled=compiled, weights=weights))  # type: ignore[arg-type]
            for compiled in (False, True)
        )
        for seed in (0, 5):
            same(made(plain, seed), made(captured, seed), 100 if weights == "float32" else 10)
        assert torch.equal(made(captured, 0), made(captured, 0))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_captured_step_makes_the_samples_of_a_plain_one(weights: str) -> None:
    done = subprocess.run([sys.executable, __file__, weights], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    check_steps(sys.argv[1])
