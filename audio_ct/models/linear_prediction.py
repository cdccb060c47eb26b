"""Backward-adaptive linear prediction of the next sample, as what a network may start from.

Speech is locally linear: most of a sample follows from the last 32 by coefficients that change with the sound. They are
found again and again by least squares over the recent past of the stream itself, so there is nothing to learn, nothing
to send, and what is adapted to belongs to the state. The network is told the predictions, and one of them is where the
distribution of the next token is centred: what is left to model is the residual.

Shape suffixes: B batch, T time, F frames, S samples of a frame, K predictors, N order, O = N + 1.

Source: backward adaptation of a high order from past output, with bandwidth expansion, is ITU-T G.728; exponentially
windowed least squares is the second stage of MPEG-4 ALS's RLS-LMS predictor (Huang et al. 2008); a network for the
residual around a linear prediction is LPCNet (Valin and Skoglund 2019), where coefficients are sent, not adapted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.errors import InputError
from audio_ct.models.interface import READ_AHEAD, State
from audio_ct.models.scale import amplitude, amplitude_per_token

# Sines and cosines of a prediction, from once around over all tokens up to once around in two.
NUM_FREQUENCIES = 12
# What is added to the covariance's diagonal, as a fraction of its mean and absolutely (full scale squared): without it
# the empty upper band of resampled speech leaves the equations nearly singular.
RELATIVE_RIDGE = 1e-5
ABSOLUTE_RIDGE = 1e-7


@dataclass(frozen=True)
class LinearPredictionSettings:
    """Which predictors there are.

    Attributes:
        order: samples that a prediction is made of.
        windows: effective length in samples of each predictor's exponential window.
        frame_length: samples between two adaptations; a stream may be cut between frames.
        bandwidth_expansion: the coefficient of lag k is multiplied by its k-th power, which draws the predictor's poles
            in by it. Below 1 a model that listens to itself does not follow oscillations that grow; 1 is none.
    """

    order: int
    windows: Sequence[int]
    frame_length: int
    bandwidth_expansion: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what predicts nothing.

        Raises:
            InputError: naming the value and the rule.
        """
        for name, value in (("order", self.order), ("frame_length", self.frame_length)):
            if value < 1:
                raise InputError(f"model.linear_prediction.{name}={value} must be at least 1; try 32 and 16.")
        if not 0 < self.bandwidth_expansion <= 1:
            raise InputError(
                f"model.linear_prediction.bandwidth_expansion={self.bandwidth_expansion} must be above 0 and at most "
                "1; try 0.985."
            )
        if not self.windows or min(self.windows) < 2:
            raise InputError(
                f"model.linear_prediction.windows={list(self.windows)} must name at least one window of 2 or more "
                "samples; try [500, 200, 67, 25]."
            )


