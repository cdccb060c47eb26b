"""Muon: singular values made alike, torch's own update, updates left out, and who is updated by whom."""

import pytest
import torch
from torch import nn

from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings
from audio_ct.recipe import OptimizerRecipe
from audio_ct.training.muon import MuonAdamW, orthogonalised
from audio_ct.training.optimizer import load_whole_state, make_optimizer, whole_state
from audio_ct.training.processes import open_processes


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_singular_values_become_alike(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, shape[1])
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = (u.T @ orthogonalised(matrix) @ v.T).diagonal()
    assert values.min() > 0.5
    assert values.max() < 1.3


def muon(parameter: nn.Parameter, **changes: float) -> MuonAdamW:
    group = {"params": [parameter], "lr": 0.1, "weight_decay": 0.0, "is_muon": True, **changes}
    return MuonAdamW([group], lr=0.1)


def test_updates_are_those_of_torchs_muon() -> None:
    random = torch.Generator().manual_seed(0)
    start = torch.randn(12, 6, generator=random)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = muon(ours, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, momentum=0.95)
    for _ in range(4):
        gradient = torch.randn(12, 6, generator=random)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        torchs.step()
    # Torch iterates in bfloat16, which has 8 bits.
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)
    assert (ours - start).norm() > 10 * (ours - theirs).norm()


def test_an_update_left_out_changes_nothing() -> None:
    parameter = nn.Parameter(torch.randn(4, 4))
    optimizer = muon(parameter)
    parameter.grad = torch.randn(4, 4)
    optimizer.step()
    weights, momentum = parameter.clone(), optimizer.state[parameter]["momentum"].clone()
    parameter.grad = torch.full((4, 4), torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(parameter, weights)
    assert torch.equal(optimizer.state[parameter]["momentum"], momentum)
    optimizer.found_inf = torch.zeros(())
    parameter.grad = torch.randn(4, 4)
    optimizer.step()
    assert not torch.equal(parameter, weights)


def test_muon_takes_the_matrices_between_embedding_and_readout_and_the_state_travels() -> None:
    torch.manual_seed(0)
    model = build_model(
        CompressiveTransformerSettings(
            num_layers=1,
            d_model=8,
            num_heads=2,
            d_ff=8,
            segment_length=4,
            memory_length=4,
            compressed_memory_length=2,
            front_dilations=[1],
        ),
        vocabulary_size=5,
    )
    recipe = OptimizerRecipe(learning_rate=1e-3, muon_learning_rate=2e-2)
    optimizer = make_optimizer(model, recipe)
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
    other = make_optimizer(model, recipe)
    load_whole_state(other, state)
    assert len(other.state) == len(optimizer.state)
    for parameter, entries in optimizer.state.items():
        for name, tensor in entries.items():
            assert torch.equal(other.state[parameter][name], tensor)
