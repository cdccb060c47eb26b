"""The Compressive Transformer against a slow reading of the paper's algorithms, and what its losses teach."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from audio_ct.models.attention import RelativeAttention, attend_by_content
from audio_ct.models.build import build_model
from audio_ct.models.compression import (
    ConvolutionCompression,
    MostUsedCompression,
    attention_reconstruction,
    difference,
)
from audio_ct.models.compressive_transformer import CompressiveLayer
from audio_ct.models.memory import MemoryShape
from audio_ct.models.positions import ContextPositions
from audio_ct.models.settings import CompressionSettings, CompressiveTransformerSettings, TransformerSettings
from audio_ct.models.stage import flatten
from audio_ct.models.token_model import TokenModel

SEGMENT = 4
SIZES: dict[str, Any] = {
    "num_layers": 2,
    "d_model": 12,
    "num_heads": 3,
    "d_ff": 16,
    "segment_length": SEGMENT,
    "memory_length": SEGMENT,
    "compressed_memory_length": 5,
    "compression_rate": 2,
}


def build(**changes: Any) -> TokenModel:
    """Build a model in float64 whose positions, too, are computed in float64."""
    torch.manual_seed(1)
    model = build_model(CompressiveTransformerSettings(**SIZES | changes), 9).double()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    positions = model.stages["transformer"].positions
    positions.key_sinusoids, positions.query_rotation = positions.tables()
    return model


def layers_of(model: TokenModel) -> list[CompressiveLayer]:
    return list(model.stages["transformer"].layers)


def by(function: str, loss: str, **others: Any) -> dict[str, Any]:
    return {"compression": {"function": function, "loss": loss, **others}}


def layer_norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def slow_attention(
    attention: RelativeAttention, x: Tensor, context: Tensor, distances: Tensor, own: int
) -> tuple[Tensor, Tensor]:
    """Attention of x [time, d] over a context [keys, d] that ends with x, and its weights, a query at a time.

    The first `own` keys have their own projection of positions.
    """
    num_heads, d_head, num_sinusoids = attention.position.shape
    d_model = num_heads * d_head
    half = num_sinusoids // 2
    rows_out, received = [], torch.zeros(num_heads, len(x), len(context), dtype=x.dtype)
    for i in range(len(x)):
        seen = len(context) - len(x) + i + 1
        heads = []
        for head in range(num_heads):
            rows = slice(head * d_head, (head + 1) * d_head)
            q = attention.query.weight[rows] @ x[i]
            scores = []
            for j in range(seen):
                is_own = j < own
                v = (attention.compressed_position_bias if is_own else attention.position_bias)[head, 0]
                w = (attention.compressed_position if is_own else attention.position)[head]
                k = attention.key_value.weight[:d_model][rows] @ context[j]
                angles = [float(distances[i, j]) * 10000.0 ** -(n / half) for n in range(half)]
                r = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=x.dtype)
                scores.append(((q + attention.content_bias[head, 0]) @ k + (q + v) @ (w @ r)) / math.sqrt(d_head))
            weights = torch.stack(scores).softmax(0)
            received[head, i, :seen] = weights.detach()
            heads.append(weights @ (context[:seen] @ attention.key_value.weight[d_model:][rows].T))
        rows_out.append(torch.cat(heads))
    return torch.stack(rows_out) @ attention.output.weight.T, received


def slow_compression(
    layer: CompressiveLayer, old_mem: Tensor, usage: list[float], settings: CompressionSettings
) -> Tensor:
    """f_c of entries [entries, d], one span at a time."""
    assert layer.compressor is not None
    rate = layer.shape.compression_rate
    spans = [old_mem[start : start + rate] for start in range(0, len(old_mem) - rate + 1, rate)]
    function = layer.compressor.function
    match settings.function:
        case "max_pooling":
            return torch.stack([span.max(dim=0).values for span in spans])
        case "mean_pooling":
            return torch.stack([sum(span) / rate for span in spans])
        case "most_used":
            kept = sorted(sorted(range(len(old_mem)), key=lambda entry: -usage[entry])[: len(spans)])
            return old_mem[kept]
        case "dilated_convolution":
            h = old_mem
            for dilation, conv in zip((1, 2, 4), function.layers, strict=True):
                before = [h[t - dilation] if t >= dilation else torch.zeros_like(h[0]) for t in range(len(h))]
                h = torch.stack([(conv.weight @ torch.cat([before[t], h[t]])).relu() for t in range(len(h))])
            spans = [h[start : start + rate] for start in range(0, len(h) - rate + 1, rate)]
            function = function.strided
    return torch.stack([function.project.weight @ span.flatten() for span in spans])


def slow_content_attention(attention: RelativeAttention, h: Tensor, context: Tensor) -> Tensor:
    """attn(h, m) of algorithm 2: by content, per head, with the layer's weights behind stop-gradients."""
    num_heads, d_head, _ = attention.position.shape
    d_model = num_heads * d_head
    weights_qkv = (attention.query.weight, attention.key_value.weight[:d_model], attention.key_value.weight[d_model:])
    q, k, v = (
        (each @ weights.detach().T).view(-1, num_heads, d_head)
        for each, weights in zip((h.detach(), context, context), weights_qkv, strict=True)
    )
    out = []
    for head in range(num_heads):
        out.append((q[:, head] @ k[:, head].T / math.sqrt(d_head)).softmax(-1) @ v[:, head])
    return torch.stack(out)


