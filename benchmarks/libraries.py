r"""Libraries that do one thing, side by side: which resamples, draws intervals and merges recipes, and which does not.

    python -m benchmarks.libraries                      # a minute
    python -m benchmarks.libraries --recordings 100     # intervals over few recordings only

Resampling: `x real time` of a prompt of ten seconds, the level that is left of a tone at 90 % of the band that both
rates have, which should be 0 dB, and of one at 110 % of it, which should be gone. Intervals: bits per sample of so many
recordings. Merging: a change over a recipe, and over each variant of the shipped studies. docs/architecture.md says
what follows from it.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchaudio.functional import resample

from audio_ct import strict_yaml
from audio_ct.audio.files import resample_blocks
from audio_ct.evaluation.bootstrap import CHUNK_INDICES, NUM_RESAMPLES, interval
from benchmarks import measure
from benchmarks.measure import Row

Resample = Callable[[np.ndarray, int, int], np.ndarray]

PROMPT_SECONDS = 10.0
BLOCK_SECONDS = 1.0
RATES_HZ = ((48_000, 24_000), (44_100, 16_000), (16_000, 24_000))
RECORDINGS = (100, 10_000, 100_000)
# The sharpest filter that torchaudio's own documentation gives.
KAISER: dict[str, Any] = {
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.769656459379492,
}
# Texts that a file may hold, which mean something else to OmegaConf.
ODD_VALUES = ("???", "${", "${name}")


def in_blocks(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample as the package does, block by block."""
    length = round(BLOCK_SECONDS * from_hz)
    blocks = (waveform[begin : begin + length] for begin in range(0, len(waveform), length))
    return np.concatenate(list(resample_blocks(blocks, from_hz, to_hz)))


def by_torchaudio(waveform: np.ndarray, from_hz: int, to_hz: int, **options: Any) -> np.ndarray:
    """Resample in one piece by torchaudio."""
    return np.asarray(resample(torch.from_numpy(waveform), from_hz, to_hz, **options).numpy())


RESAMPLERS: dict[str, Resample] = {
    "soxr VHQ, in blocks": in_blocks,
    "soxr HQ": partial(soxr.resample, quality="HQ"),
    "torchaudio": by_torchaudio,
    "torchaudio, kaiser": partial(by_torchaudio, **KAISER),
}


def left_db(resampler: Resample, share: float, from_hz: int, to_hz: int) -> float:
    """The level of what comes out for a tone at a share of the band that both rates have, less that of the tone."""
    times = np.arange(round(PROMPT_SECONDS * from_hz)) / from_hz
    tone = np.sin(2 * np.pi * share * min(from_hz, to_hz) / 2 * times).astype(np.float32)
    # The ends of a tone are sounds of their own.
    out = resampler(tone, from_hz, to_hz)[to_hz:-to_hz].astype(np.float64)
    return float(10 * np.log10(max(2 * float(np.mean(out**2)), 1e-20)))


def measure_resampling(repeats: int) -> Row:
    """Measure speed, loss within the band, and what is left beyond it, of every resampler at each pair of rates."""
    rows: list[Row] = []
    for from_hz, to_hz in RATES_HZ:
        noise = np.random.default_rng(0).normal(0, 0.1, round(PROMPT_SECONDS * from_hz)).astype(np.float32)
        builds = {name: partial(partial, each, noise, from_hz, to_hz) for name, each in RESAMPLERS.items()}
        timings = measure.time_in_turns(builds, repeats=repeats)
        for name, resampler in RESAMPLERS.items():
            seconds = timings[name].median_seconds
            assert seconds is not None
            rows.append(
                {
                    "name": f"{from_hz} -> {to_hz} Hz, {name}",
                    "times_real_time": PROMPT_SECONDS / seconds,
                    "within_db": left_db(resampler, 0.9, from_hz, to_hz),
                    # Upwards nothing is beyond the band, only its images.
                    "beyond_db": left_db(resampler, 1.1, from_hz, to_hz) if from_hz > to_hz else None,
                }
            )
    columns = {
        "name": "resampling",
        "times_real_time": "x real time",
        "within_db": "90 %, dB",
        "beyond_db": "110 %, dB",
    }
    measure.show("Resampling a prompt", rows, columns)
    return {"rows": rows, "bars": []}


