"""Mu-law coding as a quantiser: every code round-trips, order survives, overshoot and NaN do no silent harm."""

import pytest
import torch

from audio_ct.audio import mu_law
from audio_ct.errors import InputError


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_token_survives_decoding_and_encoding(bits: int) -> None:
    tokens = torch.arange(2**bits)
    waveform = mu_law.decode(tokens, bits)
    assert waveform.dtype == torch.float32
    assert waveform.abs().max() <= 1.0
    assert torch.equal(mu_law.encode(waveform, bits).to(torch.int64), tokens)
    assert mu_law.encode(torch.zeros(1), bits).item() == mu_law.silence_token(bits)


def test_louder_samples_never_get_lower_tokens() -> None:
    ramp = torch.linspace(-1.0, 1.0, 100_001)
    tokens = mu_law.encode(ramp).to(torch.int64)
    assert (tokens.diff() >= 0).all()
    assert (tokens[0], tokens[-1]) == (0, 255)


def test_overshoot_is_clamped_not_wrapped() -> None:
    tokens = mu_law.encode(torch.tensor([-1e30, -1.5, -1.0, 1.0, 1.5, 1e30]))
    assert tokens.dtype == torch.uint8
    assert tokens.tolist() == [0, 0, 0, 255, 255, 255]


def test_the_error_is_within_half_a_step_of_the_companded_scale() -> None:
    waveform = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    decoded = mu_law.decode(mu_law.encode(waveform))
    companded = torch.log1p(255 * torch.stack([waveform.abs(), decoded.abs()])) / torch.log1p(torch.tensor(255.0))
    signed = companded * torch.stack([waveform, decoded]).sign()
    assert (signed[0] - signed[1]).abs().max() <= 1 / 255 + 1e-5


def test_shapes_and_types_are_kept() -> None:
    assert mu_law.encode(torch.zeros(2, 3, 4), bits=8).shape == (2, 3, 4)
    assert mu_law.encode(torch.zeros(0), bits=9).dtype == torch.int32
    assert mu_law.decode(torch.zeros(0, dtype=torch.uint8)).shape == (0,)


def test_samples_that_are_not_finite_and_tokens_out_of_range_are_refused() -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(InputError, match="NaN or infinite"):
            mu_law.encode(torch.tensor([0.0, value]))
    with pytest.raises(InputError, match="0 to 15"):
        mu_law.decode(torch.tensor([16]), bits=4)