def algorithms_1_and_2(
    model: TokenModel, stream: Tensor, *, norm: str, settings: CompressionSettings
) -> dict[str, Any]:
    """Logits, losses and memories after one lane's stream, line by line as in the paper.

    Every segment's compression loss is that over layers; memory is detached, as in Transformer-XL, and so is what is
    compressed, unless the task's loss is to teach its function.
    """
    layers = layers_of(model)
    shape, d_model = layers[0].shape, layers[0].d_model
    n_cm, n_m = shape.compressed_length, shape.memory_length
    m = [torch.zeros(n_m, d_model, dtype=torch.float64) for _ in layers]
    cm = [torch.zeros(n_cm, d_model, dtype=torch.float64) for _ in layers]
    used: list[list[list[float]]] = [[[] for _ in range(n_m)] for _ in layers]
    segment = torch.arange(SEGMENT, dtype=torch.float64)
    distances = segment[:, None] - torch.cat([shape.positions(layers[0].positions.placement), segment])
    logits, losses = [], []
    for window in stream.split(SEGMENT):
        h = model.embedding.weight[window]
        segment_losses = []
        for i, layer in enumerate(layers):
            x = layer_norm(layer.attention_norm, h) if norm == "pre" else h
            own = n_cm if layer.attention.has_own_positions else 0
            a, weights = slow_attention(layer.attention, x, torch.cat([cm[i], m[i], x]), distances, own)
            for entry in range(n_m):
                used[i][entry].append(float(weights[:, :, n_cm + entry].mean()))
            # The oldest n_s entries leave the memory, are compressed by the rate and queue up in the second memory.
            old_mem = torch.cat([m[i], x])[:SEGMENT].detach()
            usage = [sum(each) / len(each) for each in used[i][:SEGMENT]] if n_m >= SEGMENT else []
            used[i] = [*used[i], *([] for _ in range(SEGMENT))][SEGMENT:]
            if n_cm:
                new_cm = slow_compression(layer, old_mem, usage, settings)
                if settings.loss == "attention_reconstruction":
                    apart = slow_content_attention(layer.attention, x, old_mem).detach()
                    apart = apart - slow_content_attention(layer.attention, x, new_cm)
                elif settings.loss == "auto_encoding":
                    decoder = layer.compressor.decoder.expand.weight.view(shape.compression_rate, d_model, d_model)
                    decoded = torch.cat([decoder @ entry for entry in new_cm])
                    apart = decoded - old_mem[: len(decoded)]
                if settings.loss in ("attention_reconstruction", "auto_encoding"):
                    square = apart.square()
                    norm_of = square.sum().sqrt() if square.any() else square.sum()
                    segment_losses.append(norm_of if settings.loss_form == "norm" else square.mean())
                cm[i] = torch.cat([cm[i], new_cm if settings.loss == "task" else new_cm.detach()])[-n_cm:]
            m[i] = torch.cat([m[i], x.detach()])[SEGMENT:]
            if norm == "pre":
                h = h + a
                h = h + layer.expand_contract(layer_norm(layer.feed_forward_norm, h))
            else:
                h = layer_norm(layer.attention_norm, h + a)
                h = layer_norm(layer.feed_forward_norm, h + layer.expand_contract(h))
        if norm == "pre":
            h = layer_norm(model.head.body, h)
        logits.append(h @ model.head.readout.weight.T + model.head.readout.bias)
        if segment_losses:
            total = torch.stack(segment_losses).sum()
            losses.append(total if settings.loss_form == "norm" else total / len(layers))
    return {"logits": torch.cat(logits), "losses": losses, "memory": m, "compressed_memory": cm}


