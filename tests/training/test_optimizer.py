"""Schedules at their corners, the parameters that decay, spikes, and verdicts that a GPU gives when they are due."""

import math
from typing import Any

import pytest
import torch

from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings, ModelSettings, WaveNetSettings
from audio_ct.recipe import OptimizerRecipe
from audio_ct.training.optimizer import (
    BEHIND,
    NEW_SHARE,
    Verdict,
    Verdicts,
    clip_gradients,
    judged,
    learning_rate,
    load_whole_state,
    make_optimizer,
    update_every,
    whole_state,
)
from audio_ct.training.processes import open_processes

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


def add(verdicts: Verdicts, device: str, *given: Verdict) -> None:
    for step, verdict in enumerate(given, 1):
        verdicts.add(step, torch.tensor(verdict, device=device))


def test_on_a_cpu_every_verdict_is_there_at_once() -> None:
    verdicts = Verdicts()
    add(verdicts, "cpu", Verdict.TAKEN, Verdict.NOT_FINITE)
    assert list(verdicts.settled(all_of_them=False)) == [(1, Verdict.TAKEN), (2, Verdict.NOT_FINITE)]
    assert list(verdicts.settled(all_of_them=True)) == []


@pytest.mark.gpu
def test_a_gpus_last_verdicts_come_when_all_are_asked_for() -> None:
    verdicts = Verdicts()
    add(verdicts, "cuda", Verdict.TAKEN, Verdict.SPIKE, *[Verdict.TAKEN] * BEHIND)
    assert list(verdicts.settled(all_of_them=False)) == [(1, Verdict.TAKEN), (2, Verdict.SPIKE)]
    assert list(verdicts.settled(all_of_them=True)) == [(3 + i, Verdict.TAKEN) for i in range(BEHIND)]


def test_a_spike_is_so_many_times_the_running_mean_of_the_norms_taken() -> None:
    typical, found = torch.tensor(math.nan), []
    for norm in (1.0, 2.9, math.nan, 3.2, 2.0):
        verdict, typical = judged(torch.tensor([norm, 0.0]), typical, spike_factor=3)
        found.append(Verdict(int(verdict)))
    # The first norm is the mean; those left out do not enter it.
    assert found == [Verdict.TAKEN, Verdict.TAKEN, Verdict.NOT_FINITE, Verdict.SPIKE, Verdict.TAKEN]
    mean = 1 + NEW_SHARE * 1.9
    assert float(typical) == pytest.approx(mean + NEW_SHARE * (2 - mean))


def test_without_a_factor_nothing_is_a_spike_and_an_auxiliary_norm_counts_too() -> None:
    assert int(judged(torch.tensor([1e30, 0.0]), torch.tensor(1.0), spike_factor=0)[0]) == Verdict.TAKEN
    assert int(judged(torch.tensor([1.0, math.inf]), torch.tensor(1.0), spike_factor=0)[0]) == Verdict.NOT_FINITE


@pytest.mark.parametrize("compressed_memory_length", [0, 4])
def test_norms_stay_on_the_device(compressed_memory_length: int) -> None:
    with torch.device("meta"):
        model = build_model(compressive_transformer(compressed_memory_length), vocabulary_size=4)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert [norm.device.type for norm in clip_gradients(model, 1.0)] == ["meta", "meta"]


@pytest.mark.parametrize(
    ("changes", "num_steps", "expected"),
    [
        ({}, 3, {0: 1, 2: 1}),
        ({"warmup_steps": 4}, 7, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 6: 1}),
        # Without decay the length of the run does not matter, so a run can be made longer.
        ({"warmup_steps": 4}, 100, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 6: 1}),
        ({"warmup_steps": 2, "decay": "linear", "final_fraction": 0.1}, 10, {2: 1, 6: 0.55, 10: 0.1, 99: 0.1}),
        ({"decay": "cosine"}, 100, {0: 1, 25: (1 + math.cos(math.pi / 4)) / 2, 50: 0.5, 100: 0}),
    ],
)
def test_the_learning_rate_at_its_corners(changes: dict[str, Any], num_steps: int, expected: dict[int, float]) -> None:
    found = {step: learning_rate(recipe(**changes), step, num_steps) / 1e-3 for step in expected}
    assert found == pytest.approx(expected, abs=1e-12)


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


def test_muon_takes_the_matrices_between_embedding_and_readout_and_the_state_travels() -> None:
    torch.manual_seed(0)
    model = build_model(compressive_transformer(compressed_memory_length=2), vocabulary_size=5)
    settings = recipe(muon_learning_rate=2e-2)
    optimizer = make_optimizer(model, settings)
    *_, group = optimizer.param_groups
    assert group["rate_ratio"] == pytest.approx(20)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    taken = {names[id(parameter)] for parameter in group["params"]}
    assert {"stages.front.layers.0.mix.weight", "head.body.hidden.weight"} < taken
    assert not taken & {"embedding.weight", "head.readout.weight", "stages.front.layers.0.mix.bias"}

    output = model(torch.randint(5, (2, 8)), model.initial_state(2))
    (output.logits.square().mean() + sum(output.auxiliary_losses.values())).backward()
    optimizer.step()
    with open_processes(60.0) as processes:
        state = whole_state(optimizer, processes)
    other = make_optimizer(model, settings)
    load_whole_state(other, state)
    assert len(other.state) == len(optimizer.state)
    for parameter, entries in optimizer.state.items():
        for name, tensor in entries.items():
            assert torch.equal(other.state[parameter][name], tensor)
