"""A first recipe for a token store: a shipped one, with what depends on the store's rate, bits and size changed."""

import re
from bisect import bisect_left
from typing import Any

import torch

from audio_ct import strict_yaml
from audio_ct.estimates import tokens_per_second
from audio_ct.models.footprint import outline
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import Recipe, parse_recipe
from audio_ct.recipe_files import shipped_recipes
from audio_ct.tokens.store import TokenStore

# In the family that drafts of speech begin from, predictors are fitted anew each millisecond.
FITS_PER_SECOND = 1000
FITS_PER_SEGMENT, SEGMENTS_PER_WINDOW = 8, 4
# Pitch is searched from 60 to 500 Hz; of slower samples a period has too few to be shown.
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ, PITCH_WINDOW_SECONDS = 60, 500, 0.016
LEAST_RATE_OF_PITCH_HZ = 5000
# Without a budget the training split is read so often, as by the shipped recipes.
PASSES = 5
# A lane holds at least so many windows.
WINDOWS_OF_A_LANE = 4
MOST_WINDOWS_OF_A_STATE = 1024
# Of a WaveNet, which is made as large as the Transformers.
CHANNELS = range(16, 513, 2)


def draft(store: TokenStore, kind: str, device: torch.device, *, minutes: float | None) -> tuple[Recipe, float]:
    """Draft a recipe for a store.

    Args:
        store: its rate decides on lengths and pitch, its bits on the output, its size on lanes and tokens.
        kind: of the model.
        device: that it shall be trained on.
        minutes: of training there, evaluation not counted; by default the split is read PASSES times.

    Returns:
        The recipe, and the tokens per second that training reached here in a few windows.
    """
    base, changes = _of_tokens(store, kind)
    changes |= {"name": _name(store, kind), "corpus": {"store": store.address}}
    changes["training"] |= {"precision": "bfloat16" if device.type == "cuda" else "float32", "sample_every_windows": 0}
    if kind == "wavenet":
        like, its_changes = _of_tokens(store, "compressive_transformer")
        size = _size(_changed(like, its_changes), store)
        changes["model"]["residual_channels"] = _channels_of_size(size, base, changes, store)
    drafted = _changed(base, changes)
    num_tokens = store.num_tokens("train")
    lanes = num_tokens // (WINDOWS_OF_A_LANE * drafted.training.window_length)
    changes["training"]["batch_size"] = max(1, min(drafted.training.batch_size, lanes))
    speed = tokens_per_second(_changed(base, changes), store.vocabulary_size, device)
    budget = PASSES * num_tokens if minutes is None else speed * 60 * minutes
    step = changes["training"]["batch_size"] * drafted.training.window_length
    num_steps = max(1, round(budget / step))
    # The shipped recipe's intervals, where the run is long enough for them.
    changes["training"] |= {
        "max_tokens": num_steps * step,
        **{
            f"{what}_every_windows": max(1, min(getattr(drafted.training, f"{what}_every_windows"), num_steps // times))
            for what, times in (("log", 20), ("evaluate", 4), ("checkpoint", 4))
        },
    }
    # Five validations of a twentieth each are a small part of the run: they only read.
    most = max(1, min(drafted.evaluation.max_validation_tokens, num_steps * step // 20))
    changes["evaluation"] = {"max_validation_tokens": most}
    changes["optimizer"] = {"warmup_steps": min(drafted.optimizer.warmup_steps, num_steps // 10)}
    return _changed(base, changes), speed


def _changed(base: str, changes: dict[str, Any]) -> Recipe:
    return parse_recipe(base, difference=strict_yaml.dump(changes))


def _size(recipe: Recipe, store: TokenStore) -> int:
    return num_parameters(outline(recipe.model, store.vocabulary_size))


def _channels_of_size(size: int, base: str, changes: dict[str, Any], store: TokenStore) -> int:
    """Find the residual channels with which a WaveNet has about so many parameters."""

    def distance_above(channels: int) -> int:
        changed = strict_yaml.merge(changes, {"model": {"residual_channels": channels}})
        return _size(_changed(base, changed), store) - size

    place = bisect_left(CHANNELS, 0, lo=1, hi=len(CHANNELS) - 1, key=distance_above)
    return min(CHANNELS[place - 1], CHANNELS[place], key=lambda channels: abs(distance_above(channels)))


def _of_tokens(store: TokenStore, kind: str) -> tuple[str, dict[str, Any]]:
    """The text of a shipped recipe, and what is changed in it for a store's tokens."""
    shipped = shipped_recipes()
    if store.codec.sample_rate_hz is None:
        return shipped["enwik8/small"].read_text(encoding="utf-8"), {"model": _of_bytes(kind), "training": {}}
    window_length = SEGMENTS_PER_WINDOW * _segment_length(store)
    mean_length = store.num_tokens("train") / max(1, len(store.recordings("train")))
    # A lane begins anew about as often as a recording does.
    reset_every = min(MOST_WINDOWS_OF_A_STATE, max(1, round(mean_length / window_length)))
    training = {"window_length": window_length, "reset_every_windows": reset_every}
    changes = {"model": _of_speech(store, kind), "training": training}
    return shipped[f"speech/{kind}"].read_text(encoding="utf-8"), changes


def _name(store: TokenStore, kind: str) -> str:
    return "-".join(re.findall(r"[A-Za-z0-9]+", f"{store.name}-{kind}"))


def _fit_length(store: TokenStore) -> int:
    assert store.codec.sample_rate_hz is not None
    return max(2, round(store.codec.sample_rate_hz / FITS_PER_SECOND))


def _segment_length(store: TokenStore) -> int:
    return FITS_PER_SEGMENT * _fit_length(store)


def _of_speech(store: TokenStore, kind: str) -> dict[str, Any]:
    """Changes to the model of recipes/speech, which are made for 8 bits at 16 kHz."""
    rate_hz, segment_length = store.codec.sample_rate_hz, _segment_length(store)
    assert rate_hz is not None
    pitch = {
        "shortest_lag": rate_hz // HIGHEST_PITCH_HZ,
        "longest_lag": rate_hz // LOWEST_PITCH_HZ,
        "window": round(rate_hz * PITCH_WINDOW_SECONDS),
    }
    model: dict[str, Any] = {
        "linear_prediction": {
            "frame_length": _fit_length(store),
            "pitch": pitch if rate_hz >= LEAST_RATE_OF_PITCH_HZ else None,
        }
    }
    if kind == "transformer_xl":
        model |= {"segment_length": segment_length, "memory_length": 2 * segment_length}
    if kind == "compressive_transformer":
        model |= dict.fromkeys(("segment_length", "memory_length", "compressed_memory_length"), segment_length)
    if store.codec.bits > 8:
        model["output"] = "mixture_of_logistics"
        # They begin a softmax.
        model["linear_prediction"]["logistics"] = False
    return model


def _of_bytes(kind: str) -> dict[str, Any]:
    """Changes to the model of recipes/enwik8/small.yaml, which is a Compressive Transformer."""
    if kind == "transformer_xl":
        # Attends to as many entries; what the compression functions would hold is in d_ff.
        return {"kind": kind, "memory_length": 256, "d_ff": 640}
    if kind == "wavenet":
        return {"kind": kind, "num_stacks": 2, "layers_per_stack": 10, "residual_channels": 96, "skip_channels": 128}
    return {}