class BackwardPredictor(nn.Module):
    """Least-squares linear predictors over exponential windows of the stream's own past; no parameters.

    Coefficients are found anew before every frame, from all samples before it.

    Args:
        vocabulary_size: number of mu-law tokens.
        settings: the predictors.
    """

    def __init__(self, vocabulary_size: int, settings: LinearPredictionSettings) -> None:
        super().__init__()
        self.order = settings.order
        self.frame_length = settings.frame_length
        self.bandwidth_expansion = settings.bandwidth_expansion
        self.num_predictors = len(settings.windows)
        self.mu = vocabulary_size - 1
        # An integer buffer: `model.to(dtype)` leaves it alone.
        self.register_buffer("windows", torch.tensor(settings.windows), persistent=False)
        self.windows: Tensor

    def initial_state(self, batch_size: int, device: torch.device | str) -> State:
        """Return a past of silence; float64 whatever the model's type, since least squares square the precision."""
        outer = self.order + 1
        shapes = {"history": (self.order,), "covariance": (self.num_predictors, outer, outer)}
        return {
            f"linear_prediction.{name}": torch.zeros(batch_size, *shape, device=device, dtype=torch.float64)
            for name, shape in shapes.items()
        }

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: State
    ) -> tuple[Float[Tensor, "batch time predictors"], Float[Tensor, "batch time predictors"], State]:
        """Return (predictions of the token after each, their expected errors, the new state).

        Both are in tokens: predictions from the middle of the scale, errors as the root mean square that a predictor
        left in its window, where the prediction stands on the mu-law scale. Before a window has filled they are too
        small, in the first frame 0.

        Args:
            tokens: [batch, time]; time is a multiple of the frame length.
            state: as left by the last call; `initial_state` at first.
        """
        signal_BT = torch.cat([state["linear_prediction.history"], amplitude(tokens, self.mu)], dim=1)
        covariance = state["linear_prediction.covariance"]
        covariances, decay = [], self._frame_decay()
        for increment in self._increments(signal_BT).unbind(1):
            covariances.append(covariance)
            covariance = covariance * decay + increment
        coefficients_BFKN, error_BFK = self._solve(torch.stack(covariances, dim=1))
        past_BFSN = signal_BT.unfold(1, self.order, 1)[:, 1:].unflatten(1, (-1, self.frame_length))
        predicted_BFSK = past_BFSN @ coefficients_BFKN.transpose(-1, -2)
        error_BFSK = error_BFK[:, :, None].expand_as(predicted_BFSK)
        new = state | {
            "linear_prediction.history": signal_BT[:, -self.order :],
            "linear_prediction.covariance": covariance,
        }
        return *self._to_tokens(predicted_BFSK.flatten(1, 2), error_BFSK.flatten(1, 2)), new

    def open_cache(self, state: State) -> State:
        """Return caches of one frame: its samples, and the coefficients found from what came before it."""
        history = state["linear_prediction.history"]
        coefficients_BKN, error_BK = self._solve(state["linear_prediction.covariance"])
        caches = {
            "signal": F.pad(history, (0, self.frame_length + READ_AHEAD)),
            "coefficients": coefficients_BKN,
            "error": error_BK,
        }
        return {f"cache.linear_prediction.{name}": tensor for name, tensor in caches.items()}

    def predict_cached(
        self, tokens: Int[Tensor, "batch time"], state: State, slots: Int[Tensor, " time"]
    ) -> tuple[Float[Tensor, "batch time predictors"], Float[Tensor, "batch time predictors"]]:
        """Return the predictions and errors that `forward` does, after tokens in these slots of the frame."""
        signal_BT, coefficients_BKN, error_BK = (
            state[f"cache.linear_prediction.{name}"] for name in ("signal", "coefficients", "error")
        )
        signal_BT.index_copy_(1, slots + self.order, amplitude(tokens, self.mu))
        lags_TN = slots[:, None] + 1 + torch.arange(self.order, device=slots.device)
        past_BTN = signal_BT[:, lags_TN]
        return self._to_tokens(past_BTN @ coefficients_BKN.transpose(-1, -2), error_BK[:, None])

    def close_cache(self, state: State) -> State:
        """Return history and covariance after the frame in the caches."""
        signal_BT = state["cache.linear_prediction.signal"][:, : self.order + self.frame_length]
        covariance = state["linear_prediction.covariance"]
        return {
            "linear_prediction.history": signal_BT[:, -self.order :].clone(),
            "linear_prediction.covariance": covariance * self._frame_decay() + self._increments(signal_BT)[:, 0],
        }

    def _frame_decay(self) -> Tensor:
        """Return what a frame leaves of the covariance before it, [K, 1, 1]."""
        return (1 - 1 / self.windows.double())[:, None, None] ** self.frame_length

    def _increments(self, signal: Tensor) -> Tensor:
        """Return what each frame adds to the covariance of [past ; sample], seen from the frame's end: [B,F,K,O,O]."""
        age_S = torch.arange(self.frame_length - 1, -1, -1, device=signal.device)
        weight_KS = (1 - 1 / self.windows.double())[:, None] ** (age_S / 2)
        rows_BFSO = signal.unfold(1, self.order + 1, 1).unflatten(1, (-1, self.frame_length))
        weighted_BFKSO = rows_BFSO[:, :, None] * weight_KS[..., None]
        return weighted_BFKSO.transpose(-1, -2) @ weighted_BFKSO

    def _solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return (coefficients [..., K, N] by least squares with a ridge, the root mean square they left [..., K]).

        What they left is that before bandwidth expansion.
        """
        past, cross, power = covariance[..., :-1, :-1], covariance[..., :-1, -1:], covariance[..., -1, -1]
        ridge = RELATIVE_RIDGE * past.diagonal(dim1=-2, dim2=-1).mean(-1) + ABSOLUTE_RIDGE
        regular = past + torch.eye(self.order, dtype=past.dtype, device=past.device) * ridge[..., None, None]
        # Unchecked, so that a GPU is not waited for: with the ridge it is always positive definite.
        coefficients = torch.cholesky_solve(cross, torch.linalg.cholesky_ex(regular).L)[..., 0]
        left = (power - (coefficients * cross[..., 0]).sum(-1)) / self.windows
        lag = torch.arange(self.order, 0, -1, dtype=past.dtype, device=past.device)
        return coefficients * self.bandwidth_expansion**lag, left.clamp_min(0).sqrt()

    def _to_tokens(self, predicted: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return amplitudes from the scale's middle and errors at them, both in tokens."""
        clipped = predicted.clamp(-1, 1)
        tokens = clipped.sign() * torch.log1p(self.mu * clipped.abs()) / math.log1p(self.mu) * self.mu / 2
        return tokens, error / amplitude_per_token(clipped, self.mu)


def _first(predicted: Tensor, expected: Tensor) -> Tensor:
    """Return the first predictor's predictions and expected errors, [..., 2]."""
    return torch.stack([predicted[..., 0], expected[..., 0]], dim=-1)


