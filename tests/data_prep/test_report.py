"""The report: right figures, the warnings that a corpus deserves and no others, and a page that survives any name."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from data_prep import report as report_module
from data_prep.corpus import Corpus, Encoded, Gathered, Reject
from data_prep.duplicates import Duplicates
from data_prep.measures import LETTERS, MAXIMUM_BANDS, Measures
from data_prep.options import PrepOptions
from data_prep.report import Report

RATE_HZ = 24_000
HOSTILE = "<script>alert(1)</script> & \"'\n\u202egnp.\x00 $x^2$ \udc80 日本"
CORPUS = Corpus(
    "words",
    "Words <b>bold</b>",
    lambda source, options: Gathered([]),
    licence="CC0",
    citation="A. Author & B. Author",
    address="https://example.org/words",
)
FULL = Measures(1.0, 48_000, -20.0, 0.5, 0.0, 24_000.0, 3000.0, 0.0, 0.1, "A" * MAXIMUM_BANDS, "B" * 84)


class Parsed(HTMLParser):
    """Tags with attributes, and all text outside style."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.inside = ""
        self.feed(page.read_text(encoding="utf-8"))
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside != "style":
            self.words += data


def encoded(name: str, speaker: str = "anna", seconds: float = 1.0, **changes: Any) -> Encoded:
    of_recording = {key: changes.pop(key) for key in ("num_limited", "truncated") if key in changes}
    digest = f"{abs(hash(name)):064x}"[-64:]
    measures = replace(FULL, **changes)
    return Encoded(name, speaker, f"{speaker}/{name}", None, round(seconds * RATE_HZ), digest, measures, **of_recording)


def corpus_of(speakers: dict[str, dict[str, Any]], **options: Any) -> Report:
    """Twenty seconds of each speaker, 5 % of the recordings in each held-out split."""
    found = Report(CORPUS, PrepOptions(**options), RATE_HZ)
    for speaker, changes in speakers.items():
        for number in range(20):
            split = {0: "test", 1: "validation"}.get(number, "train")
            found.add(split, encoded(f"{speaker} {number}", speaker, **changes))
    return found


def content_of(found: Report, folder: Path) -> dict[str, Any]:
    summary = found.write(folder)
    content = json.loads((folder / "report.json").read_text())
    assert {name: content[name] for name in summary} == summary
    return content


