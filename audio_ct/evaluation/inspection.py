"""What a trained model does with its memories, as one report: figures, tables and pictures of `audio-ct inspect`."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audio_ct import __version__
from audio_ct.audio.mu_law import decode
from audio_ct.durable import write_whole
from audio_ct.errors import InputError
from audio_ct.evaluation.bootstrap import interval, paired_difference
from audio_ct.evaluation.inspection_report import draw, markdown
from audio_ct.evaluation.likelihood import choose_recordings
from audio_ct.evaluation.memory_use import (
    Attention,
    bits_of_samples,
    buckets,
    kinds_of_keys,
    look_at_attention,
    shuffled,
    zeroed,
)
from audio_ct.evaluation.sound_classes import CLASSES, seconds_since_onset, sound_classes
from audio_ct.models.interface import MemoryModel, State
from audio_ct.models.memory import MEMORY_NAMES
from audio_ct.pretrained import Pretrained, with_memory_lengths
from audio_ct.provenance import commit
from audio_ct.tokens.encoding import unit
from audio_ct.tokens.store import Recording, TokenStore

# Lengths that memories are cut to or grown to, as multiples of those of training.
LENGTHS = (0, 0.25, 0.5, 0.75, 1.5, 2, 4)
# Kinds of memory whose length a recipe may change for a trained model.
RECIPE_LENGTHS = ("memory", "compressed_memory")
ALL_CUT = "all memories cut to 0"
# Bounds of the time since a recording's first sound, in seconds.
ONSETS_SECONDS = (-np.inf, 0, 0.05, 0.2, 0.5, 1, 2, 5, np.inf)


@dataclass(frozen=True)
class _Scored:
    """Bits of every sample under one way of reading, without the cold start."""

    bits: list[np.ndarray]
    first: int

    def per_recording(self) -> tuple[np.ndarray, np.ndarray]:
        kept = [each[self.first :] for each in self.bits if len(each) > self.first]
        return np.array([each.sum(dtype=np.float64) for each in kept]), np.array([len(each) for each in kept])

    @property
    def bits_per_sample(self) -> float:
        totals, counts = self.per_recording()
        return float(totals.sum() / counts.sum())


def inspect(
    model: Pretrained,
    out: Path,
    *,
    split: str = "test",
    max_tokens: int | None = None,
    cold_start_samples: int = 1024,
    store: Path | None = None,
    against: Pretrained | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Look into a model's memories and return the report, `out`/inspection.json; tables and pictures stand beside it.

    Args:
        model: a model with memories.
        out: gets inspection.json, inspection.md, attention.png, compression.png, memory.png and gain.png.
        split: of the corpus that the model was trained on.
        max_tokens: whole recordings, spread over the split, until they hold so many samples; None for all.
        cold_start_samples: first samples of each recording that are left out.
        store: the token store, where it is no longer where the recipe says.
        against: another model of the same corpus; gains are also given over it.
        report: called with a line for each thing done.

    Raises:
        InputError: if the model has no memory, the store is another, or recordings are too short.
    """
    if not isinstance(model.model, MemoryModel) or not any(shape.num_past for shape in model.model.memory_shapes):
        raise InputError(
            f"{model.label}: model.kind={model.recipe.model.kind!r} has no memory to inspect; name another."
        )
    opened = model.open_store(store)
    if against is not None and against.manifest.store_digest != model.manifest.store_digest:
        raise InputError(f"{against.label} was trained on another corpus than {model.label}; name a model of the same.")
    recordings = choose_recordings(opened, split, max_tokens)
    recordings = tuple(each for each in recordings if each.length > cold_start_samples)
    if not recordings:
        raise InputError(
            f"cold_start_samples={cold_start_samples} leaves nothing to score: no recording of split {split!r} is "
            "longer; lower it."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(out)!r} cannot be made: {error.strerror}; choose a writable place.") from error
    reader = _Reader(opened, split, recordings, cold_start_samples)
    attention = reader.attention(model)
    report(f"attention of {attention.num_segments} segments")
    scores = {}
    for name, scored in reader.without_memory(model):
        scores[name] = scored
        report(f"{name}: {scored.bits_per_sample:.4f} bits per {unit(model.encoding)}")
    compared: dict[str, _Scored | None] = {
        "no memory at all": _all_cut(scores),
        "no compressed memory": scores.get("compressed_memory cut to 0"),
    }
    if against is not None:
        compared[against.recipe.name] = scored = reader.score(against)
        report(f"{against.recipe.name}: {scored.bits_per_sample:.4f} bits per {unit(model.encoding)}")
    found = {
        "checkpoint": model.label,
        "recipe": model.recipe.name,
        "split": split,
        "unit": unit(model.encoding),
        "store": opened.path.name,
        "store_digest": opened.digest,
        "tokens": int(reader.num_scored),
        "recordings": len(recordings),
        "cold_start_samples": cold_start_samples,
        "version": __version__,
        "commit": commit(),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "attention": _describe_attention(attention, model.model),
        "compression_losses": {str(layer): loss for layer, loss in sorted(attention.compression_losses.items())},
        "memory": _describe_memory(scores),
        "gains": {
            name: reader.gains(scores["as trained"], other) for name, other in compared.items() if other is not None
        },
    }
    draw(found, out)
    write_whole(out / "inspection.md", markdown(found).encode())
    path = out / "inspection.json"
    write_whole(path, json.dumps(found, indent=1, allow_nan=False).encode())
    return path


