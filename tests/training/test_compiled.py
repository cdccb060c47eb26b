"""A compiled model is compiled once, whatever windows follow, and trains like one that isn't.

The shape checks that all tests run under cannot be compiled, so this file is run as a program of its own.
"""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings, LinearPredictionSettings, WaveNetSettings
from audio_ct.models.stage import select_lanes
from audio_ct.models.token_model import TokenModel

VOCABULARY, WINDOW = 16, 16


COMPRESSIVE = CompressiveTransformerSettings(
    num_layers=1,
    d_model=16,
    num_heads=2,
    d_ff=16,
    segment_length=8,
    memory_length=8,
    compressed_memory_length=4,
    compression_rate=2,
    front_dilations=[1],
    back_dilations=[1],
    convolutions="swiglu",
)
SETTINGS = {
    "compressive_transformer": COMPRESSIVE,
    "fused": COMPRESSIVE.model_copy(update={"attention_kernel": "fused"}),
    "wavenet": WaveNetSettings(
        num_stacks=1,
        layers_per_stack=2,
        residual_channels=8,
        skip_channels=8,
        linear_prediction=LinearPredictionSettings(order=4, windows=[20, 5], frame_length=4, logistics=True),
    ),
}


def losses(model: TokenModel, precision: torch.dtype, *, lanes: int, backend: str | None) -> list[float]:
    """The loss of windows with the state carried, a lane reset before the fourth, and plain descent."""
    random = torch.Generator().manual_seed(0)
    forward = torch.compile(model, fullgraph=True, backend=backend) if backend else model
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


def main(kind: str, backend: str) -> None:
    """Fail where a model is compiled twice or trains otherwise."""
    torch._dynamo.config.error_on_recompile = True
    for precision, lanes in ((torch.bfloat16, 2), (torch.float16, 1)):
        found = []
        for used in (None, backend):
            torch.manual_seed(0)
            found.append(losses(build_model(SETTINGS[kind], VOCABULARY), precision, lanes=lanes, backend=used))
        assert found[1] == pytest.approx(found[0], abs=0.02)
        torch.compiler.reset()


# What inductor adds takes minutes; that nothing is traced twice shows without it.
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("fused", "aot_eager"), ("wavenet", "aot_eager")]
    + [pytest.param(kind, "inductor", marks=pytest.mark.slow) for kind in SETTINGS],
)
def test_a_model_is_compiled_once_and_trains_alike(kind: str, backend: str) -> None:
    done = subprocess.run([sys.executable, __file__, kind, backend], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    main(*sys.argv[1:])
