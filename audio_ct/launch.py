"""Which of a run's processes this is, by what `torchrun` sets in the environment of each; without it there is one."""

import os


def num_processes() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0
