"""Speed of preparation: times real time from a folder of recordings to a token store, through the real command's code.

    python -m benchmarks.prep --minutes 10 --jobs 1 2
    python -m benchmarks.prep --source FOLDER    # real recordings, whatever their format, instead

The recordings are made here, the same ones every time: noise with a voice's spectrum, syllables and pauses; as 48 kHz
FLAC, and in the forms that published corpora have. Worker processes are started before time is taken, as they are after
the first moments of a real corpus. Decoding and resampling alone, on one core, are timed beside it: a core cannot do
the whole faster than they go one after the other. Then training windows are read from the store that was made, since a
training step must not wait for them.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import soundfile
import soxr
import torch

from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from benchmarks import measure
from benchmarks.bars import judge
from benchmarks.measure import Build, Row
from data_prep.folder import CORPUS, SUFFIXES
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare

SOURCE_RATE_HZ = 48_000
# Rate, seconds and format of recordings as the corpora have them whose names stand before them.
FORMS = {
    "48 kHz FLAC, 12 s": (48_000, 12.0, "flac"),
    "VCTK: 48 kHz FLAC, 3 s": (48_000, 3.0, "flac"),
    "LibriTTS: 24 kHz WAV, 6 s": (24_000, 6.0, "wav"),
    "LibriSpeech: 16 kHz FLAC, 12 s": (16_000, 12.0, "flac"),
    "Common Voice: 32 kHz MP3, 5 s": (32_000, 5.0, "mp3"),
    "klettres: 44.1 kHz Vorbis, 1.5 s": (44_100, 1.5, "ogg"),
    "Speech Commands: 16 kHz WAV, 1 s": (16_000, 1.0, "wav"),
}
COLUMNS = {
    **{"name": "what", "jobs": "jobs", "audio_seconds": "audio s", "wall_seconds": "wall s"},
    **{"times_real_time": "x real time", "times_real_time_per_core": "x real time per core"},
}


def make_recordings(
    folder: Path, *, minutes: float, seconds_each: float = 12.0, rate_hz: int = SOURCE_RATE_HZ, suffix: str = "flac"
) -> int:
    """Write recordings of four speakers into a folder, the same samples every time, and return their number."""
    number_of_recordings = max(3, round(minutes * 60 / seconds_each))
    for number in range(number_of_recordings):
        path = folder / f"speaker-{number % 4}" / f"{number:04d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        waveform = _speech_like(np.random.default_rng(number), round(seconds_each * rate_hz), rate_hz)
        soundfile.write(path, waveform, rate_hz)
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


def _core_seconds() -> float:
    """Time that cores have spent for this process and for all that it started, whether they still run or not."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(each.user + each.system + each.children_user + each.children_system for each in times))


class Preparation:
    """The recordings into a token store, anew each time."""

    def __init__(self, source: Path, out: Path, jobs: int) -> None:
        self._source, self._out = source, out
        self._options = PrepOptions(jobs=jobs, overwrite=True, licence="CC0", split_by="recording")
        self.jobs = jobs
        self.audio_seconds = 0.0
        self.core_seconds: list[float] = []

    def __call__(self) -> None:
        """Prepare."""
        before = _core_seconds()
        self.audio_seconds = prepare(CORPUS, self._source, self._out, options=self._options)["audio_seconds"]
        self.core_seconds.append(_core_seconds() - before)


class Decoding:
    """Decoding alone, by the library that preparation uses, with resampling or without."""

    jobs = 1

    def __init__(self, source: Path, resampled_to_hz: int | None) -> None:
        self._paths = sorted(path for path in source.rglob("*.*") if path.suffix in SUFFIXES)
        self._rate_hz = resampled_to_hz
        self.audio_seconds = sum(soundfile.info(path).duration for path in self._paths)
        self.core_seconds: list[float] = []

    def __call__(self) -> None:
        """Read, and resample if asked to."""
        before = _core_seconds()
        for path in self._paths:
            waveform, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            if self._rate_hz is not None:
                soxr.resample(waveform.mean(axis=1), rate_hz, self._rate_hz, quality="VHQ")
        self.core_seconds.append(_core_seconds() - before)


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


def measure_form(name: str, source: Path, folder: Path, *, jobs: Sequence[int], repeats: int) -> list[Row]:
    """Measure preparation of a folder of recordings in times real time, by the clock and by the cores' time."""
    builds: dict[str, Build] = {
        f"prepare, jobs {number}": partial(Preparation, source, folder / f"store-{number}", number) for number in jobs
    }
    builds["decoding alone"] = partial(Decoding, source, None)
    builds["decoding and resampling alone"] = partial(Decoding, source, PrepOptions().sample_rate_hz)
    timings = measure.time_in_turns(builds, repeats=repeats, warm_up=1)
    rows: list[Row] = []
    for what, timing in timings.items():
        subject = timing.subject
        seconds = timing.median_seconds or 1
        rows.append(
            {
                "form": name,
                "name": what,
                "jobs": subject.jobs,
                "audio_seconds": subject.audio_seconds,
                "wall_seconds": seconds,
                "times_real_time": subject.audio_seconds / seconds,
                "times_real_time_per_core": subject.audio_seconds / float(np.median(subject.core_seconds)),
            }
        )
    measure.show(f"Preparation: {name}", rows, COLUMNS)
    return rows


def measure_preparation(
    *, minutes: float, jobs: Sequence[int], repeats: int, forms: Sequence[str] = tuple(FORMS)
) -> Row:
    """Measure preparation of every form, and judge that of 48 kHz FLAC for one core."""
    rows: list[Row] = []
    reading: list[Row] = []
    for form in forms:
        rate_hz, seconds_each, suffix = FORMS[form]
        with tempfile.TemporaryDirectory(prefix="audio-ct-bench-") as temporary:
            source = Path(temporary, "recordings")
            make_recordings(source, minutes=minutes, seconds_each=seconds_each, rate_hz=rate_hz, suffix=suffix)
            rows += measure_form(form, source, Path(temporary), jobs=jobs, repeats=repeats)
            reading = reading or measure_reading(Path(temporary, f"store-{jobs[0]}"), repeats=repeats)
    one = next((row for row in rows if row["jobs"] == 1 and row["name"].startswith("prepare")), None)
    value, note = (one["times_real_time_per_core"], None) if one else (None, "jobs=1 was not measured")
    return {"rows": rows, "reading": reading, "bars": [judge("preparation", value, note)]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of audio (%(default)s)")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, in turns (%(default)s)")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM", help="(all)")
    parser.add_argument("--source", type=Path, help="a folder of real recordings instead")
    measure.add_common(parser, "prep")
    options = parser.parse_args(arguments)
    result: Row = {"benchmark": "prep", "machine": measure.machine(torch.device("cpu"))}
    if options.source is None:
        part = measure_preparation(
            minutes=options.minutes, jobs=options.jobs, repeats=options.repeats, forms=options.forms
        )
    else:
        with tempfile.TemporaryDirectory(prefix="audio-ct-bench-") as temporary:
            part = {
                "rows": measure_form(
                    options.source.name, options.source, Path(temporary), jobs=options.jobs, repeats=options.repeats
                ),
                "bars": [],
            }
    measure.finish(result, {"preparation": part}, options.out)


if __name__ == "__main__":
    main()
