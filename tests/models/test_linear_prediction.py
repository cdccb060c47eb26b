"""Backward-adaptive linear prediction against slow recursive and least-squares forms, and what a model does with it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct.audio import mu_law
from audio_ct.errors import InputError
from audio_ct.models.interface import without_caches
from audio_ct.models.linear_prediction import (
    ABSOLUTE_RIDGE,
    RELATIVE_RIDGE,
    BackwardPredictor,
    LinearPrediction,
    LinearPredictionSettings,
)
from audio_ct.models.scale import amplitude

ORDER, EVERY = 4, 8
WINDOWS = [100, 30]


def predictor(windows: list[int] = WINDOWS, order: int = ORDER, expansion: float = 1.0) -> BackwardPredictor:
    settings = LinearPredictionSettings(order=order, windows=windows, frame_length=EVERY, bandwidth_expansion=expansion)
    return BackwardPredictor(256, settings)


def speech_like(num_lanes: int = 2, length: int = 20 * EVERY, seed: int = 0) -> Tensor:
    """Return tokens of noise through a slowly moving resonance."""
    random = torch.Generator().manual_seed(seed)
    x = torch.zeros(num_lanes, length, dtype=torch.float64)
    noise = 0.05 * torch.randn(num_lanes, length, generator=random, dtype=torch.float64)
    for t in range(2, length):
        frequency = 0.3 + 0.2 * math.sin(t / 200)
        x[:, t] = 1.8 * math.cos(frequency) * x[:, t - 1] - 0.9 * x[:, t - 2] + noise[:, t]
    return mu_law.encode(x.clamp(-1, 1)).long()


def slow(tokens: Tensor, window: int, expansion: float) -> tuple[list[float], list[float]]:
    """Return predictions and expected errors of one lane, each frame's least squares written out from its beginning."""
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
    model = BackwardPredictor(2**bits, LinearPredictionSettings(order=2, windows=[9], frame_length=4))
    back, _ = model._to_tokens(amplitudes, torch.zeros(2**bits, dtype=torch.float64))
    torch.testing.assert_close(back, torch.arange(2**bits).double() - (2**bits - 1) / 2, atol=1e-9, rtol=0)


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
        """Return by how much a second round of the predictor's own filter grows over 100 samples of silence after."""
        model = predictor([50], expansion=expansion)
        state = model(growing, model.initial_state(1, "cpu"))[2]
        coefficients = model._solve(state["linear_prediction.covariance"])[0][0, 0]
        past = state["linear_prediction.history"][0].clone()
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
    state = model.initial_state(2, "cpu")
    first, _, state = model(tokens[:, : 3 * EVERY], state)
    rest = []
    for t in range(3 * EVERY, tokens.shape[1]):
        if t % EVERY == 0:
            state |= model.open_cache(state)
        predicted, _ = model.predict_cached(tokens[:, t : t + 1], state, torch.tensor([t % EVERY]))
        rest.append(predicted)
        if (t + 1) % EVERY == 0:
            state = without_caches(state | model.close_cache(state))
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole[0], atol=1e-9, rtol=0)
    assert state.keys() == whole[2].keys()
    for name in state:
        torch.testing.assert_close(state[name], whole[2][name], atol=1e-12, rtol=0)


def part(vocabulary_size: int = 4) -> LinearPrediction:
    torch.manual_seed(0)
    settings = LinearPredictionSettings(order=2, windows=[20, 5], frame_length=4)
    return LinearPrediction(vocabulary_size, settings, input_channels=3, output_channels=5).double()


def test_logits_of_distances_are_laid_out_by_token() -> None:
    model = part()
    hidden = torch.randn(1, 3, 5, dtype=torch.float64)
    # Tokens 2, 0 and 3 stand at 0.5, -1.5 and 1.5 from the middle of the scale.
    predicted = torch.tensor([[0.6, -1.9, 1.5]], dtype=torch.float64)
    got = model.logits(hidden, torch.stack([predicted, torch.ones_like(predicted)], dim=-1))
    assert model.output is not None
    distances = model.output(hidden)[0]
    for row, nearest in enumerate((2, 0, 3)):
        expected = [float(distances[row, token - nearest + 3].detach()) for token in range(4)]
        assert got[0, row].tolist() == pytest.approx(expected)


def test_predictions_and_errors_are_told_to_the_network() -> None:
    model = part(256)
    tokens = speech_like()
    with torch.no_grad():
        features, centre, _ = model.predict(tokens, model.initial_state(2, "cpu"))
        read = model.read(features)
    assert read.shape == (2, tokens.shape[1], 3)
    assert features.abs().max() < 6
    plain, expected, _ = model.predictor(tokens, model.predictor.initial_state(2, "cpu"))
    torch.testing.assert_close(centre, torch.stack([plain[..., 0], expected[..., 0]], dim=-1))
    # The third feature of an error is log(1 + |error|) / 3, of the token that was read and its prediction before.
    error = (tokens[:, 1:] - 127.5 - plain[:, :-1, 0]).abs().log1p() / 3
    assert any(torch.allclose(features[:, 1:, n], error) for n in range(features.shape[-1]))


def test_a_models_type_does_not_touch_the_predictions() -> None:
    tokens = speech_like()
    exact = predictor()(tokens, predictor().initial_state(2, "cpu"))[0]
    rounded = predictor().to(torch.bfloat16)
    assert torch.equal(rounded(tokens, rounded.initial_state(2, "cpu"))[0], exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": []}, r"windows=\[\] must name at least one window"),
        ({"windows": [200, 1]}, r"windows=\[200, 1\] must name at least one window of 2 or more"),
        ({"order": 0}, "order=0 must be at least 1"),
        ({"frame_length": 0}, "frame_length=0 must be at least 1"),
        ({"bandwidth_expansion": 0.0}, "bandwidth_expansion=0.0 must be above 0 and at most 1"),
        ({"bandwidth_expansion": 1.1}, "bandwidth_expansion=1.1 must be above 0 and at most 1"),
    ],
)
def test_what_predicts_nothing_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LinearPredictionSettings(**{"order": 2, "windows": [9], "frame_length": 4} | change)
