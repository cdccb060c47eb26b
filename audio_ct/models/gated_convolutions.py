"""Gated dilated causal convolutions as a stage, WaveNet's or pre-norm ones; its state is the queues of their inputs.

Layout is channels last, [batch, time, channels]: the taps are gathered side by side, and one matrix product does the
rest, which fused kernels and optimised BLAS do better than strided convolutions of width 2.

Source: van den Oord et al. 2016, 1609.03499, sections 2.3 and 2.4; the queues are Paine et al. 2016, 1611.09482.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.stage import Stage, StageOutput, State


class DilatedLayer(nn.Module, ABC):
    """A causal layer that reads taps of its inputs; the state is a queue of what it read.

    Args:
        channels: of input and output.
        width: taps.
        dilation: samples between taps.
    """

    def __init__(self, channels: int, *, width: int, dilation: int) -> None:
        super().__init__()
        self.channels = channels
        self.lags = [tap * dilation for tap in range(width)]
        self.queue_length = self.lags[-1]

    def forward(
        self, x: Float[Tensor, "batch time channels"], queue: Float[Tensor, "batch past channels"]
    ) -> tuple[
        Float[Tensor, "batch time channels"], Float[Tensor, "batch time skip"], Float[Tensor, "batch past channels"]
    ]:
        """Read a window; return the output with the residual added, the skip, and the queue after the window.

        Taps stand side by side, the oldest first. Example: dilation 2, width 2, queue [1 2], x = [3 4 5]: the taps are
        [1 2 3] and [3 4 5], the queue afterwards is [4 5].
        """
        num_samples = x.shape[1]
        past_and_now = torch.cat([queue, self.tapped(x)], dim=1)
        taps = [past_and_now[:, lag : lag + num_samples] for lag in self.lags]
        return *self.gate(x, torch.cat(taps, dim=-1)), past_and_now[:, num_samples:]

    def read(
        self,
        x: Float[Tensor, "batch 1 channels"],
        cache: Float[Tensor, "batch slots channels"],
        slot: Int[Tensor, " 1"],
    ) -> tuple[Float[Tensor, "batch 1 channels"], Float[Tensor, "batch 1 skip"]]:
        """Read one sample, written to the cache behind the queue; return output and skip."""
        now = self.tapped(x)
        cache.index_copy_(1, slot + self.queue_length, now.to(cache.dtype))
        past = [cache.index_select(1, slot + lag).to(now.dtype) for lag in self.lags[:-1]]
        return self.gate(x, torch.cat([*past, now], dim=-1))

    @abstractmethod
    def tapped(self, x: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time channels"]:
        """Map inputs to values that taps and queue hold."""

    @abstractmethod
    def gate(
        self, x: Float[Tensor, "batch time channels"], taps: Float[Tensor, "batch time taps"]
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch time skip"]]:
        """Output with the residual added, and skip, from inputs and their taps side by side."""


class GatedConvolution(DilatedLayer):
    """WaveNet's layer: tanh(W_f * x) . sigmoid(W_g * x), then 1x1 to the residual and to a skip.

    Args:
        channels: of input and output.
        skip_channels: of the skip output.
        width: taps of the convolution.
        dilation: samples between taps.
    """

    def __init__(self, channels: int, *, skip_channels: int, width: int, dilation: int) -> None:
        super().__init__(channels, width=width, dilation=dilation)
        self.filter_gate = nn.Linear(width * channels, 2 * channels)
        self.mix = nn.Linear(channels, channels + skip_channels)

    def tapped(self, x: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time channels"]:
        """The inputs themselves."""
        return x

    def gate(
        self, x: Float[Tensor, "batch time channels"], taps: Float[Tensor, "batch time taps"]
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch time skip"]]:
        """See the base class."""
        filtered, gate = self.filter_gate(taps).chunk(2, dim=-1)
        mixed = self.mix(torch.tanh(filtered) * torch.sigmoid(gate))
        return x + mixed[..., : self.channels], mixed[..., self.channels :]


class SwiGLUConvolution(DilatedLayer):
    """A Transformer's gated feed-forward layer over taps: x + W_d (silu(W_g * n) . (W_u * n)), n = RMS norm of x.

    The skip is what is added to x. It is nothing at first: W_d begins at zero.

    Args:
        channels: of input, output, skip and gates.
        width: taps of the convolution.
        dilation: samples between taps.

    Source: the gate is Shazeer's (2020, 2002.05202); over dilated taps it is this project's.
    """

    def __init__(self, channels: int, *, width: int, dilation: int) -> None:
        super().__init__(channels, width=width, dilation=dilation)
        self.norm = nn.RMSNorm(channels, eps=1e-6)
        self.up_gate = nn.Linear(width * channels, 2 * channels)
        self.down = nn.Linear(channels, channels)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def tapped(self, x: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time channels"]:
        """Normalised inputs, in float32 or more, whatever autocast makes of x."""
        return self.norm(x.to(torch.promote_types(x.dtype, torch.float32)))

    def gate(
        self, x: Float[Tensor, "batch time channels"], taps: Float[Tensor, "batch time taps"]
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch time channels"]]:
        """See the base class."""
        up, gate = self.up_gate(taps).chunk(2, dim=-1)
        added = self.down(up * F.silu(gate))
        return x + added, added


class GatedConvolutions(Stage):
    """A stack of gated convolutions; the head reads the sum of their skips. A stream may be cut anywhere.

    Args:
        layers: in order.
    """

    def __init__(self, layers: Iterable[DilatedLayer]) -> None:
        super().__init__()
        self.layers: Sequence[DilatedLayer] = nn.ModuleList(layers)  # type: ignore[assignment]

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Zero queues [batch, past, channels], one for each layer."""
        return {
            str(index): torch.zeros(batch_size, layer.queue_length, layer.channels, device=device, dtype=dtype)
            for index, layer in enumerate(self.layers)
        }

    def forward(self, h: Float[Tensor, "batch time channels"], state: State) -> StageOutput:
        """Read a window of any length; see the base class."""
        new_state: State = {}
        skips = []
        for index, layer in enumerate(self.layers):
            queue = state[str(index)]
            h, skip, new_queue = self._run(layer, h, queue.to(h.dtype))
            skips.append(skip)
            new_state[str(index)] = new_queue.detach().to(queue.dtype)
        return StageOutput(h, _sum(skips), new_state)

    def open_cache(self, state: State, num_samples: int) -> State:
        """The queues with slots for samples behind them."""
        return {name: F.pad(queue, (0, 0, 0, num_samples)) for name, queue in state.items()}

    def read(
        self, h: Float[Tensor, "batch 1 channels"], caches: State, slot: Int[Tensor, " 1"]
    ) -> tuple[Float[Tensor, "batch 1 channels"], Float[Tensor, "batch 1 skip"]]:
        """Read one sample; see the base class."""
        skips = []
        for index, layer in enumerate(self.layers):
            h, skip = layer.read(h, caches[str(index)], slot)
            skips.append(skip)
        return h, _sum(skips)

    def close_cache(self, state: State, caches: State) -> State:
        """The queues after the stretch: the last of the caches."""
        return {name: caches[name][:, -queue.shape[1] :].clone() for name, queue in state.items()}


def _sum(skips: Sequence[Tensor]) -> Tensor:
    total = skips[0]
    for skip in skips[1:]:
        total = total + skip
    return total
