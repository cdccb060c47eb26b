"""Departures of the public compressive-transformer-pytorch 0.4.0 from the paper, so that docs/notation.md stays true.

Each test names the test that holds ours, or tests ours beside the package where there was none.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings
from audio_ct.models.stage import map_state
from audio_ct.models.token_model import TokenModel, consume

SEGMENT = 4
SETTINGS = CompressiveTransformerSettings(
    num_layers=3,
    d_model=12,
    num_heads=3,
    d_ff=48,
    segment_length=SEGMENT,
    memory_length=SEGMENT,
    compressed_memory_length=6,
    compression_rate=2,
)


def ours() -> TokenModel:
    torch.manual_seed(0)
    return build_model(SETTINGS, 9).eval()


@pytest.fixture
def package() -> Any:
    return pytest.importorskip("compressive_transformer_pytorch", reason="make bench-peers installs it")


def public(package: Any, **changes: Any) -> Any:
    """The package's network at the size of `ours`, its table of positions not zero as it begins."""
    torch.manual_seed(0)
    arguments = {
        **{"num_tokens": 9, "dim": 12, "seq_len": SEGMENT, "depth": 3, "heads": 3, "mem_len": SEGMENT},
        **{"cmem_len": 6, "cmem_ratio": 2, "gru_gated_residual": False},
    }
    network = package.CompressiveTransformer(**arguments | changes)
    nn.init.normal_(network.pos_emb)
    return network


def stream(num_segments: int) -> Tensor:
    return torch.randint(9, (2, num_segments * SEGMENT), generator=torch.Generator().manual_seed(0))


def read(network: Any, tokens: Tensor) -> tuple[list[Any], list[Tensor]]:
    """The memories and the auxiliary losses after each segment."""
    memories, kept, losses = None, [], []
    for segment in tokens.split(SEGMENT, dim=1):
        _, memories, loss = network(segment, memories=memories)
        kept.append(memories)
        losses.append(loss.detach())
    return kept, losses


def key_values(network: Any) -> list[nn.Parameter]:
    return [layer.fn.fn.to_kv.weight for layer in network.attn_layers]


def test_its_key_and_value_weights_freeze_at_the_first_compression_in_training(package: Any) -> None:
    # Ours: tests/models/test_compressive_transformer.py, test_nothing_freezes_at_the_first_compression.
    network = public(package).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    memories = None
    for number, segment in enumerate(stream(5).split(SEGMENT, dim=1)):
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        logits, memories, loss = network(segment, memories=memories)
        (logits.square().mean() + loss.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        still = {name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])}
        frozen = {name for name in before if name.endswith("to_kv.weight")}
        if number == 0:
            # Nothing leaves the memory yet, so nothing teaches the compression.
            assert not still & frozen
        else:
            # From the second segment on, its own update included; not even weight decay reaches them.
            assert still == frozen
            assert len(frozen) == 3
    assert not any(weight.requires_grad for weight in key_values(network))


def test_it_does_not_freeze_in_evaluation(package: Any) -> None:
    network = public(package).eval()
    read(network, stream(3))
    assert all(weight.requires_grad for weight in key_values(network))


@pytest.mark.parametrize("memory_length", [SEGMENT, SEGMENT + 2])
def test_its_target_is_the_whole_memory_instead_of_what_is_evicted(package: Any, memory_length: int) -> None:
    # Ours: tests/models/test_compressive_transformer.py, test_the_loss_is_about_what_was_evicted_and_nothing_else.
    network = public(package, depth=1, mem_len=memory_length).train()
    attention = network.attn_layers[0].fn.fn
    kept, losses = read(network, stream(5))
    memory = kept[-2].mem[0]
    h = kept[-1].mem[0][:, -SEGMENT:]

    def attend(m: Tensor) -> Tensor:
        q, k, v = (
            each.view(2, -1, 3, 4).transpose(1, 2) for each in (attention.to_q(h), *attention.to_kv(m).chunk(2, dim=-1))
        )
        return F.scaled_dot_product_attention(q, k, v)

    evicted = memory[:, :SEGMENT]
    compressed = attend(attention.compress_mem_fn(evicted))
    of_memory, of_evicted = (float((attend(m) - compressed).detach().square().mean()) for m in (memory, evicted))
    assert float(losses[-1]) == pytest.approx(of_memory, rel=1e-4)
    # Where memory is as long as a segment, all of it is evicted at once, and the two are the same.
    assert (of_memory == pytest.approx(of_evicted, rel=1e-2)) == (memory_length == SEGMENT)


