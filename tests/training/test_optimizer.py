"""Learning rates and update schedules at their corners, and which parameters decay."""

import math
from typing import Any

import pytest
import torch

from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings, ModelSettings, WaveNetSettings
from audio_ct.recipe import OptimizerRecipe
from audio_ct.training.optimizer import clip_gradients, learning_rate, make_optimizer, update_every

WAVENET = WaveNetSettings(num_stacks=1, layers_per_stack=1, residual_channels=4, skip_channels=4)


def compressive_transformer(compressed_memory_length: int) -> CompressiveTransformerSettings:
    return CompressiveTransformerSettings(
        num_layers=1,
        d_model=8,
        num_heads=2,
        d_ff=8,
        segment_length=4,
        memory_length=4,
        compressed_memory_length=compressed_memory_length,
        front_dilations=[1],
    )


def recipe(**changes: Any) -> OptimizerRecipe:
    return OptimizerRecipe.model_validate({"learning_rate": 1e-3} | changes)


def rates(settings: OptimizerRecipe, num_steps: int) -> list[float]:
    return [learning_rate(settings, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("compressed_memory_length", [0, 4])
def test_norms_stay_on_the_device(compressed_memory_length: int) -> None:
    with torch.device("meta"):
        model = build_model(compressive_transformer(compressed_memory_length), vocabulary_size=4)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert [norm.device.type for norm in clip_gradients(model, 1.0)] == ["meta", "meta"]


def test_without_decay_it_rises_and_stays() -> None:
    assert rates(recipe(), 3) == [1e-3] * 3
    assert rates(recipe(warmup_steps=4), 7) == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    # How long the run is does not matter, so a run can be made longer.
    assert rates(recipe(warmup_steps=4), 7) == rates(recipe(warmup_steps=4), 100)[:7]


def test_a_linear_decay_ends_at_its_fraction() -> None:
    settings = recipe(warmup_steps=2, decay="linear", final_fraction=0.1)
    assert learning_rate(settings, 2, 10) == 1e-3
    assert learning_rate(settings, 6, 10) == pytest.approx(0.55e-3)
    assert learning_rate(settings, 10, 10) == pytest.approx(0.1e-3)
    assert learning_rate(settings, 99, 10) == pytest.approx(0.1e-3)


def test_a_cosine_decay_is_half_way_at_the_middle() -> None:
    settings = recipe(decay="cosine")
    assert learning_rate(settings, 0, 100) == 1e-3
    assert learning_rate(settings, 25, 100) == pytest.approx(1e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(settings, 50, 100) == pytest.approx(0.5e-3)
    assert learning_rate(settings, 100, 100) == pytest.approx(0, abs=1e-18)
    assert all(rate > 0 for rate in rates(settings, 100))


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_every_rate_of_a_run_is_above_0_even_if_the_warm_up_outlasts_it(decay: str) -> None:
    for num_steps in (1, 2, 5, 50):
        for warmup_steps in (0, 1, 5, 60):
            values = rates(recipe(warmup_steps=warmup_steps, decay=decay), num_steps)
            assert all(0 < rate <= 1e-3 for rate in values)


def test_update_every() -> None:
    assert [update_every({0: 1, 60_000: 4}, step) for step in (0, 59_999, 60_000, 10**9)] == [1, 1, 4, 4]
    assert [update_every({5: 3, 0: 2}, step) for step in (4, 5)] == [2, 3]


@pytest.mark.parametrize("settings", [compressive_transformer(4), WAVENET], ids=["compressive_transformer", "wavenet"])
def test_weight_decay_falls_on_matrices_alone(settings: ModelSettings) -> None:
    model = build_model(settings, vocabulary_size=8)
    optimizer = make_optimizer(model, recipe(weight_decay=0.1, betas=[0.8, 0.9]))
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0)
    assert decayed["betas"] == plain["betas"] == (0.8, 0.9)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    for parameter in decayed["params"]:
        assert parameter.dim() >= 2
    untouched = {names[id(parameter)] for parameter in plain["params"]}
    expected = {name for name in names.values() if "bias" in name or "norm" in name or "embedding" in name}
    assert untouched >= expected