def _all_cut(scores: dict[str, _Scored]) -> _Scored | None:
    return scores.get(ALL_CUT) or scores.get("memory cut to 0") or scores.get("compressed_memory cut to 0")


def _shortest_memory(model: Pretrained) -> int:
    """Return how short memory may be: compression by use is counted in memory, so a segment must fit."""
    compression = getattr(model.recipe.model, "compression", None)
    return model.model.segment_length if compression is not None and compression.function == "most_used" else 0


class _Reader:
    """Reads the same recordings in many ways."""

    def __init__(self, store: TokenStore, split: str, recordings: tuple[Recording, ...], first: int) -> None:
        self._store, self._split, self._recordings, self._first = store, split, recordings, first
        self.num_scored = sum(recording.length - first for recording in recordings)
        self._groups = [self._groups_of(recording) for recording in recordings]

    def attention(self, model: Pretrained) -> Attention:
        assert isinstance(model.model, MemoryModel)
        try:
            return look_at_attention(
                model.model,
                self._store,
                self._split,
                self._recordings,
                start_token=model.start_token,
                device=next(model.model.parameters()).device,
            )
        except ValueError as error:
            raise InputError(f"split={self._split!r}: {error}; choose another split or more of it.") from error

    def score(self, model: Pretrained, alter: Callable[[State], State] | None = None) -> _Scored:
        """Score as trained, or with every segment predicted from altered memories."""
        window = model.recipe.evaluation.window_length if alter is None else model.model.segment_length
        bits = bits_of_samples(
            model.model,
            self._store,
            self._split,
            self._recordings,
            start_token=model.start_token,
            device=next(model.model.parameters()).device,
            precision=getattr(torch, model.recipe.training.precision),
            batch_size=model.recipe.evaluation.batch_size,
            window_length=window,
            alter=alter,
        )
        return _Scored(bits, self._first)

    def without_memory(self, model: Pretrained) -> Iterator[tuple[str, _Scored]]:
        """Yield how well the model does as trained, and with its memories shorter, longer, emptied or out of order."""
        assert isinstance(model.model, MemoryModel)
        yield "as trained", self.score(model)
        lengths = dict.fromkeys(MEMORY_NAMES, 0)
        for shape in model.model.memory_shapes:
            for kind, length in zip(MEMORY_NAMES, (shape.memory_length, *shape.compressed_lengths), strict=False):
                lengths[kind] = max(lengths[kind], length)
        kinds = [kind for kind in MEMORY_NAMES if lengths[kind]]
        # What is learned for a length must keep it.
        is_fixed = getattr(model.recipe.model, "learned_initial_memory", False)
        of_any_length = [] if is_fixed else [kind for kind in kinds if kind in RECIPE_LENGTHS]
        for kind in of_any_length:
            for length in dict.fromkeys(round(share * lengths[kind]) for share in LENGTHS):
                if kind == "memory" and length < _shortest_memory(model):
                    continue
                changed = with_memory_lengths(model, **{f"{kind}_length": length})
                how = "cut" if length < lengths[kind] else "grown"
                yield f"{kind} {how} to {length}", self.score(changed)
        if len(kinds) > 1 and of_any_length:
            changed = with_memory_lengths(model, **{f"{kind}_length": 0 for kind in of_any_length})
            yield ALL_CUT, self.score(changed)
        for kind in kinds:
            yield f"{kind} zeroed", self.score(model, zeroed(model.model, kind))
            yield f"{kind} shuffled", self.score(model, shuffled(model.model, kind))

    def _groups_of(self, recording: Recording) -> dict[str, dict[str, np.ndarray]]:
        """Return which samples of a recording belong to which speaker and, where it is sound, time and class."""
        everything = np.ones(recording.length, dtype=bool)
        groups = {"all": {"all": everything}, "speaker": {recording.speaker: everything}}
        rate_hz = self._store.sample_rate_hz
        if rate_hz is not None:
            tokens = self._store.tokens(self._split, recording).astype(np.int64)
            classes = sound_classes(decode(torch.from_numpy(tokens), self._store.bits).numpy(), rate_hz)
            since = seconds_since_onset(classes, rate_hz)
            groups["class"] = {name: classes == index for index, name in enumerate(CLASSES)}
            groups["onset"] = {
                _span(low, high): (since >= low) & (since < high) for low, high in pairwise(ONSETS_SECONDS)
            }
        return groups

    def gains(self, scored: _Scored, other: _Scored) -> dict[str, list[dict[str, Any]]]:
        """Return the bits per sample that the first saves over the other, by time, speaker and class of sound."""
        rows: dict[str, dict[str, list[tuple[float, float, int]]]] = {
            by: {} for by in ("all", "onset", "speaker", "class")
        }
        for groups, mine, theirs in zip(self._groups, scored.bits, other.bits, strict=True):
            for by, members in groups.items():
                for name, belongs in members.items():
                    chosen = belongs[scored.first :]
                    if chosen.any():
                        totals = (float(each[scored.first :][chosen].sum()) for each in (mine, theirs))
                        rows[by].setdefault(name, []).append((*totals, int(chosen.sum())))  # type: ignore[arg-type]
        order = {_span(low, high): at for at, (low, high) in enumerate(pairwise(ONSETS_SECONDS))}
        return {
            by: [
                _gain(name, figures) for name, figures in sorted(groups.items(), key=lambda item: order.get(item[0], 0))
            ]
            for by, groups in rows.items()
        }


