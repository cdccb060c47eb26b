"""WaveNet: stacks of gated dilated causal convolutions; its state is the queues of their inputs.

Source: van den Oord et al. 2016, 1609.03499; the queues are Paine et al. 2016, 1611.09482.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.convolution import GatedConvolution
from audio_ct.models.interface import ModelOutput, State, TokenModel


class WaveNet(TokenModel):
    """WaveNet over tokens; a stream may be cut anywhere.

    Args:
        vocabulary_size: number of token values.
        num_stacks: cycles of dilations.
        layers_per_stack: layers in a cycle, of dilations 1, 2, 4, ...
        residual_channels: channels of the residual stream and of the gates.
        skip_channels: channels of the summed skips.
        width: taps of each convolution.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        num_stacks: int,
        layers_per_stack: int,
        residual_channels: int,
        skip_channels: int,
        width: int = 2,
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.segment_length = 1
        self.residual_channels = residual_channels
        self.embedding = nn.Embedding(vocabulary_size, residual_channels)
        self.layers: Sequence[GatedConvolution] = nn.ModuleList(  # type: ignore[assignment]
            GatedConvolution(residual_channels, skip_channels=skip_channels, width=width, dilation=2**power)
            for _ in range(num_stacks)
            for power in range(layers_per_stack)
        )
        self.hidden = nn.Linear(skip_channels, skip_channels)
        self.readout = nn.Linear(skip_channels, vocabulary_size)

    @property
    def receptive_field(self) -> int:
        """Samples that a prediction depends on."""
        return 1 + sum(layer.queue_length for layer in self.layers)

    def initial_state(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Return zero queues (see the base class)."""
        return {
            f"queue.{i}": torch.zeros(
                batch_size, layer.queue_length, self.residual_channels, device=device, dtype=dtype
            )
            for i, layer in enumerate(self.layers)
        }

    def forward(self, tokens: Int[Tensor, "batch time"], state: State) -> ModelOutput:
        """Read a window of any length (see the base class)."""
        h = self.embedding(tokens)
        new_state = {}
        skips = h.new_zeros(())
        for i, layer in enumerate(self.layers):
            h, skip, queue = layer(h, state[f"queue.{i}"].to(h.dtype))
            skips = skips + skip
            new_state[f"queue.{i}"] = queue.detach().to(state[f"queue.{i}"].dtype)
        return ModelOutput(self.readout(F.relu(self.hidden(F.relu(skips)))), new_state)

    def step(self, tokens: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch vocabulary"], State]:
        """Read one sample: a window of one, since a layer needs no more than its queue (see the base class)."""
        output = self.forward(tokens[:, None], state)
        return output.logits[:, 0], output.state
