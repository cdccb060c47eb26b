r"""Speed of attention by kernel and precision: forward and backward of one layer's products.

    python -m benchmarks.attention                              # recipes/small
    python -m benchmarks.attention --batch-size 4 --set model.d_model=256 model.num_heads=8 model.segment_length=256 \
        model.memory_length=256 model.compressed_memory_length=256 training.window_length=256
    python -m benchmarks.attention --recipe recipes/paper/compressive_transformer.yaml --batch-size 16      # on a GPU

A recipe chooses `plain` or `fused` (model.attention_kernel); `auto` is fused on a GPU, and on a CPU plain up to a size.
Behind `fused` torch chooses among its own kernels, which are measured one by one as well, and so is FlexAttention. The
note of a kernel that cannot run here has the reason. All in turns, medians; `share` is of the matrix products' ceiling,
counting two products forward and four backward over the keys that a query sees.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from audio_ct.models.attention import dot_product_attention
from audio_ct.models.positions import Causality
from audio_ct.models.settings import CompressiveTransformerSettings, TransformerXLSettings
from audio_ct.recipe import load_recipe
from benchmarks import measure
from benchmarks.measure import Build, Row

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
TORCHS_OWN = {
    "fused: flash": SDPBackend.FLASH_ATTENTION,
    "fused: memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "fused: cuDNN": SDPBackend.CUDNN_ATTENTION,
    "fused: plain in C++": SDPBackend.MATH,
}
COLUMNS = {"name": "kernel", "precision": "precision", "milliseconds": "ms", "share_of_ceiling": "share"}


class Products:
    """Queries, keys and values of one layer; a call is attention over them, forward and backward."""

    def __init__(
        self, attention: Attention, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: str
    ) -> None:
        torch.manual_seed(0)
        self._attention = attention
        self._inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes.values()]

    def __call__(self) -> None:
        """Compute the output and all three gradients."""
        out = self._attention(*self._inputs)
        torch.autograd.grad(out, self._inputs, torch.ones_like(out))


def of_torch(backend: SDPBackend, causality: Causality, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by one of torch's kernels, which then may not choose another."""
    with sdpa_kernel(backend):
        return dot_product_attention(q, k, v, causality=causality, kernel="fused")


def flex(num_queries: int, num_keys: int, device: str) -> Attention:
    """Attention by FlexAttention, compiled."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query + num_keys - num_queries

    mask = create_block_mask(sees, None, None, num_queries, num_keys, device=device)
    compiled: Any = torch.compile(flex_attention)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
        return compiled(q, k, padded, block_mask=mask, scale=1.0)[..., : v.shape[-1]]

    return attention


def measure_kernels(
    model: CompressiveTransformerSettings | TransformerXLSettings,
    device: torch.device,
    ceilings: Row,
    *,
    batch_size: int,
    repeats: int,
) -> Row:
    """Measure the time of every kernel in every precision, and name the fastest kernel of each precision."""
    past = model.memory_length + model.compressed_memory_length
    num_queries, num_keys = model.segment_length, past + model.segment_length
    d_head = model.d_head
    wide = d_head + model.num_sinusoids
    lead = (batch_size, model.num_heads)
    shapes = {"q": (*lead, num_queries, wide), "k": (*lead, num_keys, wide), "v": (*lead, num_keys, d_head)}
    causality = Causality(num_queries, num_keys)
    kernels: dict[str, Callable[[], Attention]] = {
        "plain": lambda: partial(dot_product_attention, causality=causality, kernel="plain"),
        "fused": lambda: partial(dot_product_attention, causality=causality, kernel="fused"),
        **{name: partial(partial, of_torch, backend, causality) for name, backend in TORCHS_OWN.items()},
        "flex": partial(flex, num_queries, num_keys, device.type),
    }

    def build(kernel: str, dtype: torch.dtype) -> Products:
        return Products(kernels[kernel](), shapes, dtype, device.type)

    # Hidden keys are not counted.
    seen = past + (num_queries + 1) / 2
    flops = 3 * 2 * batch_size * model.num_heads * num_queries * seen * (wide + d_head)
    rows: list[Row] = []
    fastest: dict[str, str] = {}
    for precision in measure.precisions(device):
        dtype = getattr(torch, precision)
        builds: dict[str, Build] = {kernel: partial(build, kernel, dtype) for kernel in kernels}
        may_fail = [kernel for kernel in kernels if kernel not in ("plain", "fused")]
        timings = measure.time_in_turns(builds, repeats=repeats, may_fail=may_fail, device=device)
        known = {name: timing.median_seconds for name, timing in timings.items() if timing.median_seconds is not None}
        fastest[precision] = min(known, key=lambda name: known[name])
        for name, timing in timings.items():
            row: Row = {"name": name, "precision": precision, "note": timing.failure}
            if name in known:
                row["milliseconds"] = 1e3 * known[name]
                row["share_of_ceiling"] = flops / known[name] / ceilings[f"{precision}_flops_per_second"]
            rows.append(row)
    shape = (
        f"batch {batch_size}, {model.num_heads} heads, {num_queries} queries, {num_keys} keys, {wide} + {d_head} wide"
    )
    measure.show(f"Attention, forward and backward: {shape}", rows, COLUMNS)
    print(f"  fastest: {fastest}")
    return {"rows": rows, "shape": shape, "fastest": fastest, "bars": []}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/small/compressive_transformer.yaml"))
    parser.add_argument("--set", nargs="+", default=[], help="section.key=value: other values than the recipe's")
    parser.add_argument("--batch-size", type=int, help="(the recipe's)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each, in turns (%(default)s)")
    measure.add_common(parser, "attention")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe, options.set)
    if not isinstance(recipe.model, CompressiveTransformerSettings | TransformerXLSettings):
        parser.error(f"--recipe {options.recipe}: a {recipe.model.kind} has no attention")
    device = torch.device(options.device)
    result: Row = {"benchmark": "attention", "machine": measure.machine(device), "ceilings": measure.ceilings(device)}
    batch_size = options.batch_size or recipe.training.batch_size
    found = measure_kernels(recipe.model, device, result["ceilings"], batch_size=batch_size, repeats=options.repeats)
    measure.finish(result, {"kernels": found}, options.out)


if __name__ == "__main__":
    main()
