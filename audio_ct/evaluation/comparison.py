"""Two or more checkpoints side by side: likelihood on the same positions, speed, and the sound of their samples."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audio_ct import __version__
from audio_ct.device import choose_device
from audio_ct.errors import InputError
from audio_ct.evaluation.bootstrap import paired_difference
from audio_ct.evaluation.hearing_table import Generated, hearing_table
from audio_ct.evaluation.likelihood import Likelihood, choose_recordings, evaluate, summary
from audio_ct.evaluation.page import write_page
from audio_ct.evaluation.reference_lines import reference_lines
from audio_ct.evaluation.windows import Windows, real_windows
from audio_ct.locks import hold
from audio_ct.models.token_model import num_parameters
from audio_ct.pretrained import Pretrained, load
from audio_ct.provenance import commit
from audio_ct.record import learning_curve
from audio_ct.sampling.compiled import compiling_pays
from audio_ct.sampling.engine import EngineOptions
from audio_ct.sampling.writing import write_samples
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore

# Of each model on the page, by seed order; all waveforms are files beside it.
MAX_PLAYERS = 8


def compare(
    checkpoints: Sequence[Pretrained | Path | str],
    out: Path | str,
    *,
    split: str = "test",
    max_tokens: int | None = None,
    cold_start_samples: int = 1024,
    num_waveforms: int = 4,
    seconds: float = 1.0,
    prompt_seconds: float | None = None,
    seed: int = 0,
    store: Path | str | None = None,
    title: str = "Comparison of models of raw speech",
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Score models, sample from them and lay all of it side by side on a page, `out`/index.html.

    Args:
        checkpoints: loaded models, or checkpoints or run folders, of models trained on one store, or where a store is
            named, of any that reads its tokens.
        out: gets index.html, comparison.json and samples/.
        split: scored split of the corpus.
        max_tokens: score whole recordings, spread over the split, until they hold so many samples; by default all.
        cold_start_samples: first samples of each recording, scored apart.
        num_waveforms: waveforms of each model.
        seconds: length of each.
        prompt_seconds: each model also continues as many pieces of the split's real speech, of this length; they begin
            where recordings do, as far as there are such.
        seed: of the first waveform, of the prompts and of the bootstrap.
        store: the token store, where it is no longer where the recipes say; whoever was trained on another is noted.
        title: of the page.
        report: called with a line for each thing done.

    Returns:
        The page.

    Raises:
        InputError: if a value is out of range, models were trained on different corpora and no store is named, read
            different tokens or bytes, another process writes to `out`, or it cannot be written.

    Example:
        >>> runs = ["runs/wavenet", "runs/faster"]
        >>> audio_ct.compare(runs, "comparison", cold_start_samples=256, num_waveforms=1, seconds=0.1)
        PosixPath('comparison/index.html')
    """
    out, device = Path(out), choose_device()
    models = [one if isinstance(one, Pretrained) else load(one, device) for one in checkpoints]
    codec, names = _common_codec(models, store), _names(models)
    num_samples = codec.num_tokens(seconds=seconds)
    if num_waveforms < 1:
        raise InputError(f"num={num_waveforms} must be at least 1.")
    opened = models[0].open_store(store)
    prompts = _prompts(opened, codec, split, num_waveforms, num_samples, prompt_seconds, seed)
    with hold(out, name=f"out={str(out)!r}"):
        results: list[Likelihood] = []
        entries: list[dict[str, Any]] = []
        generated: list[Generated] = []
        for name, model in zip(names, models, strict=True):
            result = evaluate(
                model, split=split, max_tokens=max_tokens, cold_start_samples=cold_start_samples, store=opened.address
            )
            report(f"{name}: {result.bits_per_sample:.4f} bits per sample on {result.tokens.sum():,} samples")
            results.append(result)
            entries.append({"name": name, **_describe(model, result, summary(result, split, seed))})
            kinds = (None,) if prompts is None else (None, prompts)
            # Code that is compiled for one kind serves the other.
            is_compiled = compiling_pays(model.model, len(kinds) * num_samples)
            for given in kinds:
                waveforms, speed = _generate(
                    model, codec, out / "samples", name, num_waveforms, num_samples, seed, given, is_compiled, report
                )
                generated.append(Generated("model" if given is None else "continued", name, waveforms))
                entries[-1].setdefault("sampling_samples_per_second", speed)
        hearing = hearing_table(opened, codec, generated, split=split, seed=seed, report=report)
        rows = {
            kind: [row for row in hearing["rows"] if row["kind"] == kind] for kind in ("real", "model", "continued")
        }
        num_players = min(num_waveforms, MAX_PLAYERS)
        seeds = [f"seed {seed + index}" for index in range(num_players)]
        for entry, row in zip(entries, rows["model"], strict=True):
            entry["samples"] = _samples(row, seeds)
            entry["continuations"] = []
        if prompts is not None:
            for entry, row in zip(entries, rows["continued"], strict=True):
                entry["continuations"] = _continuations(row, seeds, prompts, codec)
        report("counting for the reference lines")
        comparison = {
            "title": title,
            "split": split,
            "seed": seed,
            "store": opened.name,
            "store_digest": opened.digest,
            "tokens": int(results[0].tokens.sum()),
            "cold_start_samples": cold_start_samples,
            "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "version": __version__,
            "commit": commit(),
            "synthetic": bool(opened.corpus.get("synthetic", False)),
            "sample_rate_hz": codec.sample_rate_hz,
            "bits": codec.bits,
            "reference_lines": reference_lines(choose_recordings(opened, split, max_tokens), cold_start_samples),
            "models": entries,
            "differences": _differences(names, results, seed),
            "notes": _notes(models, device, opened, prompts),
            "hearing": _without_sound(hearing),
            "real": {"samples": _samples(rows["real"][0], hearing["names"][:num_players])},
        }
        return write_page(comparison, out)


