"""LJSpeech: quotes without partners, empty normalised texts, missing recordings, folders that are something else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.errors import InputError, MissingError
from data_prep.ljspeech import CORPUS, gather
from data_prep.options import PrepOptions
from data_prep.source import Source
from tests.data_prep.replicas import stored, write_audio, write_text

METADATA = (
    "LJ001-0001|Printing, in the only sense with which we are at present concerned, differs from most|Printing, in the "
    "only sense with which we are at present concerned, differs from most\n"
    'LJ001-0002|"in being comparatively modern.|"in being comparatively modern.\n'
    "LJ002-0001|Chapter 4, 1829.|Chapter four, eighteen twenty-nine.\n"
    "LJ002-0002|The \u2018cell\u2019 of £5\u2028and more.|\n"
    'LJ003-0001|a "quote|a "quote\n'
    "LJ050-0278|the recommendations we have here suggested|the recommendations we have here suggested\n"
)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """As LJSpeech-1.1.tar.bz2 unpacks, of seven recordings; one that the metadata names is missing, one is extra."""
    write_text(tmp_path / "LJSpeech-1.1/README", "The LJ Speech Dataset")
    write_text(tmp_path / "LJSpeech-1.1/metadata.csv", METADATA)
    for name in ("LJ001-0001", "LJ001-0002", "LJ002-0001", "LJ002-0002", "LJ050-0278", "LJ050-0279"):
        write_audio(tmp_path / f"LJSpeech-1.1/wavs/{name}.wav", rate_hz=22_050)
    return tmp_path


def test_recordings_are_in_order_with_their_normalised_texts(parent: Path) -> None:
    gathered = gather(Source(str(parent / "LJSpeech-1.1")), PrepOptions())
    assert [(each.path, each.name, each.text) for each in gathered.candidates] == [
        (
            "wavs/LJ001-0001.wav",
            "LJ001-0001",
            "Printing, in the only sense with which we are at present concerned, differs from most",
        ),
        ("wavs/LJ001-0002.wav", "LJ001-0002", '"in being comparatively modern.'),
        ("wavs/LJ002-0001.wav", "LJ002-0001", "Chapter four, eighteen twenty-nine."),
        ("wavs/LJ002-0002.wav", "LJ002-0002", "The \u2018cell\u2019 of £5 and more."),
        ("wavs/LJ050-0278.wav", "LJ050-0278", "the recommendations we have here suggested"),
        ("wavs/LJ050-0279.wav", "LJ050-0279", None),
    ]
    assert {each.speaker for each in gathered.candidates} == {"LJ"}
    assert {each.split for each in gathered.candidates} == {None}
    sizes = [(parent / "LJSpeech-1.1" / each.path).stat().st_size for each in gathered.candidates]
    assert [each.num_bytes for each in gathered.candidates] == sizes
    assert [(each.source, each.reason) for each in gathered.rejects] == [("wavs/LJ003-0001.wav", "missing")]


def test_the_folder_around_it_will_do(parent: Path) -> None:
    inner = gather(Source(str(parent / "LJSpeech-1.1")), PrepOptions())
    outer = gather(Source(str(parent)), PrepOptions())
    assert [each.name for each in outer.candidates] == [each.name for each in inner.candidates]
    assert outer.candidates[0].path == "LJSpeech-1.1/wavs/LJ001-0001.wav"
    assert outer.rejects[0].source == "LJSpeech-1.1/wavs/LJ003-0001.wav"


def test_another_format_keeps_the_names(parent: Path) -> None:
    before = gather(Source(str(parent)), PrepOptions())
    wavs = parent / "LJSpeech-1.1/wavs"
    (wavs / "LJ001-0001.wav").unlink()
    write_audio(wavs / "LJ001-0001.flac", rate_hz=22_050)
    write_audio(wavs / "LJ002-0001.flac", rate_hz=22_050)
    after = gather(Source(str(parent)), PrepOptions())
    assert [each.name for each in after.candidates] == [each.name for each in before.candidates]
    doubled = [(each.source, each.detail) for each in after.rejects if each.reason == "duplicate"]
    assert doubled == [("LJSpeech-1.1/wavs/LJ002-0001.wav", "is there as LJSpeech-1.1/wavs/LJ002-0001.flac too.")]


@pytest.mark.parametrize("broken", ["metadata.csv", "wavs", "recordings"])
def test_what_is_not_ljspeech_is_refused_in_one_line(parent: Path, broken: str) -> None:
    folder = parent / "LJSpeech-1.1"
    if broken == "recordings":
        for file in (folder / "wavs").iterdir():
            file.unlink()
    else:
        (folder / broken).rename(parent / "elsewhere")
    with pytest.raises((InputError, MissingError), match=r"metadata\.csv|wavs") as caught:
        gather(Source(str(parent)), PrepOptions())
    assert len(str(caught.value).splitlines()) == 1
    assert str(parent) in str(caught.value)


def test_the_command_stores_them(command: Callable[..., int], parent: Path, tmp_path: Path) -> None:
    assert command("prep", "ljspeech", parent, "--out", tmp_path / "store", "--jobs", "1") == 0
    recordings = stored(tmp_path / "store")
    assert len(recordings) == 6
    assert {split for split, _ in recordings.values()} == {"train", "validation", "test"}
    assert recordings["LJ002-0002"][1] == "The \u2018cell\u2019 of £5 and more."


def test_it_is_declared_whole() -> None:
    assert CORPUS.defaults == {"sample_rate_hz": 22_050}
    assert [archive.known_hash.split(":")[0] for archive in CORPUS.archives[""]] == ["sha256"]
