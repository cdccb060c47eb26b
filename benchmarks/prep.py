"""Speed of preparation: times real time from a folder of 48 kHz FLAC to a token store, through the real command's code.

    python -m benchmarks.prep --minutes 10 --jobs 1 2

The recordings are made here, the same ones every time: noise with a voice's spectrum, syllables and pauses. Worker
processes are started before time is taken, as they are after the first moments of a real corpus. FLAC decoding and
resampling alone are timed beside it: the whole cannot be faster than they are one after the other. Then training
windows are read from the store that was made, since a training step must not wait for them.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch

from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from benchmarks import measure
from benchmarks.bars import judge
from benchmarks.measure import Build, Row
from data_prep.folder import prepare
from data_prep.plan import PrepOptions

SOURCE_RATE_HZ = 48_000
COLUMNS = {
    **{"name": "what", "jobs": "jobs", "audio_seconds": "audio s", "wall_seconds": "wall s"},
    **{"times_real_time": "x real time", "times_real_time_per_core": "x real time per core"},
}


def make_recordings(folder: Path, *, minutes: float, seconds_each: float = 12.0, rate_hz: int = SOURCE_RATE_HZ) -> int:
    """Write FLAC recordings of four speakers into a folder, the same bytes every time, and return their number."""
    number_of_recordings = max(3, round(minutes * 60 / seconds_each))
    for number in range(number_of_recordings):
        path = folder / f"speaker-{number % 4}" / f"{number:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        waveform = _speech_like(np.random.default_rng(number), round(seconds_each * rate_hz), rate_hz)
        soundfile.write(path, waveform, rate_hz, subtype="PCM_16")
    return number_of_recordings


def _speech_like(random: np.random.Generator, num_samples: int, rate_hz: int) -> npt.NDArray[np.float32]:
    """Noise that falls off by 12 dB an octave from 500 Hz, in syllables of a quarter second with pauses."""
    spectrum = np.fft.rfft(random.standard_normal(num_samples))
    frequency_hz = np.fft.rfftfreq(num_samples, 1 / rate_hz)
    waveform = np.fft.irfft(spectrum / (1 + (frequency_hz / 500) ** 2), num_samples)
    num_syllables = max(1, round(4 * num_samples / rate_hz))
    loudness = random.uniform(0.2, 1, num_syllables) * (random.uniform(size=num_syllables) > 0.2)
    positions = np.arange(num_samples) * num_syllables / num_samples
    envelope = loudness[positions.astype(int)] * np.sin(np.pi * (positions % 1)) + 1e-3
    waveform *= envelope
    return (0.5 * waveform / np.abs(waveform).max()).astype(np.float32)


class Preparation:
    """The recordings into a token store, anew each time."""

    def __init__(self, source: Path, out: Path, jobs: int) -> None:
        self._source, self._out = source, out
        self._options = PrepOptions(jobs=jobs, overwrite=True, licence="CC0")
        self.jobs = jobs
        self.audio_seconds = 0.0

    def __call__(self) -> None:
        """Prepare."""
        self.audio_seconds = prepare(self._source, self._out, options=self._options)["audio_seconds"]


class Decoding:
    """FLAC decoding alone, by the library that preparation uses, with resampling or without."""

    jobs = 1

    def __init__(self, source: Path, resampled_to_hz: int | None) -> None:
        self._paths = sorted(source.rglob("*.flac"))
        self._rate_hz = resampled_to_hz
        self.audio_seconds = sum(soundfile.info(path).duration for path in self._paths)

    def __call__(self) -> None:
        """Read, and resample if asked to."""
        for path in self._paths:
            waveform, rate_hz = soundfile.read(path, dtype="float32")
            if self._rate_hz is not None:
                soxr.resample(waveform, rate_hz, self._rate_hz)


class Reading:
    """Training windows of so many lanes from a store; a call reads the next one."""

    def __init__(self, store: Path, lanes: int, window_length: int) -> None:
        self._streams = Streams(
            TokenStore.open(store),
            "train",
            num_lanes=lanes,
            window_length=window_length,
            seed=0,
            reset_every_windows=256,
        )
        self._steps = itertools.count()
        self.lanes, self.tokens = lanes, lanes * window_length

    def __call__(self) -> None:
        """Read a window of every lane."""
        self._streams.window(next(self._steps))


def measure_reading(store: Path, *, repeats: int) -> list[Row]:
    """Measure the tokens a second that one thread reads for training, at the sizes of two recipes."""
    sizes = {"recipes/small": (4, 256), "recipes/paper": (32, 768)}
    builds: dict[str, Build] = {name: partial(Reading, store, *size) for name, size in sizes.items()}
    timings = measure.time_in_turns(builds, repeats=repeats, calls=20)
    rows: list[Row] = []
    for name, timing in timings.items():
        seconds = timing.median_seconds or 1
        row = {"name": f"windows as in {name}", "lanes": timing.subject.lanes, "milliseconds": 1e3 * seconds}
        rows.append(row | {"tokens_per_second": timing.subject.tokens / seconds})
    columns = {"name": "reading", "lanes": "lanes", "milliseconds": "ms", "tokens_per_second": "tokens/s"}
    measure.show("Reading training windows", rows, columns)
    return rows


def measure_preparation(*, minutes: float, jobs: Sequence[int], repeats: int) -> Row:
    """Measure preparation in times real time for each number of jobs, and judge it for one core."""
    with tempfile.TemporaryDirectory(prefix="audio-ct-bench-") as temporary:
        source = Path(temporary, "recordings")
        num_recordings = make_recordings(source, minutes=minutes)
        builds: dict[str, Build] = {
            f"prepare, jobs {number}": partial(Preparation, source, Path(temporary, f"store-{number}"), number)
            for number in jobs
        }
        builds["decoding alone"] = partial(Decoding, source, None)
        builds["decoding and resampling alone"] = partial(Decoding, source, PrepOptions().sample_rate_hz)
        timings = measure.time_in_turns(builds, repeats=repeats, warm_up=1)
        reading = measure_reading(Path(temporary, f"store-{jobs[0]}"), repeats=repeats)
    rows: list[dict[str, Any]] = []
    for name, timing in timings.items():
        speed = timing.subject.audio_seconds / (timing.median_seconds or 1)
        row = {"name": name, "jobs": timing.subject.jobs, "audio_seconds": timing.subject.audio_seconds}
        row |= {"wall_seconds": timing.median_seconds, "times_real_time": speed}
        rows.append(row | {"times_real_time_per_core": speed / timing.subject.jobs, "recordings": num_recordings})
    measure.show("Preparation from 48 kHz FLAC", rows, COLUMNS)
    one = next((row for row in rows if row["jobs"] == 1 and row["name"].startswith("prepare")), None)
    value, note = (one["times_real_time_per_core"], None) if one else (None, "jobs=1 was not measured")
    return {"rows": rows, "reading": reading, "bars": [judge("preparation", value, note)]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of audio (%(default)s)")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, in turns (%(default)s)")
    measure.add_common(parser, "prep")
    options = parser.parse_args(arguments)
    result: Row = {"benchmark": "prep", "machine": measure.machine(torch.device("cpu"))}
    part = measure_preparation(minutes=options.minutes, jobs=options.jobs, repeats=options.repeats)
    measure.finish(result, {"preparation": part}, options.out)


if __name__ == "__main__":
    main()
