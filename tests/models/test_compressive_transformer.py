"""The Compressive Transformer against a slow reading of the paper's algorithms, and what its loss teaches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.models.attention import RelativeAttention, attend_by_content
from audio_ct.models.compression import ConvolutionCompression, attention_reconstruction_loss
from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.interface import READ_AHEAD
from audio_ct.models.linear_prediction import LinearPredictionSettings
from audio_ct.models.memory import context_positions
from audio_ct.models.positions import frequencies, key_sinusoids, query_rotation

SEGMENT = 4


def build(**changes: Any) -> CompressiveTransformer:
    """Return a model in float64 whose positions, too, are computed in float64."""
    arguments: dict[str, Any] = {
        "vocabulary_size": 9,
        "num_layers": 2,
        "d_model": 12,
        "num_heads": 3,
        "d_ff": 16,
        "segment_length": SEGMENT,
        "memory_length": SEGMENT,
        "compressed_memory_length": 5,
        "compression_rate": 2,
    } | changes
    torch.manual_seed(1)
    model = CompressiveTransformer(**arguments).double()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    angular = frequencies(model.layers[0].attention.num_sinusoids)
    segment = torch.arange(SEGMENT + READ_AHEAD, dtype=torch.float64)
    past = past_positions(arguments)
    model.key_sinusoids = key_sinusoids(torch.cat([past, segment]), angular).T
    model.query_rotation = query_rotation(segment, angular)
    return model


def past_positions(arguments: dict[str, Any]) -> Tensor:
    return context_positions(
        arguments["compressed_memory_length"],
        arguments["memory_length"],
        compression_rate=arguments["compression_rate"],
        compressed_positions=arguments.get("compressed_positions", "contiguous"),
    )


def layer_norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def slow_attention(attention: RelativeAttention, x: Tensor, context: Tensor, distances: Tensor) -> Tensor:
    """Return attention of x [time, d] over a context [keys, d], whose last entries are x, one query at a time."""
    num_heads, d_head, num_sinusoids = attention.position.shape
    d_model = num_heads * d_head
    half = num_sinusoids // 2
    out = torch.zeros_like(x)
    for i in range(len(x)):
        seen = len(context) - len(x) + i + 1
        for head in range(num_heads):
            rows = slice(head * d_head, (head + 1) * d_head)
            q = attention.query.weight[rows] @ x[i]
            scores = []
            for j in range(seen):
                k = attention.key_value.weight[:d_model][rows] @ context[j]
                angles = [float(distances[i, j]) * 10000.0 ** -(n / half) for n in range(half)]
                r = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=x.dtype)
                content = (q + attention.content_bias[head, 0]) @ k
                position = (q + attention.position_bias[head, 0]) @ (attention.position[head] @ r)
                scores.append((content + position) / math.sqrt(d_head))
            weights = torch.stack(scores).softmax(0)
            values = context[:seen] @ attention.key_value.weight[d_model:][rows].T
            out[i, rows] = weights @ values
    return out @ attention.output.weight.T


@torch.no_grad()
def algorithm_1(
    model: CompressiveTransformer, stream: Tensor, *, norm: str, past: Tensor, rate: int
) -> tuple[Tensor, list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Return (logits, memories, compressed memories, everything compressed, in order) after one lane's stream."""
    num_layers, n_m, n_cm = len(model.layers), model.memory_length, model.compressed_memory_length
    m = [torch.zeros(n_m, model.d_model, dtype=torch.float64) for _ in range(num_layers)]
    cm = [torch.zeros(n_cm, model.d_model, dtype=torch.float64) for _ in range(num_layers)]
    evicted: list[list[Tensor]] = [[] for _ in range(num_layers)]
    positions = torch.cat([past, torch.arange(SEGMENT, dtype=torch.float64)])
    distances = torch.arange(SEGMENT, dtype=torch.float64)[:, None] - positions
    logits = []
    for window in stream.split(SEGMENT):
        h = model.embedding.weight[window]
        for i, layer in enumerate(model.layers):
            x = layer_norm(layer.attention_norm, h) if norm == "pre" else h
            a = slow_attention(layer.attention, x, torch.cat([cm[i], m[i], x]), distances)
            # The oldest n_s entries leave the memory, are compressed by the rate and queue up in the second memory.
            old_mem = torch.cat([m[i], x])[:SEGMENT]
            evicted[i].append(old_mem)
            if n_cm:
                new_cm = [layer.compression.project.weight @ old_mem[s : s + rate].flatten() for s in range(0, 4, rate)]
                cm[i] = torch.cat([cm[i], torch.stack(new_cm)])[-n_cm:]
            m[i] = torch.cat([m[i], x])[-n_m:] if n_m else m[i]
            if norm == "pre":
                h = h + a
                h = h + layer.expand_contract(layer_norm(layer.feed_forward_norm, h))
            else:
                h = layer_norm(layer.attention_norm, h + a)
                h = layer_norm(layer.feed_forward_norm, h + layer.expand_contract(h))
        if norm == "pre":
            h = layer_norm(model.final_norm, h)
        logits.append(h @ model.readout.weight.T + model.readout.bias)
    return torch.cat(logits), m, cm, evicted


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "post", "compressed_positions": "centre"},
        {"memory_length": 2, "compressed_positions": "centre"},
        {"memory_length": 7, "compressed_memory_length": 3},
        {"memory_length": 0, "compression_rate": 4},
        {"compressed_memory_length": 0, "compression_rate": 1, "norm": "post"},
    ],
    ids=str,
)
def test_memories_and_predictions_are_those_of_algorithm_1(changes: dict[str, Any]) -> None:
    model = build(**changes)
    arguments = {"memory_length": SEGMENT, "compressed_memory_length": 5, "compression_rate": 2} | changes
    stream = torch.randint(9, (7 * SEGMENT,), generator=torch.Generator().manual_seed(0))
    logits, m, cm, _ = algorithm_1(
        model,
        stream,
        norm=changes.get("norm", "pre"),
        past=past_positions(arguments),
        rate=arguments["compression_rate"],
    )
    model.train()
    state = model.initial_state(1, dtype=torch.float64)
    got, losses = [], []
    for window in stream[None].split(SEGMENT, dim=1):
        output = model(window, state)
        state = output.state
        got.append(output.logits[0])
        losses.append({name: float(loss.detach()) for name, loss in output.auxiliary_losses.items()})
    torch.testing.assert_close(torch.cat(got), logits, atol=1e-9, rtol=0)
    for i in range(2):
        torch.testing.assert_close(state[f"memory.{i}"][0], m[i], atol=1e-9, rtol=0)
        if model.compressed_memory_length:
            torch.testing.assert_close(state[f"compressed_memory.{i}"][0], cm[i], atol=1e-9, rtol=0)
    if not model.compressed_memory_length:
        assert losses == [{}] * 7
    elif model.memory_length >= SEGMENT:
        assert losses[0] == {"attention_reconstruction": 0}, "an empty memory is compressed without loss"
        assert all(loss["attention_reconstruction"] > 0 for loss in losses[3:])


