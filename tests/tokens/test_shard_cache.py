"""A store that is elsewhere reads as one that is here, and what is fetched of it is right, bounded and shared."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from audio_ct.errors import DamagedError, InputError, MissingError
from audio_ct.storage import ObjectStorage
from audio_ct.tokens import shard_cache
from audio_ct.tokens.clip import ClipStore
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder
from audio_ct.tokens.streams import Streams

SHARD_BYTES = 1000
NUM_SHARDS = 6
# Two shards and a half.
SMALL_GIB = 2500 / (1 << 30)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; tries that fail are repeated at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "WAITS_SECONDS", (0.0, 0.0, 0.0))
    return tmp_path / "cache/audio-ct/stores"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A store of six training shards with five recordings each, and one shard in each other split."""
    path = tmp_path_factory.mktemp("here") / "store"
    random = np.random.default_rng(0)
    with TokenStoreBuilder(path, MuLawCodec(24_000, 8)) as builder:
        for split, number in (("train", NUM_SHARDS), ("validation", 1), ("test", 1)):
            for shard in range(number):
                tokens = random.integers(0, 256, SHARD_BYTES).astype(np.uint8)
                rows = [
                    Recording(f"{split}/{shard}-{i}", f"s{shard}", "x.wav", None, 0, 200 * i, 200) for i in range(5)
                ]
                builder.add_shard(split, tokens, rows)
        return builder.commit()


@pytest.fixture
def address(here: TokenStore) -> Iterator[str]:
    """The store in fsspec's memory, which is one for all of a process."""
    memory = fsspec.filesystem("memory")
    memory.put(here.address, "/bucket/store", recursive=True)
    yield "memory://bucket/store"
    memory.rm("/bucket", recursive=True)


def kept(cache: Path) -> list[str]:
    """Names of the files in the cache that are no temporary ones."""
    assert not list(cache.glob("*.tmp"))
    return sorted(path.name for path in cache.glob("*"))


def assert_same(there: TokenStore, here: TokenStore) -> None:
    assert (there.digest, there.splits, there.codec) == (here.digest, here.splits, here.codec)
    for split in here.splits:
        assert list(there.recordings(split)) == list(here.recordings(split))
        for index in range(len(here.recordings(split))):
            np.testing.assert_array_equal(there.tokens(split, index), here.tokens(split, index))


@pytest.mark.parametrize("suffix", ["", "/"])
def test_it_reads_as_one_that_is_here(here: TokenStore, address: str, cache: Path, suffix: str) -> None:
    there = TokenStore.open(address + suffix)
    assert (there.address, there.name) == (address, "store")
    assert kept(cache) == [], "nothing is fetched before it is read"
    there.tokens("test", 2)
    assert kept(cache) == [f"{here.shards('test')[0].sha256}.bin"]
    assert_same(there, here)
    assert len(kept(cache)) == NUM_SHARDS + 2
    there.verify()
    clip = ClipStore.open_clip(address, 0.005)
    np.testing.assert_array_equal(clip.tokens("test", 0), ClipStore.open_clip(here.address, 0.005).tokens("test", 0))


