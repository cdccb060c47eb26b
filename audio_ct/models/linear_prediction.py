"""Backward-adaptive linear prediction of the next sample, for a network to start from.

Speech is locally linear: most of a sample follows from the last 32 by coefficients that change with the sound. They are
found again and again by least squares over the recent past of the stream itself, so there is nothing to learn, nothing
to send, and what is adapted to belongs to the state. The network is told the predictions, and the first of them is the
centre of the next token's distribution: what is left to model is the residual.

Shape suffixes: B batch, T time, F frames, S samples of a frame, K predictors, N order, O = N + 1.

Source: backward adaptation of a high order from past output, with bandwidth expansion, is ITU-T G.728; exponentially
windowed least squares is the second stage of MPEG-4 ALS's RLS-LMS predictor (Huang et al. 2008); a network for the
residual around a linear prediction is LPCNet (Valin and Skoglund 2019), where coefficients are sent, not adapted.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.logistics import ForecastLogistics
from audio_ct.models.pitch_taps import PitchTaps
from audio_ct.models.scale import amplitude, amplitude_per_token, scale_place
from audio_ct.models.settings import LinearPredictionSettings
from audio_ct.models.stage import State

# Sines and cosines of a prediction, from once around over all tokens up to once around in two.
NUM_FREQUENCIES = 12
# Added to the covariance's diagonal, as a fraction of its mean and absolutely (full scale squared): without it the
# empty upper band of resampled speech leaves the equations nearly singular.
RELATIVE_RIDGE = 1e-5
ABSOLUTE_RIDGE = 1e-7


class BackwardPredictor(nn.Module):
    """Least-squares linear predictors over exponential windows of the stream's own past; no parameters.

    Coefficients are found anew before every frame, from all samples before it. The state, float64, is the last samples
    "history" [batch, order] and "covariance" [batch, predictors, order + 1, order + 1] of [past ; sample].

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
        """A past of silence; float64 whatever the model's type, since least squares square the precision."""
        shapes = {"history": (self.order,), "covariance": (self.num_predictors, self.order + 1, self.order + 1)}
        return {
            name: torch.zeros(batch_size, *shape, device=device, dtype=torch.float64) for name, shape in shapes.items()
        }

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: State
    ) -> tuple[Float[Tensor, "batch time predictors"], Float[Tensor, "batch time predictors"], State]:
        """Predict the token after each; return predictions, their expected errors, and the new state.

        Both are in tokens: predictions from the middle of the scale, errors as the root mean square that a predictor
        left in its window, where the prediction stands on the mu-law scale. Before a window has filled they are too
        small, in the first frame 0.

        Args:
            tokens: [batch, time]; time is a multiple of the frame length.
            state: as left by the last call; `initial_state` at first.
        """
        signal_BT = torch.cat([state["history"], amplitude(tokens, self.mu)], dim=1)
        covariance = state["covariance"]
        covariances, decay = [], self._frame_decay()
        for increment in self._increments(signal_BT).unbind(1):
            covariances.append(covariance)
            covariance = covariance * decay + increment
        coefficients_BFKN, error_BFK = self._solve(torch.stack(covariances, dim=1))
        past_BFSN = signal_BT.unfold(1, self.order, 1)[:, 1:].unflatten(1, (-1, self.frame_length))
        predicted_BFSK = past_BFSN @ coefficients_BFKN.transpose(-1, -2)
        error_BFSK = error_BFK[:, :, None].expand_as(predicted_BFSK)
        new_state = {"history": signal_BT[:, -self.order :], "covariance": covariance}
        return *self._to_tokens(predicted_BFSK.flatten(1, 2), error_BFSK.flatten(1, 2)), new_state

    def open_cache(self, state: State, num_samples: int) -> State:
        """Caches of a stretch: its samples, and the coefficients found from what came before it."""
        coefficients_BKN, error_BK = self._solve(state["covariance"])
        return {
            "signal": F.pad(state["history"], (0, num_samples)),
            "covariance": state["covariance"].clone(),
            "coefficients": coefficients_BKN,
            "error": error_BK,
        }

    def read(
        self, tokens: Int[Tensor, "batch 1"], caches: State, slot: Int[Tensor, " 1"]
    ) -> tuple[Float[Tensor, "batch 1 predictors"], Float[Tensor, "batch 1 predictors"]]:
        """Predict the token after the one that takes this slot; return predictions and expected errors."""
        caches["signal"].index_copy_(1, slot + self.order, amplitude(tokens, self.mu))
        past_B1N = caches["signal"][:, slot[:, None] + 1 + torch.arange(self.order, device=slot.device)]
        return self._to_tokens(past_B1N @ caches["coefficients"].transpose(-1, -2), caches["error"][:, None])

    def advance(self, caches: State, offset: int) -> None:
        """Find the coefficients of the frame that begins after `offset` samples of the stretch."""
        caches["covariance"].copy_(self._covariance_after(caches, offset))
        coefficients_BKN, error_BK = self._solve(caches["covariance"])
        caches["coefficients"].copy_(coefficients_BKN)
        caches["error"].copy_(error_BK)

    def close_cache(self, caches: State) -> State:
        """The state after a whole stretch."""
        num_samples = caches["signal"].shape[1] - self.order
        return {
            "history": caches["signal"][:, num_samples:].clone(),
            "covariance": self._covariance_after(caches, num_samples),
        }

    def _covariance_after(self, caches: State, offset: int) -> Tensor:
        """The covariance with the frame that ends after `offset` samples of the stretch, its last frame so far."""
        frame_BT = caches["signal"][:, offset - self.frame_length : offset + self.order]
        return caches["covariance"] * self._frame_decay() + self._increments(frame_BT)[:, 0]

    def _frame_decay(self) -> Tensor:
        """The share of the covariance that is left after a frame, [K, 1, 1]."""
        return (1 - 1 / self.windows.double())[:, None, None] ** self.frame_length

    def _increments(self, signal: Tensor) -> Tensor:
        """The covariance of [past ; sample] in each frame, weighted as seen from the frame's end: [B, F, K, O, O]."""
        age_S = torch.arange(self.frame_length - 1, -1, -1, device=signal.device)
        weight_KS = (1 - 1 / self.windows.double())[:, None] ** (age_S / 2)
        rows_BFSO = signal.unfold(1, self.order + 1, 1).unflatten(1, (-1, self.frame_length))
        weighted_BFKSO = rows_BFSO[:, :, None] * weight_KS[..., None]
        return weighted_BFKSO.transpose(-1, -2) @ weighted_BFKSO

    def _solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Least squares with a ridge: coefficients [..., K, N], and the root mean square error they leave [..., K].

        The error is that before bandwidth expansion.
        """
        past, cross, power = covariance[..., :-1, :-1], covariance[..., :-1, -1:], covariance[..., -1, -1]
        ridge = RELATIVE_RIDGE * past.diagonal(dim1=-2, dim2=-1).mean(-1) + ABSOLUTE_RIDGE
        regular = past.clone()
        regular.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
        # Unchecked, so that a GPU is not waited for: with the ridge it is always positive definite.
        coefficients = torch.cholesky_solve(cross, torch.linalg.cholesky_ex(regular).L)[..., 0]
        left = (power - (coefficients * cross[..., 0]).sum(-1)) / self.windows
        lag = torch.arange(self.order, 0, -1, dtype=past.dtype, device=past.device)
        return coefficients * self.bandwidth_expansion**lag, left.clamp_min(0).sqrt()

    def _to_tokens(self, predicted: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Turn amplitudes into tokens from the scale's middle, and errors at them into tokens."""
        clipped = predicted.clamp(-1, 1)
        return scale_place(clipped, self.mu), error / amplitude_per_token(clipped, self.mu)


