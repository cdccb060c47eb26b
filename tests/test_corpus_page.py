"""The page of a token store: what it says is what the store holds, and it needs nothing from elsewhere."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_ct import corpus_page
from audio_ct.corpus_page import write_page
from audio_ct.errors import InputError
from audio_ct.evaluation.reference_lines import CountingLine
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder

RATE_HZ = 24_000
HOSTILE = "<script>alert(1)</script> & \"'\u202e $x^2$ 日本"


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

    def sources(self, tag: str) -> list[str]:
        return [str(attributes["src"]) for name, attributes in self.elements if name == tag]


def store_of(path: Path, rows: dict[str, list[tuple[str, str, np.ndarray]]], *, bits: int = 8) -> TokenStore:
    """A store of waveforms by split, each with its name and speaker."""
    codec = MuLawCodec(RATE_HZ, bits)
    with TokenStoreBuilder(path, codec) as builder:
        for split, recordings in rows.items():
            tokens = [codec.encode(waveform).numpy() for _, _, waveform in recordings]
            offsets = np.cumsum([0, *map(len, tokens)])
            table = [
                Recording(name, speaker, name, HOSTILE, 0, int(offset), len(own))
                for (name, speaker, _), own, offset in zip(recordings, tokens, offsets[:-1], strict=True)
            ]
            builder.add_shard(split, np.concatenate(tokens).astype(np.uint8 if bits <= 8 else np.uint16), table)
        return builder.commit()


def noise(seed: int, seconds: float = 0.5) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))


def test_a_page_says_what_a_store_holds(store_path: Path, tmp_path: Path) -> None:
    store = TokenStore.open(store_path)
    page = Parsed(write_page(store, tmp_path / "new/page"))
    assert sorted(path.name for path in (tmp_path / "new/page").iterdir()) == [
        "contents.png",
        "index.html",
        "tokens.png",
    ]
    num_tokens = sum(store.num_tokens(split) for split in store.splits)
    for text in (f"{num_tokens / RATE_HZ:.1f} s of 3 speakers", "24 kHz, 8 bit", "CC0", store.digest, "Recordings9"):
        assert text in page.words
    for split in store.splits:
        assert split in page.words
    for source in page.sources("audio"):
        waveform, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert rate_hz == RATE_HZ
        assert 1.0 < len(waveform) / rate_hz < 2.0
    assert len(page.sources("audio")) == 6


def test_the_same_store_gives_the_same_page(store_path: Path, tmp_path: Path) -> None:
    store = TokenStore.open(store_path)
    pages = [write_page(store, tmp_path / name) for name in "ab"]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_entropies_are_those_of_the_counting_lines(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore.open(store_path)
    sample = {split: corpus_page._choose(store, split, 10**9) for split in store.splits}
    entropies, counted, judged = corpus_page._entropies(store, sample)
    assert counted == store.num_tokens("train")
    assert judged == store.num_tokens("validation") + store.num_tokens("test")
    train = [store.tokens("train", index) for index in range(len(store.recordings("train")))]
    held_out = [
        store.tokens(split, index) for split in ("validation", "test") for index in range(len(store.recordings(split)))
    ]
    expected = CountingLine.fit(train, 256, store.start_token).bits_per_sample(held_out, 0)
    assert list(entropies.values())[:4] == pytest.approx([8.0, *expected])
    assert list(entropies)[4] == "linear prediction"


def test_a_sample_is_bounded_and_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_page, "MAXIMUM_STRETCH_TOKENS", 5000)
    store = store_of(
        tmp_path / "store",
        {
            "train": [(f"train {seed}", "a", noise(seed)) for seed in range(30)],
            "test": [(f"test {seed}", "b", noise(seed, 0.1)) for seed in range(5)],
        },
    )
    chosen = corpus_page._choose(store, "train", 41_000)
    assert chosen == corpus_page._choose(store, "train", 41_000)
    assert len(chosen) == len({stretch.index for stretch in chosen}) == 9
    assert {stretch.stop - stretch.start for stretch in chosen} == {5000}
    assert len({stretch.start for stretch in chosen}) > 5
    assert all(0 <= stretch.start < stretch.stop <= 12_000 for stretch in chosen)
    # A smaller sample is part of a larger one.
    assert corpus_page._choose(store, "train", 10_000) == chosen[:2]
    assert len(corpus_page._choose(store, "test", 10**9)) == 5


def test_levels_and_spectra_are_those_of_the_speakers(tmp_path: Path) -> None:
    narrow = np.fft.rfft(noise(0, 4.0))
    narrow[len(narrow) // 2 :] = 0
    store = store_of(
        tmp_path / "store",
        {
            "train": [("a", "wide", noise(1, 4.0)), ("b", "narrow", np.fft.irfft(narrow))],
            "test": [("c", "wide", noise(2, 2.0))],
        },
    )
    speakers = corpus_page._speakers(store)
    assert list(speakers) == ["wide", "narrow"]
    sample = [stretch for split in store.splits for stretch in corpus_page._choose(store, split, 10**9)]
    found = corpus_page._measure(store, sample, list(speakers))
    wide, thin = corpus_page._speaker_rows(found, speakers, RATE_HZ)
    assert wide["level_dbfs"] == pytest.approx(-20, abs=0.2)
    assert wide["end_hz"] == RATE_HZ / 2
    assert thin["level_dbfs"] == pytest.approx(-23, abs=0.2)
    assert thin["end_hz"] == pytest.approx(6000, abs=300)
    assert found.num_tokens == found.histogram.sum() == 10 * RATE_HZ
    words = Parsed(write_page(store, tmp_path / "page")).words
    assert "6.0" in words


@pytest.mark.fault("names on pages")
def test_hostile_names_are_text_on_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"train": [(HOSTILE, HOSTILE, noise(0)), (f"{HOSTILE} 2", "b", noise(1))]})
    page = Parsed(write_page(store, tmp_path / "page"))
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"}
    assert page.words.count("<script>alert(1)</script>") > 3
    for _, attributes in page.elements:
        assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href"))


@pytest.mark.parametrize("bits", [4, 10, 16])
def test_any_depth_has_a_page(bits: int, tmp_path: Path) -> None:
    store = store_of(
        tmp_path / "store", {"train": [("a", "a", noise(0))], "validation": [("b", "b", noise(1))]}, bits=bits
    )
    words = Parsed(write_page(store, tmp_path / "page")).words
    assert f"24 kHz, {bits} bit" in words


def test_a_store_of_one_recording_has_a_page(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"train": [("a", "a", noise(0, 0.01))]})
    assert "1 speaker" in Parsed(write_page(store, tmp_path / "page")).words


def test_a_store_of_bytes_has_tokens_and_no_sound(byte_store_path: Path, tmp_path: Path) -> None:
    page = Parsed(write_page(TokenStore.open(byte_store_path), tmp_path / "page"))
    assert re.search(r"text: 60.000 bytes", page.words)
    assert page.sources("audio") == []
    assert len(page.sources("img")) == 1
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["index.html", "tokens.png"]


def test_a_place_that_cannot_be_written_is_one_line(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        write_page(TokenStore.open(store_path), tmp_path / "file")
