"""The memory as an LSTM's cell: unrolls cut anywhere, episodes and lanes apart, and what compressed memory is for."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.models.compressive_transformer import CompressiveLayer
from audio_ct.models.memory_cell import CompressiveMemory, cut_unroll
from audio_ct.models.settings import CompressionSettings, CompressiveTransformerSettings
from audio_ct.models.stage import State, flatten, map_state
from benchmarks import recall

D_IN = 5
SEGMENT = 4
LENGTH = 29


def cell(**changes: Any) -> CompressiveMemory:
    sizes: dict[str, Any] = {
        "num_layers": 2,
        "d_model": 12,
        "num_heads": 2,
        "d_ff": 16,
        "segment_length": SEGMENT,
        "memory_length": SEGMENT,
        "compressed_memory_length": 5,
        "compression_rate": 2,
    }
    return CompressiveMemory(d_in=D_IN, settings=CompressiveTransformerSettings(**sizes | changes))


VARIANTS: dict[str, Callable[[], CompressiveMemory]] = {
    "convolution": cell,
    "no-compressed-memory": lambda: cell(compressed_memory_length=0, compression_rate=1),
    "no-memory": lambda: cell(memory_length=0, compressed_memory_length=0, compression_rate=1),
    "compressed-only": lambda: cell(memory_length=0),
    # A segment divides neither memory nor rate: compressed spans begin within segments, and steps are dropped.
    "odd-lengths": lambda: cell(memory_length=7, compression_rate=3, num_heads=4),
    "dilated-own-positions": lambda: cell(
        memory_length=6,
        compressed_positions="own",
        compression={"function": "dilated_convolution"},
    ),
    "mean-pooling": lambda: cell(compression={"function": "mean_pooling", "loss": "none"}),
    "auto-encoding": lambda: cell(compression={"function": "convolution", "loss": "auto_encoding"}),
    "task": lambda: cell(compression={"function": "convolution", "loss": "task"}),
    "norm": lambda: cell(compression={"loss_form": "norm"}),
}


@pytest.fixture(params=VARIANTS)
def memory(request: pytest.FixtureRequest) -> CompressiveMemory:
    torch.manual_seed(1)
    built = VARIANTS[request.param]().double().eval()
    # Whatever starts at zero would hide a mistake.
    for parameter in built.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return built


def observed(num_lanes: int = 3, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randn(num_lanes, length, D_IN, generator=torch.Generator().manual_seed(seed)).double()


def at_random(num_lanes: int = 3, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Resets: none in the first lane, some in the others, two side by side."""
    resets = torch.rand(num_lanes, length, generator=torch.Generator().manual_seed(seed)) < 0.12
    resets[0] = False
    resets[1, 6:8] = True
    return resets


def start(memory: CompressiveMemory, num_lanes: int = 3) -> State:
    return memory.initial_state(num_lanes, dtype=torch.float64)


def of_lane(state: State, lane: int) -> State:
    return map_state(lambda tensor: tensor[lane : lane + 1], state)


def used(memory: CompressiveMemory, num_lanes: int = 3) -> State:
    """A state whose lanes stand at different slots, with memories that are not empty."""
    resets = torch.zeros(num_lanes, LENGTH, dtype=torch.bool)
    for lane in range(num_lanes):
        resets[lane, lane] = True
    return memory(observed(num_lanes, seed=7), start(memory, num_lanes), resets).state


def assert_same(a: State, b: State, tolerance: float = 1e-10) -> None:
    flat_a, flat_b = flatten(a), flatten(b)
    assert flat_a.keys() == flat_b.keys()
    for name in flat_a:
        torch.testing.assert_close(flat_a[name], flat_b[name], atol=tolerance, rtol=0)


def test_an_unroll_is_cut_where_segments_end_and_episodes_begin() -> None:
    resets = torch.zeros(2, 7, dtype=torch.bool)
    resets[0, 4] = True
    pieces, where = cut_unroll(torch.tensor([2, 0]), resets, 4)
    steps = [
        [row[:count].tolist() for row, count in zip(piece.steps, piece.num_steps, strict=True)] for piece in pieces
    ]
    assert steps == [[[0, 1], [0, 1, 2, 3]], [[2, 3], [4, 5, 6]], [[4, 5, 6], []]]
    assert where.tolist() == [[0, 1, 4, 5, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6]]
    assert [piece.begins_episode.tolist() for piece in pieces] == [[False, False], [False, False], [True, False]]
    assert [piece.completes(4).tolist() for piece in pieces] == [[True, True], [False, False], [False, False]]


