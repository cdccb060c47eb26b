"""Causal dilated convolutions that carry what they need of the past as a queue, for WaveNet and for fronts.

Layout is channels last, [batch, time, channels]: the taps are gathered side by side, and one matrix product does the
rest, which fused kernels and optimised BLAS do better than strided convolutions of width 2.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.interface import READ_AHEAD, State


def taps(
    x: Float[Tensor, "batch time channels"], queue: Float[Tensor, "batch past channels"], width: int
) -> tuple[list[Float[Tensor, "batch time channels"]], Float[Tensor, "batch past channels"]]:
    """Return the inputs delayed by (width - 1) d, ..., d, 0 samples, and the queue after the window.

    The queue holds the last (width - 1) d inputs, so d, the dilation, is its length over width - 1.

    Example: width 2, queue [1 2] (d = 2), x = [3 4 5] -> taps [1 2 3] and [3 4 5], queue [4 5].
    """
    dilation = queue.shape[1] // max(1, width - 1)
    num_samples = x.shape[1]
    past_and_now = torch.cat([queue, x], dim=1)
    delayed = [past_and_now[:, tap * dilation : tap * dilation + num_samples] for tap in range(width)]
    return delayed, past_and_now[:, num_samples:]


def queues_to_caches(state: State, prefix: str, num_samples: int) -> State:
    """Return a cache for every queue whose name begins so: the queue with slots for samples behind it."""
    return {
        f"cache.{name}": F.pad(queue, (0, 0, 0, num_samples + READ_AHEAD))
        for name, queue in state.items()
        if name.startswith(prefix)
    }


def caches_to_queues(state: State, prefix: str, num_samples: int) -> State:
    """Return the queues after so many samples of the caches that `queues_to_caches` made."""
    return {
        name: state[f"cache.{name}"][:, num_samples : num_samples + queue.shape[1]].clone()
        for name, queue in state.items()
        if name.startswith(prefix)
    }


def cached_taps(
    x: Float[Tensor, "batch time channels"],
    cache: Float[Tensor, "batch slots channels"],
    slots: Int[Tensor, " time"],
    *,
    queue_length: int,
    width: int,
) -> list[Float[Tensor, "batch time channels"]]:
    """Write inputs to their slots of a cache and return the same delayed inputs as `taps`."""
    cache.index_copy_(1, slots + queue_length, x.to(cache.dtype))
    dilation = queue_length // max(1, width - 1)
    return [cache.index_select(1, slots + tap * dilation).to(x.dtype) for tap in range(width - 1)] + [x]


class GatedConvolution(nn.Module):
    """WaveNet's layer: tanh(W_f * x) . sigmoid(W_g * x), then 1x1 to the residual and, where wanted, to a skip.

    Args:
        channels: of input and output.
        skip_channels: of the skip output; 0 for none.
        width: taps of the convolution.
        dilation: samples between taps.

    Source: van den Oord et al. 2016 (WaveNet), sections 2.3 and 2.4; the queue is Paine et al. 2016.
    """

    def __init__(self, channels: int, *, skip_channels: int, width: int, dilation: int) -> None:
        super().__init__()
        self.width = width
        self.channels = channels
        self.queue_length = (width - 1) * dilation
        self.filter_gate = nn.Linear(width * channels, 2 * channels)
        self.mix = nn.Linear(channels, channels + skip_channels)

    def forward(
        self, x: Float[Tensor, "batch time channels"], queue: Float[Tensor, "batch past channels"]
    ) -> tuple[
        Float[Tensor, "batch time channels"], Float[Tensor, "batch time skip"], Float[Tensor, "batch past channels"]
    ]:
        """Return (output with the residual added, skip, the queue after the window)."""
        delayed, queue = taps(x, queue, self.width)
        return *self._gate(x, delayed), queue

    def read(
        self,
        x: Float[Tensor, "batch time channels"],
        cache: Float[Tensor, "batch slots channels"],
        slots: Int[Tensor, " time"],
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch time skip"]]:
        """Return (output, skip) of samples in these slots of the cache, which is written to."""
        return self._gate(x, cached_taps(x, cache, slots, queue_length=self.queue_length, width=self.width))

    def _gate(self, x: Tensor, delayed: list[Tensor]) -> tuple[Tensor, Tensor]:
        filtered, gate = self.filter_gate(torch.cat(delayed, dim=-1)).chunk(2, dim=-1)
        mixed = self.mix(torch.tanh(filtered) * torch.sigmoid(gate))
        return x + mixed[..., : self.channels], mixed[..., self.channels :]


class ConvolutionalFront(nn.Module):
    """Gated convolutions of width 2 between embedding and layers; their skips go past the layers to the logits.

    Args:
        channels: of input, skips and output.
        dilations: one layer for each.

    Source: the layers are WaveNet's; that they stand before attention is this project's.
    """

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.channels = channels
        self.layers: Sequence[GatedConvolution] = nn.ModuleList(  # type: ignore[assignment]
            GatedConvolution(channels, skip_channels=channels, width=2, dilation=dilation) for dilation in dilations
        )

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Return zero queues."""
        return {
            f"front.{i}": torch.zeros(batch_size, layer.queue_length, self.channels, device=device, dtype=dtype)
            for i, layer in enumerate(self.layers)
        }

    def forward(
        self, h: Float[Tensor, "batch time channels"], state: State
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch time channels"], State]:
        """Return (the output, the sum of the skips, the queues after the window)."""
        queues = {}
        skips = torch.zeros_like(h)
        for i, layer in enumerate(self.layers):
            queue = state[f"front.{i}"]
            h, skip, new_queue = layer(h, queue.to(h.dtype))
            skips = skips + skip
            queues[f"front.{i}"] = new_queue.detach().to(queue.dtype)
        return h, skips, queues

    def read(
        self, h: Float[Tensor, "batch time channels"], state: State, slots: Int[Tensor, " time"]
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch time channels"]]:
        """Return (the output, the sum of the skips) of samples in these slots of the state's caches."""
        skips = torch.zeros_like(h)
        for i, layer in enumerate(self.layers):
            h, skip = layer.read(h, state[f"cache.front.{i}"], slots)
            skips = skips + skip
        return h, skips


class ShortConvolution(nn.Module):
    """A causal convolution of each channel by itself, added to its input.

    Args:
        channels: of input and output.
        width: taps; the current sample is one of them.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.queue_length = width - 1
        self.weight = nn.Parameter(torch.zeros(width, channels))

    def forward(
        self, x: Float[Tensor, "batch time channels"], queue: Float[Tensor, "batch past channels"]
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch past channels"]]:
        """Return (x plus its convolution, the queue after the window)."""
        delayed, queue = taps(x, queue, self.width)
        return self._add(x, delayed), queue

    def read(
        self,
        x: Float[Tensor, "batch time channels"],
        cache: Float[Tensor, "batch slots channels"],
        slots: Int[Tensor, " time"],
    ) -> Float[Tensor, "batch time channels"]:
        """Return the output of samples in these slots of the cache, which is written to."""
        return self._add(x, cached_taps(x, cache, slots, queue_length=self.queue_length, width=self.width))

    def _add(self, x: Tensor, delayed: list[Tensor]) -> Tensor:
        return x + sum((tap * weight for tap, weight in zip(delayed, self.weight, strict=True)), x.new_zeros(()))
