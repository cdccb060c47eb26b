"""Whole stores: what they hold in words, recordings back as files, merged stores, and parts of them."""

import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from audio_ct.corpora import shard_writer
from audio_ct.corpora.contents import describe
from audio_ct.corpora.export import export, export_speaker, find
from audio_ct.corpora.merging import merge
from audio_ct.corpora.subsets import subset
from audio_ct.errors import DamagedError, InputError
from audio_ct.tokens.codec import ByteCodec, Codec, MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder

RATE_HZ = 8000
SPLITS = {"train": 3, "validation": 1, "test": 1}

Key = tuple[str, str, str, str | None]


def build(
    path: Path,
    *,
    seed: int = 0,
    codec: Codec | None = None,
    names: str = "s",
    same_as: TokenStore | None = None,
    **about: object,
) -> TokenStore:
    """A store with three shards for training and one in each other split, of six recordings of three speakers each.

    With `same_as`, the second recording of every training shard is one of that store's test split.
    """
    random = np.random.default_rng(seed)
    codec = codec or MuLawCodec(RATE_HZ, 8)
    with TokenStoreBuilder(path, codec) as builder:
        builder.metadata |= about
        for split, number in SPLITS.items():
            for shard in range(number):
                pieces = [random.integers(0, codec.vocabulary_size, 800 + 100 * i + 7 * seed) for i in range(6)]
                if same_as is not None and split == "train":
                    pieces[1] = same_as.tokens("test", shard)
                offsets = np.cumsum([0, *map(len, pieces)])
                rows = [
                    Recording(
                        f"{split}/{names}{shard}{i}", f"{names}{i % 3}", "x.wav", None, 0, int(offset), len(piece)
                    )
                    for i, (offset, piece) in enumerate(zip(offsets, pieces, strict=False))
                ]
                tokens = np.concatenate(pieces).astype(np.uint8 if codec.bits <= 8 else np.uint16)
                builder.add_shard(split, tokens, rows)
        return builder.commit()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    about = {"corpus": "birds", "licence": "CC0-1.0", "citation": "A. Bird (2020)", "preparation": {"bits": 8}}
    return build(tmp_path_factory.mktemp("corpora") / "birds", **about)


def everything(store: TokenStore) -> dict[Key, bytes]:
    """The tokens of all recordings by split, name, speaker and text."""
    found = {
        (split, recording.name, recording.speaker, recording.text): store.tokens(split, recording).tobytes()
        for split in store.splits
        for recording in store.recordings(split)
    }
    assert len(found) == sum(len(store.recordings(split)) for split in store.splits)
    return found


def test_what_is_in_a_store(store: TokenStore, tmp_path: Path) -> None:
    assert list(describe(store)) == [
        "train: 18 recordings, 2.4 seconds, 3 speakers, 0.0 MB in 3 shards",
        "  by speaker: 's2' 0.9 seconds, 's1' 0.8 seconds, 's0' 0.7 seconds",
        "validation: 6 recordings, 0.8 seconds, 3 speakers, 0.0 MB in 1 shard",
        "  by speaker: 's2' 0.3 seconds, 's1' 0.3 seconds, 's0' 0.2 seconds",
        "test: 6 recordings, 0.8 seconds, 3 speakers, 0.0 MB in 1 shard",
        "  by speaker: 's2' 0.3 seconds, 's1' 0.3 seconds, 's0' 0.2 seconds",
        f"8000 Hz, 8 bit mu-law, digest {store.digest[:16]}",
        "corpus: birds",
        "licence: CC0-1.0",
        "citation: A. Bird (2020)",
        "preparation: bits=8",
    ]
    tokens = np.zeros(800 * 3600 * 9, dtype=np.uint8)
    lengths = [800 * 3600, *[800 * 60 * k for k in range(1, 8)]]
    lengths.append(len(tokens) - sum(lengths))
    with TokenStoreBuilder(tmp_path / "odd", MuLawCodec(800, 8)) as builder:
        builder.metadata |= {
            "licence": None,
            "sources": [{"name": "a\nb"}, {"name": "c", "parts": ["x", 1]}],
            "ok": True,
        }
        offsets = np.cumsum([0, *lengths])
        rows = [
            Recording(str(i), f"{i}\u202e", "x", None, 0, int(offset), length)
            for i, (offset, length) in enumerate(zip(offsets, lengths, strict=False))
        ]
        builder.add_shard("train", tokens, rows)
        odd = builder.commit()
    assert list(describe(odd)) == [
        "train: 9 recordings, 9.0 hours, 9 speakers, 25.9 MB in 1 shard",
        r"  most by '8\u202e' 7.5 hours, '0\u202e' 60.0 minutes, '7\u202e' 7.0 minutes; "
        r"least by '3\u202e' 3.0 minutes, '2\u202e' 2.0 minutes, '1\u202e' 60.0 seconds",
        f"800 Hz, 8 bit mu-law, digest {odd.digest[:16]}",
        "licence: not stated",
        r"sources: name='a\nb'",
        "sources: name=c, parts=[x, 1]",
        "ok: yes",
    ]


