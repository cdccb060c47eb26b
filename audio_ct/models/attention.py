"""Multi-head attention over memories and a segment, as one dot product per query and key.

Shape suffixes: B batch, H heads, G heads of keys and values, T queries, S keys, D head size, R sinusoids, E = D + R, M
model size.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.positions import Causality, ContextPositions, SlotPositions, rotate_query
from audio_ct.models.settings import Kernel, TransformerSettings

# Scores [batch, head, query, key] up to which plain products are the faster ones on a CPU (docs/measurements.md).
CPU_PLAIN_UP_TO = {torch.float32: 3e6, torch.bfloat16: 32e6, torch.float16: 32e6}


class RelativeAttention(nn.Module):
    """Attention whose score is (q_i + u) . k_j + (q_i + v) . W_r R(i - j), over the square root of the head size.

    `queries` and `keys_values` are separate from `attend`, so that sampling can keep keys and values between samples.

    Args:
        settings: sizes and the kernel. With `num_key_value_heads`, each head of keys and values is shared by as many
            query heads (Ainslie et al. 2023, 2305.13245).
        positions: of keys and queries. With placement "own" compressed entries have a W_r and a v of their own, as in
            DeepMind's code.

    Source: Dai et al. 2019, section 3.3. u and v are this layer's own. R holds as many sinusoids as a head has
    channels, not d_model, so that E = 2 D stays within what fused kernels take.
    """

    def __init__(self, settings: TransformerSettings, positions: ContextPositions) -> None:
        super().__init__()
        d_model, d_head, num_heads = settings.d_model, settings.d_head, settings.num_heads
        self.positions = positions
        self.kernel: Kernel = settings.attention_kernel
        self.d_head = d_head
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * (settings.num_key_value_heads or num_heads) * d_head, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
        self.position = nn.Parameter(torch.randn(num_heads, d_head, settings.num_sinusoids) * d_model**-0.5)
        self.has_own_positions = positions.placement == "own"
        if self.has_own_positions:
            self.compressed_position_bias = nn.Parameter(torch.zeros(num_heads, 1, d_head))
            self.compressed_position = nn.Parameter(torch.randn_like(self.position) * d_model**-0.5)

    def queries(self, x: Float[Tensor, "b t m"], rotation: Float[Tensor, "2 t half"]) -> Float[Tensor, "b h t e"]:
        """Project inputs to scaled queries [q + u ; rotated W_r^T (q + v)], own positions' part behind them.

        Args:
            x: attention inputs.
            rotation: of their positions, see `query_rotation`.
        """
        q_BHTD = self._heads(self.query(x))
        position_BHTR = (q_BHTD + self.position_bias) @ self.position
        rotation = rotation.to(position_BHTR.dtype)
        parts = [(q_BHTD + self.content_bias).to(position_BHTR.dtype), rotate_query(position_BHTR, rotation)]
        if self.has_own_positions:
            own_BHTR = (q_BHTD + self.compressed_position_bias) @ self.compressed_position
            parts.append(rotate_query(own_BHTR, rotation))
        return torch.cat(parts, dim=-1) * self.d_head**-0.5

    def keys_values(self, context: Float[Tensor, "b s m"]) -> tuple[Float[Tensor, "b g s e"], Float[Tensor, "b g s d"]]:
        """Project [compressed memory | memory | segment] to keys [k ; cos wj ; sin wj] and values."""
        k_BGSD, v_BGSD = self._project(context)
        sinusoids_SR = self.positions.key_sinusoids.T.to(k_BGSD.dtype)
        return torch.cat([k_BGSD, sinusoids_SR.expand(*k_BGSD.shape[:2], *sinusoids_SR.shape)], dim=-1), v_BGSD

    def attend(
        self, q: Float[Tensor, "b h t e"], k: Float[Tensor, "b g s e"], v: Float[Tensor, "b g s d"]
    ) -> Float[Tensor, "b t m"]:
        """Attend with a segment's queries, which are the last of the keys, and project the output."""
        out_BHTD = dot_product_attention(q, k, v, causality=self.positions.causality, kernel=self.kernel)
        return self.output(rearrange(out_BHTD, "b h t d -> b t (h d)"))

    @torch.no_grad()
    def received(self, q: Float[Tensor, "b h t e"], k: Float[Tensor, "b g s e"]) -> Float[Tensor, "b s"]:
        """The attention that each key receives in a segment, averaged over heads and queries, in float32 or more."""
        weights = attention_weights(q, k, self.positions.causality)
        return weights.mean(dim=(1, 2), dtype=torch.promote_types(weights.dtype, torch.float32))

    def open_cache(
        self, past: Float[Tensor, "b s m"], num_samples: int
    ) -> tuple[Float[Tensor, "b g d slots"], Float[Tensor, "b g slots d"]]:
        """Project the past to keys and values with slots for samples behind them, for `read`.

        Keys lie transposed, and without their sinusoids, which are the same for all heads: fewer bytes to read per
        sample.
        """
        k_BGSD, v_BGSD = self._project(past)
        return F.pad(k_BGSD.transpose(-1, -2), (0, num_samples)).contiguous(), F.pad(v_BGSD, (0, 0, 0, num_samples))

    def read(
        self,
        x: Float[Tensor, "b 1 m"],
        keys: Float[Tensor, "b g d slots"],
        values: Float[Tensor, "b g slots d"],
        at: SlotPositions,
    ) -> tuple[Float[Tensor, "b 1 m"], Float[Tensor, "b h 1 slots"]]:
        """Attend with one sample, whose key and value are written to the caches.

        Args:
            x: the sample's attention input.
            keys: the cache of keys.
            values: the cache of values.
            at: the sample's positions.

        Returns:
            The attention's output, through the output projection, and its weights.
        """
        k_BG1D, v_BG1D = self._project(x)
        slot = self.positions.shape.num_past + at.slot
        keys.index_copy_(3, slot, k_BG1D.transpose(-1, -2).to(keys.dtype))
        values.index_copy_(2, slot, v_BG1D.to(values.dtype))
        q_BH1E = self.queries(x, at.rotation)
        content_BH1D, position_BH1R = q_BH1E[..., : self.d_head], q_BH1E[..., self.d_head :]
        scores_BH1S = position_BH1R @ self.positions.key_sinusoids.to(x.dtype) + at.mask.to(x.dtype)
        weights_BH1S = (_grouped_product(content_BH1D, keys.to(x.dtype)) + scores_BH1S).softmax(dim=-1)
        out_BH1D = _grouped_product(weights_BH1S, values.to(x.dtype))
        return self.output(rearrange(out_BH1D, "b h t d -> b t (h d)")), weights_BH1S

    def _project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.key_value(context).chunk(2, dim=-1)
        return self._heads(k), self._heads(v)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h d) -> b h t d", d=self.d_head)