class LinearPrediction(nn.Module):
    """What a model does with linear predictions: reads them beside the tokens, and centres its logits on the first.

    Args:
        vocabulary_size: number of mu-law tokens.
        settings: the predictors.
        input_channels: size of what `read` returns, to be added to the embedding.
        output_channels: size of what `logits` reads; None where something else makes use of predictions.
    """

    def __init__(
        self,
        vocabulary_size: int,
        settings: LinearPredictionSettings,
        *,
        input_channels: int,
        output_channels: int | None,
    ) -> None:
        super().__init__()
        self.predictor = BackwardPredictor(vocabulary_size, settings)
        self.vocabulary_size = vocabulary_size
        self.frame_length = settings.frame_length
        num_predictors = len(settings.windows)
        num_features = num_predictors * (2 * NUM_FREQUENCIES + 4) + (num_predictors - 1) * 3
        self.input = nn.Linear(num_features, input_channels)
        self.output = None if output_channels is None else nn.Linear(output_channels, 2 * vocabulary_size - 1)

    def initial_state(self, batch_size: int, device: torch.device | str) -> State:
        """Return a past of silence and no predictions yet."""
        predicted = torch.zeros(batch_size, self.predictor.num_predictors, device=device, dtype=torch.float64)
        return self.predictor.initial_state(batch_size, device) | {"linear_prediction.predicted": predicted}

    @torch.no_grad()
    def predict(
        self, tokens: Int[Tensor, "batch time"], state: State
    ) -> tuple[Float[Tensor, "batch time features"], Float[Tensor, "batch time 2"], State]:
        """Return (features for `read`, the first predictor's predictions and expected errors, the new state).

        Args:
            tokens: whole frames [batch, time].
            state: where the lanes stand.
        """
        predicted, expected, new = self.predictor(tokens, state)
        last = torch.cat([state["linear_prediction.predicted"][:, None], predicted[:, :-1]], dim=1)
        new["linear_prediction.predicted"] = predicted[:, -1]
        return self._features(tokens, last, predicted, expected), _first(predicted, expected), new

    def open_cache(self, state: State, offset: int) -> State:
        """Return caches of the frame that begins at this offset in its stretch.

        They are the predictor's, and every prediction after the one before the frame.
        """
        last = state["linear_prediction.predicted"]
        caches = {
            "begin": torch.full((len(last),), offset, device=last.device),
            "predicted": F.pad(last[:, None], (0, 0, 0, self.frame_length + READ_AHEAD)),
        }
        return self.predictor.open_cache(state) | {f"cache.linear_prediction.{name}": caches[name] for name in caches}

    def predict_cached(
        self, tokens: Int[Tensor, "batch time"], state: State, slots: Int[Tensor, " time"]
    ) -> tuple[Float[Tensor, "batch time features"], Float[Tensor, "batch time 2"]]:
        """Return the features and predictions that `predict` does, of samples in these slots of the stretch."""
        slots = slots - state["cache.linear_prediction.begin"][0]
        predicted, expected = self.predictor.predict_cached(tokens, state, slots)
        cache = state["cache.linear_prediction.predicted"]
        cache.index_copy_(1, slots + 1, predicted)
        features = self._features(tokens, cache.index_select(1, slots), predicted, expected)
        return features, _first(predicted, expected)

    def close_cache(self, state: State) -> State:
        """Return what the caches of a frame leave."""
        predicted = state["cache.linear_prediction.predicted"][:, self.frame_length].clone()
        return self.predictor.close_cache(state) | {"linear_prediction.predicted": predicted}

    def _features(self, tokens: Tensor, last: Tensor, predicted: Tensor, expected: Tensor) -> Tensor:
        """Return what is told of predictions, given those of the tokens themselves."""
        error = tokens[..., None] - (self.vocabulary_size - 1) / 2 - last
        octaves = torch.linspace(1, 0, NUM_FREQUENCIES, dtype=torch.float64, device=predicted.device)
        angle = (predicted[..., None] * math.pi * (self.vocabulary_size / 2) ** -octaves).flatten(-2)
        difference = predicted[..., 1:] - predicted[..., :1]
        # Signs and sizes as of 8-bit tokens: finer ones are larger numbers for the same sound.
        per_token = max(1.0, self.vocabulary_size / 256)
        error, expected, difference = error / per_token, expected / per_token, difference / per_token
        features = [
            *(angle.sin(), angle.cos()),
            *((error / 2).tanh(), (error / 16).tanh(), error.abs().log1p() / 3),
            (expected + 0.1 / per_token).log2() / 3,
            *(difference.tanh(), (difference / 4).tanh(), (difference / 16).tanh()),
        ]
        return torch.cat(features, dim=-1)

    def read(self, features: Float[Tensor, "batch time features"]) -> Float[Tensor, "batch time input_channels"]:
        """Return what is added to the tokens' embedding."""
        return self.input(features.to(self.input.bias.dtype))

    def logits(
        self, hidden: Float[Tensor, "batch time output_channels"], centre: Float[Tensor, "batch time 2"]
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Return logits of a token's distance from the (rounded) prediction, laid out by token.

        What errors are expected is not looked at here.

        Example: 4 tokens, prediction 2 from 0: tokens 0 to 3 get the logits of distances -2, -1, 0, 1.
        """
        assert self.output is not None
        tokens = torch.arange(self.vocabulary_size, device=centre.device)
        nearest = (centre[..., 0] + (self.vocabulary_size - 1) / 2).round().long()
        distance = tokens - nearest[..., None]
        return self.output(hidden).gather(-1, distance + self.vocabulary_size - 1)
