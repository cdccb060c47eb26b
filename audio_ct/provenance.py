"""The origin of results: the commit of the code that made them."""

import subprocess
from functools import cache
from pathlib import Path


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
