"""A report on the use that a trained model makes of its memories: what `audio-ct inspect` measures and writes."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audio_ct import __version__
from audio_ct.durable import make_folder, write_whole
from audio_ct.errors import InputError
from audio_ct.evaluation.bootstrap import Interval, interval, paired_difference
from audio_ct.evaluation.inspection_report import draw, markdown
from audio_ct.evaluation.likelihood import Reading, Selection, choose_recordings, longer_than
from audio_ct.evaluation.memory_use import bits_of_samples, look_at_memories, memory_layers, shuffled, zeroed
from audio_ct.evaluation.sound_classes import CLASSES, seconds_since_onset, sound_classes
from audio_ct.models.stage import State
from audio_ct.pretrained import Pretrained, with_memory_lengths
from audio_ct.provenance import commit

# Lengths that memories are cut to or grown to, as multiples of those of training.
LENGTHS = (0, 0.25, 0.5, 0.75, 1.5, 2, 4)
AS_TRAINED = "as trained"
ALL_CUT = "all memories cut to 0"
# Bounds of the time since a recording's first sound.
ONSETS_SECONDS = (0, 0.05, 0.2, 0.5, 1, 2, 5)

# Bits of every scored sample, one array for each recording.
Bits = list[np.ndarray]


class Grouping(NamedTuple):
    """A division of samples into groups."""

    names: Sequence[str]
    labels: list[np.ndarray]
    """Of each recording, the group of each scored sample as an index into `names`; empty if they are not divided so."""


def inspect(
    model: Pretrained,
    out: Path,
    *,
    split: str,
    max_tokens: int | None,
    cold_start_samples: int,
    store: Path | str | None,
    against: Pretrained | None,
    report: Callable[[str], None],
) -> Path:
    """Look into a model's memories; the report is `out`/inspection.json, tables and pictures stand beside it.

    Recordings are chosen as by `evaluate`, and those that end within their cold start are left out. Gains are also
    given over `against`, another model of the same corpus; `report` is called with a line for each thing done.

    Raises:
        InputError: if the model has no memory, the store is another, or recordings are too short.
    """
    if not memory_layers(model.model):
        raise InputError(
            f"{model.label}: model.kind={model.recipe.model.kind!r} has no memory to inspect; name another."
        )
    opened = model.open_store(store)
    if against is not None and against.manifest.store_digest != model.manifest.store_digest:
        raise InputError(f"{against.label} was trained on another corpus than {model.label}; name a model of the same.")
    selection = longer_than(choose_recordings(opened, split, max_tokens), cold_start_samples)
    make_folder(out)
    looks, num_segments = look_at_memories(model.model, selection)
    report(f"attention of {num_segments} segments")

    def score(name: str, scored: Pretrained, alter: Callable[[State], State] | None = None) -> Bits:
        reading = Reading.of(scored.recipe)
        if alter is not None:
            # Every segment is predicted from altered memories.
            reading = replace(reading, window_length=scored.model.segment_length)
        bits = bits_of_samples(scored.model, selection, reading, alter=alter)
        bits = [each[cold_start_samples:] for each in bits]
        report(f"{name}: {np.concatenate(bits).mean(dtype=np.float64):.4f} bits per {opened.codec.unit}")
        return bits

    scores = {name: score(name, changed, alter) for name, changed, alter in _readings(model)}
    all_cut = next(name for name in (ALL_CUT, "memory cut to 0", "compressed_memory cut to 0") if name in scores)
    others = {"no memory at all": scores[all_cut]}
    if "compressed_memory cut to 0" in scores:
        others["no compressed memory"] = scores["compressed_memory cut to 0"]
    if against is not None:
        others[against.recipe.name] = score(against.recipe.name, against)
    groupings = _groupings(selection, cold_start_samples)
    found = {
        "checkpoint": model.label,
        "recipe": model.recipe.name,
        "split": split,
        "unit": opened.codec.unit,
        "store": opened.name,
        "store_digest": opened.digest,
        "tokens": sum(map(len, scores[AS_TRAINED])),
        "recordings": len(selection.recordings),
        "cold_start_samples": cold_start_samples,
        "version": __version__,
        "commit": commit(),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **looks,
        "memory": _describe_memory(scores, groupings["all"]),
        "gains": {
            name: {by: _gains(grouping, scores[AS_TRAINED], other) for by, grouping in groupings.items()}
            for name, other in others.items()
        },
    }
    draw(found, out)
    write_whole(out / "inspection.md", markdown(found).encode())
    path = out / "inspection.json"
    write_whole(path, json.dumps(found, indent=1, allow_nan=False).encode())
    return path


def _readings(model: Pretrained) -> Iterator[tuple[str, Pretrained, Callable[[State], State] | None]]:
    """Yield name, model and change of state: as trained, with memories shorter, longer, emptied and out of order."""
    yield AS_TRAINED, model, None
    layer = memory_layers(model.model)[0]
    lengths = {"memory": layer.shape.memory_length, "compressed_memory": layer.shape.compressed_length}
    kinds = [kind for kind, length in lengths.items() if length]
    # Compression by use is counted in memory, so a segment must fit.
    shortest = {"memory": layer.shape.segment_length if layer.counts_usage else 0, "compressed_memory": 0}
    for kind in kinds:
        for length in dict.fromkeys(round(share * lengths[kind]) for share in LENGTHS):
            if length >= shortest[kind]:
                how = "cut" if length < lengths[kind] else "grown"
                yield f"{kind} {how} to {length}", with_memory_lengths(model, **{f"{kind}_length": length}), None
    if len(kinds) > 1:
        yield ALL_CUT, with_memory_lengths(model, memory_length=0, compressed_memory_length=0), None
    for kind in kinds:
        yield f"{kind} zeroed", model, zeroed(kind)
        yield f"{kind} shuffled", model, shuffled(kind)


def _groupings(selection: Selection, cold_start_samples: int) -> dict[str, Grouping]:
    """Group the scored samples by speaker and, where they are sound, by time since the onset and by class."""
    spans = [f"{low:g} to {high:g} s" for low, high in pairwise(ONSETS_SECONDS)]
    onsets = ["before the first sound", *spans, f"{ONSETS_SECONDS[-1]:g} s and more"]
    speakers = list(dict.fromkeys(recording.speaker for recording in selection.recordings))
    names = {"all": ["all"], "onset": onsets, "speaker": speakers, "class": CLASSES}
    groupings = {by: Grouping(groups, labels=[]) for by, groups in names.items()}
    codec = selection.store.codec
    for index, recording in enumerate(selection.recordings):
        num_scored = recording.length - cold_start_samples
        groupings["all"].labels.append(np.zeros(num_scored, dtype=int))
        groupings["speaker"].labels.append(np.full(num_scored, speakers.index(recording.speaker)))
        if codec.sample_rate_hz is not None:
            classes = sound_classes(np.asarray(codec.decode(selection.tokens(index))), codec.sample_rate_hz)
            since = seconds_since_onset(classes, codec.sample_rate_hz)
            groupings["class"].labels.append(classes[cold_start_samples:])
            groupings["onset"].labels.append(np.digitize(since, ONSETS_SECONDS)[cold_start_samples:])
    return groupings


def _gains(grouping: Grouping, mine: Bits, theirs: Bits) -> list[dict[str, Any]]:
    """Bits per sample that the first scores save over the second, for each group that has samples."""
    if not grouping.labels:
        return []

    def totals(weights: Sequence[np.ndarray | None]) -> np.ndarray:
        """Sums for each recording and group [recordings, groups]."""
        pairs = zip(grouping.labels, weights, strict=True)
        return np.array([np.bincount(labels, each, len(grouping.names)) for labels, each in pairs])

    rows: list[dict[str, Any]] = []
    for name, own, other, samples in zip(
        grouping.names, totals(mine).T, totals(theirs).T, totals([None] * len(mine)).T, strict=True
    ):
        has_any = samples > 0
        if not has_any.any():
            continue
        gain, ends = paired_difference(other[has_any], own[has_any], samples[has_any])
        num_samples = int(samples.sum())
        without = float(other.sum() / num_samples)
        rows.append(
            {
                "name": name,
                "samples": num_samples,
                "recordings": int(has_any.sum()),
                "bits_per_sample": float(own.sum() / num_samples),
                "bits_per_sample_of_other": without,
                "gain": gain,
                "interval": _known(ends),
                "gain_percent": 100 * gain / without if without else None,
            }
        )
    return rows


def _describe_memory(scores: dict[str, Bits], everything: Grouping) -> list[dict[str, Any]]:
    """Bits per sample of each reading, and how many they are above those as trained."""
    as_trained, rows = scores[AS_TRAINED], []
    for name, bits in scores.items():
        (found,) = _gains(everything, as_trained, bits)
        mean, loss = found["bits_per_sample_of_other"], found["gain"]
        rows.append({"name": name, "bits_per_sample": mean, "loss": loss, "interval": found["interval"]})
    totals = np.array([each.sum(dtype=np.float64) for each in as_trained])
    rows[0]["interval"] = _known(interval(totals, np.array([len(each) for each in as_trained])))
    return rows


def _known(ends: Interval) -> list[float] | None:
    return list(ends) if np.isfinite(ends[0]) else None
