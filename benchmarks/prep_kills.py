"""Proof that a preparation loses nothing: killed at random moments, run again, and compared with an unbroken one.

    python -m benchmarks.prep_kills FOLDER --kills 20

Each run is the real command in a process group of its own, with two jobs, and gets SIGKILL, all of it or only its first
process, between its start and the time that the unbroken run took, or when some more shards are there. Prints what was
there at each kill and ends with status 1 unless the finished store has the unbroken one's bytes, file by file.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def start(source: str, out: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Begin to prepare a folder, by the command."""
    command = [sys.executable, "-m", "audio_ct", "prep", "folder", source, "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def content(store: Path) -> dict[str, bytes]:
    """The bytes of a store, by file."""
    return {file.name: file.read_bytes() for file in sorted(store.iterdir())}


def num_shards(folder: Path) -> int:
    """The number of shards that an unfinished preparation has encoded."""
    return len(list((folder / ".store.partial/work").glob("*.bin.json")))


def prove(source: str, folder: Path, *, kills: int, seed: int, options: Sequence[str]) -> bool:
    """Prepare a source unbroken, then killed so many times; whether both have the same bytes."""
    began = time.monotonic()
    if start(source, folder / "unbroken", options).wait():
        raise SystemExit("the unbroken preparation failed")
    seconds = time.monotonic() - began
    print(f"unbroken: {seconds:.1f} s")
    moments = random.Random(seed)  # noqa: S311
    killed = 0
    while killed < kills:
        wanted = num_shards(folder) + moments.randint(1, 3)
        process = start(source, folder / "store", options)
        if moments.random() < 0.5:
            # Most of a run that goes on is over sooner than an unbroken one.
            time.sleep(moments.uniform(0, seconds) * moments.choice((0.3, 1.0)))
        else:
            while num_shards(folder) < wanted and process.poll() is None:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.1))
        whole_group = moments.random() < 0.5
        if process.poll() is not None:
            if not (folder / "store").is_dir():
                raise SystemExit(f"a preparation ended with status {process.returncode}")
            # It finished before it was killed: begin another one, with nothing kept.
            if content(folder / "store") != content(folder / "unbroken"):
                return False
            subprocess.run(["rm", "-r", str(folder / "store")], check=True)
            continue
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        killed += 1
        which = "all processes" if whole_group else "the first process"
        print(f"kill {killed}: {which}, {num_shards(folder)} shards there")
    if not (folder / "store").is_dir() and start(source, folder / "store", options).wait():
        raise SystemExit("the last preparation failed")
    return content(folder / "store") == content(folder / "unbroken")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prove it for a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of recordings")
    parser.add_argument("--kills", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    options, others = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory(prefix="audio-ct-kills-") as folder:
        same = prove(options.source, Path(folder), kills=options.kills, seed=options.seed, options=others)
    print("the same bytes" if same else "OTHER BYTES")
    sys.exit(not same)


if __name__ == "__main__":
    main()