ORACLE_CASES: list[dict[str, Any]] = [
    {},
    {"norm": "post", **by("convolution", "attention_reconstruction", loss_form="norm")},
    {"memory_length": 2, "norm": "post"},
    {"memory_length": 7, "compressed_memory_length": 3},
    {"memory_length": 0, "compression_rate": 4},
    {"compressed_memory_length": 0, "compression_rate": 1, "norm": "post"},
    {"compressed_positions": "own"},
    {"compression_rate": 3, "compressed_positions": "own", "memory_length": 6},
    {"compression_rate": 3, **by("convolution", "auto_encoding")},
    {"compression_rate": 3, **by("dilated_convolution", "attention_reconstruction")},
    by("max_pooling", "none"),
    by("mean_pooling", "none"),
    by("most_used", "none"),
    {"memory_length": 7, **by("most_used", "none")},
    by("convolution", "task"),
]


@pytest.mark.parametrize("changes", ORACLE_CASES, ids=str)
def test_forward_and_backward_are_algorithms_1_and_2(changes: dict[str, Any]) -> None:
    model = build(**changes).train()
    settings = CompressionSettings(**changes.get("compression", {}))
    random = torch.Generator().manual_seed(0)
    # Long enough that compressed memory has been filled and has let go of its oldest entries.
    stream, target = (torch.randint(9, (9 * SEGMENT,), generator=random) for _ in range(2))
    slow = algorithms_1_and_2(model, stream, norm=changes.get("norm", "pre"), settings=settings)

    def gradients(loss: Tensor) -> list[Tensor]:
        parameters = list(model.parameters())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    expected = gradients(F.cross_entropy(slow["logits"], target) + sum(slow["losses"], torch.zeros(())) / 9)
    output = model(stream[None], model.initial_state(1, dtype=torch.float64))
    torch.testing.assert_close(output.logits[0], slow["logits"], atol=1e-10, rtol=0)
    for i in range(2):
        for name in ("memory", "compressed_memory"):
            memory = output.state["transformer"][str(i)][name]
            torch.testing.assert_close(memory[0], slow[name][i], atol=1e-10, rtol=0)
    auxiliary = sum(output.auxiliary_losses.values(), torch.zeros(()))
    if slow["losses"]:
        losses = torch.stack(slow["losses"])
        assert float(auxiliary.detach()) == pytest.approx(float(losses.detach().mean()), abs=1e-10)
    for want, got in zip(expected, gradients(F.cross_entropy(output.logits[0], target) + auxiliary), strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("memory_length", [0, 2, SEGMENT, 7, 3 * SEGMENT])
def test_the_loss_is_about_what_was_evicted_and_nothing_else(memory_length: int) -> None:
    model = build(num_layers=1, memory_length=memory_length).train()
    (layer,) = layers_of(model)
    assert layer.compressor is not None
    state = model.initial_state(1, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    for _ in range(8):
        window = torch.randint(9, (1, SEGMENT), generator=random)
        x = layer_norm(layer.attention_norm, model.embedding(window))
        old_mem = torch.cat([state["transformer"]["0"]["memory"], x.detach()], dim=1)[:, :SEGMENT]
        compressed = attend_by_content(layer.attention, x, layer.compressor.function(old_mem))
        apart = compressed - attend_by_content(layer.attention, x, old_mem)
        output = model(window, state)
        state = output.state
        loss = float(output.auxiliary_losses["attention_reconstruction"].detach())
        assert loss == pytest.approx(float(apart.detach().square().mean()), abs=1e-10)
    assert loss > 0


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


@pytest.mark.parametrize(
    "changes", [{"norm": "post", "memory_length": 2}, {"memory_length": 7, "front_dilations": [1, 2]}]
)
@pytest.mark.parametrize("function", ["convolution", "dilated_convolution"])
@pytest.mark.parametrize("loss", ["attention_reconstruction", "auto_encoding", "task"])
def test_compression_learns_from_its_own_loss_alone_and_nothing_else_does(
    changes: dict[str, Any], function: str, loss: str
) -> None:
    model = build(**changes, **by(function, loss)).train()
    stream = torch.randint(9, (2, 9 * SEGMENT), generator=torch.Generator().manual_seed(0))
    output = model(stream, model.initial_state(2, dtype=torch.float64))

    def reached(loss: Tensor) -> set[str]:
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return {name for name, grad in zip(names, gradients, strict=True) if grad is not None and grad.any()}

    names = {name for name, _ in model.named_parameters()}
    compression = {name for name in names if ".compressor." in name}
    assert {".decoder." in name for name in compression} == ({True, False} if loss == "auto_encoding" else {False})
    auxiliary = {id(parameter) for parameter in model.auxiliary_parameters()}
    if loss == "task":
        assert auxiliary == set()
        assert output.auxiliary_losses == {}
        assert reached(output.logits.square().sum()) == names
    else:
        assert auxiliary == {id(each) for name, each in model.named_parameters() if name in compression}
        assert reached(output.auxiliary_losses[loss]) == compression
        assert reached(output.logits.square().sum()) == names - compression


def test_the_task_teaches_compression_through_the_segments_of_a_window_and_no_further() -> None:
    model = build(num_layers=1, **by("convolution", "task")).train()
    weight = layers_of(model)[0].compressor.function.project.weight
    stream = torch.randint(9, (1, 6 * SEGMENT), generator=torch.Generator().manual_seed(0))
    state = model(stream, model.initial_state(1, dtype=torch.float64)).state
    # What is compressed in a window's last segment is read in the next window only, where it is a constant.
    one = model(stream[:, :SEGMENT], state).logits.square().sum()
    assert torch.autograd.grad(one, weight, allow_unused=True) == (None,)
    two = model(stream[:, : 2 * SEGMENT], state).logits.square().sum()
    assert torch.autograd.grad(two, weight)[0].any()


def test_a_rate_that_does_not_divide_keeps_the_oldest_entries() -> None:
    compression = ConvolutionCompression(2, 3)
    old_mem = torch.randn(1, 8, 2, requires_grad=True)
    compressed = compression(old_mem)
    assert compressed.shape == (1, 2, 2)
    (gradient,) = torch.autograd.grad(compressed[0, 1].sum(), old_mem, retain_graph=True)
    assert gradient.any(-1)[0].tolist() == [False] * 3 + [True] * 3 + [False] * 2
    (gradient,) = torch.autograd.grad(compressed.sum(), old_mem)
    assert gradient.any(-1)[0].tolist() == [True] * 6 + [False] * 2


def test_the_most_used_are_kept_in_order() -> None:
    old_mem = torch.arange(4.0).view(1, 4, 1).expand(2, 4, 1)
    usage = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.5, 0.1, 0.2, 0.2001]])
    kept = MostUsedCompression(2)(old_mem, usage)
    assert kept.flatten(1).tolist() == [[1, 2], [0, 3]]


