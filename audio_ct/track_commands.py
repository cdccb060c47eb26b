"""The `track` commands: runs and models in their mlflow store. Heavy imports happen inside commands."""

from pathlib import Path
from typing import Annotated

import typer

from audio_ct.errors import AudioCTError

track = typer.Typer(help="Send runs and their models to mlflow after the fact.", no_args_is_help=True)


@track.callback()
def _group() -> None:
    """Send runs and their models to mlflow after the fact."""


@track.command()
def replay(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    uri: Annotated[str | None, typer.Option(help="The store, if not the one that a run's recipe names.")] = None,
) -> None:
    """Send what the mlflow store of a run does not have yet, and wait for it; nothing is sent twice.

    Where a run fails, the exit status is 2, after all others were sent.
    """
    from audio_ct.training.replay import replay as replay_one

    faults = []
    for run in runs:
        try:
            print(replay_one(run, uri))
        except AudioCTError as error:
            faults += str(error).splitlines()
    if faults:
        raise AudioCTError("\n".join(faults))


@track.command()
def model(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder (its best checkpoint), or a checkpoint in one.")],
    register: Annotated[str | None, typer.Option(help="Also make it a version of this name in the registry.")] = None,
    uri: Annotated[str | None, typer.Option(help="The store, if not the one that the run's recipe names.")] = None,
) -> None:
    """Put a run's checkpoint into mlflow as a model of its run, for mlflow.pyfunc.load_model; once, if repeated too.

    Its predict takes rows of seconds, temperature, top_p and seed, and returns waveforms: those of audio-ct sample.
    """
    from audio_ct.mlflow_model import log_model
    from audio_ct.pretrained import load

    print(log_model(load(checkpoint, device="cpu"), uri=uri, register=register))
