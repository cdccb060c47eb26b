"""The command line. Heavy imports happen inside commands, so that --help is instant."""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from audio_ct.corpus_commands import corpus
from audio_ct.errors import AudioCTError, InputError
from audio_ct.launch import rank
from audio_ct.model_commands import (
    CheckpointPath,
    ColdStartSamples,
    MaxTokens,
    MemoryOption,
    Split,
    StoreAddress,
    WeightsOption,
    evaluate,
    export,
    serve,
    watch,
)
from audio_ct.preference_command import preferences
from audio_ct.prep import Out, Overwrite, prep
from audio_ct.recipe_commands import recipes
from audio_ct.track_commands import track

# In the order in which they are met.
COMMANDS = (
    "prep",
    "corpus",
    "recipes",
    "train",
    "watch",
    "evaluate",
    "sample",
    "serve",
    "compare",
    "preferences",
    "inspect",
    "study",
    "export",
    "track",
    "doctor",
)


class _InOrder(TyperGroup):
    """Lists commands as `COMMANDS` does; typer would put those from other files first, and groups last."""

    def list_commands(self, _: Any) -> list[str]:
        return sorted(self.commands, key=COMMANDS.index)


app = typer.Typer(
    cls=_InOrder,
    help="Model raw speech sample by sample: prepare recordings, train, sample, compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(prep, name="prep")
app.add_typer(corpus, name="corpus")
app.add_typer(recipes, name="recipes")
app.add_typer(track, name="track")
app.command()(evaluate)
app.command()(export)
app.command()(watch)
app.command()(serve)
app.command()(preferences)

Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")]


def main() -> None:
    """Run the command line; a user's error is one line and exit status 2, with --debug a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("audio_ct").setLevel(logging.INFO)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="audio-ct")
    except (AudioCTError, OSError) as error:
        if debug:
            raise
        message = str(error)
        if not isinstance(error, AudioCTError):
            message = f"{error.filename or 'file system'}: {error.strerror or error}; see --debug for where."
        # Of several processes of one run.
        process = f"process {rank()}: " if rank() else ""
        for line in message.splitlines():
            print(f"audio-ct: {process}{line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as end:
        # 1 is Typer's own for a signal that came in the middle of answering another.
        sys.exit(130 if end.code == 1 else end.code)


def _version(wanted: bool) -> None:
    if wanted:
        from audio_ct import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    # Taken from the line before typer sees it; here it is listed.
    debug: Annotated[
        bool, typer.Option("--debug", help="Anywhere on the line: where an error came from, instead of its one line.")
    ] = False,
) -> None:
    """Model raw speech sample by sample: prepare recordings, train, sample, compare."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe: a file, or a shipped one's name, such as demo/wavenet.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Gets checkpoints, metrics and samples.")],
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --run-dir, with its own recipe.")] = False,
) -> None:
    """Train the model of a recipe. After SIGINT or SIGTERM a checkpoint is written; exit status 130.

    A resumed run keeps its own recipe, RUN_DIR/recipe.yaml, but for what --set changes now.

    On several GPUs: torchrun --nproc-per-node 8 -m audio_ct train ...; see docs/scale.md.
    """
    import audio_ct
    from audio_ct.recipe import resumed_recipe

    # Torch is imported only once the recipe has been found right.
    if resume:
        checked, differences = resumed_recipe(run_dir / "recipe.yaml", recipe, settings or [])
    else:
        checked, differences = audio_ct.load_recipe(recipe, settings or []), []
    # Of several processes, one speaks.
    if rank() == 0:
        for line in differences:
            print(f"{checked.name}: {line}", file=sys.stderr)
    trained = audio_ct.train(checked, run_dir, resume=resume)
    if rank() == 0:
        print(f"checkpoint: {trained}")
        next_command = f"audio-ct sample {shlex.quote(str(run_dir))}"
        print(f"trained; next: {next_command}, or audio-ct compare with others of its store")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look at the machine: versions, devices, disk, tracking, and a self-test of some seconds.

    The exit status is 2 where something that audio-ct needs is broken.
    """
    from audio_ct import doctor as doctor_of

    findings = []
    for finding in doctor_of.examine():
        findings.append(finding)
        if not as_json:
            print(f"{finding.name:<16}{finding.value}" + (f"\n{'':<16}-> {finding.remedy}" if finding.remedy else ""))
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    if any(finding.is_broken for finding in findings):
        raise typer.Exit(2)


@app.command()
def sample(
    checkpoint: CheckpointPath,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the files (out/NAME, by the recipe's).")] = None,
    num: Annotated[int, typer.Option(help="Waveforms or texts, made side by side.")] = 1,
    seconds: Annotated[float | None, typer.Option(help="Length of each waveform, without the prompt (1).")] = None,
    num_bytes: Annotated[int | None, typer.Option(help="Length of each text of a model of bytes (1024).")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of the first file; others take the next numbers.")] = 0,
    temperature: Annotated[float, typer.Option(help="1 is the model's own distribution.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
    prompt: Annotated[Path | None, typer.Option(help="A recording to continue, or a file of bytes.")] = None,
    prompt_seconds: Annotated[float | None, typer.Option(help="Only the prompt's beginning, so long.")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="wav, flac, ogg, ...; of bytes txt, bin.")] = None,
    compiled: Annotated[bool | None, typer.Option(help="Compile the step; by default from 12,000 samples on.")] = None,
    weights: WeightsOption = "float32",
    memory: MemoryOption = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Make audio files, or texts, from a checkpoint.

    One seed and the same options give the same file, byte for byte (Ogg: but for a number).
    """
    import audio_ct
    from audio_ct.locks import hold
    from audio_ct.progress import Progress
    from audio_ct.sampling.compiled import compiling_pays
    from audio_ct.sampling.engine import EngineOptions
    from audio_ct.sampling.filters import Filters
    from audio_ct.sampling.writing import write_samples

    if prompt is None and prompt_seconds is not None:
        raise InputError(f"prompt-seconds={prompt_seconds} is about --prompt, which is not given; name a prompt.")
    filters = Filters(temperature, top_k, top_p)
    model = audio_ct.load(checkpoint)
    length = model.codec.num_tokens(seconds=seconds, num_bytes=num_bytes)
    tokens = None if prompt is None else model.codec.read_prompt(prompt, max_seconds=prompt_seconds)
    if compiled is None:
        compiled = compiling_pays(model.model, length)
    stem = model.recipe.name.replace("/", "-")
    out = Path("out", stem) if out is None else out
    with (
        hold(out, name=f"--out {str(out)!r}"),
        Progress("sampling", length, unit=f"{model.codec.unit}s") as progress,
    ):
        written = write_samples(
            model.model,
            model.codec,
            out,
            stem=stem,
            num=num,
            num_tokens=length,
            seed=seed,
            prompt=tokens,
            filters=filters,
            options=EngineOptions(compiled=compiled, weights=weights, memory=memory),
            file_format=file_format,
            about={"checkpoint": model.label, "recipe": model.recipe.name, "prompt": prompt and prompt.name},
            overwrite=overwrite,
            on_progress=progress.update,
        )
    for one in written:
        print("   warning: ".join([str(one.path), *one.warnings]))


