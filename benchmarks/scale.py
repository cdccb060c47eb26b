"""A store of a thousand hours: seconds and memory of opening it, of an epoch's order, and of the first training window.

    python -m benchmarks.scale --hours 1000

On Linux. The store is made here, in a temporary folder, by the builder that every preparation uses: recordings of ten
seconds at 24 kHz, 25 minutes of every speaker, in shards of 61 MB that are sparse files and take no space. It is made
twice, without texts and with texts of 150 letters, which are most of a table that has them. Each is measured in a
process of its own, the modules imported before time is taken; the processor's time, of all threads, is beside it, since
others may use the machine. Peaks of opening are of resident memory, beyond what the process had before; the peak of an
epoch's order is of what it allocates.
"""

import argparse
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch

from audio_ct.durable import sha256_of
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder
from audio_ct.tokens.streams import Streams
from benchmarks import measure
from benchmarks.measure import Row

RATE_HZ = 24_000
SECONDS_EACH = 10
RECORDINGS_PER_SHARD = 256
RECORDINGS_PER_SPEAKER = 150
TEXT_LETTERS = {"without texts": 0, "with texts of 150 letters": 150}
LANES, WINDOW_LENGTH = 32, 768
COLUMNS = {
    **{"name": "table", "recordings": "recordings", "table_bytes": "bytes", "open_seconds": "open s"},
    **{"open_cpu_seconds": "open cpu s"},
    **{"open_peak_bytes": "open peak bytes", "open_kept_bytes": "kept bytes", "order_peak_bytes": "order peak bytes"},
    **{"first_window_seconds": "first window s", "next_window_seconds": "next window s"},
}


def make_store(path: Path, *, hours: float, text_letters: int = 0) -> TokenStore:
    """Make a store of so many hours, with two recordings of a hundred held out, whose shards take no space."""
    total = max(3, round(hours * 3600 / SECONDS_EACH))
    held_out = max(1, total // 100)
    with TokenStoreBuilder(path, MuLawCodec(RATE_HZ, 8)) as builder:
        hashes: dict[int, str] = {}
        first = 0
        for split, number in (("train", total - 2 * held_out), ("validation", held_out), ("test", held_out)):
            for start in range(first, first + number, RECORDINGS_PER_SHARD):
                rows = list(_rows(start, min(RECORDINGS_PER_SHARD, first + number - start), text_letters))
                shard = builder.work_folder / "shard.bin"
                with shard.open("wb") as file:
                    file.truncate(rows[-1].offset + rows[-1].length)
                if len(rows) not in hashes:
                    hashes[len(rows)] = sha256_of(shard)
                builder.add_shard_file(split, shard, hashes[len(rows)], rows)
            first += number
        return builder.commit()


def _rows(first: int, number: int, text_letters: int) -> Iterator[Recording]:
    length = SECONDS_EACH * RATE_HZ
    for index in range(first, first + number):
        speaker = f"speaker-{index // RECORDINGS_PER_SPEAKER:05d}"
        name = f"{speaker}/chapter-{index // 30:06d}/utterance-{index:08d}"
        # Texts that differ, as texts do.
        text = (f"{index:08d} " * (text_letters // 9 + 1))[:text_letters] or None
        yield Recording(name, speaker, f"{name}.flac", text, 0, (index - first) * length, length)


def measure_store(path: Path) -> Row:
    """Open a store and read two windows of its training split."""
    process = psutil.Process()
    # From here on, the most resident memory is counted anew: imports take more for a moment than they keep.
    Path("/proc/self/clear_refs").write_text("5")
    before = process.memory_info().rss
    began, began_cpu = time.perf_counter(), time.process_time()
    store = TokenStore.open(path)
    opened, opened_cpu = time.perf_counter(), time.process_time()
    row: Row = {
        "recordings": sum(len(store.recordings(split)) for split in store.splits),
        "table_bytes": sum(file.stat().st_size for file in path.glob("recordings-*.jsonl")),
        "open_seconds": opened - began,
        "open_cpu_seconds": opened_cpu - began_cpu,
        "open_peak_bytes": _highest_bytes() - before,
        "open_kept_bytes": process.memory_info().rss - before,
    }
    began = time.perf_counter()
    lanes = _streams(store)
    lanes.window(0)
    row["first_window_seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    lanes.window(1)
    row["next_window_seconds"] = time.perf_counter() - began
    # Apart from the timing, which it would slow down.
    tracemalloc.start()
    _streams(store).recordings_at(0)
    row["order_peak_bytes"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return row


def _streams(store: TokenStore) -> Streams:
    return Streams(store, "train", num_lanes=LANES, window_length=WINDOW_LENGTH, seed=0, reset_every_windows=256)


def _highest_bytes() -> int:
    """The most resident memory that Linux has counted for this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def measure_scale(*, hours: float) -> Row:
    """Make both stores and measure each in a fresh process."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="audio-ct-bench-") as temporary:
        for name, text_letters in TEXT_LETTERS.items():
            path = Path(temporary, f"letters-{text_letters}")
            began = time.perf_counter()
            make_store(path, hours=hours, text_letters=text_letters)
            made_seconds = time.perf_counter() - began
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(measure_store, (path,))
            rows.append({"name": name, "hours": hours, "made_seconds": made_seconds} | found)
    measure.show(f"A store of {hours:g} hours", rows, COLUMNS)
    return {"rows": rows, "bars": []}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1000, help="of recordings (%(default)s)")
    measure.add_common(parser, "scale")
    options = parser.parse_args(arguments)
    result: Row = {"benchmark": "scale", "machine": measure.machine(torch.device("cpu"))}
    measure.finish(result, {"scale": measure_scale(hours=options.hours)}, options.out)


if __name__ == "__main__":
    main()
