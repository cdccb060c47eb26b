"""The command line. Heavy imports happen inside commands, so that --help is instant."""

import json
import logging
import math
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from audio_ct.errors import AudioCTError, InputError, MissingError

app = typer.Typer(
    help="Model raw speech sample by sample: prepare recordings, train, sample, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prep = typer.Typer(help="Turn recordings into a token store.", no_args_is_help=True)
app.add_typer(prep, name="prep")

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
CheckpointPath = Annotated[Path, typer.Argument(help="A checkpoint, or a run folder (its best checkpoint).")]
ColdStartSamples = Annotated[int, typer.Option(min=0, help="First samples of each recording, scored apart.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Whole recordings until they hold so many samples.")]
WeightsOption = Annotated[
    Literal["float32", "bfloat16", "int8"], typer.Option("--weights", help="Round the model's weights to this type.")
]
MemoryOption = Annotated[
    Literal["float32", "bfloat16"], typer.Option("--memory", help="Type of what is kept of the past.")
]
StorePath = Annotated[Path | None, typer.Option("--store", help="The token store, if it has moved.")]


# Compiling takes some 15 to 40 seconds, once for each shape of model, as much as it saves in a second or two of audio.
COMPILED_FROM_SECONDS = 2.0
# Entries of a memory, which must fit into the machine's.
MAX_LENGTH = 1 << 20
# Bytes have no rate; the step takes as long as at this one.
RATE_OF_BYTES_HZ = 24_000


def main() -> None:
    """Run the command line; a user's error is one line and exit status 2, with --debug a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("audio_ct").setLevel(logging.INFO)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="audio-ct")
    except AudioCTError as error:
        if debug:
            raise
        sys.exit(_refuse(str(error)))
    except OSError as error:
        if debug:
            raise
        sys.exit(_refuse(f"{error.filename or 'file system'}: {error.strerror or error}; see --debug for where."))
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(message: str) -> int:
    for line in message.splitlines():
        print(f"audio-ct: {line}", file=sys.stderr)
    return 2


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds={seconds} must be above 0.")


def _version(wanted: bool) -> None:
    if wanted:
        from audio_ct import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Model raw speech sample by sample: prepare recordings, train, sample, compare.

    An error is one line; with --debug anywhere on the line it is a traceback.
    """


def _prepare(corpus: str, source: Path | None, out: Path, **options: Any) -> None:
    found = {point.name: point for point in entry_points(group="audio_ct.corpora")}
    if corpus not in found:
        raise MissingError(f"corpus {corpus!r} is not installed; install audio-ct as a package (pip install).")
    prepare: Callable[..., dict[str, Any]] = found[corpus].load()
    from data_prep.skeleton import PrepOptions

    summary = prepare(source, out, options=PrepOptions(**options), progress=True)
    print(json.dumps(summary, indent=1))
    reports = [str(path) for path in (out / "report.json", out / "report.png") if path.is_file()]
    print(f"token store: {out}   report: {', '.join(reports)}")


Jobs = Annotated[int, typer.Option(help="Processes; does not change the result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@prep.command("folder")
def prep_folder(
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
    _prepare(
        "folder",
        source,
        out,
        jobs=jobs,
        sample_rate_hz=sample_rate_hz,
        bits=bits,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        minimum_seconds=minimum_seconds,
        licence=licence,
        seed=seed,
        overwrite=overwrite,
    )


@prep.command("demo")
def prep_demo(
    out: Out,
    jobs: Jobs = 2,
    seed: Annotated[int, typer.Option(help="Another seed, other speech.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a few minutes of synthetic speech of several voices, made on this machine."""
    _prepare("demo", None, out, jobs=jobs, seed=seed, overwrite=overwrite)


@prep.command("bytes")
def prep_bytes(
    source: Annotated[Path, typer.Argument(help="A file: text, or anything else that is not compressed.")],
    out: Out,
    validation_fraction: Annotated[float, typer.Option(help="Share of the bytes, after those for training.")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="Share of the bytes, the file's last.")] = 0.05,
    licence: Annotated[str | None, typer.Option(help="The source's licence, kept in the store.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare the bytes of a file, such as enwik8: the first are for training, the last for the test."""
    _prepare(
        "bytes",
        source,
        out,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        licence=licence,
        overwrite=overwrite,
    )


@app.command()
def corpus(
    store: Annotated[Path, typer.Argument(help="A token store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and check its SHA-256.")] = False,
) -> None:
    """Show what a token store holds."""
    from audio_ct.tokens.store import TokenStore

    opened = TokenStore.open(store)
    if verify:
        opened.verify()
    rate_hz = opened.sample_rate_hz
    for split in opened.splits:
        num_tokens, num_recordings = opened.num_tokens(split), len(opened.recordings(split))
        if rate_hz is None:
            print(f"{split}: {num_tokens:,} bytes in {num_recordings} stretches")
        else:
            print(f"{split}: {num_recordings} recordings, {num_tokens / rate_hz / 60:.1f} minutes")
    kind = "bytes" if rate_hz is None else f"{rate_hz} Hz, {opened.bits} bit mu-law"
    print(f"{kind}, digest {opened.digest[:16]}")
    print("every shard is what was written" if verify else "sizes are right; --verify reads every shard")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/demo/wavenet.yaml.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Gets checkpoints, metrics and samples.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of --run-dir.")] = False,
) -> None:
    """Train the model of a recipe. After SIGINT or SIGTERM a checkpoint is written; exit status 130."""
    from audio_ct.recipe import load_recipe

    checked = load_recipe(recipe, settings or [])
    from audio_ct.training.loop import train as run_training

    print(f"checkpoint: {run_training(checked, run_dir, resume=resume)}")


@app.command()
def sample(
    checkpoint: CheckpointPath,
    out: Out,
    num: Annotated[int, typer.Option(help="Waveforms or texts, made side by side.")] = 1,
    seconds: Annotated[
        float | None, typer.Option(help="Length of each waveform, without the prompt (1).", show_default=False)
    ] = None,
    num_bytes: Annotated[
        int | None, typer.Option(help="Length of each text of a model of bytes (1024).", show_default=False)
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62, help="Of the first file; the next ones take the next numbers.")
    ] = 0,
    temperature: Annotated[float, typer.Option(help="1 is the model's own distribution.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
    prompt: Annotated[Path | None, typer.Option(help="A recording to continue, or a file of bytes.")] = None,
    prompt_seconds: Annotated[float | None, typer.Option(help="Only the prompt's beginning, so long.")] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="wav (audio's default), flac, ogg, mp3, ...; bytes: txt (default), bin."),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(help="Compile the step first; by default from 2 seconds or 48,000 bytes on.", show_default=False),
    ] = None,
    weights: WeightsOption = "float32",
    memory: MemoryOption = "float32",
    draft: Annotated[
        Path | None, typer.Option(help="A faster model's checkpoint for speculative sampling: same distribution.")
    ] = None,
    drafted: Annotated[int | None, typer.Option(min=1, help="Samples that it drafts in a round (3).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make audio files, or texts, from a checkpoint.

    One seed and the same options give the same file, byte for byte (Ogg: but for a number).
    """
    from audio_ct.pretrained import choose_device, load
    from audio_ct.sampling.compiled import can_compile
    from audio_ct.sampling.engine import EngineOptions
    from audio_ct.sampling.filters import Filters
    from audio_ct.sampling.prompt import read_byte_prompt, read_prompt
    from audio_ct.sampling.writing import write_byte_samples, write_samples

    if seconds is not None:
        _check_seconds(seconds)
    if drafted is not None and draft is None:
        raise InputError(f"drafted={drafted} is about --draft, which is not given; name a draft's run.")
    filters = Filters(temperature=temperature, top_k=top_k, top_p=top_p)
    device = choose_device()
    model = load(checkpoint, device)
    drafting = None if draft is None else load(draft, device)
    if drafting is not None and drafting.encoding != model.encoding:
        raise InputError(
            f"draft={drafting.label} and {model.label}: one is of audio, the other of bytes; take the same."
        )
    rate_hz = model.sample_rate_hz
    if rate_hz is None:
        _refuse_given("seconds", seconds, "this is a model of bytes; give --num-bytes")
        _refuse_given("prompt-seconds", prompt_seconds, "this is a model of bytes; shorten the prompt's file")
        length = 1024 if num_bytes is None else num_bytes
        tokens = None if prompt is None else read_byte_prompt(prompt)
    else:
        _refuse_given("num-bytes", num_bytes, "this is a model of audio; give --seconds")
        seconds = 1.0 if seconds is None else seconds
        length = round(seconds * rate_hz)
        tokens = None if prompt is None else read_prompt(prompt, rate_hz, model.bits, max_seconds=prompt_seconds)
    if compiled is None:
        compiled = can_compile(device) and length >= COMPILED_FROM_SECONDS * (rate_hz or RATE_OF_BYTES_HZ)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("sampling", total=length)
        settings: dict[str, Any] = {
            "stem": model.recipe.name.replace("/", "-"),
            "seed": seed,
            "prompt": tokens,
            "filters": filters,
            "options": EngineOptions(compiled=compiled, weights=weights, memory=memory),
            "draft": None if drafting is None else drafting.model,
            "num_drafted": drafted or 3,
            "device": device,
            "about": {
                "checkpoint": model.label,
                "recipe": model.recipe.name,
                "prompt": None if prompt is None else prompt.name,
                "draft": None if drafting is None else drafting.label,
            },
            "overwrite": overwrite,
            "on_progress": lambda done: progress.update(task, completed=done),
        }
        if rate_hz is None:
            texts = write_byte_samples(
                model.model, out, num_files=num, num_bytes=length, byte_format=file_format or "txt", **settings
            )
            lines = [str(text.path) for text in texts]
        else:
            assert seconds is not None
            waveforms = write_samples(
                model.model,
                out,
                sample_rate_hz=rate_hz,
                bits=model.bits,
                num_waveforms=num,
                seconds=seconds,
                audio_format=file_format or "wav",
                **settings,
            )
            lines = ["   warning: ".join([str(each.path), *each.warnings]) for each in waveforms]
    for line in lines:
        print(line)


def _refuse_given(name: str, value: object, why: str) -> None:
    """Refuse an option that the model at hand has no use for."""
    if value is not None:
        raise InputError(f"{name}={value}: {why}.")


@app.command()
def evaluate(
    checkpoint: CheckpointPath,
    split: Annotated[str, typer.Option(help="Split of the corpus.")] = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    store: StorePath = None,
    weights: WeightsOption = "float32",
    memory: MemoryOption = "float32",
    memory_length: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_LENGTH, help="Memory of another length than in training, in layers that have one."),
    ] = None,
    compressed_memory_length: Annotated[
        int | None, typer.Option(min=0, max=MAX_LENGTH, help="The same of compressed memory.")
    ] = None,
    at_bits: Annotated[
        int | None,
        typer.Option(help="Score the tokens' codes at so many bits, to compare with models of coarser tokens."),
    ] = None,
    moving: Annotated[
        list[float] | None,
        typer.Option(
            help="Instead: read the split as in training and learn from each window once it is scored, at this "
            "learning rate, cold starts included; 0 freezes the parameters. May be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure bits per sample, or per byte, of a checkpoint: as it is, with other memories, or while it learns."""
    from dataclasses import replace

    import torch

    from audio_ct.evaluation.comparison import evaluate as measure
    from audio_ct.evaluation.comparison import summary
    from audio_ct.pretrained import choose_device, load, with_memory_lengths
    from audio_ct.sampling.weights import with_weights
    from audio_ct.tokens.encoding import unit

    model = load(checkpoint, choose_device())
    if moving:
        from audio_ct.training.moving import bits_while_moving

        if (
            weights != "float32"
            or memory != "float32"
            or not (memory_length is compressed_memory_length is at_bits is None)
        ):
            raise InputError("moving reads as in training: leave out --weights, --memory, --at-bits and other lengths.")
        for rate in moving:
            bits, scored = bits_while_moving(model, split=split, learning_rate=rate, max_tokens=max_tokens, store=store)
            how = f"moving at {rate:g}" if rate else "frozen"
            line = {"split": split, "learning_rate": rate, "bits_per_sample": bits, "tokens": scored}
            text = (
                f"{bits:.4f} bits per {unit(model.encoding)}, {how}, on {scored:,} {unit(model.encoding)}s of {split}"
            )
            print(json.dumps(line) if as_json else text)
        return
    model = with_memory_lengths(model, memory_length=memory_length, compressed_memory_length=compressed_memory_length)
    if weights != "float32":
        model = replace(model, model=with_weights(model.model, weights))
    _, result = measure(
        model,
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        store=store,
        memory=getattr(torch, memory),
        at_bits=at_bits,
    )
    figures = summary(result, split) | ({} if at_bits is None else {"at_bits": at_bits})
    if as_json:
        # One recording gives no interval; JSON has no infinity.
        finite = [end if math.isfinite(end) else None for end in figures["interval"]]
        print(json.dumps(figures | {"unit": unit(model.encoding), "interval": finite}, indent=1, allow_nan=False))
        return
    low, high = figures["interval"]
    ends = f" [{low:.4f}, {high:.4f}]" if math.isfinite(low) else ""
    one = unit(model.encoding)
    print(
        f"{figures['bits_per_sample']:.4f} bits per {one}{ends} on {figures['tokens']:,} {one}s of "
        f"{figures['recordings']} {split} {'stretches' if model.encoding == 'bytes' else 'recordings'}"
    )


@app.command()
def inspect(
    checkpoint: CheckpointPath,
    out: Out,
    split: Annotated[str, typer.Option(help="Split of the corpus.")] = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    against: Annotated[
        Path | None, typer.Option(help="Another checkpoint of the same corpus: gains are given over it, too.")
    ] = None,
    store: StorePath = None,
) -> None:
    """Show how a model uses its memories: attention, compression, and bits per sample without them.

    Writes inspection.json, inspection.md and pictures.
    """
    from audio_ct.evaluation.inspection import inspect as look_into
    from audio_ct.pretrained import choose_device, load

    device = choose_device()
    report = look_into(
        load(checkpoint, device),
        out,
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        store=store,
        against=None if against is None else load(against, device),
        report=print,
    )
    print(f"report: {report}   tables: {out / 'inspection.md'}   pictures: {out / '*.png'}")


@app.command()
def compare(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints or run folders, all trained on one store.")],
    out: Out,
    split: Annotated[str, typer.Option(help="Split of the corpus.")] = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    num: Annotated[int, typer.Option(help="Waveforms of each model.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of each.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of the waveforms and the bootstrap.")] = 0,
    store: StorePath = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Comparison of models of raw speech",
) -> None:
    """Put checkpoints side by side on one page, to read and to hear."""
    _check_seconds(seconds)
    if num < 1:
        raise InputError(f"num={num} must be at least 1.")
    from audio_ct.evaluation.comparison import ComparisonOptions
    from audio_ct.evaluation.comparison import compare as run_comparison
    from audio_ct.pretrained import choose_device

    options = ComparisonOptions(
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        num_waveforms=num,
        seconds=seconds,
        seed=seed,
        store=store,
        title=title,
    )
    page = run_comparison(checkpoints, out, options, device=choose_device(), report=print)
    print(f"wav files: {out / 'samples'}")
    print(f"comparison page: {page}")


@app.command()
def study(
    folder: Annotated[
        Path, typer.Argument(help="Recipes: base.yaml, whole, and a file for each variant of what differs from it.")
    ],
    out: Out,
    seeds: Annotated[
        list[int] | None, typer.Option("--seeds", min=0, max=2**62, help="Of every variant's runs; may be repeated.")
    ] = None,
    num_seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0, 1, ... instead (1).")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    split: Annotated[str, typer.Option(help="Split of the corpus that is scored.")] = "test",
    max_tokens: MaxTokens = None,
    cold_start_samples: ColdStartSamples = 1024,
    only: Annotated[list[str] | None, typer.Option("--only", help="A variant to run; may be repeated.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The variant others are compared with; by default the base, or the first.")
    ] = None,
) -> None:
    """Train and score a folder of recipes with several seeds: a table, and figures with intervals over seeds.

    What stands is not done again: the same command goes on where it stopped. Where a run failed, the exit status is 2,
    after all others were run.
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