def _grouped_product(a: Float[Tensor, "b h t e"], b: Float[Tensor, "b g e s"]) -> Float[Tensor, "b h t s"]:
    """Multiply each of h heads with the one of g heads that it shares: heads 0, 1 with 0, 2, 3 with 1, ..."""
    if a.shape[1] == b.shape[1]:
        return a @ b
    return (a.unflatten(1, (b.shape[1], -1)) @ b.unsqueeze(2)).flatten(1, 2)


def attend_by_content(
    attention: RelativeAttention, h: Float[Tensor, "b t m"], context: Float[Tensor, "b s m"]
) -> Float[Tensor, "b h t d"]:
    """Attend over a context by content alone, per head, with the layer's weights held constant.

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
    """Apply the softmax over q . k to v; scaling is the caller's.

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
    """The softmax over q . k; see `dot_product_attention`."""
    scores = _grouped_product(q, k.transpose(-1, -2))
    if causality is not None:
        num_queries, num_keys = q.shape[2], k.shape[2]
        scores[..., num_keys - num_queries :] += causal_mask(num_queries, q.device).to(q.dtype)
    return scores.softmax(dim=-1)


def causal_mask(num_samples: int, device: torch.device) -> Float[Tensor, "t t"]:
    """Scores to add to those of samples for each other: 0 where a query sees a key, -inf where not.

    Example: 2 samples -> [[0, -inf], [0, 0]].
    """
    return torch.full((num_samples, num_samples), float("-inf"), device=device).triu(1)
