"""Convolutions with queues against torch's own over the whole stream, and how far back WaveNet sees."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from audio_ct.models.build import build_model
from audio_ct.models.gated_convolutions import GatedConvolution
from audio_ct.models.settings import WaveNetSettings


def stream(channels: int, length: int = 23) -> Tensor:
    return torch.randn(2, length, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("skip_channels", [0, 3])
def test_the_gated_convolution_is_torchs(width: int, dilation: int, skip_channels: int) -> None:
    torch.manual_seed(0)
    layer = GatedConvolution(5, skip_channels=skip_channels, width=width, dilation=dilation).double()
    x = stream(5)
    kernel = layer.filter_gate.weight.view(10, width, 5).transpose(1, 2)
    padded = F.pad(x.transpose(1, 2), (layer.queue_length, 0))
    filtered, gate = F.conv1d(padded, kernel, layer.filter_gate.bias, dilation=dilation).chunk(2, dim=1)
    mixed = F.conv1d(filtered.tanh() * gate.sigmoid(), layer.mix.weight[:, :, None], layer.mix.bias).transpose(1, 2)

    queue = x.new_zeros(2, layer.queue_length, 5)
    outputs, skips = [], []
    for window in x.split([1, 2, 9, 1, 10], dim=1):
        output, skip, queue = layer(window, queue)
        outputs.append(output)
        skips.append(skip)
    torch.testing.assert_close(torch.cat(outputs, 1), x + mixed[..., :5], atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cat(skips, 1), mixed[..., 5:], atol=1e-12, rtol=0)
    assert torch.equal(queue, x[:, -layer.queue_length :])
    # As in the docstring: with queue [1 2] and x = [3 4 5] the queue afterwards is [4 5].
    assert layer.lags == [tap * dilation for tap in range(width)]


@pytest.mark.parametrize(("width", "stacks", "layers"), [(2, 1, 1), (2, 2, 3), (3, 2, 3), (2, 3, 4)])
def test_wavenets_receptive_field_by_gradient(width: int, stacks: int, layers: int) -> None:
    torch.manual_seed(0)
    settings = WaveNetSettings(
        num_stacks=stacks, layers_per_stack=layers, residual_channels=4, skip_channels=4, width=width
    )
    model = build_model(settings, 4).double()
    length = settings.receptive_field + 5
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits = model(torch.randint(4, (1, length)), model.initial_state(1, dtype=torch.float64)).logits
    (gradient,) = torch.autograd.grad(logits[0, -1].square().sum(), embedded)
    reached = gradient[0].abs().sum(-1) > 0
    assert not reached[: length - settings.receptive_field].any()
    assert reached[length - settings.receptive_field :].all()


@pytest.mark.parametrize(("width", "samples"), [(2, 3070), (3, 6139)])
def test_the_published_wavenet_sees_3070_samples(width: int, samples: int) -> None:
    published = {"num_stacks": 3, "layers_per_stack": 10, "residual_channels": 2, "skip_channels": 2}
    assert WaveNetSettings(**published, width=width).receptive_field == samples
