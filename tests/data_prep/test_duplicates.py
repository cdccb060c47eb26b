"""Recordings that are the same are found, whatever was done to them, and others are not."""

import hashlib
import io
import os
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from data_prep import duplicates
from data_prep.corpus import Encoded
from data_prep.duplicates import FINGERPRINT_LENGTH, NEAR_DISTANCE, NEAR_SECONDS, Duplicates
from data_prep.measures import LETTERS, Measures, Meter, places_of

RATE_HZ = 24_000
NUM_UTTERANCES = 40
SPEECH_FOLDER = os.environ.get("AUDIO_CT_REAL_SPEECH")


def utterance(seed: int) -> np.ndarray:
    """Noise in bands that rise and fall as syllables do, quiet at both edges."""
    random = np.random.default_rng(seed)
    length = round(random.uniform(0.6, 2.0) * RATE_HZ)
    length -= length % 960
    spectrum = np.fft.rfft(random.standard_normal(length))
    frequencies_hz = np.fft.rfftfreq(length, 1 / RATE_HZ)
    at = np.linspace(0, 1, length)
    waveform = np.zeros(length)
    for centre_hz in (200, 500, 900, 1500, 2300, 3200):
        band = np.fft.irfft(spectrum * np.exp(-(((frequencies_hz - centre_hz) / 250) ** 2)), length)
        points = np.concatenate([[0], random.uniform(0, 1, round(8 * length / RATE_HZ)) ** 2, [0]])
        waveform += random.uniform(0.2, 1) * band * np.interp(at, np.linspace(0.05, 0.95, len(points)), points)
    return 0.5 * waveform / np.abs(waveform).max()


def measures_of(waveform: np.ndarray, rate_hz: int = RATE_HZ) -> Measures:
    meter = Meter(rate_hz)
    meter.update(waveform.astype(np.float32))
    return meter.result()


def encoded(name: str, measures: Measures, content: str | None = None) -> Encoded:
    sha256 = hashlib.sha256((content or name).encode()).hexdigest()
    return Encoded(name, "anna", f"{name}.wav", None, round(measures.seconds * RATE_HZ), sha256, measures)


def changed(waveform: np.ndarray, how: str, seed: int) -> Measures:
    random = np.random.default_rng(seed)
    if how == "mp3, quieter, noise, trimmed":
        noise = random.standard_normal(len(waveform)) * np.sqrt(np.mean(waveform**2)) / 100
        file = io.BytesIO()
        soundfile.write(file, (0.5 * (waveform + noise))[round(0.02 * RATE_HZ) :], RATE_HZ, format="MP3")
        file.seek(0)
        return measures_of(*soundfile.read(file))
    if how == "another rate":
        return measures_of(soxr.resample(waveform, RATE_HZ, 16_000), 16_000)
    assert how == "later"
    return measures_of(np.concatenate([np.zeros(round(0.1234 * RATE_HZ)), waveform]))


@pytest.mark.parametrize("how", ["mp3, quieter, noise, trimmed", "another rate", "later"])
def test_near_duplicates_are_found_and_nothing_else(how: str) -> None:
    found = Duplicates()
    for seed in range(NUM_UTTERANCES):
        found.add("train", encoded(f"original {seed}", measures_of(utterance(seed))))
    for seed in range(NUM_UTTERANCES):
        found.add("test", encoded(f"copy {seed}", changed(utterance(seed), how, seed)))
    near = found.near()
    assert {(pair.name, pair.other) for pair in near} == {
        (f"copy {seed}", f"original {seed}") for seed in range(NUM_UTTERANCES)
    }
    assert {(pair.split, pair.other_split) for pair in near} == {("test", "train")}
    assert [pair.distance for pair in near] == sorted(pair.distance for pair in near)


