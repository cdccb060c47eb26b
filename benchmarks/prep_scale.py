"""What a preparation of very many recordings takes where they come together: seconds and memory of one process.

    python -m benchmarks.prep_scale --hours 1000

On Linux. Everything is the real thing but what a recording holds: a corpus that names recordings of ten seconds, 25
minutes of every speaker, and workers that write sparse shards and the records that real ones would, without decoding.
What one recording takes is another question, which `tests/audio/test_files.py` and `benchmarks.prep` answer.
"""

import argparse
import hashlib
import json
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from audio_ct.storage import LocalStorage
from benchmarks import measure
from benchmarks.measure import Row
from data_prep import skeleton
from data_prep.corpus import Candidate, Corpus, Encoded, Gathered
from data_prep.encoding import Outcome, record_name
from data_prep.measures import Meter
from data_prep.options import PrepOptions
from data_prep.plan import Shard
from data_prep.source import Source

SECONDS_EACH = 10
RECORDINGS_PER_SPEAKER = 150
BYTES_EACH = 200_000
TEXT = "a sentence of some length that somebody reads from a book, as sentences are " * 2


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name the recordings; their number is the source's name."""
    return Gathered(
        [
            Candidate(
                path=f"{index // RECORDINGS_PER_SPEAKER:05d}/{index:08d}.flac",
                name=f"{index // RECORDINGS_PER_SPEAKER:05d}/{index:08d}",
                speaker=f"{index // RECORDINGS_PER_SPEAKER:05d}",
                num_bytes=BYTES_EACH,
                text=TEXT,
            )
            for index in range(int(source.name))
        ]
    )


class Encoder:
    """Writes what encoding a shard would leave, without decoding anything."""

    def __init__(self) -> None:
        meter = Meter(24_000)
        noise = torch.randn(24_000, generator=torch.Generator().manual_seed(0)).mul(0.1).numpy()
        meter.update(noise)
        self._measures = asdict(meter.result())

    def __call__(self, shard: Shard, source: Source, storage: LocalStorage, options: PrepOptions) -> Outcome:
        """Write a sparse shard and its record."""
        length = SECONDS_EACH * options.sample_rate_hz
        recordings = []
        for candidate in shard.candidates:
            # Every recording has a fingerprint of its own, as real ones do.
            letters = list(self._measures["fingerprint"])
            random.Random(candidate.name).shuffle(letters)  # noqa: S311
            measures = self._measures | {"fingerprint": "".join(letters)}
            digest = hashlib.sha256(candidate.name.encode()).hexdigest()
            encoded = Encoded(
                candidate.name,
                candidate.speaker,
                candidate.path,
                candidate.text,
                length,
                digest,
                None,  # type: ignore[arg-type]
            )
            recordings.append(asdict(encoded) | {"measures": measures})
        num_tokens = length * len(recordings)
        with (storage.path / shard.name).open("wb") as file:
            file.truncate(num_tokens)
        record: dict[str, Any] = {"key": shard.key, "sha256": "0" * 64, "num_tokens": num_tokens}
        record |= {"recordings": recordings, "rejects": [], "rejected": []}
        storage.write(record_name(shard.name), json.dumps(record).encode())
        return Outcome.of(shard, record)


def prepare_many(hours: float) -> Row:
    """Prepare so many hours and measure this process, which must have done nothing large before."""
    number = round(hours * 3600 / SECONDS_EACH)
    corpus = Corpus(name="many", title="Recordings that hold nothing", gather=gather)
    skeleton.encode_shard = Encoder()  # type: ignore[assignment]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, began_cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="audio-ct-bench-") as folder:
        source = Path(folder, str(number))
        source.mkdir()
        summary = skeleton.prepare(corpus, source, Path(folder, "store"), options=PrepOptions(jobs=1))
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {
        "name": f"{hours:g} hours",
        "recordings": summary["num_recordings"],
        "wall_seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - began_cpu,
        "peak_bytes": peak,
        "bytes_per_recording": peak / number,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1000, help="of recordings of ten seconds (%(default)s)")
    measure.add_common(parser, "prep_scale")
    options = parser.parse_args(arguments)
    row = prepare_many(options.hours)
    columns = {"name": "what", "recordings": "recordings", "wall_seconds": "wall s", "cpu_seconds": "cpu s"}
    columns |= {"peak_bytes": "peak bytes", "bytes_per_recording": "bytes a recording"}
    measure.show("Preparing very many recordings, without decoding", [row], columns)
    result: Row = {"benchmark": "prep_scale", "machine": measure.machine(torch.device("cpu"))}
    measure.finish(result, {"prep_scale": {"rows": [row], "bars": []}}, options.out)


if __name__ == "__main__":
    main()