def _span(low: float, high: float) -> str:
    if low == -np.inf:
        return "before the first sound"
    return f"{low:g} to {high:g} s" if high < np.inf else f"{low:g} s and more"


def _gain(name: str, figures: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    mine, theirs, counts = (np.array(column, dtype=np.float64) for column in zip(*figures, strict=True))
    gain, (low, high) = paired_difference(theirs, mine, counts)
    without = float(theirs.sum() / counts.sum())
    return {
        "name": name,
        "samples": int(counts.sum()),
        "recordings": len(counts),
        "bits_per_sample": float(mine.sum() / counts.sum()),
        "bits_per_sample_of_other": without,
        "gain": gain,
        "interval": [low, high] if np.isfinite(low) else None,
        "gain_percent": 100 * gain / without if without else None,
    }


def _describe_attention(attention: Attention, model: MemoryModel) -> list[dict[str, Any]]:
    layers = []
    for layer, received in enumerate(attention.received):
        kinds = kinds_of_keys(model, layer)
        found = buckets(received, kinds)
        layers.append(
            {
                "keys": [{"kind": kind, "length": length} for kind, length in kinds],
                "share": attention.shares[layer],
                "buckets": [{"kind": kind, "weight": weight} for kind, weight in found],
                "weights": [float(f"{weight:.6g}") for weight in received],
            }
        )
    return layers


def _describe_memory(scores: dict[str, _Scored]) -> list[dict[str, Any]]:
    bits, counts = scores["as trained"].per_recording()
    rows = []
    for name, scored in scores.items():
        other, _ = scored.per_recording()
        difference, (low, high) = paired_difference(other, bits, counts)
        rows.append(
            {
                "name": name,
                "bits_per_sample": scored.bits_per_sample,
                "loss": difference,
                "interval": [low, high] if np.isfinite(low) else None,
            }
        )
    low, high = interval(bits, counts)
    rows[0]["interval"] = [low, high] if np.isfinite(low) else None
    return rows
