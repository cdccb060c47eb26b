"""What stands before the first token, and what tokens of each kind must have."""

from typing import Any

import pytest

from audio_ct.audio.mu_law import silence_token
from audio_ct.errors import InputError
from audio_ct.tokens.encoding import check_encoding, start_token, unit


def test_waveforms_start_from_silence_and_bytes_from_a_byte_that_no_text_holds() -> None:
    for bits in range(1, 17):
        assert start_token("mu-law", bits) == silence_token(bits)
    assert start_token("bytes", 8) == 0
    assert (unit("mu-law"), unit("bytes")) == ("sample", "byte")


@pytest.mark.parametrize(
    ("encoding", "values"),
    [
        ("bytes", {"sample_rate_hz": 24_000, "bits": 8}),
        ("bytes", {"sample_rate_hz": None, "bits": 9}),
        ("mu-law", {"sample_rate_hz": None, "bits": 8}),
    ],
)
def test_rates_and_depths_that_do_not_fit_are_refused(encoding: Any, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"sample_rate_hz={values['sample_rate_hz']}"):
        check_encoding(encoding, **values)
