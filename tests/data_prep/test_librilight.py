"""Libri-Light: sizes, pieces by the corpus's own segmentation, chapters without one, tables that are none."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from audio_ct.errors import InputError, MissingError
from audio_ct.tokens.store import TokenStore
from data_prep.librilight import CORPUS, gather
from data_prep.options import PrepOptions
from data_prep.source import Source
from tests.data_prep.replicas import stored, write_audio, write_text

BOOK = "sea_fairies_0812_librivox_64kb_mp3"
CHAPTER = f"small/100/{BOOK}/01_baum_sea_fairies_64kb"
VOICE_ACTIVITY = [[0.4, 1.4], [1.5, 2.0], [2.5, 4.0], [4.0, 9.0], [9.25, 9.75]]


def write_chapter(root: Path, name: str, *, seconds: float = 10.0, **changed: Any) -> None:
    """A chapter and its JSON; keys given as None are left out of it."""
    write_audio(root / f"{name}.flac", rate_hz=16_000, seconds=seconds)
    book_meta = {"id": "319", "title": "Sea Fairies", "genre": ["*Non-fiction"], "Dramatic Readings": False}
    metadata = {"speaker": name.split("/")[1], "book_meta": book_meta, "snr": 5.391, "voice_activity": VOICE_ACTIVITY}
    kept = {key: value for key, value in (metadata | changed).items() if value is not None}
    write_text(root / f"{name}.json", json.dumps(kept))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As the archives unpack, side by side."""
    write_chapter(tmp_path, CHAPTER)
    write_chapter(tmp_path, f"small/100/{BOOK}/02_baum_sea_fairies_64kb", voice_activity=[[0.0, 3.0]])
    write_chapter(tmp_path, "small/1000/other_book_64kb_mp3/otherbook_01_poet_64kb", voice_activity=[[1.0, 2.0]])
    write_chapter(tmp_path, "medium/100/third_book_64kb_mp3/thirdbook_01_64kb", voice_activity=[[0.5, 1.0]])
    write_chapter(tmp_path, "duplicate/99/again_64kb_mp3/again_01_64kb")
    return tmp_path


def test_speech_is_put_end_to_end(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions(maximum_seconds=3.0))
    assert [(each.name, each.speaker, each.spans) for each in gathered.candidates] == [
        # The first three are 3.0 s together; the fourth is longer than a piece may be, and stands alone.
        (f"{CHAPTER}_0000", "100", ((0.4, 1.4), (1.5, 2.0), (2.5, 4.0))),
        (f"{CHAPTER}_0001", "100", ((4.0, 9.0),)),
        (f"{CHAPTER}_0002", "100", ((9.25, 9.75),)),
        (f"small/100/{BOOK}/02_baum_sea_fairies_64kb_0000", "100", ((0.0, 3.0),)),
        ("medium/100/third_book_64kb_mp3/thirdbook_01_64kb_0000", "100", ((0.5, 1.0),)),
        ("small/1000/other_book_64kb_mp3/otherbook_01_poet_64kb_0000", "1000", ((1.0, 2.0),)),
    ]
    num_bytes = (root / f"{CHAPTER}.flac").stat().st_size
    pieces = gathered.candidates[:3]
    assert {piece.path for piece in pieces} == {f"{CHAPTER}.flac"}
    assert [piece.num_bytes for piece in pieces] == [round(num_bytes * seconds / 8.5) for seconds in (3.0, 5.0, 0.5)]
    assert {each.split for each in gathered.candidates} == {None}
    assert gathered.rejects == gathered.notes == []


def test_without_a_maximum_a_chapter_is_one_piece(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions())
    assert [len(each.spans) for each in gathered.candidates] == [5, 1, 1, 1]


def cut_as_the_authors_do(speech: Sequence[Sequence[float]], target_seconds: float) -> list[list[tuple[float, float]]]:
    """What cut_by_vad.py of facebookresearch/libri-light does to a chapter, in words of its own."""
    saved, waiting, accumulated = [], [], 0.0
    for start, end in speech:
        if accumulated + (end - start) > target_seconds and accumulated > 0:
            saved.append(waiting)
            waiting, accumulated = [], 0.0
        waiting.append((start, end))
        accumulated += end - start
    return [*saved, waiting] if waiting else saved


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_those_of_the_authors(tmp_path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    times = sorted(round(drawn.uniform(0, 600), 2) for _ in range(2 * drawn.randrange(1, 40)))
    speech = list(zip(times[::2], times[1::2], strict=True))
    write_chapter(tmp_path, CHAPTER, seconds=0.1, voice_activity=speech)
    candidates = gather(Source(str(tmp_path)), PrepOptions(maximum_seconds=60.0)).candidates
    expected = cut_as_the_authors_do([span for span in speech if span[0] < span[1]], 60.0)
    assert [list(each.spans) for each in candidates] == expected


@pytest.mark.parametrize(
    "voice_activity", [None, "none", [[1.0]], [[2.0, 1.0]], [[-1.0, 1.0]], [[0.0, float("nan")]], [["a", "b"]], 3]
)
def test_a_chapter_without_usable_segmentation_stays_whole(root: Path, voice_activity: Any) -> None:
    write_chapter(root, CHAPTER, voice_activity=voice_activity)
    gathered = gather(Source(str(root)), PrepOptions(maximum_seconds=60.0))
    first = gathered.candidates[0]
    assert (first.name, first.spans) == (CHAPTER, ())
    assert first.num_bytes == (root / f"{CHAPTER}.flac").stat().st_size
    assert gathered.notes == ["Chapters without a voice_activity that can be used, which keep their pauses: 1."]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"3"])
