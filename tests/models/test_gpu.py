"""GPU only: its kernels give the CPU's numbers, in windows and in steps."""

import pytest
import torch
from torch import Tensor

from audio_ct.models.attention import dot_product_attention
from audio_ct.models.build import build_model
from audio_ct.models.positions import Causality
from audio_ct.models.settings import (
    CompressiveTransformerSettings,
    LinearPredictionSettings,
    ModelSettings,
    PitchSettings,
    TransformerXLSettings,
    WaveNetSettings,
)
from audio_ct.models.stage import flatten
from audio_ct.models.token_model import TokenModel

pytestmark = pytest.mark.gpu

STACK = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 128, "segment_length": 64, "memory_length": 64}
COMPRESSED = STACK | {"compressed_memory_length": 32, "compression_rate": 4}
WAVENET = {"num_stacks": 1, "layers_per_stack": 6, "residual_channels": 32, "skip_channels": 32}
PREDICTING = {"linear_prediction": LinearPredictionSettings()}
SETTINGS: dict[str, ModelSettings] = {
    "compressive-transformer": CompressiveTransformerSettings(**COMPRESSED),
    "compressive-transformer-post": CompressiveTransformerSettings(**COMPRESSED, norm="post"),
    "compressive-transformer-front": CompressiveTransformerSettings(
        **COMPRESSED, front_dilations=[1, 2, 4], embedding="sinusoidal", **PREDICTING
    ),
    "compressive-transformer-own-shared": CompressiveTransformerSettings(
        **COMPRESSED, compressed_positions="own", num_key_value_heads=1
    ),
    "compressive-transformer-most-used": CompressiveTransformerSettings(
        **COMPRESSED, compression={"function": "most_used", "loss": "none"}
    ),
    "compressive-transformer-around": CompressiveTransformerSettings(
        **COMPRESSED,
        convolutions="swiglu",
        front_dilations=[1, 2],
        back_dilations=[1],
        linear_prediction=LinearPredictionSettings(pitch=PitchSettings(), logistics=True),
    ),
    "transformer-xl": TransformerXLSettings(**STACK),
    "wavenet": WaveNetSettings(**WAVENET),
    "wavenet-predicting": WaveNetSettings(**WAVENET, **PREDICTING),
}


def build(name: str) -> TokenModel:
    torch.manual_seed(0)
    return build_model(SETTINGS[name], 256)


def tokens(length: int = 256) -> Tensor:
    walk = torch.randint(-6, 7, (2, length), generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    return (128 + walk).clamp(0, 255)


@pytest.mark.parametrize("name", SETTINGS)
def test_windows_are_the_cpus(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        expected = model(tokens(), model.initial_state(2)).logits
        model = model.cuda()
        got = model(tokens().cuda(), model.initial_state(2, "cuda"))
    torch.testing.assert_close(got.logits.cpu(), expected, atol=2e-3, rtol=1e-3)
    assert all(tensor.is_cuda for tensor in flatten(got.state).values())


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_windows(name: str) -> None:
    model = build(name).eval().cuda()
    stream = tokens(80 if name.startswith("wavenet") else 128).cuda()
    with torch.no_grad():
        expected = model(stream, model.initial_state(2, "cuda")).logits
        state, logits = model.initial_state(2, "cuda"), []
        for t in range(stream.shape[1]):
            row, state = model.step(stream[:, t], state)
            logits.append(row)
    torch.testing.assert_close(torch.stack(logits, dim=1), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_training_under_autocast_has_the_cpus_loss(name: str, precision: torch.dtype) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        model = build(name).train().to(device)
        stream = tokens().to(device)
        with torch.autocast(device, precision, enabled=device == "cuda"):
            output = model(stream[:, :-64], model.initial_state(2, device))
        loss = torch.nn.functional.cross_entropy(output.logits.float().flatten(0, 1), stream[:, 1:-63].flatten())
        (loss + sum(output.auxiliary_losses.values())).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        losses[device] = loss.item()
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 9), (64, 64), (64, 160)])
@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_and_its_gradients_are_the_plain_ones(
    dtype: torch.dtype, num_queries: int, num_keys: int, causal: bool
) -> None:
    causality = Causality(num_queries, num_keys) if causal else None
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 3, num_queries, 64), (2, 3, num_keys, 64), (2, 3, num_keys, 32))
    inputs = [torch.randn(shape, generator=random).to(dtype).float() * 0.3 for shape in shapes]
    results = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device, torch.float32 if device == "cpu" else dtype).requires_grad_() for x in inputs]
        out = dot_product_attention(*leaves, causality=causality)
        gradients = torch.autograd.grad(out.float().square().sum(), leaves)
        results.append([tensor.float().cpu() for tensor in (out, *gradients)])
    tolerance = 2e-4 if dtype == torch.float32 else 3e-2
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
