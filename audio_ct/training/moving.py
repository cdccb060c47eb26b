"""Bits per sample while parameters go on moving, as in training, beside those of frozen ones.

A model that is updated after every window of a long stream adapts to what it has just read. The paper suspects that of
raising the loss when updates become small or stop, and proposes rarer updates instead (Rae et al. 2019, section 4.2).
Here it can be measured: a split is read as training reads it, each window is scored and then learned from.
"""

import copy
import math
from pathlib import Path

import torch

from audio_ct.errors import InputError
from audio_ct.models.interface import select_lanes
from audio_ct.pretrained import Pretrained
from audio_ct.tokens.streams import Streams
from audio_ct.training import checkpoint
from audio_ct.training.optimizer import clip_gradients, make_optimizer


def bits_while_moving(
    pretrained: Pretrained,
    *,
    split: str,
    learning_rate: float,
    max_tokens: int | None = None,
    store: Path | None = None,
) -> tuple[float, int]:
    """Return (bits per sample of a split read as in training, samples scored), each window before it is learned from.

    Lanes, windows, precision (float16 without scaling of gradients) and clipping are those of the recipe; the optimiser
    goes on from the checkpoint's moments.

    Args:
        pretrained: a checkpoint's model; left as it is.
        split: which split of its corpus.
        learning_rate: of the updates, one a window; 0 freezes the parameters.
        max_tokens: read about so many samples over all lanes; None for one pass over the split.
        store: the token store, if it has moved.

    Raises:
        InputError: if the split has fewer samples than a window of every lane, or the learning rate is below 0.
    """
    if not 0 <= learning_rate < math.inf:
        raise InputError(f"moving={learning_rate} must be a learning rate, 0 or more; 0 freezes the parameters.")
    recipe, training = pretrained.recipe, pretrained.recipe.training
    opened = pretrained.open_store(store)
    device = next(pretrained.model.parameters()).device
    streams = Streams(
        opened,
        split,
        num_lanes=training.batch_size,
        window_length=training.window_length,
        seed=recipe.seed,
        reset_every_windows=training.reset_every_windows,
        start_token=opened.start_token,
    )
    model = copy.deepcopy(pretrained.model).train()
    model.recompute_activations = training.recompute_activations
    optimizer = make_optimizer(model, recipe.optimizer)
    loaded = checkpoint.load(pretrained.path)
    assert loaded.training is not None
    optimizer.load_state_dict(loaded.training["optimizer"])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    precision = getattr(torch, training.precision)
    tokens_per_step = training.batch_size * training.window_length
    num_windows = streams.windows_per_epoch
    if max_tokens is not None:
        num_windows = min(num_windows, max(1, max_tokens // tokens_per_step))
    initial = state = model.initial_state(training.batch_size, device)
    nats = 0.0
    for step in range(num_windows):
        window = streams.window(step)
        state = select_lanes(window.fresh.to(device), initial, state)
        with (
            torch.set_grad_enabled(learning_rate > 0),
            torch.autocast(device.type, precision, enabled=precision != torch.float32),
        ):
            output = model(window.inputs.to(device), state)
            loss = model.nats(output.logits, window.targets.to(device)).mean()
        state = output.state
        nats += float(loss.detach())
        if learning_rate > 0:
            (loss + sum(output.auxiliary_losses.values())).backward()
            clip_gradients(model, training.gradient_clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return nats / num_windows / math.log(2), num_windows * tokens_per_step