def interval_in_numpy(bits: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """What `interval` asks scipy for, written out: whole recordings drawn, 2.5 and 97.5 percentiles of the ratios."""
    generator = np.random.default_rng(0)
    ratios: list[np.ndarray] = []
    chunk = max(1, CHUNK_INDICES // bits.size)
    for begin in range(0, NUM_RESAMPLES, chunk):
        drawn = generator.integers(bits.size, size=(min(chunk, NUM_RESAMPLES - begin), bits.size))
        ratios.append(bits[drawn].sum(axis=1) / tokens[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), (0.025, 0.975))
    return float(low), float(high)


def measure_intervals(recordings: Sequence[int]) -> Row:
    """Measure time and memory of an interval over recordings, by scipy and written out, and how far the two agree."""
    rows: list[Row] = []
    for num in recordings:
        generator = np.random.default_rng(1)
        tokens = generator.integers(1000, 200_000, num)
        bits = tokens * generator.normal(4.3, 0.4, num)
        ends = {}
        for name, of in (("scipy.stats.bootstrap", interval), ("numpy", interval_in_numpy)):
            began = time.perf_counter()
            ends[name] = of(bits, tokens)
            seconds = time.perf_counter() - began
            # Tracing makes it slower, so in a call of its own.
            tracemalloc.start()
            of(bits, tokens)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            rows.append({"name": f"{num:,} recordings, {name}", "seconds": seconds, "mebibytes": peak_bytes / 2**20})
        apart = max(abs(a - b) for a, b in zip(*ends.values(), strict=True))
        rows[-1]["apart"] = apart
    columns = {"name": "interval", "seconds": "s", "mebibytes": "MiB", "apart": "bits apart"}
    measure.show("Intervals of bits per sample", rows, columns)
    return {"rows": rows, "bars": []}


def by_omegaconf(base: dict[str, Any], change: dict[str, Any]) -> Any:
    """Lay values over others by OmegaConf."""
    return OmegaConf.to_container(OmegaConf.merge(base, change), resolve=False)


def measure_merging(recipes: Path, repeats: int) -> Row:
    """Measure merging of recipes by `strict_yaml.merge` and by OmegaConf, and where the two differ."""
    variants = []
    for base in sorted(recipes.rglob("base.yaml")):
        values = {
            path: strict_yaml.read(path.read_text("utf-8"), name=str(path), may_be_empty=True)
            for path in sorted(base.parent.glob("*.yaml"))
        }
        variants += [(values[base], values[path]) for path in values if path != base]
    alike = sum(strict_yaml.merge(*each) == by_omegaconf(*each) for each in variants)
    pair = strict_yaml.read((recipes / "demo/wavenet.yaml").read_text("utf-8"), name="demo"), {"seed": 1}
    mergers = {"strict_yaml.merge": strict_yaml.merge, "OmegaConf.merge": by_omegaconf}
    timings = measure.time_in_turns(
        {name: partial(partial, merger, *pair) for name, merger in mergers.items()}, repeats=repeats, calls=20
    )
    rows: list[Row] = []
    for name, merger in mergers.items():
        seconds = timings[name].median_seconds
        assert seconds is not None
        rows.append({"name": name, "microseconds": 1e6 * seconds} | {odd: merged(merger, odd) for odd in ODD_VALUES})
    measure.show(
        f"Merging recipes: {alike} of {len(variants)} variants of the shipped studies are the same by both",
        rows,
        {"name": "merging", "microseconds": "µs"} | {odd: f"name: {odd}" for odd in ODD_VALUES},
    )
    return {"rows": rows, "num_variants": len(variants), "num_alike": alike, "bars": []}


def merged(merger: Callable[[dict[str, Any], dict[str, Any]], Any], text: str) -> str:
    """What becomes of a name that a change gives."""
    try:
        return repr(merger({"name": "x"}, {"name": text})["name"])
    except OmegaConfBaseException as error:
        return type(error).__name__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, nargs="+", default=RECORDINGS, help="of intervals (%(default)s)")
    parser.add_argument("--recipes", type=Path, default=Path("recipes"), help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each, in turns (%(default)s)")
    measure.add_common(parser, "libraries")
    options = parser.parse_args(arguments)
    parts = {
        "resampling": measure_resampling(options.repeats),
        "intervals": measure_intervals(options.recordings),
        "merging": measure_merging(options.recipes, options.repeats),
    }
    result: Row = {"benchmark": "libraries", "machine": measure.machine(torch.device("cpu"))}
    measure.finish(result, parts, options.out)


if __name__ == "__main__":
    main()
