"""The mixture of logistics as a distribution over tokens: sums to 1, to the last bit of it, and can be drawn from."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audio_ct.errors import InputError
from audio_ct.evaluation.likelihood import coarser_cells
from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.interface import num_parameters
from audio_ct.models.linear_prediction import LinearPredictionSettings
from audio_ct.models.mixture import BACKGROUND, MixtureOfLogistics
from audio_ct.models.wavenet import WaveNet
from audio_ct.recipe import Recipe
from audio_ct.sampling.filters import draw

BATCH = 6


def parameters(mixture: MixtureOfLogistics, centred: bool, size: float = 1.0, dtype: Any = torch.float64) -> Tensor:
    torch.manual_seed(0)
    readout = nn.Linear(5, mixture.num_outputs).to(dtype)
    centre = None
    if centred:
        scale = mixture.vocabulary_size
        centre = torch.stack([(torch.rand(BATCH) - 0.5) * scale, torch.rand(BATCH) * scale / 50], dim=-1).double()
    return mixture.parameters(readout, size * torch.randn(BATCH, 5, dtype=dtype), centre)


@pytest.mark.parametrize("vocabulary_size", [2, 3, 11, 256, 65536])
@pytest.mark.parametrize("centred", [True, False])
def test_it_is_one_distribution_however_it_is_asked(vocabulary_size: int, centred: bool) -> None:
    mixture = MixtureOfLogistics(vocabulary_size)
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
        assert torch.equal(mixture.draw(told, uniform), draw(distribution.exp(), uniform))
    ends = torch.tensor([0.0, 1 - 2**-24] * (BATCH // 2))
    assert torch.all((mixture.draw(told, ends) >= 0) & (mixture.draw(told, ends) < vocabulary_size))


def test_a_cell_has_what_its_tokens_have_together() -> None:
    mixture = MixtureOfLogistics(1024)
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
    sizes = {"num_stacks": 1, "layers_per_stack": 1, "residual_channels": 2, "skip_channels": 2}
    model = WaveNet(vocabulary_size=8, **sizes)
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
    mixture = MixtureOfLogistics(65536)
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
    mixture = MixtureOfLogistics(65536)
    for centred in (True, False):
        told = parameters(mixture, centred)
        # Around the means of components, where the probability is.
        uniform = torch.linspace(0.01, 0.99, BATCH)
        tokens = mixture.draw(told, uniform)
        exact = mixture.nats(told, tokens)
        torch.testing.assert_close(mixture.nats(told.float(), tokens).double(), exact, atol=1e-3, rtol=0)


def test_a_prediction_is_where_the_distribution_stands() -> None:
    mixture = MixtureOfLogistics(65536)
    torch.manual_seed(0)
    readout = nn.Linear(3, mixture.num_outputs)
    nn.init.zeros_(readout.bias)
    predicted = torch.tensor([-20000.0, 22000.0, 25000.0, 30000.0]).double()
    for expected in (100.0, 1000.0):
        centre = torch.stack([predicted, torch.full((4,), expected).double()], dim=-1)
        told = mixture.parameters(readout, torch.zeros(4, 3), centre)
        middle = mixture.draw(told, torch.full((4,), 0.5)) - 65535 / 2
        torch.testing.assert_close(middle.double(), predicted, atol=1.0, rtol=0)
        quartile = mixture.draw(told, torch.full((4,), 0.25)) - 65535 / 2
        assert torch.all((predicted - quartile > expected / 4) & (predicted - quartile < 4 * expected))


@pytest.mark.parametrize("linear_prediction", [None, LinearPredictionSettings(order=4, windows=[50], frame_length=4)])
def test_a_model_of_16_bits_is_small(linear_prediction: LinearPredictionSettings | None) -> None:
    both: dict[str, Any] = {"output": "mixture_of_logistics", "embedding": "sinusoidal", "vocabulary_size": 65536}
    both["linear_prediction"] = linear_prediction
    sizes = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8, "segment_length": 4, "memory_length": 4}
    assert num_parameters(CompressiveTransformer(**sizes, **both)) < 5000  # type: ignore[arg-type]
    sizes = {"num_stacks": 1, "layers_per_stack": 2, "residual_channels": 8, "skip_channels": 8}
    assert num_parameters(WaveNet(**sizes, **both)) < 5000


def test_it_learns_a_distribution_with_two_humps() -> None:
    torch.manual_seed(0)
    mixture = MixtureOfLogistics(256)
    readout = nn.Linear(1, mixture.num_outputs)
    optimizer = torch.optim.Adam(readout.parameters(), lr=0.02)
    hidden = torch.ones(64, 1)
    for _ in range(300):
        tokens = torch.randint(2, (64,)) * 100 + 60 + torch.randint(4, (64,))
        loss = mixture.nats(mixture.parameters(readout, hidden, None), tokens).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Three bits.
    assert loss < 1.25 * 2.0794


def test_bytes_have_no_amplitude(byte_store_path: Any, tmp_path: Any) -> None:
    from audio_ct.training.loop import train

    recipe = {
        "name": "none",
        "corpus": {"store": str(byte_store_path)},
        "model": {"kind": "wavenet", "num_stacks": 1, "layers_per_stack": 1, "residual_channels": 2}
        | {"skip_channels": 2, "output": "mixture_of_logistics"},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"batch_size": 1, "window_length": 8, "max_tokens": 8},
    }
    with pytest.raises(InputError, match="bytes"):
        train(Recipe.model_validate(recipe), tmp_path / "run")
