"""LibriSpeech: a transcript for each chapter, official splits, subsets, and what is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.errors import InputError, MissingError
from data_prep.librispeech import CORPUS, gather
from data_prep.options import PrepOptions
from data_prep.source import Source
from tests.data_prep.replicas import stored, write_audio, write_text

RECORDINGS = {
    "dev-clean/84/121123": ("84-121123-0000", "84-121123-0001"),
    "test-clean/1089/134686": ("1089-134686-0000",),
    "train-clean-100/103/1240": ("103-1240-0000", "103-1240-0001", "103-1240-0002"),
    "train-clean-100/103/1241": ("103-1241-0000",),
    "train-clean-100/19/198": ("19-198-0000",),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As the archives unpack."""
    root = tmp_path / "LibriSpeech"
    for name in ("BOOKS.TXT", "CHAPTERS.TXT", "LICENSE.TXT", "README.TXT"):
        write_text(root / name, "not read")
    write_text(root / "SPEAKERS.TXT", "; some pipe-separated information\n19   | F | train-clean-100  | 25.19 | Kara\n")
    for folder, names in RECORDINGS.items():
        speaker, chapter = folder.split("/")[1:]
        for name in names:
            write_audio(root / folder / f"{name}.flac", rate_hz=16_000)
        lines = "".join(f"{name} CHAPTER {index} GO DO YOU HEAR\n" for index, name in enumerate(names))
        write_text(root / folder / f"{speaker}-{chapter}.trans.txt", lines)
    return root


def test_recordings_are_in_reading_order_with_texts_and_official_splits(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions())
    assert [(each.name, each.speaker, each.split) for each in gathered.candidates] == [
        ("84-121123-0000", "84", "validation"),
        ("84-121123-0001", "84", "validation"),
        ("1089-134686-0000", "1089", "test"),
        # As numbers: 19 comes before 103.
        ("19-198-0000", "19", "train"),
        ("103-1240-0000", "103", "train"),
        ("103-1240-0001", "103", "train"),
        ("103-1240-0002", "103", "train"),
        ("103-1241-0000", "103", "train"),
    ]
    assert gathered.candidates[1].text == "CHAPTER 1 GO DO YOU HEAR"
    assert gathered.candidates[1].path == "dev-clean/84/121123/84-121123-0001.flac"
    assert gathered.rejects == []
    assert gathered.notes == []


def test_subsets_choose_and_the_folder_around_it_will_do(root: Path) -> None:
    options = PrepOptions(subsets=("test-clean", "dev-clean"))
    gathered = gather(Source(str(root.parent)), options)
    assert [each.name for each in gathered.candidates] == ["84-121123-0000", "84-121123-0001", "1089-134686-0000"]
    assert gathered.candidates[0].path == "LibriSpeech/dev-clean/84/121123/84-121123-0000.flac"


def test_missing_recordings_and_transcripts_are_named(root: Path) -> None:
    (root / "train-clean-100/103/1240/103-1240-0001.flac").unlink()
    (root / "train-clean-100/103/1241/103-1241-0000.flac").unlink()
    (root / "train-clean-100/19/198/19-198.trans.txt").unlink()
    write_audio(root / "train-clean-100/19/198/noise.flac", rate_hz=16_000)
    gathered = gather(Source(str(root)), PrepOptions(subsets=("train-clean-100",)))
    assert [(each.name, each.text) for each in gathered.candidates] == [
        ("19-198-0000", None),
        ("103-1240-0000", "CHAPTER 0 GO DO YOU HEAR"),
        ("103-1240-0002", "CHAPTER 2 GO DO YOU HEAR"),
    ]
    assert {each.source: each.reason for each in gathered.rejects} == {
        "train-clean-100/19/198/noise.flac": "unexpected name",
        "train-clean-100/103/1240/103-1240-0001": "missing",
        "train-clean-100/103/1241/103-1241-0000": "missing",
    }
    assert "1 chapters of train-clean-100 have no transcript, such as 19/198." in gathered.notes


def test_without_all_three_official_splits_they_are_left_to_be_drawn(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions(subsets=("train-clean-100", "dev-clean")))
    assert {each.split for each in gathered.candidates} == {None}
    assert gathered.notes == [
        "dev-clean, train-clean-100 are not all of train, dev and test, so the splits are drawn and not official."
    ]


def test_a_subset_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(
        MissingError, match=r"train-other-500 must be in .*holds dev-clean, test-clean, train-clean-100"
    ):
        gather(Source(str(root)), PrepOptions(subsets=("dev-clean", "train-other-500")))


def test_another_folder_is_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be the folder LibriSpeech, or the one around it"):
        gather(Source(str(root / "dev-clean")), PrepOptions())
    write_audio(tmp_path / "LibriTTS/dev-clean/84/121123/84_121123_000007_000001.wav", rate_hz=24_000)
    with pytest.raises(InputError, match=r"no recordings named as those of LibriSpeech"):
        gather(Source(str(tmp_path / "LibriTTS")), PrepOptions())


def test_the_command_stores_them(command: Callable[..., int], root: Path, tmp_path: Path) -> None:
    assert command("prep", "librispeech", root, "--out", tmp_path / "store", "--jobs", "1") == 0
    recordings = stored(tmp_path / "store")
    assert [name for name, (split, _) in recordings.items() if split != "train"] == [
        "84-121123-0000",
        "84-121123-0001",
        "1089-134686-0000",
    ]
    assert recordings["1089-134686-0000"] == ("test", "CHAPTER 0 GO DO YOU HEAR")


def test_it_is_declared_whole() -> None:
    assert CORPUS.defaults == {"sample_rate_hz": 16_000}
    assert set(CORPUS.archives) == set(CORPUS.subsets)
    assert CORPUS.archives["dev-clean"][0].url == "https://www.openslr.org/resources/12/dev-clean.tar.gz"