def random_fingerprints(count: int, seed: int) -> np.ndarray:
    """Fingerprints in clusters, so that some are near."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 64, (count // 8, FINGERPRINT_LENGTH))
    spread = random.choice([1, 2, 4, 12], count)[:, None]
    values = centres[random.integers(0, len(centres), count)] + spread * random.normal(size=(count, FINGERPRINT_LENGTH))
    return values.round().clip(0, 63).astype(int)


def fill(found: Duplicates, values: np.ndarray, seconds: np.ndarray) -> None:
    letters = np.array(list(LETTERS))[values]
    for index, (row, length) in enumerate(zip(letters, seconds, strict=True)):
        text = "".join(row)
        found.add(
            "train", encoded(str(index), Measures(float(length), 24_000, -20, 1, 0, 12_000, 3000, 0, 0, "A", text))
        )


def test_near_ones_are_those_that_comparing_all_with_all_finds() -> None:
    values, random = random_fingerprints(400, seed=0), np.random.default_rng(1)
    seconds = 2 + 0.2 * random.integers(0, 3, 400)
    found = Duplicates()
    fill(found, values, seconds)
    vectors = values.astype(float)
    for part in (vectors[:, :12], vectors[:, 12:]):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    nearest: dict[int, tuple[float, int]] = {}
    for a, b in combinations(range(400), 2):
        distance = np.linalg.norm(vectors[a] - vectors[b])
        if distance < NEAR_DISTANCE and abs(seconds[a] - seconds[b]) <= NEAR_SECONDS:
            nearest[b] = min(nearest.get(b, (9.0, 0)), (distance, a))
    assert len(nearest) > 50
    near = {int(pair.name): pair for pair in found.near()}
    # A pair that is hardly near may be missed by all tables; one that is found is right.
    assert near.keys() >= {index for index, (distance, _) in nearest.items() if distance < NEAR_DISTANCE / 2}
    assert len(near) > 0.9 * len(nearest)
    assert near.keys() <= nearest.keys()
    for name, pair in near.items():
        assert pair.distance >= round(nearest[name][0], 4) - 1e-4
    right = [pair for name, pair in near.items() if int(pair.other) == nearest[name][1]]
    assert len(right) > 0.95 * len(near)


def test_time_grows_with_the_number_of_recordings_not_with_their_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAXIMUM_NEIGHBOURS", 8)
    # All in one cell: the worst that can come.
    random = np.random.default_rng(0)
    values = (30 + random.integers(0, 2, (10_000, FINGERPRINT_LENGTH))).astype(int)
    found = Duplicates()
    fill(found, values, np.full(10_000, 1.0))
    began = time.process_time()
    assert len(found.near()) > 9_000
    assert time.process_time() - began < 10


def test_identical_recordings_stay_in_the_most_held_out_split_only() -> None:
    found = Duplicates()
    some = measures_of(utterance(0))
    for split, name, content in (
        ("train", "a", "x"),
        ("train", "b", "x"),
        ("validation", "c", "x"),
        ("train", "d", "y"),
        ("train", "e", "y"),
        ("test", "f", "z"),
        ("test", "g", "z"),
        ("validation", "h\udcff\n", "z"),
        ("train", "i", "w"),
    ):
        found.add(split, encoded(name, some, content))
    across = found.across_splits()
    assert [(copies.kept, copies.left_out) for copies in across] == [("c", ("a", "b")), ("f", ("h\udcff\n",))]
    assert found.within_splits() == [("d", "e"), ("f", "g")]
    # Identical ones are no near-duplicates of each other; of each that stays, one is compared.
    assert sorted(pair.name for pair in found.near()) == ["d", "f", "i"]
    assert {pair.other for pair in found.near()} <= {"c", "d", "f"}


def test_what_has_no_fingerprint_is_near_to_nothing() -> None:
    found = Duplicates()
    assert found.near() == found.across_splits() == found.within_splits() == []
    silent = measures_of(np.zeros(RATE_HZ))
    for name in "ab":
        found.add("train", encoded(name, silent))
    assert found.near() == []


@pytest.mark.skipif(not SPEECH_FOLDER, reason="AUDIO_CT_REAL_SPEECH names no folder of recordings")
def test_real_recordings_are_told_apart() -> None:
    assert SPEECH_FOLDER is not None
    paths = sorted(path for path in Path(SPEECH_FOLDER).rglob("*") if path.suffix in (".flac", ".wav", ".ogg"))[::4]
    found = Duplicates()
    right = {}
    for path in paths:
        waveform, rate_hz = soundfile.read(path, always_2d=True)
        original, copy = (measures_of(w, rate_hz) for w in (waveform.mean(axis=1), 0.3 * waveform[500:].mean(axis=1)))
        if original.level_dbfs > -60:
            found.add("train", encoded(str(path), original))
            found.add("test", encoded(f"{path} copy", copy))
            right[f"{path} copy"] = str(path)
    across = {pair.name: pair.other for pair in found.near() if pair.split != pair.other_split}
    assert sum(across.get(name) == other for name, other in right.items()) > 0.97 * len(right)


def test_letters_are_places() -> None:
    assert list(places_of(np.frombuffer(LETTERS.encode(), np.uint8))) == list(range(64))
