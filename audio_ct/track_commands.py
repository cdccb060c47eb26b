"""The `track` commands: a run's record and its mlflow store. Heavy imports happen inside commands."""

from pathlib import Path
from typing import Annotated

import typer

from audio_ct.errors import AudioCTError

track = typer.Typer(help="Send records of runs to mlflow after the fact.", no_args_is_help=True)


@track.callback()
def _group() -> None:
    """Send records of runs to mlflow after the fact."""


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
