"""Muon: singular values made alike, torch's own update, and updates left out."""

import pytest
import torch
from torch import nn

from audio_ct.training.muon import MuonAdamW, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_singular_values_become_alike(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, shape[1])
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = (u.T @ orthogonalised(matrix[None])[0] @ v.T).diagonal()
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


def test_matrices_of_one_shape_are_updated_as_each_alone() -> None:
    random = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=random) for shape in ((6, 4), (4, 6), (6, 4))]
    gradients = [torch.randn(each.shape, generator=random) for each in start]
    together = [nn.Parameter(each.clone()) for each in start]
    one = MuonAdamW([{"params": together, "lr": 0.1, "weight_decay": 0.1, "is_muon": True}], lr=0.1)
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient
    one.step()
    for parameter, weights, gradient in zip(together, start, gradients, strict=True):
        alone = nn.Parameter(weights)
        alone.grad = gradient
        muon(alone, weight_decay=0.1).step()
        torch.testing.assert_close(parameter, alone)


@pytest.mark.gpu
def test_a_gpus_updates_are_the_cpus_and_can_be_left_out() -> None:
    random = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(48, 32, generator=random), torch.randn(48, 32, generator=random)
    moved = {}
    for device in ("cpu", "cuda"):
        parameter = nn.Parameter(start.clone().to(device))
        parameter.grad = gradient.to(device)
        optimizer = muon(parameter)
        optimizer.found_inf = torch.zeros((), device=device)
        optimizer.step()
        moved[device] = parameter.detach().cpu()
        optimizer.found_inf = torch.ones((), device=device)
        optimizer.step()
        assert torch.equal(parameter.detach().cpu(), moved[device])
    # On a GPU the iterations are in bfloat16, which has 8 bits.
    assert (moved["cuda"] - moved["cpu"]).norm() < 0.05 * (moved["cpu"] - start).norm()