@app.command()
def inspect(
    checkpoint: CheckpointPath,
    out: Out,
    split: Split = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    against: Annotated[Path | None, typer.Option(help="Another checkpoint of the corpus, to show gains over.")] = None,
    store: StoreAddress = None,
) -> None:
    """Show how a model uses its memories: attention, compression, and bits per sample without them.

    Writes inspection.json, inspection.md and pictures.
    """
    import audio_ct
    from audio_ct.evaluation import inspection
    from audio_ct.locks import hold

    with hold(out, name=f"--out {str(out)!r}"):
        report = inspection.inspect(
            audio_ct.load(checkpoint),
            out,
            split=split,
            max_tokens=max_tokens,
            cold_start_samples=cold_start_samples,
            store=store,
            against=None if against is None else audio_ct.load(against),
            report=print,
        )
    print(f"report: {report}   tables: {out / 'inspection.md'}   pictures: {out / '*.png'}")


@app.command()
def compare(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints, run folders or shipped models, all trained on one store.")
    ],
    out: Out,
    split: Split = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    num: Annotated[int, typer.Option(help="Waveforms of each model.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of each.")] = 1.0,
    prompt_seconds: Annotated[
        float | None, typer.Option(help="Each model also continues --num pieces of real speech of the split, so long.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of the waveforms and the bootstrap.")] = 0,
    store: StoreAddress = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Comparison of models of raw speech",
) -> None:
    """Put checkpoints side by side on one page, to read and to hear.

    Page and figures are added to the records of their runs, and to their mlflow runs.
    """
    import audio_ct
    from audio_ct.training.afterwards import leave_comparison

    models = [audio_ct.load(checkpoint) for checkpoint in checkpoints]
    page = audio_ct.compare(
        models,
        out,
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        num_waveforms=num,
        seconds=seconds,
        prompt_seconds=prompt_seconds,
        seed=seed,
        store=store,
        title=title,
        report=print,
    )
    print(f"wav files: {out / 'samples'}\ncomparison page: {page}")
    leave_comparison(models, page)


@app.command()
def study(
    folder: Annotated[
        Path,
        typer.Argument(
            help="base.yaml, a recipe, and for each variant a file of what differs; or a shipped one: studies/rates."
        ),
    ],
    out: Out,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", min=0, max=2**62, help="May be repeated.")] = None,
    num_seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0, 1, ... instead (1).")] = None,
    settings: Settings = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    split: Split = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    only: Annotated[list[str] | None, typer.Option("--only", help="A variant to run; may be repeated.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The variant to compare with (the one that is the base itself, or the first).")
    ] = None,
) -> None:
    """Train and score a folder of recipes with several seeds: a table, and figures with intervals over seeds.

    The base is run too, unless a variant is the base itself.

    Finished runs are not done again: the same command goes on where it stopped. Where a run failed, the exit status is
    2, after all others were run.
    """
    if seeds and num_seeds is not None:
        raise InputError(f"--seeds and --num-seeds {num_seeds} say the same thing twice; leave one out.")
    from audio_ct.studies.plan import StudyOptions
    from audio_ct.studies.study import run_study

    options = StudyOptions(
        seeds=tuple(seeds or range(num_seeds or 1)),
        settings=tuple(settings or ()),
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        jobs=jobs,
        only=tuple(only) if only else None,
        baseline=baseline,
        command=shlex.join(["audio-ct", *sys.argv[1:]]),
    )
    is_complete = run_study(folder, out, options, report=print)
    print(f"table: {out / 'table.md'}   figures: {out / 'figure.png'}, {out / 'curves.png'}")
    if not is_complete:
        raise typer.Exit(2)
