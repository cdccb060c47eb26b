"""The origin of results: the commit of the code that made them, for files and for mlflow's pages."""

import subprocess
from functools import cache
from pathlib import Path

from audio_ct import __version__

# Where mlflow's pages look for a run's description.
NOTE_TAG = "mlflow.note.content"


@cache
def commit() -> str | None:
    """The commit that this code is run from, with "-dirty" after changes, or None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def source_tags(command: str) -> dict[str, str]:
    """The tags by which mlflow's pages show what made a run, and of which commit.

    Args:
        command: such as "audio-ct train".
    """
    code = commit() or "unknown"
    ours = {"commit": code, "version": __version__}
    return ours | {"mlflow.source.name": command, "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": code}