@pytest.mark.parametrize(
    ("threshold", "tokens"), [(0.9, [1]), (0.61, [1]), (0.59, [1, 3]), (0.29, [1, 2, 3]), (0.1, [1, 2, 3, 4])]
)
def test_its_top_p_keeps_one_minus_the_threshold(package: Any, threshold: float, tokens: list[int]) -> None:
    # Ours: tests/sampling/test_filters.py, test_top_p_keeps_the_likeliest_and_the_token_that_crosses.
    # The likeliest tokens it is in both; but 0.9, the default, is what is thrown away, as it is in the package's top-k.
    from compressive_transformer_pytorch.autoregressive_wrapper import top_k, top_p

    logits = torch.tensor([[0.05, 0.4, 0.15, 0.3, 0.1]]).log()
    assert top_p(logits, thres=threshold)[0].isfinite().nonzero().flatten().tolist() == tokens
    assert top_k(logits, thres=0.59)[0].isfinite().nonzero().flatten().tolist() == [1, 3]


def first_to_differ(layers: Any, one: Any, other: Any) -> int:
    """The first layer whose output differs between two calls."""
    outputs: list[list[Tensor]] = []
    for run in (one, other):
        outputs.append([])
        hooks = [
            layer.register_forward_hook(lambda _, __, output: outputs[-1].append(output[0].detach()))
            for layer in layers
        ]
        with torch.no_grad():
            run()
        for hook in hooks:
            hook.remove()
    return [torch.equal(*pair) for pair in zip(*outputs, strict=True)].index(False)


@pytest.mark.parametrize("which", ["memory", "compressed_memory"])
@pytest.mark.parametrize("layer", range(3))
def test_a_layer_attends_its_own_memories(which: str, layer: int) -> None:
    # By the oracle too: tests/models/test_compressive_transformer.py, test_forward_and_backward_are_algorithms_1_and_2.
    model = ours()
    state = model(stream(6), model.initial_state(2)).state
    changed = map_state(torch.clone, state)
    changed["transformer"][str(layer)][which] += 1
    segment = stream(1)
    layers = model.stages["transformer"].layers
    assert first_to_differ(layers, lambda: model(segment, state), lambda: model(segment, changed)) == layer


@pytest.mark.parametrize("which", ["mem", "compressed_mem"])
@pytest.mark.parametrize("layer", range(3))
def test_its_layers_attend_the_next_layers_memories_and_the_last_the_firsts(
    package: Any, which: str, layer: int
) -> None:
    network = public(package).eval()
    memories = read(network, stream(6))[0][-1]
    entries = getattr(memories, which)
    add = torch.zeros(3, 1, 1, 1)
    add[layer] = 1
    changed = memories._replace(**{which: entries + add})
    segment = stream(1)
    reads_it = first_to_differ(
        network.attn_layers,
        lambda: network(segment, memories=memories),
        lambda: network(segment, memories=changed),
    )
    assert reads_it == (layer - 1) % 3


def test_its_compressed_entries_move_down_a_layer_with_every_segment(package: Any) -> None:
    # A layer keeps the entries that it attended as its own, so the next segment shows them to the layer below.
    # Ours: test_forward_and_backward_are_algorithms_1_and_2 compares the memories of every layer.
    before, after = read(public(package).eval(), stream(7))[0][-2:]
    new = SEGMENT // 2
    assert torch.equal(after.compressed_mem[:, :, :-new], before.compressed_mem.roll(-1, 0)[:, :, new:])
    model = ours()
    states = [model.initial_state(2)]
    for segment in stream(7).split(SEGMENT, dim=1):
        states.append(model(segment, states[-1]).state)
    for i in range(3):
        mine, then = (state["transformer"][str(i)]["compressed_memory"] for state in states[:-3:-1])
        assert torch.equal(mine[:, :-new], then[:, new:])


