"""Taps a pitch period back: a long-term predictor's view, found in the stream's own past.

Voiced speech repeats itself after a period of 2 to 16 ms, which no linear predictor of order 32 spans. Every frame the
lag is found at which the recent past is most like itself, by normalised correlations over an exponential window: the
waveform's, which alone would take a formant's period for the pitch's, and that of what linear prediction left of it,
which alone would drown in rounding noise; their sum is highest at the pitch and its multiples. The network is shown
the samples around the place a lag before the next sample, and what linear prediction left there, *before and after*
that place: all of it is past. Nothing is learned here and nothing is sent.

Source: the adaptive codebook of CELP (Schroeder and Atal 1985) and its open-loop pitch search, found backwards;
dilation by pitch is QPNet's (Wu et al. 2020, 2007.05663), which is told the pitch.

Shape suffixes: B batch, T time, F frames, S samples of a frame, K lags, J taps.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.scale import scale_place
from audio_ct.models.settings import PitchSettings
from audio_ct.models.stage import State

# Full scale squared, added to mean squares of the waveform and of what prediction left: below it there is no pitch.
FLOORS = (4e-8, 4e-10)
# The lag is the shortest peak of so much of the highest likeness: twice the period is as alike. On 24 windows of
# klettres the lag was 2 or 3 of pyin's periods in 8 % of voiced frames with the highest taken, and is so in 2 %.
SHARE_OF_BEST = 0.85


class PitchTaps(nn.Module):
    """Features of the samples a pitch period before the next one; no parameters.

    The state, float64, is "past" [batch, 2, length], the last amplitudes and what prediction left of them, and
    "correlation" [batch, 2, 2, lags + 1], of both: products with the samples a lag before, and those samples' energies;
    lag 0 last.

    Args:
        vocabulary_size: number of mu-law tokens.
        settings: lags, window and taps.
        frame_length: samples between two searches.
    """

    def __init__(self, vocabulary_size: int, settings: PitchSettings, frame_length: int) -> None:
        super().__init__()
        self.mu = vocabulary_size - 1
        self.settings = settings
        self.frame_length = frame_length
        self.shortest, self.longest = settings.shortest_lag, settings.longest_lag
        self.num_lags = self.longest - self.shortest + 1
        self.decay = 1 - 1 / settings.window
        # A tap beyond the lag would not be past.
        self.taps = range(-settings.taps_before, settings.taps_after + 1)
        self.length = self.longest + settings.taps_before
        self.num_features = 5 * len(self.taps) + 4

    def initial_state(self, batch_size: int, device: torch.device | str) -> State:
        """A past of silence."""
        shapes = {"past": (2, self.length), "correlation": (2, 2, self.num_lags + 1)}
        return {
            name: torch.zeros(batch_size, *shape, device=device, dtype=torch.float64) for name, shape in shapes.items()
        }

    def forward(
        self, signal: Tensor, left: Tensor, predicted: Tensor, expected: Tensor, state: State
    ) -> tuple[Float[Tensor, "batch time features"], State]:
        """Read whole frames.

        Args:
            signal: amplitudes [batch, time].
            left: what the first predictor left of them [batch, time].
            predicted: its prediction of the sample after each, an amplitude [batch, time].
            expected: its expected error [batch, time].
            state: as left by the last call.
        """
        past_B2T = torch.cat([state["past"], torch.stack([signal, left], dim=1)], dim=2)
        correlation, found = state["correlation"], []
        for increment in self._increments(past_B2T[:, :, self.length - self.longest :]).unbind(1):
            found.append(correlation)
            correlation = correlation * self.decay**self.frame_length + increment
        each = [x.repeat_interleave(self.frame_length, dim=1) for x in self._lag(torch.stack(found, dim=1))]
        features = self._features(past_B2T, self.length, predicted, expected, *each)
        return features, {"past": past_B2T[:, :, -self.length :], "correlation": correlation}

    def open_cache(self, state: State, num_samples: int) -> State:
        """Caches of a stretch: its samples, and the lag found from what came before it."""
        lag, found = self._lag(state["correlation"])
        return {
            "past": F.pad(state["past"], (0, num_samples)),
            "correlation": state["correlation"].clone(),
            "lag": lag,
            "found": found,
        }

    def read(
        self, signal: Tensor, left: Tensor, predicted: Tensor, expected: Tensor, caches: State, slot: Tensor
    ) -> Float[Tensor, "batch 1 features"]:
        """Read one sample of every lane, which takes this slot; arguments as of `forward`, [batch, 1]."""
        caches["past"].index_copy_(2, slot + self.length, torch.stack([signal, left], dim=1))
        each = caches["lag"][:, None], caches["found"][:, None]
        return self._features(caches["past"], slot + self.length, predicted, expected, *each)

    def advance(self, caches: State, offset: int) -> None:
        """Search anew after `offset` samples of the stretch, whole frames."""
        caches["correlation"].copy_(self._after(caches, offset))
        lag, found = self._lag(caches["correlation"])
        caches["lag"].copy_(lag)
        caches["found"].copy_(found)

    def close_cache(self, caches: State) -> State:
        """The state after a whole stretch."""
        num_samples = caches["past"].shape[2] - self.length
        past = caches["past"][:, :, num_samples:].clone()
        return {"past": past, "correlation": self._after(caches, num_samples)}

    def _after(self, caches: State, offset: int) -> Tensor:
        """The correlation with the frame that ends after `offset` samples."""
        end = offset + self.length
        past = caches["past"][:, :, end - self.frame_length - self.longest : end]
        return caches["correlation"] * self.decay**self.frame_length + self._increments(past)[:, 0]

    def _increments(self, past: Tensor) -> Tensor:
        """Products and energies of each frame, weighted as seen from its end: [B, F, 2, 2, lags + 1].

        `past` [B, 2, T], waveform and what was left, begins the longest lag before the first frame.
        """
        age_S = torch.arange(self.frame_length - 1, -1, -1, device=past.device, dtype=past.dtype)
        weight_S = self.decay**age_S
        # A frame with the longest lag before it; sample s's lags, the longest first, begin at s.
        stretch_B2FT = past.unfold(2, self.longest + self.frame_length, self.frame_length)
        frame_B2FS = stretch_B2FT[..., self.longest :]
        own_B2F1 = (frame_B2FS.square() @ weight_S)[..., None]
        products = past.new_zeros(*stretch_B2FT.shape[:3], self.num_lags)
        for s, weight in enumerate(weight_S):
            products.addcmul_(frame_B2FS[..., s : s + 1] * weight, stretch_B2FT[..., s : s + self.num_lags])
        # A weighted sum of squares for each place where a lagged frame may begin; frames share them.
        energy_B2T = past.square().unfold(2, self.frame_length, 1) @ weight_S
        energies = energy_B2T.unfold(2, self.num_lags, self.frame_length)[:, :, : products.shape[2]]
        both = [torch.cat([each, own_B2F1], dim=-1) for each in (products, energies)]
        return torch.stack(both, dim=3).transpose(1, 2)

    def _lag(self, correlation: Tensor) -> tuple[Tensor, Tensor]:
        """The lag [...], and both likenesses there with the level in bels [..., 3]."""
        product, energy, own = correlation[..., 0, :-1], correlation[..., 1, :-1], correlation[..., 1, -1:]
        # Filled on the device: a GPU would wait for numbers that are sent to it.
        floor = torch.stack([own.new_full((1,), each * self.settings.window) for each in FLOORS])
        likeness = product / ((energy + floor) * (own + floor)).sqrt()
        both = likeness.sum(dim=-2)
        best = both.amax(dim=-1, keepdim=True)
        left, right = both[..., :-2], both[..., 2:]
        is_peak = F.pad((both[..., 1:-1] >= left) & (both[..., 1:-1] >= right), (1, 1), value=True)
        chosen = is_peak & (both >= SHARE_OF_BEST * best) | (both == best)
        # The shortest: lags stand longest first.
        place = self.num_lags - 1 - chosen.flip(-1).to(torch.uint8).argmax(dim=-1)
        found = likeness.gather(-1, place[..., None, None].expand(*place.shape, 2, 1))[..., 0]
        level = (own[..., 0, :] / self.settings.window + 1e-8).log10() + 3
        return self.longest - place, torch.cat([found, level], dim=-1)

    def _features(
        self,
        past: Tensor,
        first: int | Tensor,
        predicted: Tensor,
        expected: Tensor,
        lag: Tensor,
        found: Tensor,
    ) -> Tensor:
        """Features of each sample's successor; sample t of the window stands at `first` + t of the past."""
        tap_J = torch.arange(self.taps.start, self.taps.stop, device=past.device)
        now_T = first + torch.arange(predicted.shape[1], device=past.device)
        place_BTJ = now_T[None, :, None] + 1 - lag[..., None] + tap_J
        index = place_BTJ.flatten(1)[:, None].expand(-1, 2, -1)
        sample, left = past.gather(2, index).unflatten(2, place_BTJ.shape[1:]).unbind(1)
        place = scale_place(sample, self.mu) / 16
        centre = scale_place(predicted.clamp(-1, 1), self.mu)[..., None] / 16
        units = left / (expected[..., None] + 1e-4)
        features = [place / 8, (place - centre).tanh(), (4 * (place - centre)).tanh(), (units / 4).tanh(), units.tanh()]
        return torch.cat([*features, found, (lag.double() / self.longest).log2()[..., None]], dim=-1)
