"""Bits per sample against one recording at a time, one step at a time, however the work is batched."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_ct.errors import InputError
from audio_ct.evaluation.likelihood import Likelihood, Reading, choose_recordings, evaluate, likelihood, validate
from audio_ct.models.build import build_model
from audio_ct.models.settings import (
    CompressiveTransformerSettings,
    LinearPredictionSettings,
    ModelSettings,
    WaveNetSettings,
)
from audio_ct.models.token_model import TokenModel
from audio_ct.pretrained import load
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder

LENGTHS = [40, 3, 25, 16, 1, 33, 12]
START = 8
CONVOLUTIONS = {"num_stacks": 2, "layers_per_stack": 3, "residual_channels": 8, "skip_channels": 8}
SETTINGS: dict[str, ModelSettings] = {
    "compressive_transformer": CompressiveTransformerSettings(
        num_layers=2,
        d_model=8,
        num_heads=2,
        d_ff=8,
        segment_length=4,
        memory_length=4,
        compressed_memory_length=4,
        compression_rate=2,
        front_dilations=[1, 2],
    ),
    "wavenet": WaveNetSettings(**CONVOLUTIONS),
    "predicting_wavenet": WaveNetSettings(
        **CONVOLUTIONS, linear_prediction=LinearPredictionSettings(order=3, windows=[9], frame_length=4)
    ),
}


def build_store(path: Path, tokens: np.ndarray, rows: list[Recording]) -> TokenStore:
    """The same recordings in every split."""
    with TokenStoreBuilder(path, MuLawCodec(24_000, 4)) as builder:
        for split in ("train", "validation", "test"):
            builder.add_shard(split, tokens, rows)
        return builder.commit()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    offsets = np.cumsum([0, *LENGTHS])
    tokens = np.random.default_rng(0).integers(0, 16, offsets[-1]).astype(np.uint8)
    rows = [
        Recording(f"r{i}", "a", f"{i}.wav", None, 0, int(offset), length)
        for i, (offset, length) in enumerate(zip(offsets[:-1], LENGTHS, strict=True))
    ]
    return build_store(tmp_path_factory.mktemp("likelihood") / "store", tokens, rows)


@pytest.fixture(scope="module", params=list(SETTINGS))
def model(request: pytest.FixtureRequest) -> TokenModel:
    torch.manual_seed(0)
    return build_model(SETTINGS[request.param], 16)


def measure(
    model: TokenModel, store: TokenStore, *, batch_size: int = 3, window_length: int = 8, cold: int = 10
) -> Likelihood:
    everything = choose_recordings(store, "test", None)
    return likelihood(model, everything, Reading(batch_size, window_length), cold_start_samples=cold)


@torch.no_grad()
def slowly(model: TokenModel, store: TokenStore) -> list[np.ndarray]:
    """The bits of every sample of every recording, by single steps from a cold start."""
    bits = []
    for recording in store.recordings("test"):
        tokens = store.tokens("test", recording).tolist()
        state, row = model.initial_state(1), []
        for before, token in zip([START, *tokens], tokens, strict=False):
            logits, state = model.step(torch.tensor([before]), state)
            row.append(-float(logits[0].double().log_softmax(-1)[token]) / math.log(2))
        bits.append(np.array(row))
    return bits


@pytest.mark.parametrize("cold", [0, 10])
def test_every_sample_once_and_the_cold_start_apart(model: TokenModel, store: TokenStore, cold: int) -> None:
    expected = slowly(model, store)
    result = measure(model, store, cold=cold)
    assert result.names == tuple(f"r{i}" for i in range(len(LENGTHS)))
    assert result.tokens.tolist() == [max(0, length - cold) for length in LENGTHS]
    assert result.cold_tokens.tolist() == [min(cold, length) for length in LENGTHS]
    np.testing.assert_allclose(result.bits, [row[cold:].sum() for row in expected], atol=1e-4)
    np.testing.assert_allclose(result.cold_bits, [row[:cold].sum() for row in expected], atol=1e-4)
    warm = np.concatenate([row[cold:] for row in expected])
    assert result.bits_per_sample == pytest.approx(warm.mean(), abs=1e-5)
    if cold:
        assert result.cold_start_bits_per_sample == pytest.approx(
            np.concatenate([row[:cold] for row in expected]).mean(), abs=1e-5
        )
    else:
        assert result.cold_start_bits_per_sample is None


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("window_length", [1, 12, 60])
def test_batch_and_window_do_not_change_the_result(
    model: TokenModel, store: TokenStore, batch_size: int, window_length: int
) -> None:
    expected = measure(model, store)
    result = measure(model, store, batch_size=batch_size, window_length=window_length)
    np.testing.assert_allclose(result.bits, expected.bits, atol=1e-4)
    np.testing.assert_allclose(result.cold_bits, expected.cold_bits, atol=1e-4)
    assert result.tokens.tolist() == expected.tokens.tolist()


def test_the_model_is_left_in_evaluation_mode_without_gradients(model: TokenModel, store: TokenStore) -> None:
    model.train()
    measure(model, store)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_cold_start_that_leaves_nothing_is_refused(model: TokenModel, store: TokenStore) -> None:
    with pytest.raises(InputError, match="cold_start_samples=40 leaves nothing to score"):
        measure(model, store, cold=40)
    assert measure(model, store, cold=39).tokens.sum() == 1


def test_chosen_recordings_are_spread_over_the_split(tmp_path: Path) -> None:
    rows = [Recording(f"r{i:02d}", "a", f"{i}.wav", None, 0, 10 * i, 10) for i in range(20)]
    equal = build_store(tmp_path / "store", np.zeros(200, dtype=np.uint8), rows)
    for number in range(2, 20):
        chosen = [recording.offset // 10 for recording in choose_recordings(equal, "test", 10 * number).recordings]
        assert len(chosen) == number
        # The golden ratio's gaps are within 2 of the even ones.
        assert max(b - a for a, b in pairwise([*chosen, chosen[0] + 20])) <= 20 / number + 3


def test_recordings_are_chosen_whole_and_spread(store: TokenStore) -> None:
    everything = tuple(store.recordings("test"))
    for enough in (None, sum(LENGTHS), 10**9):
        assert choose_recordings(store, "test", enough).recordings == everything
    for most in range(1, sum(LENGTHS)):
        chosen = choose_recordings(store, "test", most).recordings
        assert [each for each in everything if each in chosen] == list(chosen)
        lengths = [each.length for each in chosen]
        assert sum(lengths) >= most
        assert sum(lengths) - max(lengths) < most
    assert choose_recordings(store, "test", 1).recordings == everything[:1]


def test_validation_in_training_is_the_evaluation_of_that_split(trained: Callable[..., Path]) -> None:
    loaded = load(trained("net"))
    found = validate(loaded.recipe, loaded.model, loaded.open_store())
    expected = evaluate(loaded, split="validation", max_tokens=1000, cold_start_samples=1024)
    assert found["validation_bits_per_sample"] == pytest.approx(expected.bits_per_sample)
    assert found["validation_bits_per_sample"] == pytest.approx(loaded.manifest.metrics["validation_bits_per_sample"])
    assert found["validation_cold_start_bits_per_sample"] == pytest.approx(expected.cold_start_bits_per_sample)
