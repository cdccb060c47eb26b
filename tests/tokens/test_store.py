"""The token store: whole or absent, one writer at a time, and no changed byte goes unnoticed."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audio_ct.errors import DamagedError, InputError, MissingError
from audio_ct.tokens.clip import ClipStore
from audio_ct.tokens.codec import ByteCodec, MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder

CODEC = MuLawCodec(24_000, 8)


def shard(seed: int, lengths: list[int], bits: int = 8) -> tuple[np.ndarray, list[Recording]]:
    offsets = np.cumsum([0, *lengths])
    tokens = np.random.default_rng(seed).integers(0, 2**bits, offsets[-1]).astype(np.uint8 if bits <= 8 else np.uint16)
    rows = [
        Recording(f"r{seed}/{index}", "anna", f"r{seed}/{index}.wav", "a\nb" if index else None, 0, int(offset), length)
        for index, (offset, length) in enumerate(zip(offsets[:-1], lengths, strict=True))
    ]
    return tokens, rows


def build(path: Path, bits: int = 8, overwrite: bool = False, seed: int = 0) -> TokenStore:
    with TokenStoreBuilder(path, MuLawCodec(24_000, bits), overwrite=overwrite) as builder:
        builder.metadata["note"] = 1
        for split, number in (("train", 1), ("train", 2), ("validation", 3), ("test", 4)):
            builder.add_shard(split, *shard(seed + number, [number, 50, 7], bits))
        return builder.commit()


@pytest.mark.parametrize("bits", [1, 8, 9, 16])
def test_what_goes_in_comes_out(tmp_path: Path, bits: int) -> None:
    store = build(tmp_path / "store", bits)
    assert (store.codec, store.vocabulary_size) == (MuLawCodec(24_000, bits), 2**bits)
    assert store.splits == ("train", "validation", "test")
    assert store.num_tokens("train") == 58 + 59
    assert store.corpus["note"] == 1
    for number, first in ((1, 0), (2, 3)):
        tokens, rows = shard(number, [number, 50, 7], bits)
        for index, row in enumerate(rows):
            found = store.recordings("train")[first + index]
            assert (found.name, found.text, found.offset, found.length) == (row.name, row.text, row.offset, row.length)
            expected = tokens[row.offset : row.offset + row.length]
            for key in (found, first + index):
                got = store.tokens("train", key)
                assert got.dtype == (np.uint8 if bits <= 8 else np.uint16)
                np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(store.tokens("train", found, 1, row.length), expected[1:])
    store.verify()
    with pytest.raises(InputError, match="train, validation, test"):
        store.recordings("dev")
    with pytest.raises(InputError, match="50 tokens"):
        store.tokens("train", 1, 5, 51)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    first, same, other = (build(tmp_path / name, seed=seed).digest for name, seed in (("a", 0), ("b", 0), ("c", 10)))
    assert first == same != other


def test_a_store_of_waveforms_is_written_as_before_there_were_bytes(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    assert store.digest == "10e73dc1aa13d0c9aabe53496d6be4033f74a82c32fff106fcbb300e63949994"
    assert store.start_token == 128


def build_bytes(path: Path) -> TokenStore:
    with TokenStoreBuilder(path, ByteCodec()) as builder:
        builder.add_shard("train", *shard(0, [30, 40]))
        return builder.commit()


def test_a_store_of_bytes(tmp_path: Path) -> None:
    build_bytes(tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    assert (store.codec, store.start_token) == (ByteCodec(), 0)
    np.testing.assert_array_equal(store.tokens("train", 1), shard(0, [30, 40])[0][30:])
    with pytest.raises(InputError, match=r"corpus.clip_seconds=1.0: .* holds bytes"):
        ClipStore.open_clip(tmp_path / "store", 1.0)


@pytest.mark.fault("damaged store")
@pytest.mark.parametrize("bits", [8, 12])
def test_every_changed_bit_and_length_is_noticed(tmp_path: Path, bits: int) -> None:
    whole = tmp_path / "whole"
    build(whole, bits)
    files = sorted(file.name for file in whole.iterdir())
    assert len(files) == 9
    generator = np.random.default_rng(bits)
    for round_ in range(100):
        name = files[round_ % len(files)]
        mutated = tmp_path / "mutated"
        shutil.copytree(whole, mutated)
        content = bytearray((mutated / name).read_bytes())
        kind = ("flip", "cut", "grow", "remove")[round_ // len(files) % 4]
        if kind == "flip":
            content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        elif kind == "cut":
            del content[int(generator.integers(len(content))) :]
        elif kind == "grow":
            content += b"\0"
        (mutated / name).write_bytes(content)
        if kind == "remove":
            (mutated / name).unlink()
        damaged = kind == "remove" or content.strip() != (whole / name).read_bytes().strip()
        with pytest.raises((DamagedError, MissingError)) if damaged else contextlib.nullcontext() as caught:
            TokenStore.open(mutated).verify()
        if damaged:
            assert len(str(caught.value).splitlines()) == 1
            assert name.removesuffix(".sha256") in str(caught.value) or "version" in str(caught.value)
        shutil.rmtree(mutated)


@pytest.mark.fault("damaged store")
def test_what_describes_the_corpus_is_covered_too(tmp_path: Path) -> None:
    corpus = build(tmp_path / "store").corpus
    (tmp_path / "store/report.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    content = json.dumps(corpus | {"files": {"report.json": digest}}).encode()
    (tmp_path / "store/corpus.json").write_bytes(content)
    (tmp_path / "store/corpus.json.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    TokenStore.open(tmp_path / "store").verify()
    (tmp_path / "store/report.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"report\.json"):
        TokenStore.open(tmp_path / "store").verify()
    (tmp_path / "store/report.json").unlink()
    with pytest.raises(DamagedError, match=r"report\.json"):
        TokenStore.open(tmp_path / "store").verify()


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audio_ct.tokens.store.MAX_MAPS", 4)
    with TokenStoreBuilder(tmp_path / "store", CODEC) as builder:
        for seed in range(50):
            builder.add_shard("train", *shard(seed, [5, 6]))
        store = builder.commit()
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(100), *range(100)]:
        seed, second = divmod(index, 2)
        expected = shard(seed, [5, 6])[0]
        np.testing.assert_array_equal(store.tokens("train", index), expected[5:] if second else expected[:5])
        assert len(os.listdir("/proc/self/fd")) <= before + 4


def forge(store: Path, content: bytes) -> str:
    """Give a store another manifest, with a fitting hash as someone who means harm would write it; its refusal."""
    (store / "corpus.json").write_bytes(content)
    (store / "corpus.json.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    with pytest.raises(DamagedError) as caught:
        TokenStore.open(store)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.fault("hostile manifest")
def test_a_forged_manifest_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "store")
    corpus = json.loads((tmp_path / "store/corpus.json").read_text())
    train = corpus["splits"]["train"]
    for change in (
        *({"file": name} for name in ("../secret.bin", "/etc/passwd", "a\0.bin", "a\n.bin")),
        {"num_tokens": -1},
        {"num_tokens": 10**12},
        {"num_tokens": 10**30},
    ):
        forged = train | {"shards": [train["shards"][0] | change, *train["shards"][1:]]}
        forge(tmp_path / "store", json.dumps(corpus | {"splits": corpus["splits"] | {"train": forged}}).encode())
    for change in (
        {"splits": corpus["splits"] | {"train": train | {"num_tokens": 5}}},
        {"splits": corpus["splits"] | {"../train": {}}},
        {"splits": {}},
        {"files": {"../secret": "0" * 64}},
        {"files": {"report.json": "0"}},
        {"bits": 17},
        {"bits": "8"},
        {"sample_rate_hz": 0},
        {"sample_rate_hz": 10**12},
        {"sample_rate_hz": None},
        {"encoding": "bytes"},
        {"format_version": 2},
        {"format": "something else"},
    ):
        forge(tmp_path / "store", json.dumps(corpus | change).encode())
    for nonsense in (b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}'):
        forge(tmp_path / "store", nonsense)


@pytest.mark.fault("hostile manifest")
@pytest.mark.parametrize(("bits", "said"), [(8, 4), (16, 12)])
def test_tokens_beyond_the_bits_that_a_forged_manifest_says_are_refused(tmp_path: Path, bits: int, said: int) -> None:
    build(tmp_path / "store", bits)
    corpus = json.loads((tmp_path / "store/corpus.json").read_text())
    content = json.dumps(corpus | {"bits": said}).encode()
    (tmp_path / "store/corpus.json").write_bytes(content)
    (tmp_path / "store/corpus.json.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    store = TokenStore.open(tmp_path / "store")
    for read in (store.verify, lambda: store.tokens("train", 1)):
        with pytest.raises(
            DamagedError, match=rf"train-00000.bin' holds the token \d+, bits={said} go up to"
        ) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.fault("hostile manifest")
def test_a_forged_table_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "store")
    path = tmp_path / "store/recordings-train.jsonl"
    whole, corpus = path.read_bytes(), json.loads((tmp_path / "store/corpus.json").read_text())
    for content in (
        *(b"", b"null\n" * 6, b"null" + whole, whole + whole, whole[: whole.rindex(b"{")], b"[" * 100_000),
        whole.replace(b'"shard": 1', b'"shard": 4294967297'),
        whole.replace(b'"length": 50', b'"length": 51', 1),
        whole.replace(b'"offset": 0', b'"offset": -1', 1),
        whole.replace(b'"offset": 0', b'"offset": 0, "more": 0', 1),
        whole.replace(b'"speaker": "anna", ', b"", 1),
    ):
        path.write_bytes(content)
        train = corpus["splits"]["train"] | {"recordings_sha256": hashlib.sha256(content).hexdigest()}
        manifest = corpus | {"splits": corpus["splits"] | {"train": train}}
        assert "recordings-train.jsonl" in forge(tmp_path / "store", json.dumps(manifest).encode())


@pytest.mark.fault("hostile manifest")
def test_what_tokens_stand_for_must_fit(tmp_path: Path) -> None:
    corpus = build_bytes(tmp_path / "store").corpus
    wrong = [{"encoding": "words"}, {"encoding": None}, {"encoding": "mu-law"}, {"sample_rate_hz": 24_000}, {"bits": 9}]
    for change in wrong:
        message = forge(tmp_path / "store", json.dumps(corpus | change).encode())
        assert re.search(r": encoding: .*; prepare the store again\.$", message)


@pytest.mark.fault("hostile manifest")
def test_links_out_of_the_store_are_refused(tmp_path: Path) -> None:
    build(tmp_path / "store")
    file = tmp_path / "store/train-00001.bin"
    shutil.move(file, tmp_path / "elsewhere.bin")
    file.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(DamagedError, match=r"train-00001\.bin"):
        TokenStore.open(tmp_path / "store")


@pytest.mark.fault("damaged store")
def test_a_shard_cut_after_opening_is_an_error_not_a_bus_error(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    os.truncate(tmp_path / "store/train-00000.bin", 10)
    with pytest.raises(DamagedError, match=r"train-00000\.bin"):
        store.tokens("train", 0)


def add_and_fail(path: Path) -> None:
    with TokenStoreBuilder(path, CODEC) as builder:
        builder.add_shard("train", *shard(0, [5]))
        raise ZeroDivisionError


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        add_and_fail(tmp_path / "store")
    assert not list(tmp_path.iterdir())
    with (
        TokenStoreBuilder(tmp_path / "s", CODEC) as builder,
        pytest.raises(InputError, match="no recordings"),
    ):
        builder.commit()
    assert not list(tmp_path.iterdir())


def test_only_stores_are_overwritten_and_only_when_asked(tmp_path: Path) -> None:
    first = build(tmp_path / "store")
    with pytest.raises(InputError, match="exists already"):
        build(tmp_path / "store", seed=10)
    assert TokenStore.open(tmp_path / "store").digest == first.digest
    assert build(tmp_path / "store", overwrite=True, seed=10).digest != first.digest
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="no token store"):
        build(tmp_path / "home", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "store"]
    with pytest.raises(InputError, match="cannot be made"):
        build(tmp_path / "home/letter.txt/store")


@pytest.mark.fault("two at once")
def test_two_builders_of_one_store(tmp_path: Path) -> None:
    with TokenStoreBuilder(tmp_path / "store", CODEC) as first:
        first.add_shard("train", *shard(0, [5]))
        with pytest.raises(InputError, match=f"being prepared by process {os.getpid()} on "):
            build(tmp_path / "store")
        first.commit()
    assert TokenStore.open(tmp_path / "store").num_tokens("train") == 5


@pytest.mark.fault("killed preparation")
def test_a_killed_builder_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom audio_ct.tokens.codec import MuLawCodec\n"
        "from audio_ct.tokens.store_builder import TokenStoreBuilder\n"
        "with TokenStoreBuilder(sys.argv[1], MuLawCodec(24000, 8)) as builder:\n"
        "    (builder.work_folder / 'half.bin').write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "store"], check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".store.partial"]
    build(tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(list((tmp_path / "store").iterdir())) == 9


@pytest.mark.fault("killed preparation")
def test_a_kill_between_the_renames_of_an_overwrite_loses_nothing(tmp_path: Path) -> None:
    digest = build(tmp_path / "store").digest
    os.rename(tmp_path / "store", tmp_path / ".store.replaced")
    with pytest.raises(InputError, match="exists already"):
        build(tmp_path / "store", seed=10)
    assert TokenStore.open(tmp_path / "store").digest == digest


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokens, rows = shard(0, [5, 6])
    with TokenStoreBuilder(tmp_path / "store", MuLawCodec(24_000, 4)) as builder:
        with pytest.raises(InputError, match="0 to 15"):
            builder.add_shard("train", np.full(11, 16, np.uint8), rows)
        for wrong in (rows[:1], rows[1:], rows[::-1], []):
            with pytest.raises(InputError, match="11 tokens"):
                builder.add_shard("train", tokens % 16, wrong)


def test_a_path_without_a_store_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MissingError, match=r"corpus\.json"):
            TokenStore.open(path)
