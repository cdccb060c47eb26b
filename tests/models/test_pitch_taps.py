"""Taps a pitch period back: the lag that is found, and the samples that are shown."""

import pytest
import torch
from torch import Tensor

from audio_ct.models.pitch_taps import FLOORS, SHARE_OF_BEST, PitchTaps
from audio_ct.models.settings import PitchSettings

SETTINGS = PitchSettings(shortest_lag=6, longest_lag=24, window=30, taps_before=2, taps_after=5)
FRAME, LENGTH = 4, 96


def taps() -> PitchTaps:
    return PitchTaps(256, SETTINGS, FRAME)


def read(signal: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Features of a window from a cold start, and the lag of each sample."""
    module = taps()
    zero = torch.zeros_like(signal)
    features, _ = module(signal, left, zero, zero + 0.01, module.initial_state(len(signal), "cpu"))
    return features, (2 ** features[..., -1] * SETTINGS.longest_lag).round().long()


@pytest.mark.parametrize("period", [7, 13, 24])
def test_the_lag_is_the_period_of_pulses(period: int) -> None:
    pulses = torch.zeros(1, LENGTH, dtype=torch.float64)
    pulses[:, 3::period] = 0.3
    _, lag = read(pulses, pulses)
    assert (lag[:, 3 * period :] == period).all()


def test_the_lag_is_the_shortest_of_the_most_alike_by_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, left = 0.1 * torch.randn(2, 1, LENGTH, generator=generator, dtype=torch.float64)
    _, lag = read(signal, left)
    for frame in range(3, LENGTH // FRAME):
        end, scores = frame * FRAME, []
        weight = (1 - 1 / SETTINGS.window) ** torch.arange(end - 1, -1, -1, dtype=torch.float64)
        for k in range(SETTINGS.shortest_lag, SETTINGS.longest_lag + 1):
            score = 0.0
            for y, floor in zip((signal[0], left[0]), FLOORS, strict=True):
                was = torch.cat([torch.zeros(k, dtype=torch.float64), y])[:end]
                own, then = ((weight * x[:end].square()).sum() + floor * SETTINGS.window for x in (y, was))
                score += float((weight * y[:end] * was).sum() / (own * then).sqrt())
            scores.append(score)
        inside = range(1, len(scores) - 1)
        peaks = [0, len(scores) - 1, *(i for i in inside if scores[i] >= max(scores[i - 1], scores[i + 1]))]
        near = [i for i in (*peaks, scores.index(max(scores))) if scores[i] >= SHARE_OF_BEST * max(scores)]
        assert lag[0, end] == SETTINGS.shortest_lag + min(near)


def test_taps_stand_around_the_place_a_lag_before_the_next_sample() -> None:
    generator = torch.Generator().manual_seed(1)
    signal = 0.1 * torch.randn(1, LENGTH, generator=generator, dtype=torch.float64)
    left = 0.05 * signal
    features, lag = read(signal, left)
    units = features[0, :, 4 * 8 : 5 * 8].atanh() * (0.01 + 1e-4)
    for t in range(SETTINGS.longest_lag + 2, LENGTH):
        shown = left[0, t + 1 - int(lag[0, t]) - 2 :][:8]
        torch.testing.assert_close(units[t], shown, atol=1e-6, rtol=1e-3)