@dataclass(frozen=True)
class Prediction:
    """The predictors' forecasts of the next token, of which the first is the centre of its distribution.

    Attributes:
        forecasts: in tokens from the middle of the scale [batch, time, predictors].
        errors: those expected, in tokens [batch, time, predictors].
        by_distance: a readout of logits for every distance of a token from the first forecast, 2 vocabulary - 1 of
            them; None where the head has no use for it.
        logistics: logits around all forecasts, or None.
    """

    forecasts: Tensor
    errors: Tensor
    by_distance: nn.Module | None
    logistics: ForecastLogistics | None

    def logits(self, hidden: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time vocabulary"]:
        """Sum the logits by distance and the logistics, for a softmax to add to its own."""
        centred = self.centred_logits(hidden)
        return centred if self.logistics is None else centred + self.logistics(hidden, self.forecasts, self.errors)

    def centred_logits(self, hidden: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of tokens by their distance from the rounded first forecast, laid out by token.

        Example: 4 tokens, forecast 2 from 0: tokens 0 to 3 get the logits of distances -2, -1, 0, 1.
        """
        assert self.by_distance is not None
        logits = self.by_distance(hidden)
        vocabulary_size = (logits.shape[-1] + 1) // 2
        nearest = (self.forecasts[..., 0] + (vocabulary_size - 1) / 2).round().long()
        distance = torch.arange(vocabulary_size, device=nearest.device) - nearest[..., None]
        return logits.gather(-1, distance + vocabulary_size - 1)


class LinearPrediction(nn.Module):
    """The use that a model makes of linear predictions: features beside the tokens' embedding, and a forecast.

    The state is the predictor's and "predicted" [batch, predictors], the predictions of the next token.

    Args:
        vocabulary_size: number of mu-law tokens.
        settings: the predictors.
        channels: size of the embedding.
        hidden_channels: of what the head reads logits by distance from; None where it has no use for them.
    """

    def __init__(
        self, vocabulary_size: int, settings: LinearPredictionSettings, *, channels: int, hidden_channels: int | None
    ) -> None:
        super().__init__()
        self.predictor = BackwardPredictor(vocabulary_size, settings)
        self.vocabulary_size = vocabulary_size
        self.frame_length = settings.frame_length
        num_predictors = len(settings.windows)
        num_features = num_predictors * (2 * NUM_FREQUENCIES + 4) + (num_predictors - 1) * 3
        self.pitch: PitchTaps | None = None
        if settings.pitch is not None:
            self.pitch = PitchTaps(vocabulary_size, settings.pitch, settings.frame_length)
            num_features += self.pitch.num_features
        self.input = nn.Linear(num_features, channels)
        self.by_distance = None if hidden_channels is None else nn.Linear(hidden_channels, 2 * vocabulary_size - 1)
        self.logistics: ForecastLogistics | None = None
        if settings.logistics and hidden_channels is not None:
            self.logistics = ForecastLogistics(
                hidden_channels, num_predictors=num_predictors, vocabulary_size=vocabulary_size
            )

    def initial_state(self, batch_size: int, device: torch.device | str) -> State:
        """A past of silence and no predictions yet."""
        predicted = torch.zeros(batch_size, self.predictor.num_predictors, device=device, dtype=torch.float64)
        state = self.predictor.initial_state(batch_size, device) | {"predicted": predicted}
        if self.pitch is not None:
            state["pitch"] = self.pitch.initial_state(batch_size, device)
        return state

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: State
    ) -> tuple[Float[Tensor, "batch time channels"], Prediction, State]:
        """Read whole frames; return what is added to the tokens' embedding, the forecasts, and the new state."""
        with torch.no_grad():
            predicted, expected, new_state = self.predictor(tokens, state)
            last = torch.cat([state["predicted"][:, None], predicted[:, :-1]], dim=1)
            features = self._features(tokens, last, predicted, expected)
            if self.pitch is not None:
                pitch, new_state["pitch"] = self.pitch(
                    *self._amplitudes(tokens, last, predicted, expected), state["pitch"]
                )
                features = torch.cat([features, pitch], dim=-1)
        new_state = new_state | {"predicted": predicted[:, -1]}
        return self._embed(features), self._prediction(predicted, expected), new_state

    def open_cache(self, state: State, num_samples: int) -> State:
        """Caches of a stretch: the predictor's, and every prediction after the one before the stretch."""
        predicted = F.pad(state["predicted"][:, None], (0, 0, 0, num_samples))
        caches = self.predictor.open_cache(state, num_samples) | {"predicted": predicted}
        if self.pitch is not None:
            caches["pitch"] = self.pitch.open_cache(state["pitch"], num_samples)
        return caches

    def read(
        self, tokens: Int[Tensor, "batch 1"], caches: State, slot: Int[Tensor, " 1"]
    ) -> tuple[Float[Tensor, "batch 1 channels"], Prediction]:
        """Read one token, which takes this slot of the stretch."""
        predicted, expected = self.predictor.read(tokens, caches, slot)
        caches["predicted"].index_copy_(1, slot + 1, predicted)
        last = caches["predicted"].index_select(1, slot)
        features = self._features(tokens, last, predicted, expected)
        if self.pitch is not None:
            amplitudes = self._amplitudes(tokens, last, predicted, expected)
            features = torch.cat([features, self.pitch.read(*amplitudes, caches["pitch"], slot)], dim=-1)
        return self._embed(features), self._prediction(predicted, expected)

    def advance(self, caches: State, offset: int) -> None:
        """Fit the predictors anew after `offset` samples of the stretch, whole frames."""
        self.predictor.advance(caches, offset)
        if self.pitch is not None:
            self.pitch.advance(caches["pitch"], offset)

    def close_cache(self, caches: State) -> State:
        """The state after a whole stretch."""
        state = self.predictor.close_cache(caches) | {"predicted": caches["predicted"][:, -1].clone()}
        if self.pitch is not None:
            state["pitch"] = self.pitch.close_cache(caches["pitch"])
        return state

    def _amplitudes(
        self, tokens: Tensor, last: Tensor, predicted: Tensor, expected: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Samples, what the first predictor left of them, its prediction of the next, and its expected error."""
        mu = self.vocabulary_size - 1
        samples = amplitude(tokens, mu)
        half = mu / 2
        was, is_to_be = (amplitude(place[..., 0] + half, mu) for place in (last, predicted))
        return samples, samples - was, is_to_be, expected[..., 0] * amplitude_per_token(is_to_be, mu)

    def _prediction(self, predicted: Tensor, expected: Tensor) -> Prediction:
        return Prediction(predicted, expected, self.by_distance, self.logistics)

    def _features(self, tokens: Tensor, last: Tensor, predicted: Tensor, expected: Tensor) -> Tensor:
        """Features of predictions, given those of the tokens themselves."""
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

    def _embed(self, features: Tensor) -> Tensor:
        return self.input(features.to(self.input.bias.dtype))
