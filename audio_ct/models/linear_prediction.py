"""Backward-adaptive linear prediction of the next sample, as what a network may start from.

Speech is locally linear: most of a sample follows from the last 32 by coefficients that change with the sound. They are
found again and again by least squares over the recent past of the stream itself, so there is nothing to learn, nothing
to send, and what is adapted to belongs to the state. The network is told the predictions, and one of them is where the
distribution of the next token is centred: what is left to model is the residual.

Shape suffixes: B batch, T time, F frames, S samples of a frame, K predictors, N order, O = N + 1.

Source: backward adaptation of a high order from past output is ITU-T G.728; exponentially windowed least squares is the
first stage of MPEG-4 ALS's RLS-LMS predictor (Huang et al. 2008); predicting a residual's distribution with a network
around a linear prediction is LPCNet (Valin and Skoglund 2019), whose coefficients are transmitted, not adapted.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audio_ct.errors import InputError
from audio_ct.models.interface import State

# Sines and cosines of a prediction, from once around over all tokens up to once around in two.
NUM_FREQUENCIES = 12
# What is added to the covariance's diagonal, as a fraction of its mean and absolutely (full scale squared): without it
# the empty upper band of resampled speech leaves the equations nearly singular.
RELATIVE_RIDGE = 1e-5
ABSOLUTE_RIDGE = 1e-7


class BackwardPredictor(nn.Module):
    """Least-squares linear predictors over exponential windows of the stream's own past; no parameters.

    Coefficients are found anew before every frame of `update_every` samples, from all samples before it.

    Args:
        vocabulary_size: number of mu-law tokens.
        order: samples that a prediction is made of.
        windows: effective length in samples of each predictor's exponential window.
        update_every: samples of a frame; a stream may be cut between frames.
    """

    def __init__(self, vocabulary_size: int, *, order: int, windows: Sequence[int], update_every: int) -> None:
        super().__init__()
        self.order = order
        self.update_every = update_every
        self.num_predictors = len(windows)
        self.mu = vocabulary_size - 1
        decay_K1 = 1 - 1 / torch.tensor(windows, dtype=torch.float64)[:, None]
        age_S = torch.arange(update_every - 1, -1, -1)
        self.register_buffer("decay", decay_K1[..., None] ** update_every, persistent=False)
        self.register_buffer("weight", decay_K1 ** (age_S / 2), persistent=False)
        self.register_buffer("window", torch.tensor(windows, dtype=torch.float64), persistent=False)
        self.register_buffer("amplitude", _amplitude(torch.arange(vocabulary_size), self.mu), persistent=False)
        self.decay: Tensor
        self.weight: Tensor
        self.window: Tensor
        self.amplitude: Tensor

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
        left in its window, where the prediction stands on the mu-law scale.

        Args:
            tokens: [batch, time]; time is a multiple of `update_every`.
            state: as left by the last call; `initial_state` at first.
        """
        line_BT = torch.cat([state["linear_prediction.history"], self.amplitude[tokens]], dim=1)
        covariance = state["linear_prediction.covariance"]
        before = []
        for added in self._added_covariance(line_BT).unbind(1):
            before.append(covariance)
            covariance = covariance * self.decay + added
        coefficients_BFKN, error_BFK = self._solve(torch.stack(before, dim=1))
        past_BFSN = line_BT.unfold(1, self.order, 1)[:, 1:].unflatten(1, (-1, self.update_every))
        predicted_BFSK = past_BFSN @ coefficients_BFKN.transpose(-1, -2)
        error_BFSK = error_BFK[:, :, None].expand_as(predicted_BFSK)
        new = state | {
            "linear_prediction.history": line_BT[:, -self.order :],
            "linear_prediction.covariance": covariance,
        }
        return *self._to_tokens(predicted_BFSK.flatten(1, 2), error_BFSK.flatten(1, 2)), new

    def step(
        self, tokens: Int[Tensor, " batch"], state: State, place: int
    ) -> tuple[Float[Tensor, "batch 1 predictors"], Float[Tensor, "batch 1 predictors"], State]:
        """Return what `forward` does, after one token that stands at `place` in its frame.

        The frame's samples and coefficients are kept in the state until its end.
        """
        cached = [f"cache.linear_prediction.{name}" for name in ("line", "coefficients", "error")]
        history, covariance = state["linear_prediction.history"], state["linear_prediction.covariance"]
        if place == 0:
            line_BT = torch.cat([history, history.new_zeros(len(history), self.update_every)], dim=1)
            coefficients_BKN, error_BK = self._solve(covariance)
        else:
            line_BT, coefficients_BKN, error_BK = (state[name] for name in cached)
        line_BT[:, self.order + place] = self.amplitude[tokens]
        past_B1N = line_BT[:, None, place + 1 : place + 1 + self.order]
        predicted, error = self._to_tokens(past_B1N @ coefficients_BKN.transpose(-1, -2), error_BK[:, None])
        if place + 1 < self.update_every:
            return predicted, error, state | dict(zip(cached, (line_BT, coefficients_BKN, error_BK), strict=True))
        new = {name: tensor for name, tensor in state.items() if name not in cached} | {
            "linear_prediction.history": line_BT[:, -self.order :],
            "linear_prediction.covariance": covariance * self.decay + self._added_covariance(line_BT)[:, 0],
        }
        return predicted, error, new

    def _added_covariance(self, line: Tensor) -> Tensor:
        """Return what each frame adds to the covariance of [past ; sample], seen from the frame's end: [B,F,K,O,O]."""
        rows_BFSO = line.unfold(1, self.order + 1, 1).unflatten(1, (-1, self.update_every))
        weighted_BFKSO = rows_BFSO[:, :, None] * self.weight[..., None]
        return weighted_BFKSO.transpose(-1, -2) @ weighted_BFKSO

    def _solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return (the coefficients [..., K, N] of least squares with a ridge, the root mean square left [..., K])."""
        past, cross, power = covariance[..., :-1, :-1], covariance[..., :-1, -1:], covariance[..., -1, -1]
        ridge = RELATIVE_RIDGE * past.diagonal(dim1=-2, dim2=-1).mean(-1) + ABSOLUTE_RIDGE
        regular = past + torch.eye(self.order, dtype=past.dtype, device=past.device) * ridge[..., None, None]
        # Unchecked, so that a GPU is not waited for: with the ridge it is always positive definite.
        coefficients = torch.cholesky_solve(cross, torch.linalg.cholesky_ex(regular).L)[..., 0]
        left = (power - (coefficients * cross[..., 0]).sum(-1)) / self.window
        return coefficients, left.clamp_min(0).sqrt()

    def _to_tokens(self, predicted: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return amplitudes from the scale's middle and errors at them, both in tokens."""
        clipped = predicted.clamp(-1, 1)
        tokens = clipped.sign() * torch.log1p(self.mu * clipped.abs()) / math.log1p(self.mu) * self.mu / 2
        amplitude_per_token = (clipped.abs() + 1 / self.mu) * math.log1p(self.mu) * 2 / self.mu
        return tokens, error / amplitude_per_token