@pytest.mark.parametrize("memory_length", [0, 2, SEGMENT, 7, 3 * SEGMENT])
def test_the_loss_is_about_what_was_evicted_and_nothing_else(memory_length: int) -> None:
    model = build(num_layers=1, memory_length=memory_length)
    layer = model.layers[0]
    stream = torch.randint(9, (8 * SEGMENT,), generator=torch.Generator().manual_seed(0))
    arguments = {"memory_length": memory_length, "compressed_memory_length": 5, "compression_rate": 2}
    _, _, _, evicted = algorithm_1(model, stream, norm="pre", past=past_positions(arguments), rate=2)
    model.train()
    state = model.initial_state(1, dtype=torch.float64)
    for number, window in enumerate(stream[None].split(SEGMENT, dim=1)):
        output = model(window, state)
        state = output.state
        old_mem = evicted[0][number][None]
        assert old_mem.shape[1] == SEGMENT
        x = layer_norm(layer.attention_norm, model.embedding(window))
        difference = attend_by_content(layer.attention, x, layer.compression(old_mem)) - attend_by_content(
            layer.attention, x, old_mem
        )
        expected = float(difference.detach().square().mean())
        loss = float(output.auxiliary_losses["attention_reconstruction"].detach())
        assert loss == pytest.approx(expected, abs=1e-7)
    assert expected > 0


