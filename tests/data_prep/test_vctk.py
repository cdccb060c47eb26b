"""VCTK: two microphones, speakers without texts or without one of them, a table that is none, and the older release."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.errors import InputError
from data_prep.options import PrepOptions
from data_prep.source import Source
from data_prep.vctk import CORPUS, gather
from tests.data_prep.replicas import stored, write_audio, write_text

SPEAKER_INFO = (
    "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \n"
    "p225  23  F    English    Southern  England \n"
    "p280  25  F    French    Unknown  France (mic2 files unavailable)\n"
    "p315  18  M    American    New  England (txt and mic2 files unavailable)\n"
    "s5  32  M    British    \n"
)
SENTENCES = {"p225": ("001", "002"), "p280": ("001",), "p315": ("001", "002"), "p362": ("001", "002"), "s5": ("001",)}
BOTH = ("mic1", "mic2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As VCTK-Corpus-0.92.zip unpacks."""
    root = tmp_path / "VCTK-Corpus-0.92"
    write_text(root / "speaker-info.txt", SPEAKER_INFO)
    write_text(root / "update.txt", "not read")
    write_text(root / "wav48_silence_trimmed/log.txt", "p225_001_mic1.flac")
    for speaker, sentences in SENTENCES.items():
        for sentence in sentences:
            for microphone in BOTH:
                if (speaker, microphone) != ("p280", "mic2") and (speaker, sentence) != ("p362", "002"):
                    name = f"{speaker}_{sentence}_{microphone}.flac"
                    write_audio(root / "wav48_silence_trimmed" / speaker / name, rate_hz=48_000)
            if speaker != "p315":
                write_text(root / "txt" / speaker / f"{speaker}_{sentence}.txt", "Please call Stella.\n")
    return root


def test_the_first_microphone_is_taken_by_default(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions())
    assert [(each.name, each.speaker, each.text_path) for each in gathered.candidates] == [
        ("p225_001_mic1", "p225", "txt/p225/p225_001.txt"),
        ("p225_002_mic1", "p225", "txt/p225/p225_002.txt"),
        ("p280_001_mic1", "p280", "txt/p280/p280_001.txt"),
        ("p315_001_mic1", "p315", None),
        ("p315_002_mic1", "p315", None),
        ("p362_001_mic1", "p362", "txt/p362/p362_001.txt"),
        ("s5_001_mic1", "s5", "txt/s5/s5_001.txt"),
    ]
    assert gathered.candidates[0].path == "wav48_silence_trimmed/p225/p225_001_mic1.flac"
    assert {each.split for each in gathered.candidates} == {None}
    assert [(each.source, each.reason) for each in gathered.rejects] == [("p362_002_mic1", "missing")]
    assert gathered.notes == []


def test_the_second_microphone_lacks_a_speaker(root: Path) -> None:
    gathered = gather(Source(str(root.parent)), PrepOptions(subsets=("mic2",)))
    assert {each.speaker for each in gathered.candidates} == {"p225", "p315", "p362", "s5"}
    assert all(each.path.endswith("_mic2.flac") for each in gathered.candidates)
    assert [(each.source, each.reason) for each in gathered.rejects] == [("p362_002_mic2", "missing")]
    assert gathered.notes == ["No recordings by mic2 of p280."]


def test_both_microphones_follow_each_other_and_stay_in_one_split(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions(subsets=BOTH))
    names = [each.name for each in gathered.candidates]
    assert names[:4] == ["p225_001_mic1", "p225_002_mic1", "p225_001_mic2", "p225_002_mic2"]
    assert len(set(names)) == len(names) == 13
    with pytest.raises(
        InputError, match=r"mic1, mic2 with split_by='recording' would put one sentence's two recordings"
    ):
        gather(Source(str(root)), PrepOptions(subsets=BOTH, split_by="recording"))


def test_another_format_keeps_the_names(root: Path) -> None:
    before = gather(Source(str(root)), PrepOptions())
    for path in (root / "wav48_silence_trimmed").rglob("*.flac"):
        write_audio(path.with_suffix(".wav"), rate_hz=24_000)
        path.unlink()
    after = gather(Source(str(root)), PrepOptions())
    assert [each.name for each in after.candidates] == [each.name for each in before.candidates]


def test_the_older_release_has_one_microphone(tmp_path: Path) -> None:
    root = tmp_path / "VCTK-Corpus"
    for sentence in ("001", "002"):
        write_audio(root / f"wav48/p225/p225_{sentence}.wav", rate_hz=48_000)
        write_text(root / f"txt/p225/p225_{sentence}.txt", "Ask her to bring these things.\n")
    write_audio(root / "wav48/p225/p225_003_mic1.wav", rate_hz=48_000)
    gathered = gather(Source(str(tmp_path)), PrepOptions())
    assert [(each.name, each.path, each.text_path) for each in gathered.candidates] == [
        (
            f"p225_{sentence}_mic1",
            f"VCTK-Corpus/wav48/p225/p225_{sentence}.wav",
            f"VCTK-Corpus/txt/p225/p225_{sentence}.txt",
        )
        for sentence in ("001", "002")
    ]
    assert [each.reason for each in gathered.rejects] == ["unexpected name"]
    assert "ODC-By-1.0" in gathered.notes[0]
    with pytest.raises(InputError, match=r"subset=mic2 needs VCTK 0\.92"):
        gather(Source(str(root)), PrepOptions(subsets=("mic2",)))


def test_another_folder_is_refused_in_one_line(root: Path) -> None:
    with pytest.raises(InputError, match=r"holds no wav48_silence_trimmed or wav48\. Name the folder") as caught:
        gather(Source(str(root / "txt")), PrepOptions())
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_stores_them(command: Callable[..., int], root: Path, tmp_path: Path) -> None:
    assert command("prep", "vctk", root, "--out", tmp_path / "store", "--jobs", "1") == 0
    recordings = stored(tmp_path / "store")
    assert {name: text for name, (_, text) in recordings.items()} == {
        "p225_001_mic1": "Please call Stella.",
        "p225_002_mic1": "Please call Stella.",
        "p280_001_mic1": "Please call Stella.",
        "p315_001_mic1": None,
        "p315_002_mic1": None,
        "p362_001_mic1": "Please call Stella.",
        "s5_001_mic1": "Please call Stella.",
    }
    assert recordings["p225_001_mic1"][0] == recordings["p225_002_mic1"][0]


def test_it_is_declared_whole() -> None:
    assert CORPUS.default_subsets == ("mic1",)
    assert set(CORPUS.archives) == set(CORPUS.subsets)
