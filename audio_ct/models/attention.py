"""Multi-head attention over memories and a segment, as one dot product per query and key.

Shape suffixes: B batch, H heads, G heads of keys and values, T queries, S keys, D head size, R sinusoids, E = D + R, M
model size.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.positions import Causality, rotate_query

Kernel = Literal["auto", "fused", "plain"]

# Scores [batch, head, query, key] up to which plain products are the faster ones on a CPU (docs/results.md).
CPU_PLAIN_UP_TO = {torch.float32: 3e6, torch.bfloat16: 32e6, torch.float16: 32e6}


class MemoryAttention(nn.Module, ABC):
    """Multi-head attention over memories and a segment; subclasses say what positions do to queries and keys.

    `queries` and `keys_values` are separate from `attend`, so that sampling can keep keys and values between samples.

    Args:
        d_model: size of inputs and outputs.
        num_heads: number of heads; divides d_model.
        num_key_value_heads: heads of keys and values, each shared by as many query heads; divides num_heads. None for
            one each (Ainslie et al. 2023, 2305.13245).
        kernel: how the product is computed, see `dot_product_attention`.
    """

    def __init__(
        self, d_model: int, num_heads: int, *, num_key_value_heads: int | None = None, kernel: Kernel = "auto"
    ) -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.num_heads = num_heads
        self.d_head = d_model // num_heads
        d_key_value = (num_key_value_heads or num_heads) * self.d_head
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * d_key_value, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    @abstractmethod
    def queries(self, h: Float[Tensor, "b t m"], rotation: Float[Tensor, "2 t half"]) -> Float[Tensor, "b h t e"]:
        """Return scaled queries of inputs whose positions gave `rotation`."""

    @abstractmethod
    def with_positions(
        self, k: Float[Tensor, "b g s d"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> Float[Tensor, "b g s e"]:
        """Return keys that stand at the positions that gave `sinusoids`."""

    @abstractmethod
    def cached_keys(
        self, k: Float[Tensor, "b g s d"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> Float[Tensor, "b g s d"]:
        """Return the keys as caches hold them: without what the queries' own part for positions is multiplied with."""

    def keys_values(
        self, context: Float[Tensor, "b s m"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> tuple[Float[Tensor, "b g s e"], Float[Tensor, "b g s d"]]:
        """Return keys and values of a context whose positions gave `sinusoids`."""
        k_BGSD, v_BGSD = (self._heads(part) for part in self.key_value(context).chunk(2, dim=-1))
        return self.with_positions(k_BGSD, sinusoids), v_BGSD

    def attend(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b g s e"],
        v: Float[Tensor, "b g s d"],
        causality: Causality,
    ) -> Float[Tensor, "b t m"]:
        """Return the attention's output, through the output projection; the queries are the last t of the s keys."""
        out_BHTD = dot_product_attention(q, k, v, causality=causality, kernel=self.kernel)
        return self.output(rearrange(out_BHTD, "b h t d -> b t (h d)"))

    def cache(
        self, past: Float[Tensor, "b s m"], sinusoids: Float[Tensor, "s sinusoids"], num_samples: int
    ) -> tuple[Float[Tensor, "b g d slots"], Float[Tensor, "b g slots d"]]:
        """Return keys and values of the past with slots for samples behind them, for `read`.

        Keys lie transposed, and relative ones without their positions, which are the same for all heads: fewer bytes to
        read per sample.
        """
        k_BGSD, v_BGSD = (self._heads(part) for part in self.key_value(past).chunk(2, dim=-1))
        keys_BGDS = self.cached_keys(k_BGSD, sinusoids).transpose(-1, -2)
        return F.pad(keys_BGDS, (0, num_samples)).contiguous(), F.pad(v_BGSD, (0, 0, 0, num_samples))

    def read(
        self,
        x: Float[Tensor, "b t m"],
        keys: Float[Tensor, "b g d slots"],
        values: Float[Tensor, "b g slots d"],
        *,
        slots: Int[Tensor, " t"],
        rotation: Float[Tensor, "2 t half"],
        sinusoids: Float[Tensor, "sinusoids slots"],
        hidden: Float[Tensor, "t slots"],
        received: Float[Tensor, "b t slots"] | None = None,
    ) -> Float[Tensor, "b t m"]:
        """Write samples' keys and values to these slots and return the attention's output over all that isn't hidden.

        Args:
            x: attention inputs of the samples.
            keys: the cache's keys, written to.
            values: the cache's values, written to.
            slots: the samples' places in the cache.
            rotation: of the samples' positions.
            sinusoids: of the positions of all slots.
            hidden: -inf where a sample must not see a slot, 0 elsewhere.
            received: gets the weights that each sample gave to each slot, averaged over heads.
        """
        k_BGTD, v_BGTD = (self._heads(part) for part in self.key_value(x).chunk(2, dim=-1))
        k_BGTD = self.cached_keys(k_BGTD, sinusoids.index_select(1, slots).T)
        keys.index_copy_(3, slots, k_BGTD.transpose(-1, -2).to(keys.dtype))
        values.index_copy_(2, slots, v_BGTD.to(values.dtype))
        q_BHTE = self.queries(x, rotation)
        content_BHTD, position_BHTR = q_BHTE[..., : self.d_head], q_BHTE[..., self.d_head :]
        if position_BHTR.shape[-1]:
            positions_BHTS = position_BHTR @ sinusoids.to(x.dtype) + hidden.to(x.dtype)
        else:
            positions_BHTS = hidden.to(x.dtype).expand(*q_BHTE.shape[:3], -1)
        # The caches' type is converted within the product with one sample; with several it would make a copy of them.
        at_once = 1 if keys.dtype != x.dtype else x.shape[1]
        outs, weights = [], []
        for content, positions in zip(
            content_BHTD.split(at_once, dim=2), positions_BHTS.split(at_once, dim=2), strict=True
        ):
            scores_BHTS = _grouped_product(content, keys.to(x.dtype)) + positions
            weights.append(scores_BHTS.softmax(dim=-1))
            outs.append(_grouped_product(weights[-1], values.to(x.dtype)))
        if received is not None:
            received.copy_(torch.cat(weights, dim=2).mean(dim=1))
        return self.output(rearrange(torch.cat(outs, dim=2), "b h t d -> b t (h d)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h d) -> b h t d", d=self.d_head)


class RelativeAttention(MemoryAttention):
    """Attention whose score is (q_i + u) . k_j + (q_i + v) . W_r R(i - j), over the square root of the head size.

    Args:
        d_model: see the base class.
        num_heads: see the base class.
        num_key_value_heads: see the base class.
        kernel: see the base class.
        own_compressed_positions: compressed entries have a W_r and a v of their own, as in DeepMind's code.

    Source: Dai et al. 2019, section 3.3. u and v are this layer's own. R holds as many sinusoids as a head has
    channels, not d_model, so that E = 2 D stays within what fused kernels take.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        num_key_value_heads: int | None = None,
        kernel: Kernel = "auto",
        own_compressed_positions: bool = False,
    ) -> None:
        super().__init__(d_model, num_heads, num_key_value_heads=num_key_value_heads, kernel=kernel)
        d_head = self.d_head
        num_sinusoids = d_head + d_head % 2
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
        self.position = nn.Parameter(torch.randn(num_heads, d_head, num_sinusoids) * d_model**-0.5)
        self.own_compressed_positions = own_compressed_positions
        if own_compressed_positions:
            self.compressed_position_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
            self.compressed_position = nn.Parameter(torch.randn_like(self.position) * d_model**-0.5)

    def queries(self, h: Float[Tensor, "b t m"], rotation: Float[Tensor, "2 t half"]) -> Float[Tensor, "b h t e"]:
        """Return scaled queries [q + u ; rotated W_r^T (q + v)], with own positions once more with theirs."""
        q_BHTD = self._heads(self.query(h))
        position_BHTS = (q_BHTD + self.position_bias) @ self.position
        rotation = rotation.to(position_BHTS.dtype)
        parts = [(q_BHTD + self.content_bias).to(position_BHTS.dtype), rotate_query(position_BHTS, rotation)]
        if self.own_compressed_positions:
            own_BHTS = (q_BHTD + self.compressed_position_bias) @ self.compressed_position
            parts.append(rotate_query(own_BHTS, rotation))
        return torch.cat(parts, dim=-1) * self.d_head**-0.5

    def with_positions(
        self, k: Float[Tensor, "b g s d"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> Float[Tensor, "b g s e"]:
        """Return keys [k ; cos wj ; sin wj]."""
        return torch.cat([k, sinusoids.to(k.dtype).expand(*k.shape[:2], *sinusoids.shape)], dim=-1)

    def cached_keys(
        self, k: Float[Tensor, "b g s d"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> Float[Tensor, "b g s d"]:
        """Return k."""
        return k


class RotaryAttention(MemoryAttention):
    """Attention whose queries and keys are turned by their positions, so that scores depend on distances.

    Source: Su et al. 2021, 2104.09864, section 3.2, halves of a head's channels taken as the pairs' two coordinates.
    """

    def queries(self, h: Float[Tensor, "b t m"], rotation: Float[Tensor, "2 t half"]) -> Float[Tensor, "b h t e"]:
        """Return scaled and turned queries."""
        sin, cos = rotation
        return _turn(self._heads(self.query(h)), sin, cos) * self.d_head**-0.5

    def with_positions(
        self, k: Float[Tensor, "b g s d"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> Float[Tensor, "b g s e"]:
        """Return turned keys."""
        cos, sin = sinusoids.chunk(2, dim=-1)
        return _turn(k, sin, cos)

    def cached_keys(
        self, k: Float[Tensor, "b g s d"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> Float[Tensor, "b g s d"]:
        """Return turned keys."""
        return self.with_positions(k, sinusoids)


def _turn(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Return [a cos - b sin ; a sin + b cos] of x = [a ; b]."""
    a, b = x.chunk(2, dim=-1)
    sin, cos = sin.to(x.dtype), cos.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _grouped_product(a: Float[Tensor, "b h t e"], b: Float[Tensor, "b g e s"]) -> Float[Tensor, "b h t s"]:
    """Return the product of each of h heads with that of the g that it shares: heads 0, 1 with 0, 2, 3 with 1, ..."""
    if a.shape[1] == b.shape[1]:
        return a @ b
    return (a.unflatten(1, (b.shape[1], -1)) @ b.unsqueeze(2)).flatten(1, 2)


def attend_by_content(
    attention: MemoryAttention, h: Float[Tensor, "b t m"], context: Float[Tensor, "b s m"]
) -> Float[Tensor, "b h t d"]:
    """Return attention of h over a context by content alone, per head, with the layer's weights held constant.

    No positions, no u, no mask, no output projection: what the attention-reconstruction loss compares. Gradients flow
    into `context` and nowhere else.

    Source: Rae et al. 2019, algorithm 2; scaling and the lack of u as in DeepMind's code.
    """
    query = F.linear(h.detach(), attention.query.weight.detach())
    key, value = F.linear(context, attention.key_value.weight.detach()).chunk(2, dim=-1)
    q_BHTD, k_BGSD, v_BGSD = (rearrange(x, "b t (h d) -> b h t d", d=attention.d_head) for x in (query, key, value))
    scaled_BHTD = q_BHTD * attention.d_head**-0.5
    return dot_product_attention(scaled_BHTD, k_BGSD, v_BGSD, causality=None, kernel=attention.kernel)


def dot_product_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b g s e"],
    v: Float[Tensor, "b g s d"],
    *,
    causality: Causality | None,
    kernel: Kernel = "auto",
) -> Float[Tensor, "b h t d"]:
    """Return the softmax over q . k applied to v; scaling is the caller's.

    A fused kernel makes no tensor of [batch, head, query, key] and wants values as wide as keys. On a CPU plain
    products are up to three times as fast, as long as that tensor is not too large (`python -m benchmarks.attention`);
    under autocast they round scores and weights to its type, so a checkpoint's bits may differ by some 0.001 between
    the two.

    Args:
        q: queries.
        k: keys; the last t are the queries' own samples.
        v: values.
        causality: hides from each query the keys behind its own; the older ones are seen by all. None hides none.
        kernel: "fused" by torch's scaled_dot_product_attention, "plain" by matrix products; "auto" is fused on CUDA and
            what was measured to be faster on a CPU.
    """
    if kernel == "auto":
        num_scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        kernel = "fused" if q.is_cuda or num_scores > CPU_PLAIN_UP_TO.get(q.dtype, math.inf) else "plain"
    causality = causality if q.shape[2] > 1 else None
    if kernel == "fused":
        mask = None if causality is None else causality.mask
        padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, padded, attn_mask=mask, scale=1.0, enable_gqa=grouped)
        return out[..., : v.shape[-1]]
    return _grouped_product(attention_weights(q, k, causality), v)


def attention_weights(
    q: Float[Tensor, "b h t e"], k: Float[Tensor, "b g s e"], causality: Causality | None
) -> Float[Tensor, "b h t s"]:
    """Return the softmax over q . k; see `dot_product_attention`."""
    scores = _grouped_product(q, k.transpose(-1, -2))
    if causality is not None:
        num_queries, num_keys = q.shape[2], k.shape[2]
        scores[..., num_keys - num_queries :] += causal_mask(num_queries, q.device).to(q.dtype)
    return scores.softmax(dim=-1)


def causal_mask(num_samples: int, device: torch.device) -> Float[Tensor, "t t"]:
    """Return what is added to samples' scores for each other: 0 where a query sees a key, -inf where not.

    Example: 2 samples -> [[0, -inf], [0, 0]].
    """
    return torch.full((num_samples, num_samples), float("-inf"), device=device).triu(1)