def test_the_loss_of_several_segments_and_layers_is_their_mean() -> None:
    model = build().train()
    stream = torch.randint(9, (2, 5 * SEGMENT), generator=torch.Generator().manual_seed(0))
    whole = model(stream, model.initial_state(2, dtype=torch.float64)).auxiliary_losses["attention_reconstruction"]
    state, losses = model.initial_state(2, dtype=torch.float64), []
    for window in stream.split(SEGMENT, dim=1):
        output = model(window, state)
        state = output.state
        losses.append(output.auxiliary_losses["attention_reconstruction"])
    torch.testing.assert_close(whole, torch.stack(losses).mean())
    model.eval()
    assert model(stream, model.initial_state(2, dtype=torch.float64)).auxiliary_losses == {}


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("memory_length", [2, SEGMENT, 7])
def test_compression_learns_from_its_own_loss_alone_and_nothing_else_does(norm: str, memory_length: int) -> None:
    model = build(norm=norm, memory_length=memory_length, front_dilations=[1, 2], short_convolution_width=3).train()
    stream = torch.randint(9, (2, 5 * SEGMENT), generator=torch.Generator().manual_seed(0))
    output = model(stream, model.initial_state(2, dtype=torch.float64))

    def reached(loss: Tensor) -> set[str]:
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return {name for name, grad in zip(names, gradients, strict=True) if grad is not None and grad.any()}

    compression = {name for name, _ in model.named_parameters() if ".compression." in name}
    assert len(compression) == 2
    assert reached(output.auxiliary_losses["attention_reconstruction"]) == compression
    assert reached(output.logits.square().sum()) == {name for name, _ in model.named_parameters()} - compression


def test_nothing_freezes_at_the_first_compression() -> None:
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = model.initial_state(2, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    for number in range(6):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        output = model(torch.randint(9, (2, SEGMENT), generator=random), state)
        state = output.state
        (output.logits.square().mean() + output.auxiliary_losses["attention_reconstruction"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
        # In the first segment memory is empty, and there is nothing to compress yet.
        assert number == 0 or still == set()


def test_the_compression_loss_can_be_learned() -> None:
    torch.manual_seed(0)
    attention, compression = RelativeAttention(8, 2), ConvolutionCompression(8, 2)
    h, old_mem = torch.randn(4, 6, 8), torch.randn(4, 6, 8)
    optimizer = torch.optim.Adam(compression.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = attention_reconstruction_loss(attention, h, old_mem, compression(old_mem))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3


def test_an_empty_memory_stays_empty_and_costs_nothing() -> None:
    torch.manual_seed(0)
    attention, compression = RelativeAttention(8, 2), ConvolutionCompression(8, 4)
    empty = torch.zeros(2, 8, 8)
    assert torch.equal(compression(empty), torch.zeros(2, 2, 8))
    loss = attention_reconstruction_loss(attention, torch.randn(2, 4, 8), empty, compression(empty))
    assert float(loss.detach()) == 0


def test_compression_is_a_strided_convolution() -> None:
    torch.manual_seed(0)
    compression = ConvolutionCompression(6, 4).double()
    old_mem = torch.randn(2, 12, 6, dtype=torch.float64)
    kernel = compression.project.weight.view(6, 4, 6).transpose(1, 2)
    expected = torch.nn.functional.conv1d(old_mem.transpose(1, 2), kernel, stride=4).transpose(1, 2)
    torch.testing.assert_close(compression(old_mem), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("memory_length", [0, 2, SEGMENT, 7])
@pytest.mark.parametrize(("compressed", "rate"), [(0, 1), (1, 4), (3, 2), (4, 1)])
def test_one_layer_sees_its_two_memories_and_no_further(memory_length: int, compressed: int, rate: int) -> None:
    model = build(
        num_layers=1, memory_length=memory_length, compressed_memory_length=compressed, compression_rate=rate
    ).eval()
    stream = torch.randint(9, (1, 6 * SEGMENT), generator=torch.Generator().manual_seed(0))
    reach = memory_length + compressed * rate
    last = 5 * SEGMENT
    with torch.no_grad():
        logits = model(stream, model.initial_state(1, dtype=torch.float64)).logits[0, last:]
        for s in range(last):
            changed = stream.clone()
            changed[0, s] = (changed[0, s] + 1) % 9
            moved = (model(changed, model.initial_state(1, dtype=torch.float64)).logits[0, last:] - logits).abs()
            assert bool((moved.amax(-1) > 0).all()) == bool((moved.amax(-1) > 0).any()) == (last - s <= reach), s


def test_a_compressed_memory_of_none_is_a_transformer_xl() -> None:
    model = build(compressed_memory_length=0, compression_rate=1)
    assert not any("compress" in name for name, _ in model.named_parameters())
    assert not any("compress" in name for name in model.initial_state(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "model.num_heads=5 must divide model.d_model=12"),
        ({"compression_rate": 3}, "model.compression_rate=3 must divide model.segment_length=4; try 2 or 4"),
        (
            {"linear_prediction": LinearPredictionSettings(order=2, windows=[9], frame_length=3)},
            "model.linear_prediction.frame_length=3 must divide model.segment_length=4; try 4",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**changes)