def test_figures_are_those_of_the_recordings(tmp_path: Path) -> None:
    found = Report(CORPUS, PrepOptions(licence="MIT"), RATE_HZ)
    found.add("train", encoded("a", "anna", 3.0, level_dbfs=-20.0))
    found.add("train", encoded("b", "anna", 1.0, level_dbfs=-30.0, num_limited=7))
    found.add("validation", encoded("c", "ben", 2.0, sample_rate_hz=96_000))
    found.add("test", encoded("d", "anna", 2.0, truncated=True))
    found.add("test", replace(encoded("e", "unknown", 2.0), source="some/folder/e.wav"))
    for number in range(7):
        found.reject(Reject(f"{number}.wav", "too short", f"'{number}.wav' lasts 0 s."))
    found.reject(Reject("x.wav", "missing", "is not there."))
    content = content_of(found, tmp_path)
    assert content["num_recordings"] == 5
    assert content["audio_seconds"] == 10.0
    assert content["num_speakers"] == 3
    assert content["rejects"] == {"missing": 1, "too short": 7}
    assert content["corpus"]["licence"] == "MIT"
    assert content["splits"]["test"] == {
        "num_recordings": 2,
        "seconds": 4.0,
        "share": 0.4,
        "asked": 0.05,
        "num_speakers": 2,
        "num_speakers_of_it_alone": 1,
    }
    assert content["source_sample_rates_hz"] == {"48000": 4, "96000": 1}
    assert content["source_seconds"] == {"48000": 8.0, "96000": 2.0}
    anna, ben, folder = content["groups"]
    assert (anna["name"], ben["name"], folder["name"], folder["kind"]) == ("anna", "ben", "some/folder", "folder")
    assert anna["seconds"] == 6.0
    assert anna["split_seconds"] == {"train": 4.0, "validation": 0.0, "test": 2.0}
    assert content["speakers"] == {
        "num_known": 2,
        "unknown_seconds": 2.0,
        "num_in_several_splits": 1,
        "in_several_splits_seconds": 6.0,
        "in_several_splits": [{"name": "anna", "train": 4.0, "validation": 0.0, "test": 2.0}],
    }
    assert anna["level_dbfs"] == pytest.approx(10 * np.log10((5 * 10**-2 + 1 * 10**-3) / 6), abs=0.01)
    assert content["limited"]["most"] == [{"name": "b", "num_samples": 7}]
    assert content["truncated"] == {"num_recordings": 1, "first": ["d"]}
    assert content["seconds"] == {"minimum": 1.0, "5%": 1.2, "median": 2.0, "95%": 2.8, "maximum": 3.0}
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 8
    words = Parsed(tmp_path / "report.html").words
    for text in (
        "'0.wav' lasts 0 s.",
        "x.wav: is not there.",
        "and 2 more in rejects.jsonl",
        "A. Author & B. Author",
        "MIT",
        "10.0 s of 2 speakers and unknown ones",
        "1 of 2 speakers, 6.0 s of audio, has recordings in more than one split",
        "anna 6.0 s 4.0 s\N{EN DASH}2.0 s 3",
        "some/folder folder 2.0 s \N{EN DASH}\N{EN DASH}2.0 s 1",
        "Of 2.0 s the speaker is not known",
    ):
        assert text in words
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the picture, which takes a second."""
    monkeypatch.setattr(report_module, "draw", lambda *_: Figure(figsize=(1, 1)))


def test_the_same_corpus_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        corpus_of({"anna": {}, "ben": {"level_dbfs": -30.0}}).write(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["rejects.jsonl", "report.html", "report.json", "report.png"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.fault("names on pages")
def test_hostile_names_are_text_on_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    found = corpus_of({HOSTILE: {"num_limited": 3, "truncated": True, "bandwidth_hz": 4000.0}})
    found.reject(Reject(HOSTILE, "unreadable", HOSTILE))
    found.note(HOSTILE)
    duplicates = Duplicates()
    for number in range(3):
        duplicates.add("train", encoded(f"{HOSTILE} {number}"))
    duplicates.add("test", replace(encoded(f"{HOSTILE} 3"), sha256=encoded(f"{HOSTILE} 2").sha256))
    found.duplicates(duplicates)
    found.write(tmp_path)
    page = Parsed(tmp_path / "report.html")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object"}
    assert "<b>" not in page.words.replace("Words <b>bold</b>", "")
    assert page.words.count("<script>alert(1)</script>") > 10
    for tag, attributes in page.elements:
        assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href")), tag
        assert not any(name.startswith("on") for name in attributes)


@pytest.mark.usefixtures("undrawn")
def test_a_good_corpus_gets_no_warnings(tmp_path: Path) -> None:
    assert content_of(corpus_of({"anna": {}, "ben": {}}), tmp_path)["warnings"] == []


SHARP = "A" * 30 + "/" * (MAXIMUM_BANDS - 30)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (
            {"anna": {}, "ben": {"sample_rate_hz": 16_000, "bandwidth_hz": 8000.0, "spectrum": "A" * 32}},
            [
                "20.0 s of 40.0 s (50 %) were sampled below 24000 Hz (at 16000 Hz): above 8 kHz",
                "--sample-rate-hz 16000",
            ],
        ),
        (
            # Each for itself has no sharp drop, all of them together do.
            {"anna": {}, "ben": {"spectrum": SHARP}, "carl": {}},
            ["20.0 s of 60.0 s (33 %) have the rate but not the band", "near 7.5 kHz", "('ben')", "leave them out"],
        ),
        (
            {"anna": {"bandwidth_hz": 4000.0}},
            ["(100 %)", "near 4.0 kHz", "upsampled or filtered", "--sample-rate-hz 8000 suits them"],
        ),
        ({"anna": {}, "ben": {"clipped": 0.02}}, ["20.0 s of 40.0 s (50 %) were clipped", "2.0 %", "('ben')"]),
        ({"anna": {"num_limited": 100}}, ["0.42 % of all samples, in 20 recordings, were beyond full scale"]),
        (
            {"anna": {}, "ben": {"level_dbfs": -40.0}},
            ["levels differ by 20 dB between speakers ('ben' -40 dBFS, 'anna' -20 dBFS); --loudness-lufs -23"],
        ),
        ({"anna": {"silent": 0.5}}, ["50 % of the audio is silent", "--maximum-pause-seconds"]),
    ],
)
def test_each_fault_has_its_warning(speakers: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    (warning,) = content_of(corpus_of(speakers), tmp_path)["warnings"]
    for text in expected:
        assert text in warning
    assert warning in Parsed(tmp_path / "report.html").words


@pytest.mark.usefixtures("undrawn")
def test_what_is_little_or_asked_for_is_not_warned_of(tmp_path: Path) -> None:
    found = corpus_of(
        {f"s{number}": {"level_dbfs": -20.0 - number, "silent": 0.6} for number in range(20)},
        loudness_lufs=-23.0,
        maximum_pause_seconds=0.5,
    )
    # Three seconds of 400: it used to be "0% of the audio".
    for number in range(3):
        found.add("train", encoded(f"slow {number}", "s0", sample_rate_hz=8000, bandwidth_hz=4000.0, spectrum="A" * 16))
    content = content_of(found, tmp_path)
    assert content["warnings"] == []
    assert content["narrow"]["by_rate_seconds"] == 3.0


@pytest.mark.usefixtures("undrawn")
def test_a_held_out_split_far_from_what_was_asked(tmp_path: Path) -> None:
    def found(**changes: Any) -> list[str]:
        report = Report(CORPUS, PrepOptions(split_by=changes.pop("split_by", "speaker")), RATE_HZ, **changes)
        for split, speaker, seconds in (("train", "a", 80.0), ("validation", "b", 14.0), ("test", "c", 6.0)):
            report.add(split, encoded(speaker, speaker, seconds))
        return list(content_of(report, tmp_path)["warnings"])

    (warning,) = found()
    assert "validation holds 14.0 % of the audio where 5.0 % was asked" in warning
    assert "--split-by recording" in warning
    (warning,) = found(split_by="recording")
    assert "another --seed" in warning
    assert found(official_splits=True) == []


@pytest.mark.usefixtures("undrawn")
def test_duplicates_are_named_those_across_splits_first(tmp_path: Path) -> None:
    found = corpus_of({"anna": {}})
    duplicates = Duplicates()
    for split, name, fingerprint, sha256 in (
        ("train", "a", "B" * 84, "1" * 64),
        ("train", "b", "B" * 84, "2" * 64),
        ("train", "c", "Bg" * 42, "3" * 64),
        ("train", "d", "Bg" * 42, "3" * 64),
        ("test", "e", "Bg" * 41 + "Bh", "4" * 64),
    ):
        duplicates.add(split, replace(encoded(name, fingerprint=fingerprint), sha256=sha256))
    found.duplicates(duplicates)
    found.reject(Reject("f.wav", "duplicate", "'f.wav' is the same recording as 'e' of another split."))
    content = content_of(found, tmp_path)
    found_twice = content["duplicates"]
    assert found_twice["num_left_out"] == 1
    assert found_twice["identical"] == [["c", "d"]]
    assert [(pair["name"], pair["other"]) for pair in found_twice["near"]] == [("e", "c"), ("b", "a")]
    across, inside = content["warnings"]
    assert "another split: 1, such as 'e' (test) and 'c' (train)" in across
    assert "another of their split: 2 (10 %)" in inside


@pytest.mark.usefixtures("undrawn")
def test_many_speakers_share_what_is_kept_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "MAXIMUM_GROUPS", 3)
    monkeypatch.setattr(report_module, "ROWS_AT_ONCE", 7)
    letters = np.random.default_rng(0).choice(list(LETTERS[:20]), (8, MAXIMUM_BANDS))
    found = corpus_of({f"s{number}": {"spectrum": "".join(row)} for number, row in enumerate(letters)})
    content = content_of(found, tmp_path)
    assert content["num_speakers"] == content["num_groups"] == 8
    assert len(content["groups"]) == 3
    assert "3 with most audio, of 8; report.json has more" in Parsed(tmp_path / "report.html").words
    assert found._spectra.sum() == pytest.approx(content["audio_seconds"], rel=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_who_is_in_several_splits_is_counted_and_the_longest_are_named(tmp_path: Path) -> None:
    found = Report(CORPUS, PrepOptions(split_by="recording"), RATE_HZ)
    for number in range(30):
        for split in ("train", "test"):
            found.add(split, encoded(f"{number} {split}", f"s{number:02}", 1.0 + number))
    several = content_of(found, tmp_path)["speakers"]
    assert several["num_in_several_splits"] == 30
    assert [each["name"] for each in several["in_several_splits"]] == [f"s{number:02}" for number in range(29, 9, -1)]
    words = Parsed(tmp_path / "report.html").words
    assert "(--split-by speaker keeps voices apart): s29, s28, " in words
    assert "s10 and 10 more." in words


@pytest.mark.usefixtures("undrawn")
def test_speakers_of_one_split_each_and_none_known(tmp_path: Path) -> None:
    found = Report(CORPUS, PrepOptions(), RATE_HZ)
    for split in ("train", "validation", "test"):
        found.add(split, encoded(split, f"of {split}"))
    content = content_of(found, tmp_path)
    assert content["speakers"]["in_several_splits"] == []
    assert "Nobody has recordings in more than one split" in Parsed(tmp_path / "report.html").words

    found = Report(CORPUS, PrepOptions(), RATE_HZ)
    for split in ("train", "validation", "test"):
        found.add(split, replace(encoded(split, "unknown"), source=f"{split}.wav"))
    content = content_of(found, tmp_path)
    assert (content["num_speakers"], content["speakers"]["num_known"]) == (1, 0)
    words = Parsed(tmp_path / "report.html").words
    assert "3 recordings, 3.0 s, no speaker known" in words
    assert "No speaker is known, and voices of one split may be in another." in words
    assert "unknown folder 3.0 s 1.0 s1.0 s1.0 s 3" in words
