"""Samples of a model as files, audio or bytes: written as they are made, each with a sidecar that describes it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from audio_ct import __version__
from audio_ct.durable import make_folder, synchronise, write_whole
from audio_ct.errors import InputError
from audio_ct.models.token_model import TokenModel
from audio_ct.provenance import commit
from audio_ct.recipe import Recipe
from audio_ct.sampling.engine import PLAIN, EngineOptions, Sampler
from audio_ct.sampling.filters import NO_FILTERS, Filters
from audio_ct.tokens.codec import Codec
from audio_ct.tokens.store import TokenStore


@dataclass(frozen=True)
class WrittenSample:
    """A generated file.

    Attributes:
        path: of the file; a sidecar of the same name with .json stands beside it.
        tokens: [time], without the prompt.
        warnings: faults that `Codec.check` finds.
        picture: spectrogram of it, where pictures were asked for and there is something to draw.
    """

    path: Path
    tokens: Tensor
    warnings: list[str]
    picture: Path | None


def write_samples(
    model: TokenModel,
    codec: Codec,
    folder: Path,
    *,
    stem: str,
    num: int,
    num_tokens: int,
    seed: int,
    prompt: Int[Tensor, "*num time"] | None = None,
    filters: Filters = NO_FILTERS,
    options: EngineOptions = PLAIN,
    file_format: str | None = None,
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
    pictures: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[WrittenSample]:
    """Generate `folder`/STEM-00.wav, STEM-01.wav, ... with a sidecar STEM-00.json each.

    Files grow block by block: whatever an interrupted run has made can be played or read, and where it had made nothing
    there is no file. A file that is replaced stays until its successor is whole, which grows beside it as
    STEM-00.partial.wav. Sidecars and pictures are whole or absent. With a prompt, each file begins with the prompt.

    Args:
        model: on the device where it shall run.
        codec: of the model's tokens.
        folder: made if missing.
        stem: beginning of the file names.
        num: files, made side by side.
        num_tokens: length of each, without the prompt; `Codec.num_tokens` takes it from seconds or bytes.
        seed: of the first file; the next ones take the following numbers.
        prompt: tokens to continue, [time], the same for every file, or [num, time].
        filters: changes to predictions before a token is drawn.
        options: how steps are computed.
        file_format: suffix without its dot; by default the codec's.
        about: goes into the sidecars: checkpoint, recipe and the like.
        overwrite: replace files of these names.
        pictures: also write STEM-00.png.
        on_progress: called with the number of tokens made of each file.

    Raises:
        InputError: for a number out of range, an unknown format, an existing file, a folder that cannot be made, or a
            file that cannot be written to its end.
    """
    file_format = codec.default_format if file_format is None else file_format
    codec.check_format(file_format)
    sampler = Sampler(model, num_waveforms=num, filters=filters, options=options)
    paths = _free_paths(folder, stem, file_format, num, overwrite)
    blocks = sampler.generate(num_samples=num_tokens, start_token=codec.start_token, seed=seed, prompt=prompt)
    # The first block is made before there are files: a fault of compiling or of memory leaves none behind.
    blocks = chain([next(blocks)], blocks)
    made: list[Tensor] = []
    num_made = 0
    growing = [path.with_stem(f"{path.stem}.partial") if path.exists() else path for path in paths]
    opened: list[Path] = []
    try:
        with ExitStack() as files:
            writers = []
            for path in growing:
                writers.append(files.enter_context(codec.open_writer(path, overwrite=overwrite)))
                opened.append(path)
            if prompt is not None:
                for writer, tokens in zip(writers, prompt.expand(num, -1), strict=True):
                    writer.write(tokens)
            for block in blocks:
                for writer, tokens in zip(writers, block, strict=True):
                    writer.write(tokens)
                made.append(block)
                num_made += block.shape[1]
                on_progress(num_made)
    except BaseException:
        if num_made == 0:
            for path in opened:
                path.unlink()
        raise
    for successor, path in zip(growing, paths, strict=True):
        if successor != path:
            with _beside(path):
                synchronise(successor)
                successor.replace(path)
    samples = []
    for i, (path, tokens) in enumerate(zip(paths, torch.cat(made, dim=1), strict=True)):
        picture = path.with_suffix(".png")
        with _beside(path):
            is_drawn = pictures and codec.save_picture(tokens, picture)
            sample = WrittenSample(path, tokens, codec.check(tokens), picture if is_drawn else None)
            sidecar = {
                "file": path.name,
                "seed": seed + i,
                **_lengths(codec, num_tokens, 0 if prompt is None else prompt.shape[-1]),
                **asdict(filters),
                "engine": asdict(options),
                "warnings": sample.warnings,
                "commit": commit(),
                "version": __version__,
                **(about or {}),
            }
            write_whole(path.with_suffix(".json"), (json.dumps(sidecar, indent=1) + "\n").encode())
        samples.append(sample)
    return samples


def samples_of_run(recipe: Recipe, model: TokenModel, store: TokenStore, step: int, folder: Path) -> list[Path]:
    """Make the samples that a run makes of itself while it trains: the files and their pictures.

    The recipe's `sampling` section has their number and length; their names have the step.
    """
    sampling, codec = recipe.sampling, store.codec
    length = {"seconds": sampling.seconds} if codec.sample_rate_hz else {"num_bytes": sampling.num_bytes}
    samples = write_samples(
        model,
        codec,
        folder,
        stem=f"step-{step:08d}",
        num=sampling.num_samples,
        num_tokens=codec.num_tokens(**length),
        seed=recipe.seed,
        filters=Filters(temperature=sampling.temperature),
        options=EngineOptions(compiled=sampling.compiled),
        about={"recipe": recipe.name, "step": step},
        overwrite=True,
        pictures=True,
    )
    return [path for sample in samples for path in (sample.path, sample.picture) if path is not None]


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Turn an error of the system, with what stands beside a file, into one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename!r} cannot be written: {error.strerror}; free some space. {path.name!r} is whole."
        ) from error


def _free_paths(folder: Path, stem: str, suffix: str, num: int, overwrite: bool) -> list[Path]:
    """Make the folder and name its files, none of which exists, nor do their sidecars."""
    make_folder(folder)
    paths = [folder / f"{stem}-{i:02d}.{suffix}" for i in range(num)]
    for path in (file for main in paths for file in (main, main.with_suffix(".json"))):
        if path.exists() and not overwrite:
            raise InputError(
                f"{str(path)!r} exists already; choose another place by --out, or replace it by --overwrite."
            )
    return paths


def _lengths(codec: Codec, num_tokens: int, num_prompt: int) -> dict[str, Any]:
    """A sidecar's lengths, in the unit of the codec."""
    if codec.sample_rate_hz is None:
        return {"num_bytes": num_tokens, "prompt_bytes": num_prompt}
    seconds = num_tokens / codec.sample_rate_hz
    return {"seconds": seconds, "prompt_samples": num_prompt, "sample_rate_hz": codec.sample_rate_hz}
