"""The `preferences` command: what listeners answered on a comparison page. Heavy imports happen inside the command."""

import json
from pathlib import Path
from typing import Annotated

import typer


def preferences(
    answers: Annotated[
        list[Path], typer.Argument(metavar="ANSWERS", help="Files that the page of a comparison saved.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what listeners answered on the page of a comparison: taken for real, and preferred, with intervals."""
    from audio_ct.evaluation.preferences import preference_table, read_answers, table_lines

    table = preference_table([read_answers(path) for path in answers])
    print(json.dumps(table, indent=1, allow_nan=False) if as_json else "\n".join(table_lines(table)))
