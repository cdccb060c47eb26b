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
