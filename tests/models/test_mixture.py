"""The mixture of logistics as a distribution over tokens: sums to 1, to the last bit of it, and can be drawn from."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audio_ct.evaluation.likelihood import coarser_cells
from audio_ct.models.build import build_model
from audio_ct.models.heads import SoftmaxHead, draw_from
from audio_ct.models.linear_prediction import Prediction
from audio_ct.models.mixture import BACKGROUND, MixtureHead
from audio_ct.models.settings import TransformerXLSettings, WaveNetSettings
from audio_ct.models.token_model import num_parameters

BATCH = 6


def head(vocabulary_size: int, channels: int = 5) -> MixtureHead:
    torch.manual_seed(0)
    return MixtureHead(nn.Identity(), channels, vocabulary_size=vocabulary_size)


def parameters(mixture: MixtureHead, centred: bool, size: float = 1.0, dtype: Any = torch.float64) -> Tensor:
    torch.manual_seed(0)
    mixture.to(dtype)
    prediction = None
    if centred:
        scale = mixture.vocabulary_size
        centre, error = (torch.rand(BATCH, 1) - 0.5) * scale, torch.rand(BATCH, 1) * scale / 50
        prediction = Prediction(centre.double()[..., None], error.double()[..., None], None, None)
    return mixture(size * torch.randn(BATCH, 1, 5, dtype=dtype), prediction)[:, 0]


@pytest.mark.parametrize("vocabulary_size", [2, 3, 11, 256, 65536])
@pytest.mark.parametrize("centred", [True, False])
def test_it_is_one_distribution_however_it_is_asked(vocabulary_size: int, centred: bool) -> None:
    mixture = head(vocabulary_size)
    told = parameters(mixture, centred)
    distribution = mixture.distribution(told)
    assert distribution.shape == (BATCH, vocabulary_size)
    torch.testing.assert_close(distribution.exp().sum(dim=-1), torch.ones(BATCH).double(), atol=1e-10, rtol=0)
    tokens = torch.tensor([0, 1, vocabulary_size // 2, vocabulary_size - 2, vocabulary_size - 1, -1])
    nats = mixture.nats(told, tokens)
    assert nats[-1] == 0
    expected = -distribution[:-1].gather(-1, tokens[:-1, None])[:, 0]
    torch.testing.assert_close(nats[:-1], expected, atol=1e-12, rtol=0)
    for _ in range(20):
        uniform = torch.rand(BATCH)
        assert torch.equal(mixture.draw(told, uniform), draw_from(distribution.exp(), uniform))
    ends = torch.tensor([0.0, 1 - 2**-24] * (BATCH // 2))
    assert torch.all((mixture.draw(told, ends) >= 0) & (mixture.draw(told, ends) < vocabulary_size))


def test_a_cell_has_what_its_tokens_have_together() -> None:
    mixture = head(1024)
    told = parameters(mixture, centred=True)
    first, last = coarser_cells(10, 4)
    assert len(first.unique()) == 16
    assert torch.equal(first.unique()[1:], last.unique()[:-1] + 1)
    summed = torch.zeros(BATCH, 1024).double().index_add(1, first, mixture.distribution(told).exp())
    for token in (0, 1, 500, 511, 512, 700, 1023):
        cell = (each[token].expand(BATCH) for each in (first, last))
        torch.testing.assert_close(mixture.nats_between(told, *cell), -summed[:, first[token]].log())
    assert mixture.nats_between(told, torch.zeros(BATCH).long(), torch.full((BATCH,), 1023)).abs().max() < 1e-12


def test_a_softmax_has_cells_too() -> None:
    torch.manual_seed(0)
    model = SoftmaxHead(nn.Identity(), 2, vocabulary_size=8)
    logits = torch.randn(3, 8)
    first, last = torch.tensor([0, 1, -1]), torch.tensor([0, 3, -1])
    probabilities = logits.softmax(dim=-1)
    expected = torch.stack([-probabilities[0, 0].log(), -probabilities[1, 1:4].sum().log(), torch.tensor(0.0)])
    torch.testing.assert_close(model.nats_between(logits, first, last), expected)
    torch.testing.assert_close(model.nats(logits, first)[[0, 2]], expected[[0, 2]])
    assert model.distribution(logits) is logits


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("centred", [True, False])
def test_nothing_extreme_is_not_finite(size: float, centred: bool) -> None:
    mixture = head(65536)
    told = parameters(mixture, centred, size, torch.float32).detach().requires_grad_()
    assert told.dtype == torch.float32
    for tokens in ([0, 1, 2, 32766, 32767, 32768], [65535, 65534, 40000, 20000, -1, 32769]):
        nats = mixture.nats(told, torch.tensor(tokens))
        # Every token has its share of the background.
        assert torch.all(nats < -torch.tensor(BACKGROUND / 65536).log() + 1e-3)
        (gradient,) = torch.autograd.grad(nats.sum(), told)
        assert torch.all(nats.isfinite())
        assert torch.all(gradient.isfinite())


def test_float32_is_as_good_for_16_bits() -> None:
    mixture = head(65536)
    for centred in (True, False):
        told = parameters(mixture, centred)
        # Around the means of components, where the probability is.
        uniform = torch.linspace(0.01, 0.99, BATCH)
        tokens = mixture.draw(told, uniform)
        exact = mixture.nats(told, tokens)
        torch.testing.assert_close(mixture.nats(told.float(), tokens).double(), exact, atol=1e-3, rtol=0)


def test_a_prediction_is_where_the_distribution_stands() -> None:
    mixture = head(65536)
    nn.init.zeros_(mixture.readout.bias)
    predicted = torch.tensor([-20000.0, 22000.0, 25000.0, 30000.0]).double()
    for expected in (100.0, 1000.0):
        prediction = Prediction(predicted[:, None, None], torch.full((4, 1, 1), expected).double(), None, None)
        told = mixture(torch.zeros(4, 1, 5), prediction)[:, 0]
        middle = mixture.draw(told, torch.full((4,), 0.5)) - 65535 / 2
        torch.testing.assert_close(middle.double(), predicted, atol=1.0, rtol=0)
        quartile = mixture.draw(told, torch.full((4,), 0.25)) - 65535 / 2
        assert torch.all((predicted - quartile > expected / 4) & (predicted - quartile < 4 * expected))


@pytest.mark.parametrize("linear_prediction", [None, {"order": 4, "windows": [50], "frame_length": 4}])
def test_a_model_of_16_bits_is_small(linear_prediction: dict[str, Any] | None) -> None:
    both: dict[str, Any] = {"output": "mixture_of_logistics", "embedding": "sinusoidal"}
    both["linear_prediction"] = linear_prediction
    sizes = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8, "segment_length": 4, "memory_length": 4}
    assert num_parameters(build_model(TransformerXLSettings(**sizes, **both), 65536)) < 5000
    sizes = {"num_stacks": 1, "layers_per_stack": 2, "residual_channels": 8, "skip_channels": 8}
    assert num_parameters(build_model(WaveNetSettings(**sizes, **both), 65536)) < 5000


def test_it_learns_a_distribution_with_two_humps() -> None:
    mixture = head(256, channels=1)
    optimizer = torch.optim.Adam(mixture.parameters(), lr=0.02)
    hidden = torch.ones(64, 1, 1)
    for _ in range(300):
        tokens = torch.randint(2, (64,)) * 100 + 60 + torch.randint(4, (64,))
        loss = mixture.nats(mixture(hidden, None)[:, 0], tokens).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Three bits.
    assert loss < 1.25 * 2.0794
