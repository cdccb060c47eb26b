"""LibriTTS and LibriTTS-R: tables with unbalanced quotes, gaps, hidden files, and lists of failed restorations."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.errors import InputError
from data_prep.libritts import LIBRITTS, LIBRITTS_R, gather, gather_restored
from data_prep.options import PrepOptions
from data_prep.source import Source
from tests.data_prep.replicas import stored, write_audio, write_text

# Name, text, normalised text, as in the chapters' tables.
ROWS = {
    "dev-clean/84/121123": (
        ("84_121123_000007_000001", "Maximilian.", "Maximilian."),
        ("84_121123_000008_000000", '"Villefort rose, half ashamed.', '"Villefort rose, half ashamed.'),
    ),
    "test-other/1688/142285": (("1688_142285_000000_000000", "Margaret said, 'No.'", "Margaret said, 'No.'"),),
    "train-clean-100/103/1240": (
        ("103_1240_000000_000001", "CHAPTER I.", "CHAPTER one."),
        ("103_1240_000001_000000", 'MRS. LYNDE said, "Yes', ""),
        ("103_1240_000003_000000", "It had its source away back.", "It had its source away back."),
    ),
    "train-clean-100/19/198": (("19_198_000000_000000", "NORTHANGER ABBEY", "NORTHANGER ABBEY"),),
}


def make(root: Path) -> Path:
    """A replica as the archives unpack, of LibriTTS or LibriTTS-R."""
    write_text(
        root / "SPEAKERS.txt", ";ID |SEX| SUBSET |MINUTES| NAME\n19 | F | train-clean-100 | 25.19 | Kara | Shall\n"
    )
    write_text(root / "speakers.tsv", "READER\tGENDER\tSUBSET\tNAME\n19\tF\ttrain-clean-100\tKara\tShallenberg\n\n")
    for folder, rows in ROWS.items():
        speaker, chapter = folder.split("/")[1:]
        for name, text, normalised in rows:
            write_audio(root / folder / f"{name}.wav", rate_hz=24_000)
            write_text(root / folder / f"{name}.original.txt", text)
            write_text(root / folder / f"{name}.normalized.txt", normalised)
        table = "".join("\t".join(row) + "\n" for row in rows)
        write_text(root / folder / f"{speaker}_{chapter}.trans.tsv", table)
        # Sentences that were left out are in it, recordings are not, and texts hold tabs.
        write_text(root / folder / f"{speaker}_{chapter}.book.tsv", '84_1_0_0\ta "tab\tmore\t20.5\n\n')
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "LibriTTS")


@pytest.fixture
def restored(tmp_path: Path) -> Path:
    return make(tmp_path / "LibriTTS_R")


def test_recordings_are_in_reading_order_with_normalised_texts_and_official_splits(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions())
    assert [(each.name, each.speaker, each.split, each.text) for each in gathered.candidates] == [
        ("84_121123_000007_000001", "84", "validation", "Maximilian."),
        ("84_121123_000008_000000", "84", "validation", '"Villefort rose, half ashamed.'),
        ("1688_142285_000000_000000", "1688", "test", "Margaret said, 'No.'"),
        ("19_198_000000_000000", "19", "train", "NORTHANGER ABBEY"),
        ("103_1240_000000_000001", "103", "train", "CHAPTER one."),
        ("103_1240_000001_000000", "103", "train", 'MRS. LYNDE said, "Yes'),
        ("103_1240_000003_000000", "103", "train", "It had its source away back."),
    ]
    assert gathered.candidates[0].path == "dev-clean/84/121123/84_121123_000007_000001.wav"
    assert {each.text_path for each in gathered.candidates} == {None}
    assert gathered.rejects == []
    assert gathered.notes == []


def test_a_recording_that_no_table_names_has_the_text_beside_it(root: Path) -> None:
    folder = root / "train-clean-100/103/1240"
    write_text(folder / "103_1240.trans.tsv", "103_1240_000000_000001\tCHAPTER I.\tCHAPTER one.\n")
    (root / "train-clean-100/19/198/19_198.trans.tsv").unlink()
    (root / "train-clean-100/19/198/19_198_000000_000000.normalized.txt").unlink()
    gathered = gather(Source(str(root.parent)), PrepOptions(subsets=("train-clean-100",)))
    prefix = "LibriTTS/train-clean-100/103/1240"
    assert [(each.text, each.text_path) for each in gathered.candidates] == [
        (None, None),
        ("CHAPTER one.", None),
        (None, f"{prefix}/103_1240_000001_000000.normalized.txt"),
        (None, f"{prefix}/103_1240_000003_000000.normalized.txt"),
    ]
    assert "1 chapters of LibriTTS/train-clean-100 have no transcript, such as 19/198." in gathered.notes


def test_what_is_missing_is_named_and_hidden_files_are_no_recordings(restored: Path) -> None:
    (restored / "dev-clean/84/121123/84_121123_000008_000000.wav").unlink()
    (restored / "dev-clean/84/121123/._84_121123_000007_000001.wav").write_bytes(b"\0\5\26\7")
    (restored / "dev-clean/84/121123/._84_121123.trans.tsv").write_bytes(b"\0\5\26\7")
    gathered = gather_restored(Source(str(restored)), PrepOptions(subsets=("dev-clean",)))
    assert [each.name for each in gathered.candidates] == ["84_121123_000007_000001"]
    assert [(each.source, each.reason) for each in gathered.rejects] == [
        ("dev-clean/84/121123/84_121123_000008_000000", "missing")
    ]


@pytest.mark.parametrize(("folder", "lists_in"), [(".", "."), (".", "LibriTTS_R"), ("LibriTTS_R", "LibriTTS_R")])
def test_failed_restorations_are_left_out_where_their_lists_are_there(
    restored: Path, folder: str, lists_in: str
) -> None:
    source = Source(str(restored.parent / folder))
    unlisted = gather_restored(source, PrepOptions())
    assert len(unlisted.candidates) == 7
    assert [note for note in unlisted.notes if "libritts_r_failed_speech_restoration_examples" in note]
    lists = restored.parent / lists_in / "libritts_r_failed_speech_restoration_examples"
    write_text(lists / "dev-clean_bad_sample_list.txt", "./dev-clean/84/121123/84_121123_000007_000001.wav\n")
    write_text(lists / "train-clean-100_bad_sample_list.txt", "./train-clean-100/19/198/19_198_000000_000000.wav\n")
    listed = gather_restored(source, PrepOptions())
    left_out = {"84_121123_000007_000001", "19_198_000000_000000"}
    assert [each.name for each in listed.candidates] == [
        each.name for each in unlisted.candidates if each.name not in left_out
    ]
    assert {Path(each.source).stem for each in listed.rejects if each.reason == "failed restoration"} == left_out
    assert listed.notes == []


def test_each_finds_its_own_in_a_folder_of_both(root: Path, restored: Path) -> None:
    source = Source(str(root.parent))
    assert gather(source, PrepOptions()).candidates[0].path.startswith("LibriTTS/")
    assert gather_restored(source, PrepOptions()).candidates[0].path.startswith("LibriTTS_R/")


def test_another_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be the folder LibriTTS_R, or the one around it; it holds no dev-clean"):
        gather_restored(Source(str(tmp_path)), PrepOptions())
    write_audio(tmp_path / "dev-clean/84/121123/84-121123-0000.flac", rate_hz=16_000)
    with pytest.raises(InputError, match=r"no recordings named as those of LibriTTS;"):
        gather(Source(str(tmp_path)), PrepOptions())


def test_the_command_stores_them(command: Callable[..., int], restored: Path, tmp_path: Path) -> None:
    assert command("prep", "libritts-r", restored, "--out", tmp_path / "store", "--jobs", "1") == 0
    recordings = stored(tmp_path / "store")
    assert len(recordings) == 7
    assert recordings["1688_142285_000000_000000"] == ("test", "Margaret said, 'No.'")


def test_they_are_declared_whole() -> None:
    assert set(LIBRITTS.archives) == set(LIBRITTS_R.archives) == set(LIBRITTS.subsets) == set(LIBRITTS_R.subsets)
    assert LIBRITTS.archives["dev-clean"][0].url == "https://www.openslr.org/resources/60/dev-clean.tar.gz"
    restored = LIBRITTS_R.archives["train-clean-100"][0]
    assert restored.url == "https://www.openslr.org/resources/141/train_clean_100.tar.gz"
    assert restored.known_hash == "md5:6df668d8f5f33e70876bfa33862ad02b"