def test_shards_are_fetched_once(address: str, here: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: Counter[str] = Counter()
    get = ObjectStorage.get
    monkeypatch.setattr(ObjectStorage, "get", lambda self, name, file: (fetched.update([name]), get(self, name, file)))
    for _ in range(2):
        assert_same(TokenStore.open(address), here)
    assert set(fetched.values()) == {1}


def test_no_store_there(address: str) -> None:
    for nothing in ("memory://bucket/other", "memory://nowhere/store", "memory://bucket"):
        with pytest.raises(MissingError, match=r"holds no corpus\.json"):
            TokenStore.open(nothing)
    with pytest.raises(InputError, match="cannot be reached"):
        TokenStore.open("nothing://bucket/store")


@pytest.mark.fault("damaged store")
def test_damage_there_is_named(address: str, cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    shard = "/bucket/store/train-00003.bin"
    content = memory.cat_file(shard)
    memory.pipe_file(shard, content[:-1])
    with pytest.raises(DamagedError, match=r"'memory://bucket/store/train-00003\.bin' has 999 bytes"):
        TokenStore.open(address)
    memory.rm(shard)
    with pytest.raises(DamagedError, match=r"memory://bucket/store/train-00003\.bin: missing from the token store"):
        TokenStore.open(address)
    memory.pipe_file(shard, bytes([content[0] ^ 1]) + content[1:])
    store = TokenStore.open(address)
    for read in (lambda: store.tokens("train", 15), store.verify):
        with pytest.raises(DamagedError, match=r"'memory://bucket/store/train-00003\.bin': SHA-256"):
            read()
    assert f"{store.shards('train')[3].sha256}.bin" not in kept(cache)
    memory.rm(shard)
    with pytest.raises(DamagedError, match=r"train-00003\.bin: missing"):
        store.tokens("train", 15)
    for name in ("recordings-train.jsonl", "corpus.json.sha256"):
        content = memory.cat_file(f"/bucket/store/{name}")
        memory.pipe_file(f"/bucket/store/{name}", content[:-2] + b"0\n")
        with pytest.raises(DamagedError, match="is not what was written"):
            TokenStore.open(address)
        memory.rm(f"/bucket/store/{name}")
        with pytest.raises(DamagedError, match="missing from the token store"):
            TokenStore.open(address)
        memory.pipe_file(f"/bucket/store/{name}", content)


def test_what_fails_is_tried_again(
    address: str, here: TokenStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    failures = 3
    error: Exception = TimeoutError("too slow")

    def failing(action: str) -> Callable[..., object]:
        original = getattr(ObjectStorage, action)

        def call(self: ObjectStorage, *arguments: object) -> object:
            key = " ".join([action, *map(str, arguments[:1])])
            calls[key] += 1
            if calls[key] <= failures:
                raise error
            return original(self, *arguments)

        return call

    for action in ("read", "get", "sizes"):
        monkeypatch.setattr(ObjectStorage, action, failing(action))
    assert_same(TokenStore.open(address), here)
    assert set(calls.values()) == {4}
    calls.clear()
    failures = 100
    with pytest.raises(InputError, match=r"'memory://bucket/store/corpus\.json' cannot be fetched: TimeoutError: too"):
        TokenStore.open(address)
    assert calls["read corpus.json"] == 4
    calls.clear()
    error = PermissionError("not yours")
    with pytest.raises(InputError, match="PermissionError: not yours; check the connection, the access"):
        TokenStore.open(address)
    assert calls["read corpus.json"] == 1
    failures = 0
    store = TokenStore.open(address)
    shutil.rmtree(cache)
    calls.clear()
    failures = 100
    with pytest.raises(InputError, match=r"train-00000\.bin' cannot be fetched"):
        store.tokens("train", 0)
    assert kept(cache) == []


def test_what_has_not_been_used_for_longest_goes_first(address: str, here: TokenStore, cache: Path) -> None:
    store = TokenStore.open(address, cache_gib=SMALL_GIB)
    names = [f"{shard.sha256}.bin" for shard in store.shards("train")]
    store.tokens("train", 0)
    store.tokens("train", 5)
    for at, name in enumerate(names[:2]):
        os.utime(cache / name, (at, at))
    # Used again, by another reader.
    TokenStore.open(address).tokens("train", 0)
    store.tokens("train", 10)
    assert kept(cache) == sorted([names[0], names[2]])
    # What is gone from the cache is still mapped.
    np.testing.assert_array_equal(store.tokens("train", 5), here.tokens("train", 5))
    assert_same(store, here)
    assert len(kept(cache)) == 2
    # A shard that is larger than the bound is read all the same.
    assert_same(TokenStore.open(address, cache_gib=1e-9), here)
    assert len(kept(cache)) == 1


def test_what_others_left_behind_makes_room(address: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "abc.7-8.tmp").write_bytes(bytes(5000))
    os.utime(cache / "abc.7-8.tmp", (0, 0))
    TokenStore.open(address, cache_gib=SMALL_GIB).tokens("train", 0)
    assert len(kept(cache)) == 1


@pytest.mark.fault("damaged store")
def test_a_file_that_is_damaged_in_the_cache_is_fetched_again(address: str, here: TokenStore, cache: Path) -> None:
    TokenStore.open(address).verify()
    paths = [cache / f"{shard.sha256}.bin" for shard in here.shards("train")]
    paths[0].write_bytes(b"short")
    paths[1].unlink()
    paths[1].symlink_to(paths[2])
    assert_same(TokenStore.open(address), here)
    paths[3].write_bytes(bytes(SHARD_BYTES))
    store = TokenStore.open(address)
    store.verify()
    assert_same(store, here)


READ_ALL = """
import sys
import numpy as np
from audio_ct.tokens.store import TokenStore
here, address, seed = sys.argv[1:]
random = np.random.default_rng(int(seed))
here = TokenStore.open(here)
for _ in range(6):
    there = TokenStore.open(address, cache_gib=2500 / (1 << 30))
    for index in random.permutation(30):
        np.testing.assert_array_equal(there.tokens("train", int(index)), here.tokens("train", int(index)))
"""


def test_processes_share_a_cache_that_is_too_small(here: TokenStore, cache: Path) -> None:
    program = [sys.executable, "-c", READ_ALL, here.address, f"file://{here.address}"]
    running = [subprocess.Popen([*program, str(seed)]) for seed in range(2)]
    assert [each.wait(timeout=120) for each in running] == [0, 0]
    # Both may have found room at the same moment.
    assert len(kept(cache)) <= 3


def test_threads_fetch_a_shard_once(address: str, here: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    get = ObjectStorage.get

    def slow(self: ObjectStorage, name: str, file: Path) -> None:
        fetched.append(name)
        time.sleep(0.05)
        get(self, name, file)

    monkeypatch.setattr(ObjectStorage, "get", slow)
    store = TokenStore.open(address)
    threads = [threading.Thread(target=store.tokens, args=("train", 0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["train-00000.bin"]


def test_the_shards_that_lanes_read_next_are_fetched_ahead(
    address: str, here: TokenStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_lanes": 2, "window_length": 40, "seed": 0, "reset_every_windows": 0}
    there, lanes = TokenStore.open(address), Streams(here, "train", **settings)
    ahead = Streams(there, "train", **settings)
    by_main: list[str] = []
    get = ObjectStorage.get

    def note(self: ObjectStorage, name: str, file: Path) -> None:
        if threading.current_thread() is threading.main_thread():
            by_main.append(name)
        get(self, name, file)

    monkeypatch.setattr(ObjectStorage, "get", note)
    for step in range(2 * lanes.windows_per_epoch):
        window, expected = ahead.window(step), lanes.window(step)
        assert torch.equal(window.inputs, expected.inputs)
        assert torch.equal(window.targets, expected.targets)
        for thread in threading.enumerate():
            if thread.daemon and "_fetch_all_ahead" in thread.name:
                thread.join(timeout=10)
        if step == 0:
            first = len(by_main)
    assert len(by_main) == first < NUM_SHARDS, "only the first window's shards are waited for"
    assert len(kept(cache)) == NUM_SHARDS


def test_what_cannot_be_fetched_ahead_is_said_when_it_is_read(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore.open(address)

    def fail(*arguments: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(ObjectStorage, "get", fail)
    store.fetch_ahead("train", np.arange(30))
    with pytest.raises(InputError, match="cannot be fetched: TimeoutError"):
        store.tokens("train", 0)


TRAINING = [
    *("model.layers_per_stack=2", "model.residual_channels=4", "model.skip_channels=4", "model.linear_prediction=null"),
    *("training.batch_size=2", "training.window_length=64", "training.max_tokens=256", "tracking.enabled=false"),
    *("training.sample_every_windows=0", "evaluation.cold_start_samples=0"),
]


def test_training_and_scoring_from_there(
    command: Callable[..., int], address: str, here: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for change in [*TRAINING, f"corpus.store={address}"] for part in ("--set", change)]
    assert command("train", "recipes/demo/wavenet.yaml", "--run-dir", tmp_path / "there", *settings) == 0
    settings[-1] = f"corpus.store={here.address}"
    assert command("train", "recipes/demo/wavenet.yaml", "--run-dir", tmp_path / "here", *settings) == 0
    weights = [
        next((tmp_path / run).glob("checkpoints/*2/model.safetensors")).read_bytes() for run in ("here", "there")
    ]
    assert weights[0] == weights[1]
    capsys.readouterr()
    scores = []
    for run, store in (("there", ()), ("there", ("--store", here.address)), ("here", ("--store", f"{address}/"))):
        assert command("evaluate", tmp_path / run, "--cold-start-samples", 0, *store) == 0
        scores.append(capsys.readouterr().out)
    assert len(set(scores)) == 1
    settings[-1] = "corpus.cache_gib=0"
    assert command("train", "recipes/demo/wavenet.yaml", "--run-dir", tmp_path / "none", *settings) == 2
    assert "corpus.cache_gib=0" in capsys.readouterr().err
    assert command("corpus", address, "--verify") == 0
    assert "every shard is what was written" in capsys.readouterr().out


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server on this machine, with an empty bucket."""
    server = pytest.importorskip("moto.server", reason="pip install 'moto[server]' to test against S3")
    s3fs = pytest.importorskip("s3fs", reason="pip install s3fs to test against S3")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "anyone"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_store_in_s3(s3: None, here: TokenStore, cache: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("s3")
    files.put(f"{here.address}/", "bucket/speech/", recursive=True)
    there = TokenStore.open("s3://bucket/speech")
    assert_same(there, here)
    there.verify()
    shutil.rmtree(cache)
    files.rm_file("bucket/speech/test-00000.bin")
    with pytest.raises(DamagedError, match=r"s3://bucket/speech/test-00000\.bin: missing"):
        TokenStore.open("s3://bucket/speech")
    with pytest.raises(DamagedError, match=r"s3://bucket/speech/test-00000\.bin: missing"):
        there.files.open(there.shards("test")[0])
    for nothing in ("s3://bucket/other", "s3://no-bucket/store"):
        with pytest.raises(MissingError, match=r"holds no corpus\.json"):
            TokenStore.open(nothing)
