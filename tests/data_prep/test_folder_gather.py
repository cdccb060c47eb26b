"""What a folder names: recordings, speakers by folder or pattern, the rows of a table, what cannot be used."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.errors import InputError, MissingError
from data_prep.corpus import Candidate
from data_prep.folder import CORPUS, gather
from data_prep.options import PrepOptions
from data_prep.source import Source
from tests.data_prep.replicas import stored, write_audio, write_text

NAMES = ("a.wav", "anna/p1_01.flac", "anna/p1_02.mp3", "böb/deep/p2_01.ogg", "böb/deep/p2_01.wav")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "recordings"
    for name in NAMES:
        write_audio(root / name, rate_hz=24_000)
    write_text(root / "anna/p1_01.txt", "Said one.")
    write_text(root / "anna/notes.md", "not looked at")
    return root


def candidates(root: Path, **options: str) -> dict[str, Candidate]:
    gathered = gather(Source(str(root)), PrepOptions(**options))
    assert gathered.rejects == gathered.notes == []
    return {each.path: each for each in gathered.candidates}


def test_recordings_by_speaker_and_name(root: Path) -> None:
    found = candidates(root)
    assert [(each.path, each.name, each.speaker, each.text_path) for each in found.values()] == [
        ("anna/p1_01.flac", "anna/p1_01", "anna", "anna/p1_01.txt"),
        ("anna/p1_02.mp3", "anna/p1_02", "anna", None),
        # Two files whose names differ in the suffix alone keep it.
        ("böb/deep/p2_01.ogg", "böb/deep/p2_01.ogg", "böb/deep", None),
        ("böb/deep/p2_01.wav", "böb/deep/p2_01.wav", "böb/deep", None),
        ("a.wav", "a", "unknown", None),
    ]
    assert all(each.num_bytes == (root / path).stat().st_size for path, each in found.items())
    assert all(each.split is each.text is None and each.spans == () for each in found.values())


@pytest.mark.fault("audio")
def test_what_cannot_be_used_is_named(root: Path) -> None:
    write_text(root / "talk.M4A", "")
    (root / "again.wav").symlink_to("a.wav")
    (root / "again.txt").symlink_to("anna/p1_01.txt")
    (root / "dangling.wav").symlink_to("nowhere")
    (root / "loop").symlink_to(".")
    (root / ".hidden").mkdir()
    write_audio(root / ".hidden/b.wav", rate_hz=24_000)
    os.rename(root / "a.wav", os.fsencode(root) + b"/\xff.wav")
    (root / "again.wav").unlink()
    (root / "again.wav").symlink_to(os.fsencode(root).decode("utf-8", "surrogateescape") + "/\udcff.wav")
    gathered = gather(Source(str(root)), PrepOptions())
    assert [(each.source, each.reason) for each in sorted(gathered.rejects, key=lambda each: each.source)] == [
        ("again.wav", "duplicate"),
        ("dangling.wav", "unreadable"),
        ("talk.M4A", "unknown format"),
    ]
    strange = next(each for each in gathered.candidates if each.speaker == "unknown")
    assert (strange.path, strange.name) == ("\udcff.wav", "\\xff")


def test_a_pattern_finds_the_speaker(root: Path) -> None:
    found = candidates(root, speaker_pattern=r"(p\d+)_")
    assert {path: each.speaker for path, each in found.items()} == dict(
        zip(NAMES, ("unknown", "p1", "p1", "p2", "p2"), strict=True)
    )
    assert candidates(root, speaker_pattern=r"^([^/]+)/")["böb/deep/p2_01.ogg"].speaker == "böb"


@pytest.mark.parametrize(
    ("pattern", "message"), [("(p\\d+", "is no regular expression: missing"), ("p\\d+", "must have a group")]
)
def test_a_wrong_pattern_is_one_line(root: Path, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=f"speaker_pattern=.*{message}") as caught:
        gather(Source(str(root)), PrepOptions(speaker_pattern=pattern))
    assert len(str(caught.value).splitlines()) == 1


TABLES = {
    "table.csv": 'file_name,speaker_id,other,transcript,split\na.wav,"Doe, J.",1,"Two ""words"",\nhere",train\n'
    "anna/p1_01.flac,,,,\n",
    "table.tsv": 'path\tspeaker\tsentence\tsplit\n./a.wav\tDoe, J.\tTwo "words",  here\ttraining\nanna/p1_01.flac\n',
    "table.jsonl": '{"audio_filepath": "a.wav", "duration": 0.2, "speaker": "Doe, J.", "split": "TRAIN", '
    '"text": "Two \\"words\\", here"}\n\n{"audio_filepath": "anna/p1_01.flac", "text": null}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_recordings(root: Path, name: str) -> None:
    write_text(root / name, "\ufeff" + TABLES[name])
    found = candidates(root, metadata=name)
    assert list(found) == ["a.wav", "anna/p1_01.flac"]
    first, second = found.values()
    assert (first.name, first.speaker, first.split) == ("a", "Doe, J.", "train")
    assert " ".join((first.text or "").split()) == 'Two "words", here'
    assert (second.speaker, second.text, second.text_path, second.split) == ("anna", None, "anna/p1_01.txt", None)


def test_a_table_further_down_and_whole_addresses(root: Path) -> None:
    write_text(root / "meta/table.json", f'{{"audio": {json.dumps(str(root / "a.wav"))}, "speaker": 7}}\n')
    found = candidates(root, metadata="meta/table.json")
    assert [(each.path, each.speaker) for each in found.values()] == [("a.wav", "7")]


def test_splits_have_several_names(root: Path) -> None:
    splits = {"a.wav": "dev", "anna/p1_01.flac": "Valid", "anna/p1_02.mp3": "test", "böb/deep/p2_01.wav": "training"}
    write_text(root / "t.csv", "path,split\n" + "".join(f"{path},{split}\n" for path, split in splits.items()))
    found = candidates(root, metadata="t.csv")
    assert {path: each.split for path, each in found.items()} == dict(
        zip(splits, ("validation", "validation", "test", "train"), strict=True)
    )
    write_text(root / "t.csv", "path,split\na.wav,eval1\n")
    with pytest.raises(InputError, match="split='eval1' in the metadata must be one of train, training, dev"):
        gather(Source(str(root)), PrepOptions(metadata="t.csv"))


def test_rows_that_cannot_be_had(root: Path) -> None:
    write_text(root / "talk.m4a", "")
    write_audio(root.parent / "outside.wav", rate_hz=24_000)
    paths = ["a.wav", "absent.wav", "talk.m4a", "../outside.wav", "./a.wav", "", "anna"]
    write_text(root / "table.csv", "\n".join(["path,note", *(f"{path},x" for path in paths)]))
    gathered = gather(Source(str(root)), PrepOptions(metadata="table.csv"))
    assert [each.path for each in gathered.candidates] == ["a.wav"]
    assert [(each.source, each.reason, each.detail) for each in gathered.rejects] == [
        ("absent.wav", "missing", "is named by row 2 of table.csv and not there."),
        ("talk.m4a", "unknown format", "libsndfile does not read this format; convert it to FLAC."),
        ("../outside.wav", "missing", "is named by row 4 of table.csv and not there."),
        ("a.wav", "duplicate", "is named again by row 5 of table.csv."),
        (".", "missing", "is named by row 6 of table.csv and not there."),
        ("anna", "missing", "is named by row 7 of table.csv and not there."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"wav,text\na.wav,x\n", "must have a column path or file or .*; row 1 has wav, text"),
        ("t.jsonl", b'{"path": "a.wav"}\n{"text": "x"}\n', "must have a column .*; row 2 has text"),
        ("t.jsonl", b'{"path": "a.wav"}\n{"path"\n', "cannot be read as .jsonl: line 2: "),
        ("t.json", b'[{"path": "a.wav"}]', "line 1 is no JSON object"),
        ("t.jsonl", b"[" * 200_000, "cannot be read as .jsonl: line 1: "),
        ("t.tsv", b"path\n\xff\n", "cannot be read as .tsv: 'utf-8' codec"),
        ("t.csv", b'path\n"' + b"x" * 200_000, "cannot be read as .csv: field larger than field limit"),
        ("t.xlsx", b"PK", "must be a table in .csv, .tsv, .jsonl, .json"),
    ],
)
def test_a_wrong_table_is_one_line(root: Path, name: str, content: bytes, message: str) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        gather(Source(str(root)), PrepOptions(metadata=name))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(MissingError, match="is not there; check the name"):
        gather(Source(str(root)), PrepOptions(metadata="absent.csv"))


def test_the_command_stores_what_a_table_names(command: Callable[..., int], root: Path, tmp_path: Path) -> None:
    rows = ["file\ttext\tsplit", "a.wav\tOne\ttrain", "anna/p1_01.flac\tTwo\tdev", "anna/p1_02.mp3\t\ttest"]
    write_text(root / "table.tsv", "\n".join([*rows, "absent.wav\tFour\ttrain"]))
    out = tmp_path / "store"
    assert command("prep", "folder", root, "--out", out, "--metadata", "table.tsv", "--jobs", 1) == 0
    assert stored(out) == {"a": ("train", "One"), "anna/p1_01": ("validation", "Two"), "anna/p1_02": ("test", None)}
    assert json.loads((out / "rejects.jsonl").read_text())["reason"] == "missing"


def test_declaration() -> None:
    assert CORPUS.name == "folder"
    assert CORPUS.licence is None
