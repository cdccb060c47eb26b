"""A preparation that is killed and run again, again and again, ends with the unbroken one's bytes."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_ct.tokens.store import TokenStore
from benchmarks import prep_kills

NUM_RECORDINGS = 40
# The real command with shards so small that a kill leaves some behind.
PROGRAM = (
    "import sys; from audio_ct import cli; from data_prep import plan; plan.MINIMUM_SHARD_BYTES = 20_000; cli.main()"
)


def start(source: str, out: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "prep", "folder", source, "--out", str(out), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.xdist_group("pitch")
@pytest.mark.fault("killed preparation")
def test_killed_again_and_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    times: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    (tmp_path / "recordings").mkdir()
    random = np.random.default_rng(0)
    for number in range(NUM_RECORDINGS):
        path = tmp_path / "recordings" / f"{number}.{('wav', 'flac', 'mp3')[number % 3]}"
        soundfile.write(path, 0.3 * random.uniform(-1, 1, 4000 + 100 * number), 16_000)
    monkeypatch.setattr(prep_kills, "start", start)
    kills = times(2, 40)
    options = ("--jobs", "2", "--split-by", "recording")
    assert prep_kills.prove(str(tmp_path / "recordings"), tmp_path, kills=kills, seed=0, options=options)
    halfway = sum("0 shards there" not in line for line in capsys.readouterr().out.splitlines()[1:])
    store = TokenStore.open(tmp_path / ("store" if (tmp_path / "store").is_dir() else "unbroken"))
    store.verify()
    names = [each.name for split in store.splits for each in store.recordings(split)]
    assert len(set(names)) == len(names) == NUM_RECORDINGS
    num_tokens = sum(map(store.num_tokens, store.splits))
    measured(f"{kills} kills, {halfway} with shards there: 0 of {num_tokens:,} tokens lost or doubled, the same bytes")
