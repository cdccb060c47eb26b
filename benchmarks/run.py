"""All benchmarks in one run, with the bars and their figures in benchmarks/results/latest.json.

    make bench                          # the CPU's part, some 8 minutes on two free cores
    make bench-gpu                      # the GPU's first, then the CPU's
    python -m benchmarks.run --minutes 14

A section that fails, or that the time does not suffice for, leaves its bars unmet with the reason; the file is written
after each section. The status is 1 if a section failed; bars that are not met do not change it.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from audio_ct.models.settings import CompressiveTransformerSettings
from audio_ct.recipe import load_recipe
from benchmarks import attention, measure, memory, prep, sample, train
from benchmarks.bars import BARS, CPU_BARS, judge
from benchmarks.measure import Row

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        name: in the result.
        measure: makes the section's part of the result.
        bars: keys of the bars that it decides.
    """

    name: str
    measure: Callable[[], Row]
    bars: tuple[str, ...] = ()


def cpu_sections(ceilings: Row) -> list[Section]:
    """The sections for a CPU; those without bars come last, in case time is up."""
    small = train.recipes_of(Path("recipes/small"))
    of_small = next(recipe for recipe in small if isinstance(recipe.model, CompressiveTransformerSettings))
    trial = train.plain_recipe(
        train.TRIAL_SIZES, batch_size=train.TRIAL_BATCH_SIZE, precision=measure.precisions(CPU)[0]
    )
    sampling_trial = train.plain_recipe(sample.TRIAL_SIZES)
    sampling_trial_settings: Any = {
        "options": list(sample.OPTIONS["cpu"]),
        "num_samples": 2048,
        "peer_samples": 256,
        "repeats": 3,
    }
    tiny = load_recipe(memory.RECIPE, memory.TINY)
    small_headline = load_recipe(Path("recipes/studies/headline/base.yaml"))
    return [
        Section(
            "train_trial",
            partial(train.train_trial, trial, CPU, ceilings, compiled=[False, True], repeats=7),
            ("cpu_training_over_peer",),
        ),
        Section(
            "sample_trial",
            partial(sample.sample_trial, sampling_trial, CPU, ceilings, **sampling_trial_settings),
            ("cpu_sampling_over_peer",),
        ),
        Section("prep", partial(prep.measure_preparation, minutes=4, jobs=[1, 2], repeats=3), ("preparation",)),
        Section("memory", partial(memory.watch_training, tiny, windows=1000), ("memory_growth",)),
        Section(
            "sample_flat",
            partial(sample.sample_flat, sampling_trial, CPU, option="int8", seconds=[0, 60], repeats=5),
            ("cpu_sampling_flat",),
        ),
        Section(
            "attention",
            partial(attention.measure_kernels, of_small.model, CPU, ceilings, batch_size=4, repeats=7),
        ),
        Section(
            "train_prediction",
            partial(train.train_prediction, small_headline, CPU, ceilings, repeats=7, calls=1),
            ("cpu_linear_prediction_share",),
        ),
        Section("train_recipes", partial(train.train_recipes, small, CPU, ceilings, repeats=7, calls=1)),
        Section(
            "sample_recipes",
            partial(
                sample.sample_recipes,
                small,
                CPU,
                ceilings,
                waveforms=[1, 16],
                options=["compiled", "int8"],
                num_samples=1024,
                repeats=3,
            ),
        ),
    ]


def gpu_sections(ceilings: Row) -> list[Section]:
    """The sections for a GPU: the same functions, at the paper's size."""
    paper = [recipe for recipe in train.recipes_of(Path("recipes/paper")) if recipe.model.kind != "transformer_xl"]
    compiled = [train.changed(recipe, training__compile=True) for recipe in paper]
    ours = next(recipe for recipe in compiled if isinstance(recipe.model, CompressiveTransformerSettings))
    headline = load_recipe(Path("recipes/headline/compressive_transformer.yaml"), ["training.compile=true"])
    return [
        Section(
            "gpu_train_paper",
            partial(train.train_paper, paper, GPU, ceilings, repeats=3, calls=2),
            ("gpu_training_over_wavenet", "gpu_training_over_peer", "gpu_share_of_ceiling"),
        ),
        Section(
            "gpu_sample_paper",
            partial(
                sample.sample_paper,
                paper,
                GPU,
                ceilings,
                waveforms=[1, 128],
                options=["compiled", "int8"],
                num_samples=768,
                repeats=2,
            ),
            ("gpu_one_stream", "gpu_one_stream_plain", "gpu_many_streams"),
        ),
        Section(
            "gpu_train_prediction",
            partial(train.train_prediction, headline, GPU, ceilings, repeats=3, calls=2),
            ("gpu_linear_prediction_share",),
        ),
        Section(
            "gpu_train_reconstruction", partial(train.train_reconstruction, ours, GPU, ceilings, repeats=3, calls=2)
        ),
        Section(
            "gpu_attention", partial(attention.measure_kernels, ours.model, GPU, ceilings, batch_size=16, repeats=7)
        ),
        Section("gpu_memory", partial(memory.gpu_peaks, paper, GPU, steps=10)),
    ]


def run(sections: Sequence[Section], result: Row, out: Path, *, seconds: float) -> int:
    """Run sections for so long, write the result after each, and return how many failed."""
    began = time.monotonic()
    wanted = [key for key in BARS if any(key in section.bars for section in sections)]
    bars = {key: judge(key, None, "not measured: the run was ended before") for key in wanted}
    parts: Row = {}
    failed = 0
    for section in sections:
        at = time.monotonic()
        if at - began > seconds:
            reason = f"not measured: {seconds / 60:g} minutes were up"
            part: Row = {"note": reason, "bars": [judge(key, None, reason) for key in section.bars]}
        else:
            try:
                part = section.measure()
            except Exception as error:
                traceback.print_exc()
                failed += 1
                reason = f"failed: {measure.in_words(error)}"
                part = {"note": reason, "bars": [judge(key, None, reason) for key in section.bars]}
        bars |= {bar["key"]: bar for bar in part.pop("bars")}
        parts[section.name] = part | {"seconds": round(time.monotonic() - at, 1)}
        total = {"seconds": round(time.monotonic() - began, 1)}
        measure.write(result | total | parts, list(bars.values()), out)
    measure.show_bars(list(bars.values()))
    print(f"\n{out}: {time.monotonic() - began:.0f} s")
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="begin with the GPU's sections")
    parser.add_argument("--gpu-only", action="store_true", help="no others: a GPU that is lent does not wait for a CPU")
    parser.add_argument("--minutes", type=float, default=12, help="no section is begun after these (%(default)s)")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "latest.json")
    options = parser.parse_args(arguments)
    with_gpu = options.gpu or options.gpu_only
    if with_gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds no CUDA device here; leave it out to measure the CPU's part")
    result: Row = {"benchmark": "all", "machine": measure.machine(GPU if with_gpu else CPU)}
    sections: list[Section] = []
    if not options.gpu_only:
        result["ceilings"] = measure.ceilings(CPU)
        sections = cpu_sections(result["ceilings"])
        assert {key for section in sections for key in section.bars} >= set(CPU_BARS)
    if with_gpu:
        result["gpu_ceilings"] = measure.ceilings(GPU)
        # What decides bars goes first, in case time is up.
        sections = sorted(gpu_sections(result["gpu_ceilings"]) + sections, key=lambda section: not section.bars)
    if run(sections, result, options.out, seconds=options.minutes * 60):
        sys.exit(1)


if __name__ == "__main__":
    main()
