"""Backward-adaptive linear prediction against slow recursive and least-squares forms, and what a model does with it."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from audio_ct.audio import mu_law
from audio_ct.models.linear_prediction import (
    ABSOLUTE_RIDGE,
    RELATIVE_RIDGE,
    BackwardPredictor,
    LinearPrediction,
    Prediction,
)
from audio_ct.models.scale import amplitude, scale_place
from audio_ct.models.settings import LinearPredictionSettings

ORDER, EVERY = 4, 8
WINDOWS = [100, 30]


def predictor(windows: list[int] = WINDOWS, order: int = ORDER, expansion: float = 1.0) -> BackwardPredictor:
    settings = LinearPredictionSettings(order=order, windows=windows, frame_length=EVERY, bandwidth_expansion=expansion)
    return BackwardPredictor(256, settings)


def speech_like(num_lanes: int = 2, length: int = 20 * EVERY, seed: int = 0) -> Tensor:
    """Tokens of noise through a slowly moving resonance."""
    random = torch.Generator().manual_seed(seed)
    x = torch.zeros(num_lanes, length, dtype=torch.float64)
    noise = 0.05 * torch.randn(num_lanes, length, generator=random, dtype=torch.float64)
    for t in range(2, length):
        frequency = 0.3 + 0.2 * math.sin(t / 200)
        x[:, t] = 1.8 * math.cos(frequency) * x[:, t - 1] - 0.9 * x[:, t - 2] + noise[:, t]
    return mu_law.encode(x.clamp(-1, 1)).long()


def slow(tokens: Tensor, window: int, expansion: float) -> tuple[list[float], list[float]]:
    """Predictions and expected errors of one lane, each frame's least squares written out from its beginning."""
    x = torch.cat([torch.zeros(ORDER, dtype=torch.float64), amplitude(tokens, 255)])
    predictions, errors = [], []
    for t in range(len(tokens)):
        frame_start = t - t % EVERY
        past, cross, power = torch.zeros(ORDER, ORDER).double(), torch.zeros(ORDER).double(), 0.0
        for s in range(frame_start):
            weight = (1 - 1 / window) ** (frame_start - 1 - s)
            row, target = x[s : s + ORDER], float(x[s + ORDER])
            past += weight * torch.outer(row, row)
            cross += weight * target * row
            power += weight * target**2
        ridge = RELATIVE_RIDGE * past.trace() / ORDER + ABSOLUTE_RIDGE
        coefficients = torch.linalg.solve(past + ridge * torch.eye(ORDER).double(), cross)
        expanded = torch.stack([coefficients[ORDER - lag] * expansion**lag for lag in range(ORDER, 0, -1)])
        value = float((expanded @ x[t + 1 : t + 1 + ORDER]).clamp(-1, 1))
        predictions.append(math.copysign(math.log1p(255 * abs(value)) / math.log(256) * 127.5, value))
        left = math.sqrt(max(0.0, power - float(coefficients @ cross)) / window)
        errors.append(left / ((abs(value) + 1 / 255) * math.log(256) * 2 / 255))
    return predictions, errors


@pytest.mark.parametrize("expansion", [1.0, 0.9])
def test_predictions_are_those_of_least_squares_over_the_whole_past(expansion: float) -> None:
    tokens = speech_like()
    model = predictor(expansion=expansion)
    predicted, expected, _ = model(tokens, model.initial_state(2, "cpu"))
    for lane in range(2):
        for k, window in enumerate(WINDOWS):
            slow_predicted, slow_expected = slow(tokens[lane], window, expansion)
            torch.testing.assert_close(predicted[lane, :, k].tolist(), slow_predicted, atol=1e-6, rtol=0)
            torch.testing.assert_close(expected[lane, :, k].tolist(), slow_expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8, 10])
def test_amplitudes_are_mu_laws(bits: int) -> None:
    amplitudes = amplitude(torch.arange(2**bits), 2**bits - 1)
    torch.testing.assert_close(amplitudes.float(), mu_law.decode(torch.arange(2**bits), bits), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        scale_place(amplitudes, 2**bits - 1), torch.arange(2**bits).double() - (2**bits - 1) / 2, atol=1e-9, rtol=0
    )


def test_a_resonance_is_predicted_far_better_than_by_the_last_sample() -> None:
    tokens = speech_like(length=400 * EVERY)
    model = predictor([200])
    predicted = model(tokens, model.initial_state(2, "cpu"))[0][..., 0]
    target = tokens[:, 1:] - 127.5
    error = (predicted[:, :-1] - target)[:, 500:].square().mean()
    naive = (tokens[:, :-1] - 127.5 - target)[:, 500:].square().mean()
    assert error < naive / 3


def test_the_expected_error_is_about_the_error() -> None:
    tokens = speech_like(length=400 * EVERY)
    model = predictor([200])
    predicted, expected, _ = model(tokens, model.initial_state(2, "cpu"))
    error = (predicted[:, :-1, 0] - (tokens[:, 1:] - 127.5))[:, 500:]
    assert 0.7 < float((error / expected[:, 500:-1, 0]).square().mean().sqrt()) < 1.4


