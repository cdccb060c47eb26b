"""The factored score is Transformer-XL's, and its mask hides the future and nothing else."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from audio_ct.models.attention import RelativeAttention, attend_by_content, causal_mask, dot_product_attention
from audio_ct.models.memory import MemoryShape
from audio_ct.models.positions import (
    Causality,
    ContextPositions,
    frequencies,
    key_sinusoids,
    query_rotation,
    rotate_query,
)
from audio_ct.models.settings import Kernel, TransformerSettings


def layer(d_model: int = 12, num_heads: int = 3, num_queries: int = 4, num_keys: int = 9) -> RelativeAttention:
    """An attention of random parameters in float64 over a segment and a memory, whose positions are in float64, too."""
    torch.manual_seed(0)
    settings = TransformerSettings(
        num_layers=1,
        d_model=d_model,
        num_heads=num_heads,
        d_ff=1,
        segment_length=num_queries,
        memory_length=num_keys - num_queries,
    )
    positions = ContextPositions(MemoryShape(num_queries, num_keys - num_queries), "contiguous", settings.num_sinusoids)
    positions.key_sinusoids, positions.query_rotation = positions.tables()
    attention = RelativeAttention(settings, positions).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention


def rel_shift(x: Tensor) -> Tensor:
    """Shift row i of [time, keys] left by time - 1 - i places, as Dai et al. do, by padding and a new view."""
    num_rows, num_columns = x.shape
    padded = torch.cat([x.new_zeros(num_rows, 1), x], dim=1)
    return padded.view(num_columns + 1, num_rows)[1:].view(num_rows, num_columns)


def textbook_scores(attention: RelativeAttention, h: Tensor, context: Tensor) -> Tensor:
    """Transformer-XL's scores [heads, time, keys] from a table of R(distance); right only where visible."""
    num_queries, num_keys = h.shape[0], context.shape[0]
    num_heads, d_head, num_sinusoids = attention.position.shape
    half = num_sinusoids // 2
    scores = torch.zeros(num_heads, num_queries, num_keys, dtype=h.dtype)
    distances = range(num_keys - 1, -1, -1)
    table = torch.zeros(num_keys, num_sinusoids, dtype=h.dtype)
    for row, distance in enumerate(distances):
        for n in range(half):
            w = 10000.0 ** -(n / half)
            table[row, n], table[row, half + n] = math.sin(w * distance), math.cos(w * distance)
    for head in range(num_heads):
        rows = slice(head * d_head, (head + 1) * d_head)
        q = h @ attention.query.weight[rows].T
        k = context @ attention.key_value.weight[: num_heads * d_head][rows].T
        u, v = attention.content_bias[head, 0], attention.position_bias[head, 0]
        r_k = table @ attention.position[head].T
        scores[head] = ((q + u) @ k.T + rel_shift((q + v) @ r_k.T)) / math.sqrt(d_head)
    return scores


def factored(attention: RelativeAttention, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q = attention.queries(h[None], attention.positions.query_rotation)
    return q, *attention.keys_values(context[None])


def test_rel_shift_on_a_small_example() -> None:
    # Columns are distances 2, 1, 0; afterwards columns are keys, and row i sees key j at distance i - j.
    x = torch.tensor([[2.0, 1.0, 0.0]] * 3)
    visible = torch.ones(3, 3).tril() == 1
    assert torch.equal(rel_shift(x)[visible], torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 0.0]))


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (5, 5), (4, 13), (1, 9)])
@pytest.mark.parametrize(("d_model", "num_heads"), [(12, 3), (12, 4), (8, 1)])
def test_the_factored_score_is_the_textbooks(num_queries: int, num_keys: int, d_model: int, num_heads: int) -> None:
    attention = layer(d_model, num_heads, num_queries, num_keys)
    context = torch.randn(num_keys, d_model, dtype=torch.float64)
    h = context[-num_queries:]
    q, k, _ = factored(attention, h, context)
    visible = torch.ones(num_queries, num_keys).tril(num_keys - num_queries) == 1
    scores = (q @ k.transpose(-1, -2))[0]
    torch.testing.assert_close(
        scores[:, visible], textbook_scores(attention, h, context)[:, visible], atol=1e-12, rtol=1e-12
    )


