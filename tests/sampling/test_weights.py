"""Weights laid out for sampling are the same linear maps; rounded ones are as near as their type allows."""

import pytest
import torch
from torch import Tensor, nn

from audio_ct.models.build import build_model
from audio_ct.models.settings import LinearPredictionSettings, WaveNetSettings
from audio_ct.models.token_model import TokenModel
from audio_ct.sampling.weights import Int8Linear, RowMajorLinear, with_weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 12), (121, 511), (32, 64), (1, 1)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 7)])
def test_layouts_are_the_same_map(inputs: int, outputs: int, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    x = torch.randn(*shape, inputs)
    torch.testing.assert_close(RowMajorLinear(linear)(x), linear(x))
    rounded = Int8Linear(linear)
    # The oracle: the weights that the 8 bits stand for, in full precision.
    expected = nn.functional.linear(x, rounded.weight, linear.bias)
    torch.testing.assert_close(rounded(x), expected, atol=0.02, rtol=0.02)
    step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((rounded.weight - linear.weight).abs() <= step * 0.5001).all()


def test_an_output_without_weights_stays_zero() -> None:
    linear = nn.Linear(4, 3, bias=False).requires_grad_(False)
    linear.weight[1] = 0
    y = Int8Linear(linear)(torch.randn(2, 4))
    assert y.isfinite().all()
    assert (y[:, 1] == 0).all()


@pytest.mark.parametrize(("weights", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1), ("int8", 0.1)])
def test_a_model_keeps_its_predictions_and_is_left_alone(weights: str, tolerance: float) -> None:
    torch.manual_seed(0)
    predicting = LinearPredictionSettings(order=3, windows=[9], frame_length=4)
    sizes = {"num_stacks": 1, "layers_per_stack": 4, "residual_channels": 24, "skip_channels": 24}
    model = build_model(WaveNetSettings(**sizes, linear_prediction=predicting), vocabulary_size=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.randint(32, (2, 64))

    def logits(one: TokenModel, dtype: torch.dtype = torch.float32) -> Tensor:
        with torch.no_grad():
            return one(tokens, one.initial_state(2, dtype=dtype)).logits.float()

    copy = with_weights(model, weights)  # type: ignore[arg-type]
    difference = logits(copy) - logits(model)
    assert difference.abs().max() < tolerance
    assert (difference.abs().max() > 0) == (weights != "float32")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not copy.training
