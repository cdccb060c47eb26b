"""The exported step is the engine's: the same samples, over several stretches, from the file alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from audio_ct.models.heads import draw_from
from audio_ct.models.settings import (
    CompressiveTransformerSettings,
    FramesSettings,
    LinearPredictionSettings,
    ModelSettings,
    PitchSettings,
    WaveNetSettings,
)
from audio_ct.models.stage import flatten, map_state

# Torch 2.11's own, of its own reading.
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")

TRANSFORMER: dict[str, Any] = {
    **{"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8, "segment_length": 4, "memory_length": 4},
    **{"compressed_memory_length": 3, "compression_rate": 2},
}
MODELS: dict[str, ModelSettings] = {
    "wavenet": WaveNetSettings(num_stacks=1, layers_per_stack=3, residual_channels=8, skip_channels=8),
    # Predictors and frames are brought up to date at rates of their own.
    "predicting_in_frames": CompressiveTransformerSettings(
        **TRANSFORMER,
        linear_prediction=LinearPredictionSettings(order=3, windows=[9], frame_length=8),
        frames=FramesSettings(samples=4, channels=8, dilations=[1, 2]),
    ),
    "logistics_around": CompressiveTransformerSettings(
        **TRANSFORMER,
        convolutions="swiglu",
        front_dilations=[1, 2],
        back_dilations=[1],
        linear_prediction=LinearPredictionSettings(
            order=3,
            windows=[9, 5],
            frame_length=4,
            logistics=True,
            pitch=PitchSettings(shortest_lag=4, longest_lag=9, window=10, taps_before=2, taps_after=3),
        ),
    ),
    "mixture": CompressiveTransformerSettings(
        **TRANSFORMER,
        front_dilations=[1, 2],
        linear_prediction=LinearPredictionSettings(order=3, windows=[9], frame_length=2),
        output="mixture_of_logistics",
    ),
}


# In a process of its own: the compiler does not see through the checks of shapes that tests put around functions.
MAKE_AND_EXPORT = """
import sys
import torch
from pydantic import TypeAdapter
from audio_ct.models.build import build_model
from audio_ct.models.settings import ModelSettings
from audio_ct.sampling.engine import Sampler
from audio_ct.sampling.program import export_step

for name, settings in zip(sys.argv[1::2], sys.argv[2::2]):
    torch.manual_seed(0)
    model = build_model(TypeAdapter(ModelSettings).validate_json(settings), 16)
    (made,) = Sampler(model, num_waveforms=1).generate(num_samples=2 * model.cache_length + 5, start_token=8, seed=0)
    torch.export.save(export_step(model, start_token=8), f"{name}.pt2")
    assert model.training, "only a copy is used"
    torch.save(made[0], f"{name}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.pt, what the engine makes of each model, and NAME.pt2, its step."""
    folder = tmp_path_factory.mktemp("programs")
    models = [part for name, settings in MODELS.items() for part in (name, settings.model_dump_json())]
    subprocess.run([sys.executable, "-c", MAKE_AND_EXPORT, *models], cwd=folder, timeout=300, check=True)
    return folder


# Of torch's own making, while it reads.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_its_samples_are_the_engines(name: str, folder: Path) -> None:
    assert b"/audio_ct/" not in (folder / f"{name}.pt2").read_bytes(), "no lines of source, nor where they lie"
    program = torch.export.load(folder / f"{name}.pt2")
    step, (tokens, state) = program.module(), program.example_inputs[0]
    at_first = map_state(torch.clone, state)
    expected, drawn = torch.load(folder / f"{name}.pt"), []
    for uniform in torch.rand(len(expected), generator=torch.Generator().manual_seed(0)):
        logits, state = step(tokens, state)
        tokens = draw_from(logits.softmax(-1), uniform[None])
        drawn.append(int(tokens))
    assert drawn == expected.tolist()
    left = flatten(program.example_inputs[0][1])
    assert all(torch.equal(left[name], tensor) for name, tensor in flatten(at_first).items())