def test_attention_is_the_softmax_over_what_is_visible() -> None:
    attention = layer()
    context = torch.randn(9, 12, dtype=torch.float64)
    h = context[-4:]
    scores = textbook_scores(attention, h, context)
    expected = torch.zeros(4, 12, dtype=torch.float64)
    value = context @ attention.key_value.weight[12:].T
    for i in range(4):
        seen = 9 - 4 + i + 1
        for head in range(3):
            columns = slice(4 * head, 4 * head + 4)
            expected[i, columns] = scores[head, i, :seen].softmax(-1) @ value[:seen, columns]
    q, k, v = factored(attention, h, context)
    got = attention.attend(q, k, v)[0]
    torch.testing.assert_close(got, expected @ attention.output.weight.T, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 9), (5, 5), (4, 13)])
@pytest.mark.parametrize("causal", [True, False])
def test_kernels_agree(num_queries: int, num_keys: int, causal: bool) -> None:
    causality = Causality(num_queries, num_keys) if causal else None
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, length, width, dtype=torch.float64, requires_grad=True)
        for length, width in ((num_queries, 8), (num_keys, 8), (num_keys, 4))
    )
    kernels: tuple[Kernel, ...] = ("plain", "fused", "auto")
    results = []
    for kernel in kernels:
        out = dot_product_attention(q, k, v, causality=causality, kernel=kernel)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["plain", "fused"])
def test_shared_keys_and_values_are_as_if_they_were_repeated(causal: bool, kernel: Kernel) -> None:
    causality = Causality(4, 9) if causal else None
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 8, dtype=torch.float64) for heads, length in ((6, 4), (3, 9), (3, 9)))
    expected = dot_product_attention(
        q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), causality=causality, kernel="plain"
    )
    got = dot_product_attention(q, k, v, causality=causality, kernel=kernel)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_far_positions_lose_no_precision_in_float32() -> None:
    # A temporal range of seconds: the products of float32 sinusoids still give the float64 score.
    angular = frequencies(16)
    torch.manual_seed(0)
    projected = torch.randn(50, 16, dtype=torch.float64)
    i, j = torch.arange(50.0, dtype=torch.float64), -torch.arange(0.0, 80_000, 1601, dtype=torch.float64)
    exact = rotate_query(projected, query_rotation(i, angular)) @ key_sinusoids(j, angular).T
    rotation, sinusoids = query_rotation(i, angular).float(), key_sinusoids(j, angular).float()
    rounded = rotate_query(projected.float(), rotation) @ sinusoids.T
    assert (rounded - exact).abs().max() < 1e-5


def test_the_worked_example_of_positions() -> None:
    one = torch.ones(1, dtype=torch.float64)
    query = rotate_query(torch.tensor([[1.0, 0.0]], dtype=torch.float64), query_rotation(2 * one, one))
    assert query[0].tolist() == pytest.approx([math.sin(2), -math.cos(2)])
    assert key_sinusoids(0 * one, one)[0].tolist() == [1, 0]
    assert float(query @ key_sinusoids(0 * one, one).T) == pytest.approx(math.sin(2))


def test_frequencies_fall_from_1_to_nearly_a_ten_thousandth() -> None:
    angular = frequencies(64).tolist()
    assert angular[0] == 1
    assert 1e-4 < angular[-1] < 1.4e-4
    assert all(a > b for a, b in pairwise(angular))


def test_the_mask_of_the_docstring() -> None:
    hidden = float("-inf")
    assert causal_mask(2, torch.device("cpu")).tolist() == [[0, hidden], [0, 0]]


def test_attention_by_content_against_a_slow_loop() -> None:
    attention = layer()
    h, context = torch.randn(1, 3, 12, dtype=torch.float64), torch.randn(1, 5, 12, dtype=torch.float64)
    got = attend_by_content(attention, h, context)
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        q = h[0] @ attention.query.weight[rows].T
        k = context[0] @ attention.key_value.weight[:12][rows].T
        v = context[0] @ attention.key_value.weight[12:][rows].T
        expected = (q @ k.T / 2).softmax(-1) @ v
        torch.testing.assert_close(got[0, head], expected, atol=1e-12, rtol=1e-12)


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(Exception, match="Float") as caught:
        rotate_query(torch.zeros(2, 3, 4), torch.zeros(2, 5, 2))
    assert "jaxtyping" in type(caught.value).__module__
