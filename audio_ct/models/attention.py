"""Multi-head attention with Transformer-XL's relative positions, as one dot product per query and key.

Shape suffixes: B batch, H heads, T queries, S keys, D head size, E = D + number of sinusoids, M model size.
"""

import math
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from audio_ct.models.positions import rotate_query

Kernel = Literal["auto", "fused", "plain"]

# Scores [batch, head, query, key] up to which plain products are the faster ones on a CPU (docs/results.md).
CPU_PLAIN_UP_TO = {torch.float32: 3e6, torch.bfloat16: 32e6, torch.float16: 32e6}


class Causality:
    """That the last queries of so many keys see no key behind their own: torch's lower-right mask for fused kernels.

    It is made once, with the model: torch can compile what uses it, but not its making.
    """

    def __init__(self, num_queries: int, num_keys: int) -> None:
        self.mask = causal_lower_right(num_queries, num_keys)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Causality":
        """Return itself: it never changes, and torch cannot copy the mask."""
        return self


class RelativeAttention(nn.Module):
    """Attention whose score is (q_i + u) . k_j + (q_i + v) . W_r R(i - j), over the square root of the head size.

    `queries` and `keys_values` are separate from `attend`, so that sampling can keep keys and values between samples.

    Args:
        d_model: size of inputs and outputs.
        num_heads: number of heads; divides d_model.
        kernel: how the product is computed, see `dot_product_attention`.

    Source: Dai et al. 2019, section 3.3. u and v are this layer's own. R holds as many sinusoids as a head has
    channels, not d_model, so that E = 2 D stays within what fused kernels take.
    """

    def __init__(self, d_model: int, num_heads: int, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.num_heads = num_heads
        self.d_head = d_head = d_model // num_heads
        self.num_sinusoids = d_head + d_head % 2
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
        self.position = nn.Parameter(torch.randn(num_heads, d_head, self.num_sinusoids) * d_model**-0.5)

    def queries(self, h: Float[Tensor, "b t m"], rotation: Float[Tensor, "2 t half"]) -> Float[Tensor, "b h t e"]:
        """Return scaled queries [q + u ; rotated W_r^T (q + v)] of inputs whose positions gave `rotation`."""
        q_BHTD = self._heads(self.query(h))
        content_BHTD = q_BHTD + self.content_bias
        position_BHTS = (q_BHTD + self.position_bias) @ self.position
        rotated_BHTS = rotate_query(position_BHTS, rotation.to(position_BHTS.dtype))
        return torch.cat([content_BHTD.to(rotated_BHTS.dtype), rotated_BHTS], dim=-1) * q_BHTD.shape[-1] ** -0.5

    def keys_values(
        self, context: Float[Tensor, "b s m"], sinusoids: Float[Tensor, "s sinusoids"]
    ) -> tuple[Float[Tensor, "b h s e"], Float[Tensor, "b h s d"]]:
        """Return keys [k ; cos wj ; sin wj] and values of a context whose positions gave `sinusoids`."""
        k_BHSD, v_BHSD = (self._heads(part) for part in self.key_value(context).chunk(2, dim=-1))
        sinusoids_BHSS = sinusoids.to(k_BHSD.dtype).expand(*k_BHSD.shape[:2], *sinusoids.shape)
        return torch.cat([k_BHSD, sinusoids_BHSS], dim=-1), v_BHSD

    def attend(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b h s e"],
        v: Float[Tensor, "b h s d"],
        causality: Causality,
    ) -> Float[Tensor, "b t m"]:
        """Return the attention's output, through the output projection; the queries are the last t of the s keys."""
        out_BHTD = dot_product_attention(q, k, v, causality=causality, kernel=self.kernel)
        return self.output(rearrange(out_BHTD, "b h t d -> b t (h d)"))

    def cache(
        self, past: Float[Tensor, "b s m"], num_samples: int
    ) -> tuple[Float[Tensor, "b h d slots"], Float[Tensor, "b h slots d"]]:
        """Return keys and values of the past with slots for samples behind them, for `read`.

        Keys lie transposed and without positions, which are the same for all heads: fewer bytes to read per sample.
        """
        k_BHSD, v_BHSD = (self._heads(part) for part in self.key_value(past).chunk(2, dim=-1))
        return F.pad(k_BHSD.transpose(-1, -2), (0, num_samples)).contiguous(), F.pad(v_BHSD, (0, 0, 0, num_samples))

    def read(
        self,
        x: Float[Tensor, "b t m"],
        keys: Float[Tensor, "b h d slots"],
        values: Float[Tensor, "b h slots d"],
        *,
        slots: Int[Tensor, " t"],
        rotation: Float[Tensor, "2 t half"],
        sinusoids: Float[Tensor, "sinusoids slots"],
        hidden: Float[Tensor, "t slots"],
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
        """
        k_BHTD, v_BHTD = (self._heads(part) for part in self.key_value(x).chunk(2, dim=-1))
        keys.index_copy_(3, slots, k_BHTD.transpose(-1, -2).to(keys.dtype))
        values.index_copy_(2, slots, v_BHTD.to(values.dtype))
        q_BHTE = self.queries(x, rotation)
        positions_BHTS = q_BHTE[..., self.d_head :] @ sinusoids.to(x.dtype) + hidden.to(x.dtype)
        # The caches' type is converted within the product with one sample; with several it would make a copy of them.
        at_once = 1 if keys.dtype != x.dtype else x.shape[1]
        outs = []
        for content, positions in zip(
            q_BHTE[..., : self.d_head].split(at_once, dim=2), positions_BHTS.split(at_once, dim=2), strict=True
        ):
            weights = (content @ keys.to(x.dtype) + positions).softmax(dim=-1)
            outs.append(weights @ values.to(x.dtype))
        return self.output(rearrange(torch.cat(outs, dim=2), "b h t d -> b t (h d)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h d) -> b h t d", h=self.num_heads)


def attend_by_content(
    attention: RelativeAttention, h: Float[Tensor, "b t m"], context: Float[Tensor, "b s m"]
) -> Float[Tensor, "b h t d"]:
    """Return attention of h over a context by content alone, per head, with the layer's weights held constant.

    No positions, no u, no mask, no output projection: what the attention-reconstruction loss compares. Gradients flow
    into `context` and nowhere else.

    Source: Rae et al. 2019, algorithm 2; scaling and the lack of u as in DeepMind's code.
    """
    query = F.linear(h.detach(), attention.query.weight.detach())
    key, value = F.linear(context, attention.key_value.weight.detach()).chunk(2, dim=-1)
    q_BHTD, k_BHSD, v_BHSD = (rearrange(x, "b t (h d) -> b h t d", h=attention.num_heads) for x in (query, key, value))
    scaled_BHTD = q_BHTD * attention.d_head**-0.5
    return dot_product_attention(scaled_BHTD, k_BHSD, v_BHSD, causality=None, kernel=attention.kernel)


def dot_product_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s d"],
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
    num_queries, num_keys = q.shape[2], k.shape[2]
    causality = causality if num_queries > 1 else None
    if kernel == "fused":
        mask = None if causality is None else causality.mask
        padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
        return F.scaled_dot_product_attention(q, k, padded, attn_mask=mask, scale=1.0)[..., : v.shape[-1]]
    scores = q @ k.transpose(-1, -2)
    if causality is not None:
        scores[..., num_keys - num_queries :] += causal_mask(num_queries, q.device).to(q.dtype)
    return scores.softmax(dim=-1) @ v


def causal_mask(num_samples: int, device: torch.device) -> Float[Tensor, "t t"]:
    """Return what is added to samples' scores for each other: 0 where a query sees a key, -inf where not.

    Example: 2 samples -> [[0, -inf], [0, 0]].
    """
    return torch.full((num_samples, num_samples), float("-inf"), device=device).triu(1)
