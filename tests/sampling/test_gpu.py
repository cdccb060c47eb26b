"""What only a GPU can show: a captured step makes the samples of a plain one.

The shape checks that all tests run under cannot be compiled, so this file is run as a program of its own.
"""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.interface import TokenModel
from audio_ct.models.linear_prediction import LinearPredictionSettings
from audio_ct.models.wavenet import WaveNet
from audio_ct.sampling.engine import EngineOptions, Sampler
from audio_ct.sampling.speculation import SpeculativeSampler

pytestmark = pytest.mark.gpu

SETTINGS = LinearPredictionSettings(order=8, windows=[100, 25], frame_length=16)
# Over several frames and segments, and into a second block.
LENGTH = 2100


def compressive_transformer() -> TokenModel:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 128, "segment_length": 64, "memory_length": 64}
    memory = {"compressed_memory_length": 32, "compression_rate": 4}
    local = {"front_dilations": [1, 2, 4], "short_convolution_width": 4, "linear_prediction": SETTINGS}
    return CompressiveTransformer(vocabulary_size=256, **sizes, **memory, **local)


def wavenet() -> TokenModel:
    torch.manual_seed(1)
    sizes = {"num_stacks": 1, "layers_per_stack": 6, "residual_channels": 32, "skip_channels": 32}
    return WaveNet(vocabulary_size=256, **sizes, linear_prediction=SETTINGS)


def made(sampler: Sampler | SpeculativeSampler, seed: int) -> Tensor:
    return torch.cat(list(sampler.generate(num_samples=LENGTH, start_token=128, seed=seed)), dim=1)


def same(plain: Tensor, captured: Tensor, length: int) -> None:
    """Fail where waveforms part at once; rounding sends them another way sooner or later."""
    assert captured.shape == plain.shape
    assert (plain == captured)[:, :length].float().mean() > 0.8


def check_steps(weights: str) -> None:
    for model in (compressive_transformer(), wavenet()):
        plain, captured = (
            Sampler(
                model,
                num_waveforms=3,
                options=EngineOptions(compiled=compiled, weights=weights),  # type: ignore[arg-type]
                device="cuda",
            )
            for compiled in (False, True)
        )
        for seed in (0, 5):
            same(made(plain, seed), made(captured, seed), 100 if weights == "float32" else 10)
        assert torch.equal(made(captured, 0), made(captured, 0))


def check_speculation() -> None:
    models = compressive_transformer(), wavenet()
    for num_drafted in (3, 12):
        plain, captured = (
            SpeculativeSampler(
                *models, num_drafted=num_drafted, options=EngineOptions(compiled=compiled), device="cuda"
            )
            for compiled in (False, True)
        )
        same(made(plain, 0), made(captured, 0), 50)


@pytest.mark.parametrize("check", ["float32", "bfloat16", "int8", "speculation"])
def test_what_is_captured_makes_the_samples_of_what_is_not(check: str) -> None:
    done = subprocess.run([sys.executable, __file__, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    if sys.argv[1] == "speculation":
        check_speculation()
    else:
        check_steps(sys.argv[1])