def _names(models: Sequence[Pretrained]) -> list[str]:
    """The models' names: those of their recipes, numbered where several share one."""
    names = [model.recipe.name for model in models]
    return [
        f"{name}-{names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _common_codec(models: Sequence[Pretrained], store: Path | str | None) -> MuLawCodec:
    """The codec of all models; refuse models of bytes, of different tokens, and of several stores if none is named."""
    first = models[0]
    for model in models:
        if not isinstance(model.codec, MuLawCodec):
            raise InputError(
                f"{model.label} is a model of bytes, and the page of a comparison is for listening; measure each by "
                "`audio-ct evaluate`."
            )
        if model.codec != first.codec:
            raise InputError(
                f"{model.label} reads {model.codec}, {first.label} {first.codec}; compare models of the same tokens."
            )
        is_one_corpus = model.manifest.store_digest == first.manifest.store_digest
        # Of a store that is named each would still be scored on its own clip.
        is_one_clip = model.recipe.corpus.clip_seconds == first.recipe.corpus.clip_seconds
        if not is_one_corpus and (store is None or not is_one_clip):
            raise InputError(
                f"{model.label} was trained on another corpus than {first.label} ({model.recipe.corpus.store!r}, "
                f"{first.recipe.corpus.store!r}); name the store that both are scored on by --store, or compare "
                "models of one store and one clip."
            )
    assert isinstance(first.codec, MuLawCodec)
    return first.codec


def _prompts(
    store: TokenStore,
    codec: MuLawCodec,
    split: str,
    num: int,
    num_samples: int,
    prompt_seconds: float | None,
    seed: int,
) -> Windows | None:
    """Real speech to be continued, which goes on for as long as continuations will; beginnings, if there are any."""
    if prompt_seconds is None:
        return None
    num_prompt = round(prompt_seconds * codec.sample_rate_hz) if math.isfinite(prompt_seconds) else 0
    if not 0 < num_prompt <= store.num_tokens(split):
        raise InputError(
            f"prompt-seconds={prompt_seconds} must be above 0 and no more than split {split!r} holds; leave it out for "
            "cold starts alone."
        )
    drawn = real_windows(store, codec, split=split, num=num, num_samples=num_prompt + num_samples, seed=seed)
    return drawn._replace(tokens=drawn.tokens[:, :num_prompt], waveforms=drawn.waveforms[:, :num_prompt])


def _generate(
    model: Pretrained,
    codec: MuLawCodec,
    folder: Path,
    name: str,
    num_waveforms: int,
    num_samples: int,
    seed: int,
    prompts: Windows | None,
    is_compiled: bool,
    report: Callable[[str], None],
) -> tuple[np.ndarray, float]:
    """Write waveforms of a model; return them [num_waveforms, num_samples], without prompts, and samples per second.

    The speed is that after the first block, which is made while the step is compiled or first run.
    """
    blocks = [(0, time.perf_counter())]
    what = "waveforms" if prompts is None else "continuations"
    written = write_samples(
        model.model,
        codec,
        folder,
        stem=name.replace("/", "-") + ("" if prompts is None else "-continued"),
        num=num_waveforms,
        num_tokens=num_samples,
        seed=seed,
        prompt=None if prompts is None else torch.from_numpy(prompts.tokens.astype(np.int64)),
        options=EngineOptions(compiled=is_compiled),
        about={"checkpoint": model.label, "recipe": model.recipe.name},
        overwrite=True,
        on_progress=lambda num_made: blocks.append((num_made, time.perf_counter())),
    )
    length = num_samples / codec.sample_rate_hz
    report(f"{name}: {num_waveforms} {what} of {length:g} s in {blocks[-1][1] - blocks[0][1]:.1f} s")
    (num_before, began), (num_made, ended) = blocks[1 if len(blocks) > 2 else 0], blocks[-1]
    speed = num_waveforms * (num_made - num_before) / (ended - began)
    return np.stack([codec.decode(sample.tokens) for sample in written]), speed


def _samples(row: Mapping[str, Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The first waveforms of a row of the table of hearing, those that have labels, for the page's players."""
    return [
        {"label": label, "waveform": waveform, "warnings": warnings}
        for label, waveform, warnings in zip(labels, row["waveforms"], row["warnings"], strict=False)
    ]


def _continuations(
    row: Mapping[str, Any], labels: Sequence[str], prompts: Windows, codec: MuLawCodec
) -> list[dict[str, Any]]:
    """The same of a row of continuations, heard after what they continue."""
    samples = _samples(row, labels)
    for sample, prompt, name in zip(samples, prompts.waveforms, prompts.names, strict=False):
        sample["label"] += f", continuing {name}"
        sample["waveform"] = np.concatenate([prompt, sample["waveform"]])
        sample["prompt_seconds"] = prompt.size / codec.sample_rate_hz
    return samples


def _without_sound(hearing: Mapping[str, Any]) -> dict[str, Any]:
    """The table of hearing without its waveforms."""
    rows = [{key: value for key, value in row.items() if key != "waveforms"} for row in hearing["rows"]]
    return {**hearing, "rows": rows}


def _describe(model: Pretrained, result: Likelihood, figures: Mapping[str, Any]) -> dict[str, Any]:
    """A model by itself: its likelihood, size, training and origin."""
    of_likelihood = ("bits_per_sample", "interval", "cold_start_bits_per_sample", "evaluation_tokens_per_second")
    return {
        "kind": model.recipe.model.kind,
        "parameters": num_parameters(model.model),
        **{key: figures[key] for key in of_likelihood},
        "trained_tokens": model.manifest.tokens,
        "training_tokens_per_second": model.manifest.metrics.get("training_tokens_per_second"),
        "checkpoint": model.label,
        "recipe_name": model.recipe.name,
        "seed": model.recipe.seed,
        "curve": learning_curve(model.path),
        "recordings": [
            {"name": recording, "bits_per_sample": bits / tokens, "tokens": int(tokens)}
            for recording, bits, tokens in zip(result.names, result.bits, result.tokens, strict=True)
            if tokens
        ],
    }


def _differences(names: Sequence[str], results: Sequence[Likelihood], seed: int) -> list[dict[str, Any]]:
    """Paired differences of all pairs of models, on the recordings that are scored."""
    scored = results[0].tokens > 0
    differences = []
    for (name_a, a), (name_b, b) in combinations(zip(names, results, strict=True), 2):
        bits, ends = paired_difference(a.bits[scored], b.bits[scored], a.tokens[scored], seed=seed)
        differences.append({"a": name_a, "b": name_b, "bits": bits, "interval": ends})
    return differences


def _notes(models: Sequence[Pretrained], device: torch.device, store: TokenStore, prompts: Windows | None) -> list[str]:
    """The machine that the comparison ran on, and all that makes it less than fair."""
    notes = [f"Evaluation and sampling ran on {device.type} with {torch.get_num_threads()} threads."]
    elsewhere = [model.label for model in models if model.manifest.store_digest != store.digest]
    if elsewhere:
        who = "the models were" if len(elsewhere) == len(models) else f"{', '.join(elsewhere)} was"
        notes.append(
            f"{store.name} is not the store that {who} trained on: its recordings may be ones heard in training, or of "
            "voices that were not, and copies were looked for in it."
        )
    if prompts is not None and prompts.num_within:
        notes.append(f"{prompts.num_within} of {len(prompts.names)} prompts begin within recordings.")
    for label, values in (
        ("tokens trained", [model.manifest.tokens for model in models]),
        ("precision", [model.recipe.training.precision for model in models]),
        ("batch size", [model.recipe.training.batch_size for model in models]),
        ("learning rate", [model.recipe.optimizer.learning_rate for model in models]),
        ("torch.compile", [model.recipe.training.compile for model in models]),
    ):
        if len(set(values)) > 1:
            notes.append(f"Models differ in {label}: " + ", ".join(map(str, values)) + ", in the table's order.")
    return notes
