"""What only a GPU can show: a captured step makes the samples of a plain one."""

from typing import Any

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


@pytest.mark.parametrize("model", [compressive_transformer(), wavenet()])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_captured_step_makes_the_samples_of_a_plain_one(model: TokenModel, weights: Any) -> None:
    samplers = [
        Sampler(model, num_waveforms=3, options=EngineOptions(compiled=compiled, weights=weights), device="cuda")
        for compiled in (False, True)
    ]
    for seed in (0, 5):
        plain, captured = (made(sampler, seed) for sampler in samplers)
        assert captured.shape == (3, LENGTH)
        # Rounding sends a waveform another way sooner or later; a wrong cache or place would do so at once.
        same = (plain == captured)[:, : 100 if weights == "float32" else 10].float().mean()
        assert same > 0.8
    assert torch.equal(made(samplers[1], 0), made(samplers[1], 0))


def test_a_captured_round_of_speculation_makes_the_samples_of_a_plain_one() -> None:
    plain, captured = (
        made(
            SpeculativeSampler(
                compressive_transformer(), wavenet(), options=EngineOptions(compiled=compiled), device="cuda"
            ),
            0,
        )
        for compiled in (False, True)
    )
    assert (plain == captured)[:, :50].float().mean() > 0.8
