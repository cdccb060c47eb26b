"""Commands about one model or its run: measure, watch, hear it, hand it on. Heavy imports happen inside commands."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

CheckpointPath = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint, a run folder (its best checkpoint), an exported folder, or a shipped model: syllables."
    ),
]
ColdStartSamples = Annotated[int, typer.Option(min=0, help="First samples of each recording, scored apart.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Whole recordings until they hold so many samples.")]
WeightsOption = Annotated[
    Literal["float32", "bfloat16", "int8"], typer.Option("--weights", help="Round weights to it.")
]
MemoryOption = Annotated[Literal["float32", "bfloat16"], typer.Option("--memory", help="Type of what a model keeps.")]
# Memories must fit into the machine's.
MemoryLength = Annotated[int | None, typer.Option(min=0, max=1 << 20, help="Another length than in training.")]
StoreAddress = Annotated[
    str | None, typer.Option("--store", help="The token store, if it has moved, or another of its rate and bits.")
]
Split = Annotated[str, typer.Option(help="Split of the corpus.")]


def evaluate(
    checkpoint: CheckpointPath,
    split: Split = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    store: StoreAddress = None,
    weights: WeightsOption = "float32",
    memory: MemoryOption = "float32",
    memory_length: MemoryLength = None,
    compressed_memory_length: MemoryLength = None,
    at_bits: Annotated[
        int | None, typer.Option(help="Score codes of so many bits, as models of coarser tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure bits per sample, or per byte, of a checkpoint: as it is, or with other memories.

    As it is, the figures are added to the record of its run, and to its mlflow run.
    """
    import torch

    import audio_ct
    from audio_ct.evaluation.likelihood import summary
    from audio_ct.pretrained import with_memory_lengths
    from audio_ct.sampling.weights import with_weights
    from audio_ct.training.afterwards import leave_evaluation

    model = with_memory_lengths(
        audio_ct.load(checkpoint), memory_length=memory_length, compressed_memory_length=compressed_memory_length
    )
    if weights != "float32":
        model = replace(model, model=with_weights(model.model, weights))
    result = audio_ct.evaluate(
        model,
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        store=store,
        memory=getattr(torch, memory),
        at_bits=at_bits,
    )
    figures = summary(result, split)
    unit, (low, high) = model.codec.unit, figures["interval"]
    if as_json:
        finite = [end if math.isfinite(end) else None for end in (low, high)]
        print(json.dumps(figures | {"unit": unit, "interval": finite}, indent=1, allow_nan=False))
    else:
        ends = f" [{low:.4f}, {high:.4f}]" if math.isfinite(low) else ""
        print(
            f"{figures['bits_per_sample']:.4f} bits per {unit}{ends} on {figures['tokens']:,} {unit}s of "
            f"{figures['recordings']} {split} {'stretches' if unit == 'byte' else 'recordings'}"
        )
    if weights == memory == "float32" and memory_length is compressed_memory_length is at_bits is None:
        leave_evaluation(model, figures, result.store_digest)


def export(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", help="The folder, which must not be there yet.")],
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, an SPDX name (the corpus's, where its store says it).")
    ] = None,
    program: Annotated[
        bool, typer.Option("--program", help="Also write the step as a program of torch.export, step.pt2.")
    ] = False,
) -> None:
    """Write a model as a folder to be handed on: weights, recipe, hashes, and a model card for hubs.

    Every command takes such a folder for a checkpoint, and so does audio_ct.load.
    """
    from audio_ct import publication
    from audio_ct.pretrained import load

    folder = publication.export(load(checkpoint, device="cpu"), out, licence=licence, program=program)
    print(f"exported: {folder}   read and complete: {folder / 'README.md'}")


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; several are drawn together.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once, though somebody trains there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, once.")] = False,
) -> None:
    """Show how runs stand: curves, figures, time left, last samples; anew every other second while one trains.

    Without a terminal it is plain text, once. Nothing of a run is changed; Ctrl-C ends the watching alone.
    """
    from audio_ct import watching

    if as_json:
        print(watching.as_json(runs))
        return
    watching.watch(runs, once=once)


def serve(
    checkpoint: CheckpointPath,
    host: Annotated[str, typer.Option(help="Address to listen at; others than 127.0.0.1 let other machines in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8765,
    max_seconds: Annotated[float, typer.Option(min=0.1, max=600, help="The longest waveform.")] = 30.0,
) -> None:
    """Open a local page where a model is heard while it speaks: length, temperature, seed, a recording to go on from.

    Only this machine can ask, unless --host says otherwise. Ctrl-C ends it.
    """
    import sys

    from audio_ct import serving
    from audio_ct.pretrained import load

    server = serving.Server(serving.Maker(load(checkpoint), max_seconds), host, port)
    if not server.is_local:
        warning = "whoever reaches this machine can use the page and this machine's time; there is no password"
        print(f"audio-ct: host={host}: {warning}", file=sys.stderr)
    serving.serve(server, when_ready=lambda: print(f"page: {server.address}   Ctrl-C ends it", flush=True))
