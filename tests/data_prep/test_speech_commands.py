"""Speech Commands: digits and other words, speakers by hash, the official lists, what is left out."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_ct.errors import InputError, MissingError
from audio_ct.tokens.store import TokenStore
from data_prep.options import PrepOptions
from data_prep.source import Source
from data_prep.speech_commands import CORPUS, DIGITS, gather
from tests.data_prep.replicas import stored, write_text

# By word: speaker, repetition, and how long the clip is.
CLIPS = [
    *((word, "0132a06d", 0, 1.0) for word in (*DIGITS, "bed", "marvin")),
    ("zero", "0132a06d", 1, 0.2133),
    ("nine", "00f0204f", 0, 1.0),
    ("nine", "ffd2ba2f", 2, 0.6),
    ("bed", "00f0204f", 0, 1.0),
]
VALIDATION = ("nine/00f0204f_nohash_0.wav", "bed/00f0204f_nohash_0.wav")
TESTING = ("nine/ffd2ba2f_nohash_2.wav", "one/aaaaaaaa_nohash_0.wav", "bed/aaaaaaaa_nohash_0.wav")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As speech_commands_v0.02.tar.gz unpacks; the testing list names clips that are not there."""
    root = tmp_path / "speech_commands_v0.02"
    for word, speaker, number, seconds in CLIPS:
        name = f"{word}/{speaker}_nohash_{number}.wav"
        drawn = np.random.default_rng(zlib.crc32(name.encode()))
        (root / word).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, 0.3 * drawn.uniform(-1, 1, round(seconds * 16_000)), 16_000)
    for name in ("doing_the_dishes", "white_noise"):
        (root / "_background_noise_").mkdir(exist_ok=True)
        soundfile.write(root / f"_background_noise_/{name}.wav", np.zeros(32_000), 16_000)
    write_text(root / "_background_noise_/README.md", "not read")
    write_text(root / "validation_list.txt", "".join(f"{name}\n" for name in VALIDATION))
    write_text(root / "testing_list.txt", "".join(f"{name}\n" for name in TESTING))
    for name in ("LICENSE", "README.md", ".DS_Store"):
        write_text(root / name, "not read")
    return root


def test_digits_in_the_official_splits(root: Path) -> None:
    gathered = gather(Source(str(root)), PrepOptions())
    assert [(each.name, each.speaker, each.text, each.split) for each in gathered.candidates] == [
        ("nine/00f0204f_nohash_0", "00f0204f", "nine", "validation"),
        *(
            (f"{word}/0132a06d_nohash_{number}", "0132a06d", word, "train")
            for word, number in sorted([*((word, 0) for word in DIGITS), ("zero", 1)])
        ),
        ("nine/ffd2ba2f_nohash_2", "ffd2ba2f", "nine", "test"),
    ]
    first = gathered.candidates[0]
    assert first.path == "nine/00f0204f_nohash_0.wav"
    assert first.num_bytes == (root / first.path).stat().st_size
    assert [(each.source, each.reason, each.detail) for each in gathered.rejects] == [
        ("one/aaaaaaaa_nohash_0.wav", "missing", "is named by testing_list.txt and not there.")
    ]


def test_other_words_and_the_folder_around(root: Path) -> None:
    gathered = gather(Source(str(root.parent)), PrepOptions(subsets=("bed", "marvin")))
    assert [(each.path, each.name, each.split) for each in gathered.candidates] == [
        ("speech_commands_v0.02/bed/00f0204f_nohash_0.wav", "bed/00f0204f_nohash_0", "validation"),
        ("speech_commands_v0.02/bed/0132a06d_nohash_0.wav", "bed/0132a06d_nohash_0", "train"),
        ("speech_commands_v0.02/marvin/0132a06d_nohash_0.wav", "marvin/0132a06d_nohash_0", "train"),
    ]
    assert [each.source for each in gathered.rejects] == ["speech_commands_v0.02/bed/aaaaaaaa_nohash_0.wav"]


def test_folders_that_are_something_else(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"must be the folder speech_commands_v0.02 .* holds no validation_list"
    ) as caught:
        gather(Source(str(root / "nine")), PrepOptions())
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(MissingError, match="holds no folder visual, zerro; unpack the corpus whole"):
        gather(Source(str(root)), PrepOptions(subsets=("one", "visual", "zerro")))
    (root / "testing_list.txt").unlink()
    with pytest.raises(MissingError, match=r"testing_list.txt' is not there"):
        gather(Source(str(root)), PrepOptions())


def test_the_command_stores_seconds(command: Callable[..., int], root: Path, tmp_path: Path) -> None:
    assert command("prep", "speech-commands", root, "--out", tmp_path / "store", "--jobs", 1) == 0
    recordings = stored(tmp_path / "store")
    assert recordings["nine/00f0204f_nohash_0"] == ("validation", "nine")
    assert recordings["nine/ffd2ba2f_nohash_2"] == ("test", "nine")
    assert sum(split == "train" for split, _ in recordings.values()) == 11
    store = TokenStore.open(tmp_path / "store")
    assert {each.length for split in store.splits for each in store.recordings(split)} == {16_000}
    # 0.6 s of noise, and then the code of silence.
    (short,) = store.recordings("test")
    tokens = store.tokens("test", short)
    assert len(set(tokens[9700:].tolist())) == 1
    assert len(set(tokens[:9500].tolist())) > 100


def test_declaration() -> None:
    assert CORPUS.name == "speech-commands"
    assert CORPUS.defaults == {"sample_rate_hz": 16_000, "pad_to_seconds": 1.0}
    assert len(CORPUS.subsets) == 35
    assert CORPUS.default_subsets == DIGITS
    assert CORPUS.archives[""][0].num_bytes == 2_428_923_189