def test_its_positions_are_a_learned_table_read_by_distance_from_its_far_end(package: Any) -> None:
    # Not absolute: a score depends on the distance. But a distance's row depends on how many entries the memories have.
    # Ours: tests/models/test_attention.py, test_the_factored_score_is_the_textbooks; and memories may grow
    # (tests/models/test_compressive_transformer.py, test_memories_may_be_longer_than_they_were_in_training).
    from compressive_transformer_pytorch.compressive_transformer_pytorch import shift

    network = public(package)
    assert isinstance(network.pos_emb, nn.Parameter)
    num_keys = 2 * SEGMENT + 6
    assert network.pos_emb.shape == (3, num_keys, 4)
    rows = torch.arange(num_keys).expand(1, 1, SEGMENT, num_keys).float()
    row_of = shift(rows)[0, 0]
    for i in range(SEGMENT):
        for j in range(num_keys - SEGMENT + i + 1):
            distance = num_keys - SEGMENT + i - j
            assert row_of[i, j] == num_keys - 1 - distance

    given: list[Tensor] = []
    network.attn_layers[0].register_forward_pre_hook(
        lambda _, __, options: given.append(options["pos_emb"]), with_kwargs=True
    )
    read(network.eval(), stream(6))
    # So distance 0 is row 3 in the first segment, 7 in the second, and 13 once all is full.
    assert [each.shape[1] for each in given] == [4, 8, 10, 12, 14, 14]
    assert all(torch.equal(each, network.pos_emb[:, : each.shape[1]]) for each in given)


def tokens_read(embedding: nn.Module, run: Any) -> list[int]:
    """The number of tokens of a lane that each call of a model's embedding got."""
    read: list[int] = []
    hook = embedding.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    run()
    hook.remove()
    return read


def test_its_sampling_reads_the_segment_again_for_every_sample(package: Any) -> None:
    # Ours: below, and tests/sampling/test_engine.py, test_each_token_is_drawn_from_the_forward_passs_prediction.
    network = public(package).eval()
    wrapper = package.AutoregressiveWrapper(network)
    # Its top-k of 9 tokens would keep none.
    run = {"filter_thres": 0.5}
    read = tokens_read(network.token_emb, lambda: wrapper.generate(stream(1)[:1, :1], 10, **run))
    assert read == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


def test_our_sampling_reads_every_sample_once() -> None:
    model = ours()

    def run() -> None:
        token, state = torch.zeros(1, dtype=torch.int64), model.initial_state(1)
        for _ in range(10):
            logits, state = model.step(token, state)
            token = logits.argmax(dim=-1)

    assert tokens_read(model.embedding, run) == [1] * 10


def test_its_sampling_moves_all_memories_down_a_layer_with_every_sample(package: Any) -> None:
    # generate() keeps the memories that a part of a segment returns, which are not those that it got. So its samples
    # are not drawn from the trained distribution. Ours: tests/models/test_token_model.py,
    # test_steps_are_the_same_numbers_as_windows and test_a_prompt_of_any_length_is_consumed_and_gone_on_from.
    network = public(package).eval()
    with torch.no_grad():
        memories = read(network, stream(6))[0][-1]
        segment = stream(1)
        whole, _, _ = network(segment, memories=memories)
        kept = memories
        for length in range(1, SEGMENT):
            logits, returned, _ = network(segment[:, :length], memories=kept)
            right = torch.allclose(logits[:, -1], whole[:, length - 1], atol=1e-5)
            assert right == (length == 1)
            for now, before in zip(returned, kept, strict=True):
                assert torch.equal(now, before.roll(-1, 0))
            # With the memories left as they were, it is right.
            logits, _, _ = network(segment[:, :length], memories=memories)
            torch.testing.assert_close(logits[:, -1], whole[:, length - 1], atol=1e-5, rtol=0)
            kept = returned
        model = ours()
        state = model(stream(6), model.initial_state(2)).state
        theirs = model(segment, state).logits
        for length in range(1, SEGMENT):
            torch.testing.assert_close(
                consume(model, segment[:, :length], state)[0], theirs[:, length - 1], atol=1e-5, rtol=0
            )


def test_its_padding_is_the_remainder_instead_of_what_is_missing(package: Any) -> None:
    # Five entries at rate 3 would need one more to make two; it adds two, makes two, and drops the newest.
    # Ours adds none and keeps floor(n_s / c), as the paper says: tests/models/test_compressive_transformer.py,
    # test_a_rate_that_does_not_divide_keeps_the_oldest_entries.
    network = public(package, depth=1, seq_len=5, mem_len=5, cmem_ratio=3).eval()
    tokens = stream(3)[:, :10]
    _, first, _ = network(tokens[:, :5])
    _, second, _ = network(tokens[:, 5:], memories=first)
    compress = network.attn_layers[0].fn.fn.compress_mem_fn
    padded = F.pad(first.mem[0], (0, 0, 2, 0))
    assert padded.shape[1] == 7
    torch.testing.assert_close(second.compressed_mem[0], compress(padded[:, :6]).detach())