def test_memories_may_be_longer_than_they_were_in_training() -> None:
    short, long = build(), build(memory_length=9, compressed_memory_length=7)
    long.load_state_dict(short.state_dict())
    assert layers_of(long)[0].shape.num_past == 16


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


def small_attention() -> RelativeAttention:
    torch.manual_seed(0)
    settings = TransformerSettings(num_layers=1, d_model=8, num_heads=2, d_ff=8, segment_length=6, memory_length=6)
    return RelativeAttention(settings, ContextPositions(MemoryShape(6, 6), "contiguous", 4))


def test_the_compression_loss_can_be_learned() -> None:
    attention, compression = small_attention(), ConvolutionCompression(8, 2)
    h, old_mem = torch.randn(4, 6, 8), torch.randn(4, 6, 8)
    optimizer = torch.optim.Adam(compression.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = attention_reconstruction(attention, h, old_mem, compression(old_mem), "mean_square")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("form", ["mean_square", "norm"])
def test_an_empty_memory_stays_empty_and_costs_nothing(form: Any) -> None:
    attention, compression = small_attention(), ConvolutionCompression(8, 4)
    empty = torch.zeros(2, 8, 8)
    assert torch.equal(compression(empty), torch.zeros(2, 2, 8))
    loss = attention_reconstruction(attention, torch.randn(2, 4, 8), empty, compression(empty), form)
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, compression.project.weight)
    assert not gradient.any(), "a norm's gradient at 0 must not be NaN"
    assert difference(empty, empty, form) == 0


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
    assert model.auxiliary_parameters() == []
    assert not any("compress" in name for name, _ in model.named_parameters())
    state = flatten(model.initial_state(1))
    assert all(tensor.numel() == 0 for name, tensor in state.items() if "compressed" in name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "model.num_heads=5 must divide model.d_model=12"),
        ({"num_key_value_heads": 2}, "model.num_key_value_heads=2 must divide model.num_heads=3; try 1"),
        ({"compression_rate": 5}, "model.compression_rate=5 leaves nothing of model.segment_length=4"),
        ({"memory_length": 3, **by("most_used", "none")}, "model.memory_length=3 must be at least"),
        (
            by("max_pooling", "task"),
            "model.compression.loss='task' has nothing to teach: max_pooling has no parameters",
        ),
        (
            {"linear_prediction": {"order": 2, "windows": [9], "frame_length": 3}},
            "model.linear_prediction.frame_length=3 must divide model.segment_length=4; try 4",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompressiveTransformerSettings(**SIZES | changes)
