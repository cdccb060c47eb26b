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