@pytest.mark.parametrize("token", [0, 127, 128, 255])
def test_a_constant_stream_of_any_level_stays_finite(token: int) -> None:
    model = predictor(order=32)
    tokens = torch.full((1, 100 * EVERY), token)
    predicted, expected, state = model(tokens, model.initial_state(1, "cpu"))
    assert torch.isfinite(predicted).all()
    assert torch.isfinite(expected).all()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert (predicted[0, -1] - (token - 127.5)).abs().max() < 0.6


def test_bandwidth_expansion_tames_an_oscillation_that_grows() -> None:
    t = torch.arange(25 * EVERY)
    growing = mu_law.encode((0.01 * 1.02**t * torch.cos(0.3 * t)).clamp(-1, 1).float()[None]).long()

    def gain(expansion: float) -> float:
        """Growth of the predictor's own filter over 100 samples of silence after the stream."""
        model = predictor([50], expansion=expansion)
        state = model(growing, model.initial_state(1, "cpu"))[2]
        coefficients = model._solve(state["covariance"])[0][0, 0]
        past = state["history"][0].clone()
        before = past.abs().max()
        for _ in range(100):
            past = torch.cat([past[1:], (coefficients @ past)[None]])
        return float(past.abs().max() / before)

    assert gain(1.0) > 3
    assert gain(0.97) < 1


def test_full_scale_noise_stays_finite_and_on_the_scale() -> None:
    model = predictor(order=32)
    tokens = torch.randint(2, (2, 100 * EVERY), generator=torch.Generator().manual_seed(0)) * 255
    predicted, _, _ = model(tokens, model.initial_state(2, "cpu"))
    assert predicted.abs().max() <= 127.5


def test_steps_are_windows_and_windows_may_be_cut_between_frames() -> None:
    tokens = speech_like()
    model = predictor()
    whole = model(tokens, model.initial_state(2, "cpu"))
    first, _, state = model(tokens[:, : 3 * EVERY], model.initial_state(2, "cpu"))
    # Stretches of two frames, so that coefficients change within them.
    stretch, rest, caches = 2 * EVERY, [], {}
    for t in range(3 * EVERY, 19 * EVERY):
        offset = (t - 3 * EVERY) % stretch
        if offset == 0:
            state = model.close_cache(caches) if caches else state
            caches = model.open_cache(state, stretch)
        elif offset % EVERY == 0:
            model.advance(caches, offset)
        predicted, _ = model.read(tokens[:, t : t + 1], caches, torch.tensor([offset]))
        rest.append(predicted)
    read = model(tokens[:, : 19 * EVERY], model.initial_state(2, "cpu"))
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole[0][:, : 19 * EVERY], atol=1e-9, rtol=0)
    for name, tensor in model.close_cache(caches).items():
        torch.testing.assert_close(tensor, read[2][name], atol=1e-12, rtol=0)


def part(vocabulary_size: int = 4) -> LinearPrediction:
    torch.manual_seed(0)
    settings = LinearPredictionSettings(order=2, windows=[20, 5], frame_length=4)
    return LinearPrediction(vocabulary_size, settings, channels=3, hidden_channels=5).double()


def test_logits_of_distances_are_laid_out_by_token() -> None:
    model = part()
    hidden = torch.randn(1, 3, 5, dtype=torch.float64)
    # Tokens 2, 0 and 3 stand at 0.5, -1.5 and 1.5 from the middle of the scale.
    predicted = torch.tensor([[0.6, -1.9, 1.5]], dtype=torch.float64)
    got = Prediction(predicted[..., None], torch.ones_like(predicted)[..., None], model.by_distance, None).logits(
        hidden
    )
    assert model.by_distance is not None
    distances = model.by_distance(hidden)[0]
    for row, nearest in enumerate((2, 0, 3)):
        expected = [float(distances[row, token - nearest + 3].detach()) for token in range(4)]
        assert got[0, row].tolist() == pytest.approx(expected)


def test_predictions_and_errors_reach_the_network() -> None:
    model = part(256)
    tokens = speech_like()
    features: list[Tensor] = []
    model.input.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    with torch.no_grad():
        embedded, prediction, _ = model(tokens, model.initial_state(2, "cpu"))
    assert embedded.shape == (2, tokens.shape[1], 3)
    assert features[0].abs().max() < 6
    plain, expected, _ = model.predictor(tokens, model.predictor.initial_state(2, "cpu"))
    assert torch.equal(prediction.forecasts, plain)
    assert torch.equal(prediction.errors, expected)
    # The third feature of an error is log(1 + |error|) / 3, of the token that was read and its prediction before.
    error = (tokens[:, 1:] - 127.5 - plain[:, :-1, 0]).abs().log1p() / 3
    assert any(torch.allclose(features[0][:, 1:, n], error) for n in range(features[0].shape[-1]))


def test_a_models_type_does_not_touch_the_predictions() -> None:
    tokens = speech_like()
    exact = predictor()(tokens, predictor().initial_state(2, "cpu"))[0]
    rounded = predictor().to(torch.bfloat16)
    assert torch.equal(rounded(tokens, rounded.initial_state(2, "cpu"))[0], exact)


@pytest.mark.parametrize(
    "change",
    [
        {"windows": []},
        {"windows": [200, 1]},
        {"order": 0},
        {"frame_length": 0},
        {"bandwidth_expansion": 0.0},
        {"bandwidth_expansion": 1.1},
    ],
)
def test_what_predicts_nothing_is_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValidationError, match=name):
        LinearPredictionSettings(**{"order": 2, "windows": [9], "frame_length": 4} | change)