def test_a_json_that_is_none(root: Path, content: bytes) -> None:
    (root / f"{CHAPTER}.json").write_bytes(content)
    (root / f"small/100/{BOOK}/02_baum_sea_fairies_64kb.json").unlink()
    gathered = gather(Source(str(root)), PrepOptions(maximum_seconds=60.0))
    assert [each.spans for each in gathered.candidates[:2]] == [(), ()]
    assert gathered.notes == ["Chapters without a voice_activity that can be used, which keep their pauses: 2."]


def test_overlaps_are_said_once_and_a_chapter_without_speech_is_rejected(root: Path) -> None:
    write_chapter(root, CHAPTER, voice_activity=[[0.0, 2.0], [1.5, 3.0], [2.0, 2.5]])
    write_chapter(root, f"small/100/{BOOK}/02_baum_sea_fairies_64kb", voice_activity=[])
    gathered = gather(Source(str(root)), PrepOptions())
    assert gathered.candidates[0].spans == ((0.0, 2.0), (2.0, 3.0))
    assert [(each.source, each.reason) for each in gathered.rejects] == [
        (f"small/100/{BOOK}/02_baum_sea_fairies_64kb.flac", "no speech")
    ]


def test_sizes_are_chosen_and_duplicate_only_by_name(root: Path) -> None:
    def sizes(*subsets: str) -> set[str]:
        return {each.name.split("/")[0] for each in gather(Source(str(root)), PrepOptions(subsets=subsets)).candidates}

    assert sizes() == {"small", "medium"}
    assert sizes("medium") == {"medium"}
    assert sizes("duplicate", "small") == {"duplicate", "small"}
    around = root.parent / "around"
    around.mkdir()
    root.rename(around / "librilight")
    names = [each.name for each in gather(Source(str(around)), PrepOptions()).candidates]
    assert names[0] == f"{CHAPTER}_0000", "names do not depend on where the corpus lies"


def test_gathering_reads_no_audio(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    local = Source.local

    def noted(source: Source, path: str) -> Any:
        read.append(path)
        return local(source, path)

    monkeypatch.setattr(Source, "local", noted)
    gather(Source(str(root)), PrepOptions())
    assert len(read) == 4
    assert all(path.endswith(".json") for path in read)


def test_folders_that_are_something_else(root: Path) -> None:
    with pytest.raises(InputError, match="holds no small or medium or large or duplicate") as caught:
        gather(Source(str(root / "small/100")), PrepOptions())
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(MissingError, match=r"subsets=large must be in .* which holds small, medium, duplicate"):
        gather(Source(str(root)), PrepOptions(subsets=("small", "large")))
    (root / "small").rename(root / "s")
    (root / "medium").rename(root / "m")
    with pytest.raises(MissingError, match=r"subsets=small, medium, large must be in .* which holds duplicate"):
        gather(Source(str(root)), PrepOptions())


def test_the_command_stores_them(command: Callable[..., int], root: Path, tmp_path_factory: Any) -> None:
    write_chapter(root, "small/7/only_64kb_mp3/only_01_64kb", seconds=4.0, voice_activity=None)
    out = tmp_path_factory.mktemp("stores") / "store"
    assert command("prep", "librilight", root, "--out", out, "--maximum-seconds", 3, "--jobs", 1) == 0
    store = TokenStore.open(out)
    lengths = {each.name: each.length for split in store.splits for each in store.recordings(split)}
    # What is longer than a piece may be is cut where it is quietest.
    whole = {name: length for name, length in lengths.items() if name[-5:-4] != "-"}
    assert whole == {
        f"{CHAPTER}_0000": 48_000,
        f"{CHAPTER}_0002": 8_000,
        f"small/100/{BOOK}/02_baum_sea_fairies_64kb_0000": 48_000,
        "medium/100/third_book_64kb_mp3/thirdbook_01_64kb_0000": 8_000,
        "small/1000/other_book_64kb_mp3/otherbook_01_poet_64kb_0000": 16_000,
    }
    cut = {name: length for name, length in lengths.items() if name not in whole}
    assert sorted({name[:-5] for name in cut}) == [f"{CHAPTER}_0001", "small/7/only_64kb_mp3/only_01_64kb"]
    assert sum(cut.values()) == (5 + 4) * 16_000
    splits = {name.split("/")[1]: split for name, (split, _) in stored(out).items()}
    assert sorted(splits.values()) == ["test", "train", "validation"]


def test_declaration() -> None:
    assert CORPUS.name == "librilight"
    assert CORPUS.defaults == {"sample_rate_hz": 16_000, "maximum_seconds": 60.0}
    assert "duplicate" not in CORPUS.default_subsets
    assert set(CORPUS.archives) == {"small", "medium", "large"}, "duplicate has no published hash"
