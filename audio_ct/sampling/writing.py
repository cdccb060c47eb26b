"""What a model generates as files, waveforms or bytes: written as it is made, and described by a sidecar."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from audio_ct import __version__
from audio_ct.audio.files import AudioWriter
from audio_ct.audio.mu_law import decode
from audio_ct.errors import InputError
from audio_ct.evaluation.spectrogram import save_spectrogram
from audio_ct.evaluation.waveform_statistics import check
from audio_ct.models.interface import TokenModel
from audio_ct.provenance import commit
from audio_ct.sampling.engine import PLAIN, EngineOptions, Sampler
from audio_ct.sampling.filters import NO_FILTERS, Filters
from audio_ct.sampling.speculation import SpeculativeSampler
from audio_ct.tokens.encoding import start_token

MAX_SECONDS = 36_000
MAX_BYTES = 1 << 30
BYTE_FORMATS = ("txt", "bin")


@dataclass(frozen=True)
class WrittenSample:
    """One generated file.

    Attributes:
        path: the audio file; a sidecar of the same name with .json stands beside it.
        waveform: [samples], without the prompt.
        warnings: what is wrong with it, by `waveform_statistics.check`; empty if nothing.
        spectrogram: a picture of it, where one was asked for.
    """

    path: Path
    waveform: np.ndarray
    warnings: list[str]
    spectrogram: Path | None


@dataclass(frozen=True)
class WrittenBytes:
    """One generated file of bytes.

    Attributes:
        path: the file; a sidecar of the same name with .json stands beside it.
        content: what was generated, without the prompt.
    """

    path: Path
    content: bytes


def write_samples(
    model: TokenModel,
    folder: Path,
    *,
    stem: str,
    sample_rate_hz: int,
    bits: int,
    num_waveforms: int,
    seconds: float,
    seed: int,
    prompt: Int[Tensor, " time"] | None = None,
    filters: Filters = NO_FILTERS,
    options: EngineOptions = PLAIN,
    draft: TokenModel | None = None,
    num_drafted: int = 3,
    device: torch.device | str = "cpu",
    audio_format: str = "wav",
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
    spectrograms: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[WrittenSample]:
    """Generate waveforms into `folder`/STEM-00.wav, STEM-01.wav, ... with a sidecar STEM-00.json each.

    Audio is written block by block: what is there when the run is interrupted can be played. With a prompt, each file
    begins with the prompt.

    Args:
        model: any model.
        folder: made if missing.
        stem: beginning of the file names.
        sample_rate_hz: of the audio that the model was trained on.
        bits: of its tokens.
        num_waveforms: files.
        seconds: length of each, without the prompt.
        seed: of the first waveform; the next ones take the following numbers.
        prompt: tokens to continue.
        filters: what is done to predictions before a token is drawn.
        options: how steps are computed.
        draft: a faster model for speculative sampling, of one waveform.
        num_drafted: samples that it drafts in a round.
        device: where the model is.
        audio_format: suffix of a format that libsndfile writes.
        about: goes into the sidecars: checkpoint, recipe and the like.
        overwrite: replace files of these names.
        spectrograms: also write STEM-00.png.
        on_progress: called with the number of samples made of each waveform.

    Raises:
        InputError: for a length or number out of range, a draft that does not fit, an unknown format, an existing file,
            or a folder that cannot be made.
    """
    if not 0 < seconds <= MAX_SECONDS or round(seconds * sample_rate_hz) == 0:
        raise InputError(f"seconds={seconds} must be above 0 and at most {MAX_SECONDS}.")
    if not audio_format.isalnum():
        raise InputError(f"format={audio_format!r} must be a suffix without its dot; use wav, flac or ogg.")
    num_samples = round(seconds * sample_rate_hz)
    _check_number(num_waveforms, draft)
    paths = _free_paths(folder, stem, audio_format, num_waveforms, overwrite)
    sampler = _sampler(model, num_waveforms, filters, options, draft, num_drafted, device)
    blocks = _started(
        sampler.generate(num_samples=num_samples, start_token=start_token("mu-law", bits), seed=seed, prompt=prompt)
    )
    made: list[list[np.ndarray]] = [[] for _ in paths]
    with ExitStack() as files:
        writers = [files.enter_context(AudioWriter(path, sample_rate_hz, overwrite=overwrite)) for path in paths]
        if prompt is not None:
            for writer in writers:
                writer.write(decode(prompt, bits).numpy())
        done = 0
        for block in blocks:
            waveforms = decode(block, bits).numpy()
            for i, writer in enumerate(writers):
                writer.write(waveforms[i])
                made[i].append(waveforms[i])
            done += block.shape[1]
            on_progress(done)
    samples = []
    for i, path in enumerate(paths):
        waveform = np.concatenate(made[i])
        picture = path.with_suffix(".png") if spectrograms else None
        if picture is not None:
            save_spectrogram(waveform, sample_rate_hz, picture)
        sample = WrittenSample(path, waveform, check(waveform, sample_rate_hz), picture)
        _describe(
            path,
            {
                "seed": seed + i,
                "seconds": num_samples / sample_rate_hz,
                "prompt_samples": 0 if prompt is None else len(prompt),
                "sample_rate_hz": sample_rate_hz,
                **asdict(filters),
                "engine": asdict(options) | ({} if draft is None else {"num_drafted": num_drafted}),
                "warnings": sample.warnings,
            },
            about,
        )
        samples.append(sample)
    return samples


def write_byte_samples(
    model: TokenModel,
    folder: Path,
    *,
    stem: str,
    num_files: int,
    num_bytes: int,
    seed: int,
    prompt: Int[Tensor, " time"] | None = None,
    filters: Filters = NO_FILTERS,
    options: EngineOptions = PLAIN,
    draft: TokenModel | None = None,
    num_drafted: int = 3,
    device: torch.device | str = "cpu",
    byte_format: str = "txt",
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[WrittenBytes]:
    """Generate bytes into `folder`/STEM-00.txt, STEM-01.txt, ... with a sidecar STEM-00.json each.

    A file holds the bytes as they are, whatever its suffix: a model may well write what is not UTF-8. As with
    `write_samples`, files grow block by block and begin with the prompt.

    Args:
        model: a model of bytes.
        folder: made if missing.
        stem: beginning of the file names.
        num_files: how many.
        num_bytes: length of each, without the prompt.
        seed: of the first file; the next ones take the following numbers.
        prompt: tokens to continue.
        filters: what is done to predictions before a token is drawn.
        options: how steps are computed.
        draft: a faster model for speculative sampling, of one file.
        num_drafted: bytes that it drafts in a round.
        device: where the model is.
        byte_format: suffix, txt or bin.
        about: goes into the sidecars: checkpoint, recipe and the like.
        overwrite: replace files of these names.
        on_progress: called with the number of bytes made of each file.

    Raises:
        InputError: for a length or number out of range, a draft that does not fit, an unknown format, an existing file,
            or a folder that cannot be made.
    """
    if not 1 <= num_bytes <= MAX_BYTES:
        raise InputError(f"num-bytes={num_bytes} must be from 1 to {MAX_BYTES}.")
    if byte_format not in BYTE_FORMATS:
        raise InputError(f"format={byte_format!r}: bytes are written as {' or '.join(BYTE_FORMATS)}.")
    _check_number(num_files, draft)
    paths = _free_paths(folder, stem, byte_format, num_files, overwrite)
    sampler = _sampler(model, num_files, filters, options, draft, num_drafted, device)
    blocks = _started(
        sampler.generate(num_samples=num_bytes, start_token=start_token("bytes", 8), seed=seed, prompt=prompt)
    )
    made = [bytearray() for _ in paths]
    with ExitStack() as files:
        # Unbuffered: what was made before an interruption is there.
        handles = [files.enter_context(path.open("wb" if overwrite else "xb", buffering=0)) for path in paths]
        if prompt is not None:
            for handle in handles:
                handle.write(prompt.numpy().astype(np.uint8).tobytes())
        for block in blocks:
            for content, handle, row in zip(made, handles, block.numpy().astype(np.uint8), strict=True):
                content += row.tobytes()
                handle.write(row.tobytes())
            on_progress(len(made[0]))
    for i, path in enumerate(paths):
        _describe(
            path,
            {
                "seed": seed + i,
                "num_bytes": num_bytes,
                "prompt_bytes": 0 if prompt is None else len(prompt),
                **asdict(filters),
                "engine": asdict(options) | ({} if draft is None else {"num_drafted": num_drafted}),
            },
            about,
        )
    return [WrittenBytes(path, bytes(content)) for path, content in zip(paths, made, strict=True)]


def _check_number(num: int, draft: TokenModel | None) -> None:
    if not 1 <= num <= 4096:
        raise InputError(f"num={num} must be from 1 to 4096; ask for more in several runs.")
    if draft is not None and num > 1:
        raise InputError(f"num={num}: a draft is for one waveform at a time; ask for 1 or leave out the draft.")


def _free_paths(folder: Path, stem: str, suffix: str, num: int, overwrite: bool) -> list[Path]:
    """Make the folder and return the files' paths, none of which is taken, nor are their sidecars'."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(folder)!r} cannot be made: {error.strerror}; choose a writable place.") from error
    paths = [folder / f"{stem}-{i:02d}.{suffix}" for i in range(num)]
    for path in (file for main in paths for file in (main, main.with_suffix(".json"))):
        if path.exists() and not overwrite:
            raise InputError(f"{str(path)!r} exists already; choose another name or ask to overwrite.")
    return paths


def _sampler(
    model: TokenModel,
    num: int,
    filters: Filters,
    options: EngineOptions,
    draft: TokenModel | None,
    num_drafted: int,
    device: torch.device | str,
) -> Sampler | SpeculativeSampler:
    if draft is None:
        return Sampler(model, num_waveforms=num, filters=filters, options=options, device=device)
    return SpeculativeSampler(model, draft, num_drafted=num_drafted, filters=filters, options=options, device=device)


def _started(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Return the blocks with the first one made: whatever fails, fails before there is a file."""
    return chain([next(blocks)], blocks)


def _describe(path: Path, values: dict[str, Any], about: dict[str, Any] | None) -> None:
    """Write a file's sidecar."""
    sidecar = {"file": path.name, **values, "commit": commit(), "version": __version__, **(about or {})}
    path.with_suffix(".json").write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
