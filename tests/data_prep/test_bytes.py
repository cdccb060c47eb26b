"""Preparing bytes: the file's bytes and nothing else, in contiguous splits, and every wrong file is one line."""

import hashlib
import json
import logging
import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from audio_ct.errors import InputError, MissingError
from audio_ct.tokens.codec import ByteCodec
from audio_ct.tokens.store import TokenStore
from data_prep import bytes as prep_bytes
from data_prep import skeleton
from data_prep.bytes import prepare
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions


def read_back(store: TokenStore, split: str) -> bytes:
    return b"".join(store.tokens(split, recording).tobytes() for recording in store.recordings(split))


def noise(path: Path, num_bytes: int) -> Path:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, num_bytes, dtype=np.uint8).tobytes())
    return path


@pytest.mark.parametrize("num_bytes", [3, 4, 19, 20, 999, 40_961])
def test_the_splits_are_the_file_cut_in_order(tmp_path: Path, num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep_bytes, "STRETCH_BYTES", 100)
    monkeypatch.setattr(prep_bytes, "MAXIMUM_SHARD_BYTES", 1000)
    content = noise(tmp_path / "file", num_bytes).read_bytes()
    summary = prepare(tmp_path / "file", tmp_path / "store", options=PrepOptions(licence="CC0"))
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert store.codec == ByteCodec()
    assert b"".join(read_back(store, split) for split in ("train", "validation", "test")) == content
    held_out = max(1, round(0.05 * num_bytes))
    assert {split: store.num_tokens(split) for split in store.splits} == {
        "train": num_bytes - 2 * held_out,
        "validation": held_out,
        "test": held_out,
    }
    place = 0
    for split in store.splits:
        for recording in store.recordings(split):
            assert recording.name == f"{place}-{place + recording.length}"
            place += recording.length
        lengths = [recording.length for recording in store.recordings(split)]
        assert max(lengths) <= 100
        assert len(lengths) == 1 or min(lengths) >= 45, "no runts"
    assert store.corpus["licence"] == "CC0"
    (source,) = store.corpus["sources"]
    assert source == {
        "name": "file",
        "kind": "file",
        "num_bytes": num_bytes,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert (summary["num_tokens"], summary["digest"]) == (num_bytes, store.digest)


def test_enwik8_is_cut_as_is_the_custom() -> None:
    assert prep_bytes.count_held_out(10**8, PrepOptions()) == (5_000_000, 5_000_000)


def test_the_fractions_are_the_users(tmp_path: Path) -> None:
    options = PrepOptions(validation_fraction=0.2, test_fraction=0.3)
    prepare(noise(tmp_path / "file", 1000), tmp_path / "store", options=options)
    store = TokenStore.open(tmp_path / "store")
    assert [store.num_tokens(split) for split in ("train", "validation", "test")] == [500, 200, 300]


def test_the_report_has_the_entropy_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ab" * 450 + b"a" * 50 + b"abcd" * 12 + b"ab")
    summary = prepare(tmp_path / "file", tmp_path / "store", options=PrepOptions())
    report = json.loads((tmp_path / "store/report.json").read_text())
    assert report["splits"]["train"] == {"num_bytes": 900, "distinct_bytes": 2, "entropy_bits_per_byte": 1.0}
    assert report["splits"]["validation"]["entropy_bits_per_byte"] == 0
    counts = {"a": 450 + 50 + 13, "b": 450 + 13, "c": 12, "d": 12}
    expected = -sum(n / 1000 * math.log2(n / 1000) for n in counts.values())
    assert report["entropy_bits_per_byte"] == pytest.approx(expected, abs=1e-4)
    assert report["num_bytes"] == sum(map(sum, report["byte_counts"].values())) == 1000
    assert report["byte_counts"]["train"][ord("b")] == 450
    assert summary["warnings"] == []


def test_what_cannot_be_learned_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(noise(tmp_path / "noise", 100_000), tmp_path / "a", options=PrepOptions())
        (tmp_path / "same").write_bytes(b"x" * 1000)
        prepare(tmp_path / "same", tmp_path / "b", options=PrepOptions())
    assert ["unpack it" in message for message in caplog.messages] == [True, False]
    assert "every byte is the same" in caplog.messages[1]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep_bytes, "STRETCH_BYTES", 1 << 16)
    monkeypatch.setattr(prep_bytes, "MAXIMUM_SHARD_BYTES", 1 << 20)
    with (tmp_path / "file").open("wb") as file:
        file.truncate(40 << 20)
    tracemalloc.start()
    prepare(tmp_path / "file", tmp_path / "store", options=PrepOptions())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert len(list((tmp_path / "store").glob("train-*.bin"))) == 36


def test_files_that_are_no_corpus_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "two").write_bytes(b"ab")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_bytes(b"abc")
    cases: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "empty", InputError, "not empty"),
        (tmp_path / "two", InputError, "has 2 bytes; at least 3"),
        (tmp_path / "pipe", InputError, "must be a regular file"),
        (tmp_path, InputError, "must be a regular file"),
        (Path("/dev/zero"), InputError, "must be a regular file"),
        (tmp_path / "absent", MissingError, "is not there"),
        (tmp_path / "dangling", MissingError, "is not there"),
        (tmp_path / "loop", InputError, "cannot be read"),
        (tmp_path / "file/below", InputError, "cannot be read"),
    ]
    for source, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            prepare(source, tmp_path / "out/store", options=PrepOptions())
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match="needs a source"):
        prepare(None, tmp_path / "out/store", options=PrepOptions())
    with pytest.raises(InputError, match="contains the source"):
        prepare(tmp_path / "file", tmp_path, options=PrepOptions(overwrite=True))
    with pytest.raises(InputError, match="bits=4 is for recordings of sound"):
        prepare(tmp_path / "file", tmp_path / "out/store", options=PrepOptions(bits=4))
    assert not (tmp_path / "out").exists()


def test_a_file_that_becomes_shorter_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = noise(tmp_path / "file", 10_000)
    opened = prep_bytes.open_bytes

    def open_and_cut(path: Path, *, name: str) -> object:
        found = opened(path, name=name)
        os.truncate(path, 5000)
        return found

    monkeypatch.setattr(prep_bytes, "open_bytes", open_and_cut)
    with pytest.raises(InputError, match="became shorter"):
        prepare(file, tmp_path / "store", options=PrepOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_store_is_replaced_only_when_asked(tmp_path: Path, recordings_folder: Path) -> None:
    file = noise(tmp_path / "file", 1000)
    first = prepare(file, tmp_path / "store", options=PrepOptions())
    with pytest.raises(InputError, match="the same options"):
        prepare(file, tmp_path / "store", options=PrepOptions())
    with pytest.raises(InputError, match=r"test_fraction=0.05 there, 0.1 here"):
        prepare(file, tmp_path / "store", options=PrepOptions(test_fraction=0.1))
    with pytest.raises(InputError, match="corpus='bytes' there, 'folder' here"):
        skeleton.prepare(CORPUS, recordings_folder, tmp_path / "store")
    assert prepare(file, tmp_path / "store", options=PrepOptions(overwrite=True))["digest"] == first["digest"]
    file.write_bytes(b"something else")
    assert prepare(file, tmp_path / "store", options=PrepOptions(overwrite=True))["digest"] != first["digest"]


def test_a_name_of_odd_bytes_is_kept_as_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\nb"))
    path.write_bytes(b"abcdef")
    prepare(path, tmp_path / "store", options=PrepOptions())
    assert TokenStore.open(tmp_path / "store").recordings("test")[0].source == "a\\xff\nb"