@pytest.mark.parametrize("cuts", [[1] * LENGTH, [3, 9, 1, 16]])
def test_an_unroll_may_be_cut_anywhere(memory: CompressiveMemory, cuts: list[int]) -> None:
    stream, resets = observed(), at_random()
    with torch.no_grad():
        whole = memory(stream, used(memory), resets)
        state, outputs = used(memory), []
        for part, resets_of_part in zip(stream.split(cuts, dim=1), resets.split(cuts, dim=1), strict=True):
            output = memory(part, state, resets_of_part)
            outputs.append(output.outputs)
            state = output.state
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole.outputs, atol=1e-10, rtol=0)
    assert_same(state, whole.state)


def test_an_episode_is_what_it_is_alone_and_from_the_beginning(memory: CompressiveMemory) -> None:
    stream, resets = observed(), at_random(seed=3)
    with torch.no_grad():
        together = memory(stream, used(memory), resets)
        for lane in range(len(stream)):
            begins = resets[lane].nonzero()[:, 0].tolist()
            for first, end in pairwise([*begins, LENGTH]):
                alone = memory(stream[lane : lane + 1, first:end], start(memory, 1))
                torch.testing.assert_close(together.outputs[lane, first:end], alone.outputs[0], atol=1e-10, rtol=0)
                if end == LENGTH:
                    assert_same(of_lane(together.state, lane), alone.state)
    assert resets[1:].any(dim=1).all()


def test_nothing_before_a_reset_has_influence_after_it_and_everything_else_in_span_has(
    memory: CompressiveMemory,
) -> None:
    stream, reset_at = observed(1), 18
    resets = torch.zeros(1, LENGTH, dtype=torch.bool)
    resets[0, reset_at] = True
    with torch.no_grad():
        for state in (start(memory, 1), used(memory, 1)):
            outputs = memory(stream, state, resets).outputs
            for s in (0, 3, 10, reset_at - 1, reset_at, reset_at + 1, 24):
                changed = stream.clone()
                changed[0, s] += 1
                moved = (memory(changed, state, resets).outputs - outputs).abs().amax(dim=-1)[0]
                assert torch.all(moved[:s] == 0)
                assert moved[s] > 0
                assert s >= reset_at or torch.all(moved[reset_at:] == 0)
                # Over the end of a segment by memory, if there is one.
                if memory.shape.memory_length and s != reset_at - 1:
                    assert moved[s + SEGMENT] > 0
        from_other = memory(stream, used(memory, 1), resets).outputs
    assert torch.equal(from_other[:, reset_at:], outputs[:, reset_at:])


def test_gradients_reach_no_later_step_and_no_earlier_episode(memory: CompressiveMemory) -> None:
    memory.train()
    resets = torch.zeros(2, LENGTH, dtype=torch.bool)
    resets[0, [9, 14]] = True
    begun = used(memory, 2)
    for t in (0, 8, 9, 13, 16, 27, 28):
        stream = observed(2).requires_grad_()
        state = map_state(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()), begun)
        memory(stream, state, resets).outputs[0, t].square().sum().backward()
        assert stream.grad is not None
        reached = stream.grad[0].abs().sum(dim=-1)
        episode = max(first for first in (0, 9, 14) if first <= t)
        assert torch.all(reached[t + 1 :] == 0)
        assert torch.all(reached[:episode] == 0)
        assert reached[t] > 0
        # A lane that was reset begins a segment; where the first one stands does not matter here.
        assert episode == 0 or (t - episode) % SEGMENT == 0 or reached[t - 1] > 0
        assert torch.all(stream.grad[1] == 0), "another lane"
        from_state = [tensor.grad for tensor in flatten(state).values() if tensor.grad is not None]
        assert episode == 0 or not any(gradient.any() for gradient in from_state)


def test_an_empty_slot_is_not_seen(memory: CompressiveMemory) -> None:
    filled = map_state(lambda tensor: torch.randn_like(tensor) if tensor.is_floating_point() else tensor, start(memory))
    with torch.no_grad():
        expected = memory(observed(length=SEGMENT), start(memory)).outputs
        assert torch.equal(memory(observed(length=SEGMENT), filled).outputs, expected)


def test_with_full_memories_it_is_the_models_layer(memory: CompressiveMemory) -> None:
    memory.train()
    stream = observed(2, length=12 * SEGMENT)
    with torch.no_grad():
        before = memory(stream[:, : 11 * SEGMENT], start(memory, 2)).state
        found = memory(stream[:, 11 * SEGMENT :], before)
        h, losses = memory.observe(stream[:, 11 * SEGMENT :]), []
        for name, layer in enumerate(memory.layers):
            h, remembered, loss = CompressiveLayer.forward(layer, h, before["layers"][str(name)])
            assert_same({each: found.state["layers"][str(name)][each] for each in remembered}, remembered)
            losses.extend([] if loss is None else [loss])
    torch.testing.assert_close(found.outputs, memory.final_norm(h), atol=1e-10, rtol=0)
    if losses:
        ((_, auxiliary),) = found.auxiliary_losses.items()
        is_sum = memory.layers[0].compressor.settings.loss_form == "norm"
        expected = torch.stack(losses).sum() / (1 if is_sum else len(losses))
        torch.testing.assert_close(auxiliary, expected, atol=1e-10, rtol=0)
    else:
        assert not found.auxiliary_losses


