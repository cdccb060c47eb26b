"""Commands about one model or its run: handing it on, watching it, hearing it. Heavy imports happen inside commands."""

from pathlib import Path
from typing import Annotated

import typer

CheckpointPath = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint, a run folder (its best checkpoint), an exported folder, or a shipped model: syllables."
    ),
]


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
