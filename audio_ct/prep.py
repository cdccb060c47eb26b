"""The `prep` commands: one for each corpus of data_prep. Heavy imports happen inside commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

prep = typer.Typer(help="Turn recordings into a token store.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Jobs = Annotated[int, typer.Option(help="Processes; does not change the result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def _prepare(context: typer.Context, prepare: Callable[..., dict[str, Any]], source: Path | None, out: Path) -> None:
    """Prepare a corpus; the command's other options are those of `PrepOptions`, by name."""
    from data_prep.plan import PrepOptions

    options = {name: value for name, value in context.params.items() if name not in ("source", "out")}
    summary = prepare(source, out, options=PrepOptions(**options), progress=True)
    print(json.dumps(summary, indent=1))
    reports = [str(path) for path in (out / "report.json", out / "report.png") if path.is_file()]
    print(f"token store: {out}   report: {', '.join(reports)}")


@prep.command("folder")
def prep_folder(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A folder of recordings, in any format that libsndfile reads.")],
    out: Out,
    jobs: Jobs = 2,
    sample_rate_hz: Annotated[int, typer.Option(help="Recordings are resampled to it.")] = 24_000,
    bits: Annotated[int, typer.Option(help="mu-law depth, 1 to 16.")] = 8,
    validation_fraction: Annotated[float, typer.Option(help="Share of recordings.")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="Share of recordings.")] = 0.05,
    minimum_seconds: Annotated[float, typer.Option(help="Shorter recordings are rejected.")] = 0.1,
    licence: Annotated[str | None, typer.Option(help="The sources' licence, kept in the store.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the recordings of each split.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare any folder of recordings; the folder above a recording names its speaker."""
    from data_prep.folder import prepare

    _prepare(context, prepare, source, out)


@prep.command("demo")
def prep_demo(
    context: typer.Context,
    out: Out,
    jobs: Jobs = 2,
    seed: Annotated[int, typer.Option(help="Another seed, other speech.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a few minutes of synthetic speech of several voices, made on this machine."""
    from data_prep.demo import prepare

    _prepare(context, prepare, None, out)


@prep.command("bytes")
def prep_bytes(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A file: text, or anything else that is not compressed.")],
    out: Out,
    validation_fraction: Annotated[float, typer.Option(help="Share of the bytes, after those for training.")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="Share of the bytes, the file's last.")] = 0.05,
    licence: Annotated[str | None, typer.Option(help="The source's licence, kept in the store.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare the bytes of a file, such as enwik8: the first are for training, the last for the test."""
    from data_prep.bytes import prepare

    _prepare(context, prepare, source, out)