def test_lanes_know_nothing_of_each_other(memory: CompressiveMemory) -> None:
    stream, resets, state = observed(), at_random(), used(memory)
    with torch.no_grad():
        together = memory(stream, state, resets)
        for lane in range(3):
            one = slice(lane, lane + 1)
            alone = memory(stream[one], of_lane(state, lane), resets[one])
            torch.testing.assert_close(together.outputs[one], alone.outputs, atol=1e-12, rtol=0)
            assert_same(of_lane(together.state, lane), alone.state, 1e-12)


def test_the_state_is_detached_data_and_is_left_as_it_was(memory: CompressiveMemory) -> None:
    memory.train()
    initial = start(memory)
    output = memory(observed(), initial, at_random())
    assert output.outputs.requires_grad
    before = flatten(initial)
    for name, tensor in flatten(output.state).items():
        assert not tensor.requires_grad, name
        assert tensor.is_contiguous(), name
        assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype)
        assert len(tensor) == 3
    assert not any(tensor.any() for tensor in before.values())


def test_every_parameter_learns_and_compression_from_its_own_loss(memory: CompressiveMemory) -> None:
    memory.train()
    output = memory(observed(), start(memory), at_random())
    loss = output.outputs[..., ::2].square().sum()
    loss.backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in memory.auxiliary_parameters())
    if output.auxiliary_losses:
        torch.stack(list(output.auxiliary_losses.values())).sum().backward()
    idle = {name for name, each in memory.named_parameters() if each.grad is None or not each.grad.any()}
    assert idle == set()


def test_the_auxiliary_loss_is_the_mean_over_all_that_left_memory() -> None:
    torch.manual_seed(0)
    memory = cell(compression={"function": "convolution", "loss": "auto_encoding"}).double().train()
    stream, resets = observed(2), torch.zeros(2, LENGTH, dtype=torch.bool)
    resets[1, 18] = True
    # 29 steps are 7 segments, of which all but the first push something out; 18 and 11 steps are 4 and 2.
    together = memory(stream, start(memory, 2), resets).auxiliary_losses["auto_encoding"]
    parts = [(stream[:1], 6), (stream[1:, :18], 3), (stream[1:, 18:], 1)]
    losses = [
        memory(part, start(memory, 1)).auxiliary_losses["auto_encoding"] * num_pushes for part, num_pushes in parts
    ]
    torch.testing.assert_close(together, torch.stack(losses).sum() / 10)
    assert not memory(stream[:, : 2 * SEGMENT - 1], start(memory, 2)).auxiliary_losses
    assert not memory.eval()(stream, start(memory, 2)).auxiliary_losses


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_states_dtype(memory: CompressiveMemory, precision: torch.dtype) -> None:
    memory.float().train()
    initial = memory.initial_state(3)
    with torch.autocast("cpu", precision):
        output = memory(observed().float(), initial, at_random())
    assert torch.isfinite(output.outputs).all()
    types = [{name: tensor.dtype for name, tensor in flatten(state).items()} for state in (initial, output.state)]
    assert types[0] == types[1]


def test_what_unrolls_would_cut_is_refused() -> None:
    with pytest.raises(InputError, match="most_used"):
        cell(compression={"function": "most_used", "loss": "none"})


def test_only_compressed_memory_recalls_over_a_delay_that_memory_does_not_span() -> None:
    task = recall.Task(num_symbols=4, num_distractors=4)
    sizes = {
        **{"d_model": 24, "num_heads": 2, "d_ff": 24, "segment_length": 4, "memory_length": 4},
        **{"compressed_memory_length": 4, "compression_rate": 4},
    }
    device = torch.device("cpu")
    training = recall.Training(range(1, 23), num_lanes=32, unroll_length=24, num_updates=90, learning_rate=1e-2)
    delays = {"compressed": (6, 7, 14, 22, 23), "plain": (6, 7, 22)}
    rates = {}
    for kind, asked in delays.items():
        torch.manual_seed(0)
        model = recall.make_model(kind, task, sizes, CompressionSettings())
        recall.learn(model, training, device, seed=0)
        assert recall.span(model.memory) == {"compressed": 22, "plain": 6}[kind]
        rates[kind] = {delay: recall.success_rate(model, delay, 256, device, seed=1) for delay in asked}
    assert min(rates["compressed"][delay] for delay in (6, 7, 14, 22)) > 0.95
    assert rates["plain"][6] > 0.95
    # Chance is 0.25, and its standard deviation over 256 episodes 0.027.
    assert max(rates["plain"][7], rates["plain"][22], rates["compressed"][23]) < 0.4