def test_a_recording_comes_back_as_it_was_heard(store: TokenStore, tmp_path: Path) -> None:
    assert find(store, "train/s12") == find(store, "train/s12", "train") == ("train", 8)
    for suffix in ("wav", "flac"):
        out = export(store, "train", 8, tmp_path / f"a.{suffix}")
        waveform, rate_hz = soundfile.read(out, dtype="float32")
        assert rate_hz == RATE_HZ
        np.testing.assert_array_equal(store.codec.encode(waveform), store.tokens("train", 8))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="exists already"):
        export(store, "train", 8, tmp_path / "a.wav")
    export(store, "train", 0, tmp_path / "a.wav", overwrite=True)
    assert soundfile.info(tmp_path / "a.wav").frames == 800
    for wrong, message in (("a", "format=''"), ("a.exe", "no audio format"), ("no/a.wav", "cannot be written")):
        with pytest.raises(InputError, match=message):
            export(store, "train", 0, tmp_path / wrong)
    for index in (-1, 18):
        with pytest.raises(InputError, match="recordings 0 to 17"):
            export(store, "train", index, tmp_path / "b.wav")
    with pytest.raises(InputError, match=r"'train/s12' is not in test of .*; names are like 'test/s00'"):
        find(store, "train/s12", "test")


def test_a_long_recording_is_exported_in_pieces(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(store, "test", 5, tmp_path / "whole.wav").read_bytes()
    monkeypatch.setattr("audio_ct.corpora.export.TOKENS_AT_ONCE", 77)
    assert export(store, "test", 5, tmp_path / "pieces.wav").read_bytes() == whole


def test_all_of_a_speaker(store: TokenStore, tmp_path: Path) -> None:
    files = export_speaker(store, "s1", tmp_path / "s1", file_format="flac")
    assert len(files) == len(list((tmp_path / "s1").iterdir())) == 10
    assert files[0] == tmp_path / "s1/train-000001-train_s01.flac"
    assert soundfile.info(files[-1]).frames == 1200
    files = export_speaker(store, "s1", tmp_path / "test", split="test")
    assert [file.name for file in files] == ["test-000001-test_s01.wav", "test-000004-test_s04.wav"]
    with pytest.raises(InputError, match="speaker='nobody'"):
        export_speaker(store, "nobody", tmp_path / "nobody")
    assert not (tmp_path / "nobody").exists()


def test_names_lead_nowhere_and_may_be_double(tmp_path: Path) -> None:
    names = ["../../up", "/etc/passwd", "a\0b\n", "x" * 300, "same", "same"]
    with TokenStoreBuilder(tmp_path / "store", ByteCodec()) as builder:
        rows = [Recording(name, "me", "x", None, 0, i, 1) for i, name in enumerate(names)]
        builder.add_shard("train", np.frombuffer(b"abcdef", np.uint8), rows)
        odd = builder.commit()
    files = export_speaker(odd, "me", tmp_path / "out")
    assert [file.read_bytes() for file in files] == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert {file.parent for file in files} == {tmp_path / "out"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]
    with pytest.raises(InputError, match="several recordings: train 4, train 5"):
        find(odd, "same")
    with pytest.raises(InputError, match="txt or bin"):
        export(odd, "train", 0, tmp_path / "a.wav")


def test_stores_are_merged_split_by_split(store: TokenStore, tmp_path: Path) -> None:
    other = build(tmp_path / "frogs", seed=1, names="f", licence="MIT", synthetic=True, corpus="frogs")
    merged = merge([store, other], tmp_path / "both")
    assert (merged.num_left_out, merged.renamed, merged.speakers_in_several_splits) == (0, False, ())
    both = merged.store
    both.verify()
    assert everything(both) == everything(store) | everything(other)
    names = [*store.recordings("train").names, *other.recordings("train").names]
    assert both.recordings("train").names == names, "in the order of the stores"
    # Shards are the same files: they take no space again.
    for split in SPLITS:
        of_both = [*store.shards(split), *other.shards(split)]
        assert [shard.sha256 for shard in both.shards(split)] == [shard.sha256 for shard in of_both]
    assert os.path.samefile(both.files.path(both.shards("train")[4]), tmp_path / "frogs/train-00001.bin")
    about = both.corpus
    assert (about["corpus"], about["licence"], about["citation"]) == ("merge", "CC0-1.0 AND MIT", "A. Bird (2020)")
    assert about["synthetic"] is True
    assert about["merge"] == {"left_out": 0, "names_with_store": False}
    assert [source["digest"] for source in about["sources"]] == [store.digest, other.digest]
    assert about["sources"][0] | {"name": "birds", "corpus": "birds", "licence": "CC0-1.0"} == about["sources"][0]
    assert merge([store, other], tmp_path / "again").store.digest == both.digest
    with pytest.raises(InputError, match="exists already"):
        merge([store, other], tmp_path / "both")
    assert merge([other, store], tmp_path / "both", overwrite=True).store.digest != both.digest


def test_names_that_clash_get_their_stores_in_front(store: TokenStore, tmp_path: Path) -> None:
    other = build(tmp_path / "more/birds", seed=1)
    merged = merge([store, other, build(tmp_path / "cats", seed=2, names="c")], tmp_path / "all")
    assert merged.renamed
    assert merged.store.recordings("test").names == [
        *(f"birds-1/test/s0{i}" for i in range(6)),
        *(f"birds-2/test/s0{i}" for i in range(6)),
        *(f"cats/test/c0{i}" for i in range(6)),
    ]
    assert merged.store.corpus["licence"] == "CC0-1.0 AND not stated"


def test_what_is_held_out_is_not_trained_on(store: TokenStore, tmp_path: Path) -> None:
    other = build(tmp_path / "frogs", seed=1, names="f", same_as=store)
    merged = merge([other, store], tmp_path / "both")
    assert merged.num_left_out == merged.store.corpus["merge"]["left_out"] == 3
    left_out = {("train", f"train/f{shard}1", "f1", None) for shard in range(3)}
    expected = everything(store) | everything(other)
    assert everything(merged.store) == {key: value for key, value in expected.items() if key not in left_out}
    merged.store.verify()
    by_split = [
        {tokens for (split, *_), tokens in everything(merged.store).items() if split == name} for name in SPLITS
    ]
    assert len(set.union(*by_split)) == sum(map(len, by_split))
    # What was cut is in one shard: three times five recordings.
    assert [shard.num_bytes for shard in merged.store.shards("train")[1:]] == [
        s.num_bytes for s in store.shards("train")
    ]


def test_a_speaker_that_comes_into_a_second_split_is_named(store: TokenStore, tmp_path: Path) -> None:
    train, test = (subset(store, tmp_path / split, splits=[split]) for split in ("train", "test"))
    assert merge([train, test], tmp_path / "both").speakers_in_several_splits == ("s0", "s1", "s2")
    assert merge([train, store], tmp_path / "all").speakers_in_several_splits == ()


def test_a_split_of_which_nothing_is_left_is_refused(store: TokenStore, tmp_path: Path) -> None:
    with TokenStoreBuilder(tmp_path / "copy", MuLawCodec(RATE_HZ, 8)) as builder:
        builder.add_shard("train", store.tokens("test", 0), [Recording("a", "a", "a", None, 0, 0, 800)])
        copy = builder.commit()
    part = subset(store, tmp_path / "part", splits=["test"])
    with pytest.raises(InputError, match="split 'train' would be empty"):
        merge([copy, part], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    with pytest.raises(InputError, match="two or more different stores"):
        merge([store, TokenStore.open(store.address)], tmp_path / "both")
    coarse = build(tmp_path / "coarse", codec=MuLawCodec(RATE_HZ, 4))
    with pytest.raises(InputError, match=r"coarse.* holds 4-bit mu-law codes at 8,000 Hz"):
        merge([store, coarse], tmp_path / "both")


def test_damage_does_not_spread(store: TokenStore, tmp_path: Path) -> None:
    other = build(tmp_path / "frogs", seed=1, names="f")
    path = tmp_path / "frogs/train-00002.bin"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DamagedError, match=r"train-00002\.bin"):
        merge([store, other], tmp_path / "both")
    with pytest.raises(DamagedError, match=r"train-00002\.bin"):
        subset(other, tmp_path / "both", speakers=["f0"])
    assert not list(tmp_path.glob("*both*"))


def test_hours_are_taken_from_every_split_alike(tmp_path: Path) -> None:
    store = build(tmp_path / "store", seed=3)
    hours = {split: store.num_tokens(split) / RATE_HZ / 3600 for split in SPLITS}
    total = sum(hours.values())
    before: set[Key] = set()
    for share in (0.1, 0.3, 0.5, 0.9, 1.0):
        part = subset(store, tmp_path / f"part-{share}", hours=share * total)
        part.verify()
        for split in SPLITS:
            longest = 1321 / RATE_HZ / 3600
            assert 0 <= part.num_tokens(split) / RATE_HZ / 3600 - share * hours[split] < longest
        found = everything(part)
        assert found.items() <= everything(store).items()
        names = store.recordings("train").names
        assert part.recordings("train").names == [name for name in names if name in part.recordings("train").names]
        assert before <= set(found), "more hours take the same recordings, and others"
        before = set(found)
        assert part.corpus["subset_of"]["digest"] == store.digest
    assert everything(part) == everything(store)
    assert [shard.sha256 for shard in part.shards("train")] == [shard.sha256 for shard in store.shards("train")]
    for wrong in (0, -1, 2 * total, float("nan")):
        with pytest.raises(InputError, match=r"hours=.* must be above 0 and at most the"):
            subset(store, tmp_path / "wrong", hours=wrong)
    with pytest.raises(InputError, match="needs a choice"):
        subset(store, tmp_path / "wrong")


def test_speakers_and_splits_are_chosen(store: TokenStore, tmp_path: Path) -> None:
    part = subset(store, tmp_path / "two", speakers=["s0", "s2"], splits=["test", "train"])
    assert part.splits == ("test", "train")
    assert everything(part) == {
        key: value for key, value in everything(store).items() if key[0] != "validation" and key[2] != "s1"
    }
    expected = {"name": "birds", "digest": store.digest, "hours": None}
    assert part.corpus["subset_of"] == expected | {"splits": ["test", "train"], "speakers": ["s0", "s2"]}
    assert {key: part.corpus[key] for key in ("corpus", "licence", "citation", "preparation")} == {
        key: store.corpus[key] for key in ("corpus", "licence", "citation", "preparation")
    }
    one = subset(part, tmp_path / "one", splits=["test"], hours=0.0000001)
    assert (one.splits, len(one.recordings("test"))) == (("test",), 1)
    with pytest.raises(InputError, match="speakers='s3'"):
        subset(store, tmp_path / "wrong", speakers=["s0", "s3"])
    with pytest.raises(InputError, match="split='dev' is not in"):
        subset(store, tmp_path / "wrong", splits=["dev"])


def test_a_split_without_the_chosen_speaker_is_left_out(tmp_path: Path) -> None:
    with TokenStoreBuilder(tmp_path / "store", ByteCodec()) as builder:
        for split in ("train", "test"):
            row = Recording(split, f"of {split}", "x", None, 0, 0, 3)
            builder.add_shard(split, np.frombuffer(split[:3].encode(), np.uint8), [row])
        store = builder.commit()
    part = subset(store, tmp_path / "part", speakers=["of test"])
    assert part.splits == ("test",)
    with pytest.raises(InputError, match="holds bytes, which have no time"):
        subset(store, tmp_path / "wrong", hours=1)


@pytest.mark.parametrize("bits", [8, 12])
def test_shards_that_are_written_anew_have_a_size(tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_TOKENS", 3000)
    monkeypatch.setattr(shard_writer, "TOKENS_AT_ONCE", 100)
    store = build(tmp_path / "store", codec=MuLawCodec(RATE_HZ, bits))
    part = subset(store, tmp_path / "part", speakers=["s0", "s1"])
    part.verify()
    assert everything(part) == {key: value for key, value in everything(store).items() if key[2] != "s2"}
    assert all(shard.num_bytes <= 3000 * (1 + (bits > 8)) for shard in part.shards("train"))
    assert len(part.shards("train")) > 4


def test_links_are_copies_where_there_can_be_none(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    linked = subset(store, tmp_path / "linked", splits=["train"])
    monkeypatch.setattr(os, "link", refuse)
    copied = subset(store, tmp_path / "copied", splits=["train"])
    assert copied.digest == linked.digest
    assert (tmp_path / "copied/train-00000.bin").stat().st_nlink == 1
    copied.verify()


Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Shell:
    """`audio-ct corpus` in this process: (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = command("corpus", *arguments)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


def test_the_commands(shell: Shell, store: TokenStore, tmp_path: Path) -> None:
    status, shown, _ = shell(store.address)
    assert (status, shown.splitlines()[:-1]) == (0, list(describe(store)))
    assert shell("show", store.address) == (0, shown, "")
    for arguments in ((store.address, "--verify"), ("--verify", store.address)):
        status, out, _ = shell(*arguments)
        assert (status, out.splitlines()[-1]) == (0, "every shard is what was written")

    assert shell("export", store.address, "test/s03", "--out", tmp_path / "a.wav") == (0, f"{tmp_path / 'a.wav'}\n", "")
    place = ["--split", "test", "--index", 3, "--out", tmp_path / "b.wav"]
    assert shell("export", store.address, *place)[0] == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    speaker = ["--speaker", "s1", "--split", "test", "--format", "flac", "--out", tmp_path / "s1"]
    assert shell("export", store.address, *speaker) == (0, f"2 recordings: {tmp_path / 's1'}\n", "")
    for wrong, message in (
        ([], "name what to export"),
        (["test/s03", "--speaker", "s1"], "name what to export"),
        (["--index", 1], "name what to export"),
        (["test/s03", "--format", "wav"], "format='wav' is about --speaker"),
        (["nobody"], "name='nobody'"),
    ):
        status, _, err = shell("export", store.address, *wrong, "--out", tmp_path / "c.wav")
        assert (status, err.count("\n"), message in err) == (2, 1, True)

    part = tmp_path / "part"
    status, out, _ = shell("subset", store.address, "--speakers", "s0,s1", "--split", "train", "--out", part)
    assert (status, out) == (0, f"token store: {part}\n")
    assert TokenStore.open(part).recordings("train").speakers == ("s0", "s1")
    hours = ["--hours", 0.0003, "--out", part]
    assert shell("subset", store.address, *hours)[0] == 2
    assert shell("subset", store.address, *hours, "--overwrite")[0] == 0

    other = build(tmp_path / "more/birds", seed=1, same_as=store)
    status, out, _ = shell("merge", store.address, other.address, "--out", tmp_path / "both")
    assert status == 0
    assert out.splitlines() == [
        "3 recordings were left out, which are in a split that is held out more",
        "names clashed: each begins with its store's now",
        f"token store: {tmp_path / 'both'}",
    ]
    parts = [tmp_path / split for split in ("train", "test")]
    for path in parts:
        subset(store, path, splits=[path.name])
    status, out, _ = shell("merge", *parts, "--out", tmp_path / "again")
    assert out.startswith("warning: 3 speakers are in several splits now: 's0', 's1', 's2'\n")
    status, _, err = shell("merge", store.address, "--out", tmp_path / "one")
    assert (status, err.count("\n")) == (2, 1)


def test_the_page(shell: Shell, store: TokenStore, tmp_path: Path) -> None:
    pytest.importorskip("audio_ct.corpus_page")
    status, out, _ = shell("page", store.address, "--out", tmp_path / "page")
    assert status == 0
    assert Path(out.removeprefix("page: ").strip()).is_file()


def test_stores_elsewhere(shell: Shell, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = f"file://{store.address}"
    assert shell(there)[0] == 0
    other = build(tmp_path / "frogs", seed=1, names="f")
    assert shell("merge", there, other.address, "--out", "memory://corpora/both") == (
        *(0, "token store: memory://corpora/both\n", ""),
    )
    both = TokenStore.open("memory://corpora/both")
    both.verify()
    assert everything(both) == everything(store) | everything(other)
    assert both.digest == merge([store, other], tmp_path / "here").store.digest
    assert shell("export", both.address, "test/s03", "--out", tmp_path / "a.flac")[0] == 0
    assert shell("subset", both.address, "--speakers", "f0", "--out", tmp_path / "part")[0] == 0
    assert TokenStore.open(tmp_path / "part").recordings("test").names == ["test/f00", "test/f03"]
    fsspec.filesystem("memory").rm("/corpora", recursive=True)