def _amplitude(tokens: Tensor, mu: int) -> Tensor:
    """Return mu-law tokens as amplitudes in [-1, 1]; the middle of the scale is 0."""
    compressed = 2 * tokens.double() / mu - 1
    return compressed.sign() * torch.expm1(compressed.abs() * math.log1p(mu)) / mu


class LinearPrediction(nn.Module):
    """What a model does with linear predictions: reads them beside the tokens, and centres its logits on the first.

    Args:
        vocabulary_size: number of mu-law tokens.
        order: see `BackwardPredictor`.
        windows: see `BackwardPredictor`.
        update_every: see `BackwardPredictor`.
        input_channels: size of what `read` returns, to be added to the embedding.
        output_channels: size of what `logits` reads.

    Raises:
        InputError: if there is no window.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        order: int,
        windows: Sequence[int],
        update_every: int,
        input_channels: int,
        output_channels: int,
    ) -> None:
        super().__init__()
        if not windows:
            raise InputError(
                "model.linear_prediction_windows=[] must name at least one window; try [500, 200, 67, 25]."
            )
        self.predictor = BackwardPredictor(vocabulary_size, order=order, windows=windows, update_every=update_every)
        self.vocabulary_size = vocabulary_size
        self.update_every = update_every
        num_features = len(windows) * (2 * NUM_FREQUENCIES + 4) + (len(windows) - 1) * 3
        self.input = nn.Linear(num_features, input_channels)
        self.output = nn.Linear(output_channels, 2 * vocabulary_size - 1)
        angular = math.pi * (vocabulary_size / 2) ** -torch.linspace(1, 0, NUM_FREQUENCIES, dtype=torch.float64)
        self.register_buffer("angular", angular, persistent=False)
        self.angular: Tensor

    def initial_state(self, batch_size: int, device: torch.device | str) -> State:
        """Return a past of silence and no predictions yet."""
        predicted = torch.zeros(batch_size, self.predictor.num_predictors, device=device, dtype=torch.float64)
        return self.predictor.initial_state(batch_size, device) | {"linear_prediction.predicted": predicted}

    @torch.no_grad()
    def predict(
        self, tokens: Int[Tensor, "batch time"], state: State, place: int | None = None
    ) -> tuple[Float[Tensor, "batch time features"], Float[Tensor, "batch time"], State]:
        """Return (features for `read`, the first predictor's predictions for `logits`, the new state).

        Args:
            tokens: whole frames [batch, time], or one token each [batch, 1] with `place`.
            state: where the lanes stand.
            place: samples read of the frame so far, where it is read token by token; else None.
        """
        if place is None:
            predicted, expected, new = self.predictor(tokens, state)
        else:
            predicted, expected, new = self.predictor.step(tokens[:, 0], state, place)
        last = torch.cat([state["linear_prediction.predicted"][:, None], predicted[:, :-1]], dim=1)
        new["linear_prediction.predicted"] = predicted[:, -1]
        error = tokens[..., None] - (self.vocabulary_size - 1) / 2 - last
        angle = (predicted[..., None] * self.angular).flatten(-2)
        beside = predicted[..., 1:] - predicted[..., :1]
        features = [
            *(angle.sin(), angle.cos()),
            *((error / 2).tanh(), (error / 16).tanh(), error.abs().log1p() / 3, (expected + 0.1).log2() / 3),
            *(beside.tanh(), (beside / 4).tanh(), (beside / 16).tanh()),
        ]
        return torch.cat(features, dim=-1), predicted[..., 0], new

    def read(self, features: Float[Tensor, "batch time features"]) -> Float[Tensor, "batch time input_channels"]:
        """Return what is added to the tokens' embedding."""
        return self.input(features.to(self.input.weight.dtype))

    def logits(
        self, hidden: Float[Tensor, "batch time output_channels"], predicted: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Return logits of a token's distance from the (rounded) prediction, laid out by token.

        Example: 4 tokens, prediction 2 from 0: tokens 0 to 3 get the logits of distances -2, -1, 0, 1.
        """
        tokens = torch.arange(self.vocabulary_size, device=predicted.device)
        nearest = (predicted + (self.vocabulary_size - 1) / 2).round().long()
        distance = tokens - nearest[..., None]
        return self.output(hidden).gather(-1, distance + self.vocabulary_size - 1)
