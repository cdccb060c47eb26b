"""Generated waveforms as files: written as they are made, checked, and described by a sidecar."""

import json
from collections.abc import Callable
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
from audio_ct.audio.mu_law import decode, silence_token
from audio_ct.errors import InputError
from audio_ct.evaluation.spectrogram import save_spectrogram
from audio_ct.evaluation.waveform_statistics import check
from audio_ct.models.interface import TokenModel
from audio_ct.provenance import commit
from audio_ct.sampling.engine import PLAIN, EngineOptions, Sampler
from audio_ct.sampling.filters import NO_FILTERS, Filters
from audio_ct.sampling.speculation import SpeculativeSampler

MAX_SECONDS = 36_000


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
    if not 1 <= num_waveforms <= 4096:
        raise InputError(f"num={num_waveforms} must be from 1 to 4096; ask for more in several runs.")
    if draft is not None and num_waveforms > 1:
        raise InputError(
            f"num={num_waveforms}: a draft is for one waveform at a time; ask for 1 or leave out the draft."
        )
    if not audio_format.isalnum():
        raise InputError(f"format={audio_format!r} must be a suffix without its dot; use wav, flac or ogg.")
    num_samples = round(seconds * sample_rate_hz)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(folder)!r} cannot be made: {error.strerror}; choose a writable place.") from error
    paths = [folder / f"{stem}-{i:02d}.{audio_format}" for i in range(num_waveforms)]
    for path in (file for audio in paths for file in (audio, audio.with_suffix(".json"))):
        if path.exists() and not overwrite:
            raise InputError(f"{str(path)!r} exists already; choose another name or ask to overwrite.")
    sampler: Sampler | SpeculativeSampler
    if draft is None:
        sampler = Sampler(model, num_waveforms=num_waveforms, filters=filters, options=options, device=device)
    else:
        sampler = SpeculativeSampler(
            model, draft, num_drafted=num_drafted, filters=filters, options=options, device=device
        )
    blocks = sampler.generate(num_samples=num_samples, start_token=silence_token(bits), seed=seed, prompt=prompt)
    # Whatever fails, fails before there is a file.
    blocks = chain([next(blocks)], blocks)
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
        sidecar = {
            "file": path.name,
            "seed": seed + i,
            "seconds": num_samples / sample_rate_hz,
            "prompt_samples": 0 if prompt is None else len(prompt),
            "sample_rate_hz": sample_rate_hz,
            **asdict(filters),
            "engine": asdict(options) | ({} if draft is None else {"num_drafted": num_drafted}),
            "warnings": sample.warnings,
            "commit": commit(),
            "version": __version__,
            **(about or {}),
        }
        path.with_suffix(".json").write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
        samples.append(sample)
    return samples
