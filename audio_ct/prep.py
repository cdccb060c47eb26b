"""The `prep` commands: one for each corpus of data_prep, made from what its file declares and from `PrepOptions`."""

import importlib
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from data_prep.corpus import Corpus

# In the order of the list that --help prints: where each corpus is declared.
CORPORA = {
    "folder": "folder:CORPUS",
    "ljspeech": "ljspeech:CORPUS",
    "libritts": "libritts:LIBRITTS",
    "libritts-r": "libritts:LIBRITTS_R",
    "librispeech": "librispeech:CORPUS",
    "vctk": "vctk:CORPUS",
    "hi-fi-tts": "hi_fi_tts:CORPUS",
    "common-voice": "common_voice:CORPUS",
    "librilight": "librilight:CORPUS",
    "speech-commands": "speech_commands:CORPUS",
    "demo": "demo:CORPUS",
}
OF_FOLDER = ("speaker_pattern", "metadata", "licence")
OF_DEMO = ("seed", "jobs", "overwrite")
OF_BYTES = ("validation_fraction", "test_fraction", "licence", "overwrite")

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Store = Annotated[str, typer.Option("--out", help="Where the store shall stand: a folder, or an address (s3://...).")]


class CorpusCommands(TyperGroup):
    """Commands that are made when they are asked for: a corpus is imported only then."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all corpora."""
        return [*CORPORA, "bytes"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a corpus."""
        if cmd_name == "bytes":
            return _bytes_command()
        if cmd_name not in CORPORA:
            return None
        module, constant = CORPORA[cmd_name].split(":")
        return _corpus_command(getattr(_data_prep(module), constant))


prep = typer.Typer(cls=CorpusCommands, help="Turn recordings into a token store.", no_args_is_help=True)


@prep.callback()
def _group() -> None:
    """Turn recordings into a token store."""


def _data_prep(module: str) -> Any:
    """Import a module of data_prep, which lies within an installed audio_ct and beside that of a checkout."""
    is_within = (Path(__file__).parent / "data_prep").is_dir()
    return importlib.import_module(f"{'audio_ct.' if is_within else ''}data_prep.{module}")


def _corpus_command(corpus: "Corpus") -> Any:
    options_for = _data_prep("corpus").options_for
    defaults = options_for(corpus)
    names = [each.name for each in fields(defaults)]
    if corpus.make is not None:
        names = [name for name in names if name in OF_DEMO]
    elif corpus.name != "folder":
        names = [name for name in names if name not in OF_FOLDER]
    if corpus.subsets == ():
        names = [name for name in names if name != "subsets"]
    before = []
    if corpus.make is None:
        what = "The folder that holds the corpus, or an address that fsspec reads (s3://...)."
        before.append(_parameter("source", str, typer.Argument(help=what)))
    if corpus.archives:
        what = "Download the corpus into SOURCE first, if it is not there."
        before.append(_parameter("download", bool, typer.Option("--download", help=what), default=False))

    def run(out: str, source: str | None = None, download: bool = False, **given: Any) -> None:
        skeleton = _data_prep("skeleton")
        if "subsets" in given:
            given["subsets"] = tuple(given["subsets"])
        options = options_for(corpus, **given)
        if download:
            skeleton.download(corpus, Path(source or ""), options, progress=True)
        _print(out, skeleton.prepare(corpus, source, out, options=options, progress=True))

    notes = [f"{corpus.title.rstrip('.')}."]
    if corpus.instructions:
        notes.append(corpus.instructions)
    if corpus.subsets:
        notes.append(f"Subsets: {', '.join(corpus.subsets)}.")
    return _command(run, corpus.name, "\n\n".join(notes), [*before, _option_of_out(), *_options(defaults, names)])


def _bytes_command() -> Any:
    PrepOptions = _data_prep("options").PrepOptions

    def run(out: str, source: Path, **given: Any) -> None:
        _print(out, _data_prep("bytes").prepare(source, Path(out), options=PrepOptions(**given), progress=True))

    what = "A file: text, or anything else that is not compressed."
    title = "The bytes of a file, such as enwik8: the first are for training, the last for the test."
    source = _parameter("source", Path, typer.Argument(help=what))
    return _command(run, "bytes", title, [source, _option_of_out(), *_options(PrepOptions(), OF_BYTES)])


def _command(run: Any, name: str, text: str, parameters: list[inspect.Parameter]) -> Any:
    """A command whose options are those parameters."""
    run.__signature__ = inspect.Signature(parameters)
    run.__doc__ = text
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name)(run)
    return typer.main.get_command(one)


def _options(defaults: Any, names: Any) -> list[inspect.Parameter]:
    """Parameters for fields of `PrepOptions`, with a corpus's own defaults."""
    kinds = {"subsets": list[str]}
    parameters = []
    for each in fields(defaults):
        if each.name in names:
            flag = "--subset" if each.name == "subsets" else f"--{each.name.replace('_', '-')}"
            if each.type is bool and each.default is True:
                flag += f"/--no-{each.name.replace('_', '-')}"
            default = getattr(defaults, each.name)
            option = typer.Option(flag, help=each.metadata["help"])
            kind = kinds.get(each.name, each.type)
            parameters.append(_parameter(each.name, kind, option, list(default) if kind == list[str] else default))
    return parameters


def _option_of_out() -> inspect.Parameter:
    return inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, annotation=Store)


def _parameter(name: str, kind: Any, declaration: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    annotation = Annotated[kind, declaration]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _print(out: str, summary: dict[str, Any]) -> None:
    """Print a summary, and where to look."""
    print(json.dumps(summary, indent=1))
    print(f"token store: {out}   what is in it: audio-ct corpus {out}")
    reports = [path for name in ("report.html", "report.json") if (path := Path(out, name)).is_file()]
    if reports:
        print(f"report: {reports[0]}")
