"""What a model takes is counted without building it, never too high, and what does not fit is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.models import footprint
from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings, ModelSettings, WaveNetSettings
from audio_ct.models.stage import flatten
from audio_ct.recipe import load_recipe

ROOT = Path(__file__).parent.parent.parent
LANES, NUM_SEGMENTS = 2, 2
TRANSFORMER: dict[str, Any] = {
    **{"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32, "segment_length": 16, "memory_length": 16},
    "compressed_memory_length": 8,
}
VARIANTS: dict[str, ModelSettings] = {
    "wavenet": WaveNetSettings(num_stacks=1, layers_per_stack=4, residual_channels=8, skip_channels=12),
    "compressive": CompressiveTransformerSettings.model_validate(TRANSFORMER | {"front_dilations": [1, 2]}),
    "predicted": CompressiveTransformerSettings.model_validate(
        TRANSFORMER | {"linear_prediction": {"order": 4, "windows": [50, 20], "frame_length": 8, "pitch": {}}}
    ),
    "logistics": WaveNetSettings.model_validate(
        {"num_stacks": 1, "layers_per_stack": 2, "residual_channels": 8, "skip_channels": 12}
        | {"linear_prediction": {"order": 4, "windows": [50, 20], "frame_length": 8, "logistics": True}}
    ),
    "coarse": CompressiveTransformerSettings.model_validate(
        TRANSFORMER | {"compression_rate": 16, "d_ff": 8, "compression": {"loss": "auto_encoding"}}
    ),
    "frames": CompressiveTransformerSettings.model_validate(
        TRANSFORMER | {"frames": {"samples": 2, "channels": 8, "dilations": [1]}}
    ),
}


def num_bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_count_is_that_of_the_built_model_or_less(settings: ModelSettings) -> None:
    """The oracle builds the model, trains a window and weighs all that autograd keeps, each storage once."""
    model = build_model(settings, 256)
    window_length = NUM_SEGMENTS * model.cache_length
    state = model.initial_state(LANES)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tokens = torch.randint(256, (LANES, window_length))
        output = model(tokens, state)
        model.head.nats(output.logits, tokens).mean()
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    counted = footprint.least_bytes(
        footprint.outline(settings, 256),
        batch_size=LANES,
        window_length=window_length,
        copies=4,
        activation_bytes=4,
    )
    assert counted["parameters"] == 4 * num_bytes(*model.parameters()) + num_bytes(*model.buffers())
    assert counted["states of the lanes"] == 2 * num_bytes(*flatten(state).values())
    weighed = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert 0.2 * weighed < counted["activations"] <= weighed


@pytest.mark.fault("out of memory")
def test_what_does_not_fit_is_refused_with_numbers_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "memory_bytes", lambda device: 10 * footprint.GIB)
    parts = {"parameters": 2 * footprint.GIB, "states of the lanes": 7 * footprint.GIB, "activations": footprint.GIB}
    footprint.refuse_too_large(parts, torch.device("cpu"))
    parts["activations"] += 1 << 29
    with pytest.raises(InputError) as caught:
        footprint.refuse_too_large(parts, torch.device("cpu"))
    assert str(caught.value) == (
        "the recipe needs 10.5 GiB at the least (parameters 2.0, states of the lanes 7.0, activations 1.5), and cpu "
        "has 10.0 GiB; lower training.batch_size or the model's memories."
    )


@pytest.mark.fault("out of memory")
def test_a_gigantic_model_is_counted_without_memory() -> None:
    recipe = load_recipe(ROOT / "recipes/demo/compressive_transformer.yaml", ["model.d_model=49152"])
    counted = footprint.least_bytes(footprint.outline(recipe.model, 256), batch_size=1)
    assert counted["parameters"] > 40 * footprint.GIB
