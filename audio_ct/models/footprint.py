"""The least memory that a model takes, counted from its shapes before it is built.

On torch's device "meta" tensors have shapes and no content: a model of any size is drawn up there without memory, and
what it would hold is added up. What the counts leave out, such as attention's scores and what libraries take, only adds
to them: what is refused for them could not have worked.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from audio_ct.device import memory_bytes
from audio_ct.errors import InputError
from audio_ct.models.build import build_model
from audio_ct.models.settings import ModelSettings
from audio_ct.models.stage import flatten
from audio_ct.models.token_model import TokenModel

GIB = 1 << 30
REMEDIES = {
    "parameters": "lower the model's channels or layers",
    "states of the lanes": "lower training.batch_size or the model's memories",
    "activations": "lower training.batch_size or training.window_length, or set training.recompute_activations",
}


def outline(settings: ModelSettings, vocabulary_size: int) -> TokenModel:
    """The shapes of a model: itself on the device "meta"."""
    with torch.device("meta"):
        return build_model(settings, vocabulary_size)


def least_bytes(
    model: TokenModel, *, batch_size: int, window_length: int = 0, copies: int = 1, activation_bytes: int = 0
) -> dict[str, int]:
    """Count the bytes that a model takes at the least, by the parts of `REMEDIES`.

    Args:
        model: its outline.
        batch_size: lanes, whose states are kept as they are and as they were at the start.
        window_length: samples of each lane whose outputs are kept for a gradient; 0 without training.
        copies: numbers kept for each parameter: itself, its gradient, the optimizer's.
        activation_bytes: of each input of a matrix product that is kept for the gradient; 0 where none is.
    """
    states = _num_bytes(flatten(model.initial_state(1, "meta")).values())
    # A stage with a period works once in it, the other parts for every sample.
    stages = [(_num_kept(stage), stage.period or 1) for stage in model.stages.values()]
    num_kept = _num_kept(model) - sum(num for num, _ in stages) + sum(num // period for num, period in stages)
    num_outputs = model.head.readout.out_features
    prediction = model.linear_prediction
    if prediction is not None and prediction.logistics is not None:
        # Of a mixture of logistics each component is kept for all tokens, and so is their sum.
        num_outputs += (prediction.logistics.num_predictors + 1) * prediction.logistics.vocabulary_size
    output_bytes = torch.float32.itemsize * num_outputs
    return {
        "parameters": copies * _num_bytes(model.parameters()) + _num_bytes(model.buffers()),
        "states of the lanes": 2 * batch_size * states,
        "activations": batch_size * window_length * (activation_bytes * num_kept + output_bytes),
    }


def refuse_too_large(parts: dict[str, int], device: torch.device) -> None:
    """Raise InputError where what `least_bytes` counted is more than the device has."""
    has, needed = memory_bytes(device), sum(parts.values())
    if needed > has:
        listed = ", ".join(f"{name} {num_bytes / GIB:,.1f}" for name, num_bytes in parts.items())
        raise InputError(
            f"the recipe needs {needed / GIB:,.1f} GiB at the least ({listed}), and {device.type} has "
            f"{has / GIB:,.1f} GiB; {REMEDIES[max(parts, key=parts.__getitem__)]}."
        )


def _num_kept(module: nn.Module) -> int:
    """Numbers that a module's matrix products keep at the least each time they are done.

    They keep what they read. A compression reads many entries at once, and is done as much more seldom: what it makes
    is counted, where that is less.
    """
    return sum(min(each.in_features, each.out_features) for each in module.modules() if isinstance(each, nn.Linear))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
