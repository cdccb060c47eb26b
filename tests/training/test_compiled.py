"""A compiled model is compiled once, whatever windows follow, and trains like one that isn't.

The shape checks that all tests run under cannot be compiled, so this file is run as a program of its own.
"""

import subprocess
import sys
from functools import partial
from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.interface import TokenModel, select_lanes
from audio_ct.models.linear_prediction import LinearPredictionSettings
from audio_ct.models.wavenet import WaveNet

VOCABULARY, WINDOW = 16, 16


def compressive_transformer(kernel: Literal["auto", "fused"] = "auto") -> TokenModel:
    sizes = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 16, "segment_length": 8, "memory_length": 8}
    memory = {"compressed_memory_length": 4, "compression_rate": 2}
    return CompressiveTransformer(
        vocabulary_size=VOCABULARY, **sizes, **memory, front_dilations=[1], attention_kernel=kernel
    )


def wavenet() -> TokenModel:
    sizes = {"num_stacks": 1, "layers_per_stack": 2, "residual_channels": 8, "skip_channels": 8}
    settings = LinearPredictionSettings(order=4, windows=[20, 5], frame_length=4)
    return WaveNet(vocabulary_size=VOCABULARY, **sizes, linear_prediction=settings)


def losses(model: TokenModel, precision: torch.dtype, *, lanes: int, compiled: bool) -> list[float]:
    """Return the loss of windows with the state carried, a lane reset before the fourth, and plain descent."""
    random = torch.Generator().manual_seed(0)
    forward = torch.compile(model, fullgraph=True) if compiled else model
    parameters = list(model.parameters())
    initial = state = model.initial_state(lanes)
    found = []
    for window in range(5):
        stream = torch.randint(VOCABULARY, (lanes, WINDOW + 1), generator=random)
        if window == 3:
            state = select_lanes(torch.arange(lanes) == 0, initial, state)
        with torch.autocast("cpu", precision):
            output = forward(stream[:, :-1], state)
        loss = F.cross_entropy(output.logits.float().flatten(0, 1), stream[:, 1:].flatten())
        gradients = torch.autograd.grad(loss + sum(output.auxiliary_losses.values(), torch.zeros(())), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= gradient
        state = output.state
        found.append(loss.item())
    return found


def main(kind: str, precision: str, lanes: str) -> None:
    """Fail where a model is compiled twice or trains otherwise."""
    torch._dynamo.config.error_on_recompile = True
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = {"fused": partial(compressive_transformer, "fused"), "wavenet": wavenet}.get(
            kind, compressive_transformer
        )()
        found.append(losses(model, getattr(torch, precision), lanes=int(lanes), compiled=compiled))
    assert found[1] == pytest.approx(found[0], abs=0.02)


@pytest.mark.parametrize("kind", ["compressive_transformer", "fused", "wavenet"])
@pytest.mark.parametrize(("precision", "lanes"), [("bfloat16", 2), ("float16", 1)])
def test_a_model_is_compiled_once_and_trains_alike(kind: str, precision: str, lanes: int) -> None:
    arguments = [sys.executable, __file__, kind, precision, str(lanes)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    main(*sys.argv[1:])
