"""Hi-Fi TTS: manifests of JSON lines, official splits that share speakers, and manifests that are damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.errors import InputError
from data_prep.hi_fi_tts import CORPUS, gather
from data_prep.options import PrepOptions
from data_prep.source import Source
from tests.data_prep.replicas import stored, write_audio, write_text

MANIFESTS = {
    "92_manifest_clean_train.json": (
        "92_clean/13214/elizabethgarden_10_anonymous_0000",
        "92_clean/13214/elizabethgarden_10_anonymous_0002",
        "92_clean/5535/prisonerofzenda_01_hope_0000",
    ),
    "92_manifest_clean_dev.json": ("92_clean/13214/elizabethgarden_10_anonymous_0001",),
    "92_manifest_clean_test.json": ("92_clean/5535/prisonerofzenda_01_hope_0001",),
    "11614_manifest_other_train.json": ("11614_other/10547/thousandnights8_11_anonymous_0069",),
    "11614_manifest_other_dev.json": ("11614_other/10547/thousandnights8_11_anonymous_0070",),
    "11614_manifest_other_test.json": ("11614_other/12693/thousandnights9_02_anonymous_0001",),
    "6670_manifest_other_train.json": ("6670_other/11017/clockwork_03_smith_0003",),
}


def row(name: str) -> str:
    texts = {
        "text": "chapter four wasnt it",
        "text_no_preprocessing": "Chapter 4. \"Wasn't it",
        "text_normalized": "Chapter four. \"Wasn't it",
    }
    return json.dumps({"audio_filepath": f"audio/{name}.flac", "duration": 0.2} | texts) + "\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As hi_fi_tts_v0.tar.gz unpacks."""
    root = tmp_path / "hi_fi_tts_v0"
    for manifest, names in MANIFESTS.items():
        write_text(root / manifest, "".join(map(row, names)))
        for name in names:
            write_audio(root / f"audio/{name}.flac", rate_hz=44_100)
    for name in ("LICENSE.txt", "books_bandwidth.tsv", "readers_books_clean.txt"):
        write_text(root / name, "not read")
    return root


def test_recordings_are_in_reading_order_with_texts_and_official_splits(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions())
    assert [(each.name, each.speaker, each.split) for each in gathered.candidates] == [
        ("92_clean/5535/prisonerofzenda_01_hope_0000", "92", "train"),
        ("92_clean/5535/prisonerofzenda_01_hope_0001", "92", "test"),
        ("92_clean/13214/elizabethgarden_10_anonymous_0000", "92", "train"),
        ("92_clean/13214/elizabethgarden_10_anonymous_0001", "92", "validation"),
        ("92_clean/13214/elizabethgarden_10_anonymous_0002", "92", "train"),
        ("6670_other/11017/clockwork_03_smith_0003", "6670", "train"),
        ("11614_other/10547/thousandnights8_11_anonymous_0069", "11614", "train"),
        ("11614_other/10547/thousandnights8_11_anonymous_0070", "11614", "validation"),
        ("11614_other/12693/thousandnights9_02_anonymous_0001", "11614", "test"),
    ]
    assert {each.text for each in gathered.candidates} == {"Chapter four. \"Wasn't it"}
    assert gathered.candidates[0].path == "audio/92_clean/5535/prisonerofzenda_01_hope_0000.flac"
    assert gathered.rejects == []
    assert [note for note in gathered.notes if "share their speakers" in note] == gathered.notes


def test_a_quality_is_a_subset_and_the_folder_around_it_will_do(root: Path) -> None:
    gathered = gather(Source(str(root.parent)), PrepOptions(subsets=("clean",)))
    assert {each.speaker for each in gathered.candidates} == {"92"}
    assert len(gathered.candidates) == 5
    assert gathered.candidates[0].path == "hi_fi_tts_v0/audio/92_clean/5535/prisonerofzenda_01_hope_0000.flac"
    assert len(gathered.notes) == 1


def test_what_is_missing_named_twice_or_not_at_all_is_told(root: Path) -> None:
    (root / "audio/92_clean/13214/elizabethgarden_10_anonymous_0002.flac").unlink()
    write_audio(root / "audio/92_clean/5535/prisonerofzenda_01_hope_0009.flac", rate_hz=44_100)
    with (root / "92_manifest_clean_train.json").open("a") as manifest:
        manifest.write("\n" + row("92_clean/5535/prisonerofzenda_01_hope_0001") + row("../../etc/passwd"))
    gathered = gather(Source(str(root)), PrepOptions(subsets=("clean",)))
    assert {each.source: each.reason for each in gathered.rejects} == {
        "audio/92_clean/13214/elizabethgarden_10_anonymous_0002.flac": "missing",
        "audio/92_clean/5535/prisonerofzenda_01_hope_0001.flac": "duplicate",
        "audio/../../etc/passwd.flac": "missing",
    }
    assert {each.name: each.split for each in gathered.candidates}[
        "92_clean/5535/prisonerofzenda_01_hope_0001"
    ] == "test"
    assert "1 recordings are in no manifest and were left out" in gathered.notes[1]


def test_another_format_keeps_the_names(root: Path) -> None:
    before = gather(Source(str(root)), PrepOptions())
    for path in (root / "audio").rglob("*.flac"):
        write_audio(path.with_suffix(".wav"), rate_hz=44_100)
        path.unlink()
    after = gather(Source(str(root)), PrepOptions())
    assert [each.name for each in after.candidates] == [each.name for each in before.candidates]
    assert after.rejects == []


@pytest.mark.parametrize("damage", ["no manifests", "no audio", "cut off", "no object"])
def test_what_cannot_be_used_is_refused_in_one_line(root: Path, damage: str) -> None:
    manifest = root / "92_manifest_clean_train.json"
    if damage == "no manifests":
        for path in root.glob("*.json"):
            path.unlink()
    elif damage == "no audio":
        (root / "audio").rename(root / "elsewhere")
    else:
        manifest.write_text({"cut off": manifest.read_text()[:-40], "no object": "[1]\n"}[damage])
    with pytest.raises(InputError) as caught:
        gather(Source(str(root)), PrepOptions())
    assert str(root) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_stores_them(command: Callable[..., int], root: Path, tmp_path: Path) -> None:
    assert command("prep", "hi-fi-tts", root, "--out", tmp_path / "store", "--jobs", "1") == 0
    recordings = stored(tmp_path / "store")
    assert [split for split, _ in recordings.values()] == ["train"] * 5 + ["validation"] * 2 + ["test"] * 2
    assert recordings["92_clean/5535/prisonerofzenda_01_hope_0001"] == ("test", "Chapter four. \"Wasn't it")


def test_it_is_declared_whole() -> None:
    assert CORPUS.subsets == ("clean", "other")
    assert not CORPUS.archives
    assert "hi_fi_tts_v0.tar.gz" in CORPUS.instructions
