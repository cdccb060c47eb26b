"""The comparison page: it holds what it should, nothing from elsewhere, and survives hostile names and gaps."""

import base64
import copy
import io
import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audio_ct.evaluation.hearing_table import FIGURES
from audio_ct.evaluation.page import write_page

RATE_HZ = 24_000


class Parsed(HTMLParser):
    """Tags with attributes, and all text outside style and script."""

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
        if self.inside not in ("style", "script"):
            self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def sample(seed: int, seconds: float = 0.3) -> dict[str, Any]:
    waveform = 0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ)).astype(np.float32)
    return {"label": f"seed {seed}", "waveform": waveform, "warnings": ["noise: spectral flatness 0.56"]}


def model(name: str, bits: float | None, **changes: Any) -> dict[str, Any]:
    known = bits or 3.0
    return {
        "name": name,
        "kind": "wavenet",
        "parameters": 1_234_567,
        "bits_per_sample": bits,
        "interval": [known - 0.1, known + 0.1],
        "cold_start_bits_per_sample": known + 0.2,
        "trained_tokens": 4_000_000,
        "training_tokens_per_second": 50_000.0,
        "evaluation_tokens_per_second": 90_000.0,
        "sampling_samples_per_second": 1200.0,
        "checkpoint": "runs/a/step-100",
        "recipe_name": "demo/wavenet",
        "seed": 0,
        "curve": [
            {"tokens": t, "training_bits": known + 2 / t**0.1, "validation_bits": known + 0.1 if t > 5000 else None}
            for t in (1000, 3000, 10_000, 100_000)
        ],
        "recordings": [{"name": "p225_001", "bits_per_sample": bits, "tokens": 24_000}],
        "samples": [sample(1)],
        "continuations": [],
        **changes,
    }


def hearing(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rows = [{"kind": "real", "name": "Real speech"}, {"kind": "line", "name": "Silence"}]
    rows += [{"kind": "model", "name": model["name"], "verdict": "1 of 18 figures."} for model in models]
    return {
        "num": 2,
        "num_real": 16,
        "rows": [{**row, "figures": dict.fromkeys(FIGURES, 0.5), "warnings": [[]]} for row in rows],
        "ranges": dict.fromkeys(FIGURES, (0.4, 0.6)),
        "names": ["a"],
        "notes": ["something is missing"],
        **changes,
    }


def comparison(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "title": "Trial",
        "split": "test",
        "store": "stores/demo",
        "tokens": 100_000,
        "cold_start_samples": 1024,
        "created": "2026-01-01",
        "version": "0.1.0",
        "commit": "abc1234",
        "synthetic": False,
        "sample_rate_hz": RATE_HZ,
        "bits": 8,
        "reference_lines": {"uniform": 8.0, "unigram": 6.0, "order_1": 4.0, "order_2": 3.5, "linear_prediction": 2.7},
        "models": list(models),
        "differences": [],
        "notes": ["a note"],
        "hearing": hearing(*models),
        "real": {"samples": [sample(0)]},
        **changes,
    }


def write(out: Path, *models: dict[str, Any], **changes: Any) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return write_page(comparison(*models, **changes), out)


def test_a_continuation_shows_where_its_prompt_ends(tmp_path: Path) -> None:
    continued = model("a", 2.0, continuations=[sample(2) | {"label": "seed 0, continuing x", "prompt_seconds": 0.05}])
    text, alone = (
        write(tmp_path / name, each).read_text("utf-8")
        for name, each in (("with", continued), ("without", model("a", 2.0)))
    )
    seconds = len(sample(2)["waveform"]) / RATE_HZ
    assert f'class="prompt" style="width:{round(100 * 0.05 / seconds, 2)}%"' in text
    assert "seed 0, continuing x" in text
    assert 'class="prompt"' not in alone
    assert text.count("<audio") == alone.count("<audio") + 1


def difference(a: str, b: str, bits: float, low: float, high: float) -> dict[str, Any]:
    return {"a": a, "b": b, "bits": bits, "interval": [low, high]}


def test_the_scored_checkpoint_is_marked_on_its_curve(tmp_path: Path) -> None:
    marked, unmarked = (
        write(tmp_path / str(tokens), model("a", 2.0, trained_tokens=tokens), model("b", 2.1)).read_text("utf-8")
        for tokens in (100_000, 4_000_000)
    )
    assert marked.count('class="scored"') == 1
    assert 'class="scored"' not in unmarked
    assert "checkpoint scored here" in marked
    assert "checkpoint scored here" not in unmarked


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write(tmp_path / "new" / "page", model("A", 2.5), model("B", 2.6))
    assert page == tmp_path / "new" / "page" / "index.html"
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object", "embed")
        assert (attributes.get("src") or "data:").startswith("data:")
        assert attributes.get("href", "comparison.json") == "comparison.json"
    assert "url(" not in page.read_text()
    assert "http" not in re.sub("http-equiv", "", re.sub(r"base64,[\w+/=]+", "", page.read_text()))
    assert sorted(path.name for path in page.parent.iterdir()) == ["comparison.json", "index.html"]


def test_players_hold_the_samples_real_speech_first(tmp_path: Path) -> None:
    data = comparison(model("A", 2.5, samples=[sample(1), sample(2)]))
    parsed = Parsed(write_page(data, tmp_path))
    sounds = [str(attributes["src"]) for tag, attributes in parsed.elements if tag == "audio"]
    expected = [data["real"]["samples"][0], *data["models"][0]["samples"]]
    assert len(sounds) == parsed.count("img") == 3
    for sound, shown in zip(sounds, expected, strict=True):
        media_type, content = sound.split(";base64,")
        waveform, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(content)), dtype="float32")
        assert (media_type, rate_hz) == ("data:audio/flac", RATE_HZ)
        np.testing.assert_allclose(waveform, shown["waveform"], atol=2 / 2**15)
    assert parsed.words.count("noise: spectral flatness 0.56") == 3


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (difference("A", "B", -0.1, -0.15, -0.05), "A is ahead of B by 0.100 bits a sample."),
        (difference("B", "A", 0.1, 0.05, 0.15), "A is ahead of B by 0.100 bits a sample."),
        (difference("A", "B", -0.1, -0.25, 0.05), "A and B can\N{RIGHT SINGLE QUOTATION MARK}t be told apart."),
        (difference("A", "B", -0.1, -np.inf, np.inf), "A scores 0.100 bits a sample better than B."),
        (difference("A", "other", -0.1, -0.2, -0.1), "A scores 0.100 bits a sample better than B."),
    ],
)
def test_headline_says_what_the_interval_says(pair: dict[str, Any], words: str, tmp_path: Path) -> None:
    parsed = Parsed(write(tmp_path, model("B", 2.6), model("A", 2.5), differences=[pair]))
    assert words in parsed.words
    assert ("0.050 to 0.150, excludes 0" in parsed.words) == ("is ahead of" in words)


@pytest.mark.fault("names on pages")
def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script> \' & \u202egnp.exe שלום \n \udcff'
    clean = Parsed(write(tmp_path, model("A", 2.5), model("B", 2.6)))
    hostile = dict.fromkeys(("name", "kind", "checkpoint", "recipe_name", "seed"), evil)
    shown = {**sample(1), "label": evil, "warnings": [evil]}
    recordings = [{"name": evil, "bits_per_sample": 2.0, "tokens": 10}]
    page = write(
        tmp_path / "hostile",
        {**model("A", 2.5, samples=[shown], recordings=recordings), **hostile},
        model("B", 2.6, recordings=recordings),
        **dict.fromkeys(("title", "split", "store", "created", "version", "commit"), evil),
        notes=[evil],
        differences=[difference(evil, "B", -0.1, -0.2, -0.05)],
    )
    parsed = Parsed(page)
    assert parsed.count("script") == clean.count("script") == 1
    assert "<script>alert" not in page.read_text(encoding="utf-8")
    assert parsed.words.count('<script>alert("1")</script> \' & \u202egnp.exe שלום ?') > 12
    assert json.loads((tmp_path / "hostile" / "comparison.json").read_text())["title"] == evil


@pytest.mark.parametrize("num_models", [1, 2, 3, 8])
def test_any_number_of_models(num_models: int, tmp_path: Path) -> None:
    parsed = Parsed(write(tmp_path, *(model(f"model {i}", 2.5 + i / 10) for i in range(num_models))))
    assert all(f"model {i}" in parsed.words for i in range(num_models))
    assert parsed.count("audio") == num_models + 1
    assert ("needs 2.500 bits a sample" in parsed.words) == (num_models == 1)


def test_figures_that_are_unknown_are_dashes(tmp_path: Path) -> None:
    unknown = {
        **dict.fromkeys(("cold_start_bits_per_sample", "training_tokens_per_second")),
        "interval": [-np.inf, np.inf],
        "curve": [],
    }
    lines = {"uniform": 16.0, "unigram": 9.0, "order_1": None, "order_2": None, "linear_prediction": None}
    of_nothing = hearing(model("A", 2.5), ranges=dict.fromkeys(FIGURES, (None, 1.0)))
    of_nothing["rows"][-1]["figures"] = dict.fromkeys(FIGURES, np.nan)
    changes = {"reference_lines": lines, "commit": None, "cold_start_samples": 0, "hearing": of_nothing}
    page = write(tmp_path, model("A", 2.5, **unknown), **changes)
    parsed = Parsed(page)
    assert "\N{EN DASH}" in parsed.words
    assert "None" not in parsed.words
    assert "nan" not in parsed.words.lower().split()


def test_samples_without_sound_keep_their_warning(tmp_path: Path) -> None:
    waveforms = {"empty": np.zeros(0), "one": np.ones(1), "not finite": np.full(500, np.nan), "silence": np.zeros(500)}
    samples = [{"label": k, "waveform": v.astype(np.float32), "warnings": [f"warns {k}"]} for k, v in waveforms.items()]
    parsed = Parsed(write(tmp_path, model("A", 2.5, samples=samples)))
    assert all(f"warns {label}" in parsed.words for label in waveforms)
    assert parsed.count("audio") == 1 + 3


def test_json_holds_all_figures_and_no_waveform(tmp_path: Path) -> None:
    data = comparison(model("A", 2.5, cold_start_bits_per_sample=np.nan))
    before = copy.deepcopy(data)
    write_page(data, tmp_path)
    text = (tmp_path / "comparison.json").read_text()
    written = json.loads(text, parse_constant=pytest.fail)
    assert "waveform" not in text
    assert written["models"][0]["bits_per_sample"] == 2.5
    assert written["models"][0]["cold_start_bits_per_sample"] is None
    assert written["models"][0]["samples"] == [{"label": "seed 1", "warnings": ["noise: spectral flatness 0.56"]}]
    assert written["reference_lines"] == data["reference_lines"]
    assert written["hearing"]["rows"][0]["figures"] == dict.fromkeys(FIGURES, 0.5)
    np.testing.assert_equal(data, before)


def test_figures_out_of_the_range_of_real_speech_are_marked(tmp_path: Path) -> None:
    table = hearing(model("A", 2.5), model("B", 2.6), ranges={"voiced": (0.5, 0.7), "mos": (2.0, None)})
    for row, voiced, mos in zip(table["rows"], (0.6, 0.0, 0.04, 0.55), (3.0, 1.0, 2.5, np.nan), strict=True):
        row["figures"] = {"voiced": voiced, "mos": mos}
    page = write(tmp_path, model("A", 2.5), model("B", 2.6), hearing=table)
    parsed = Parsed(page)
    marked = re.findall(r'class="off">([^<]*)<', page.read_text("utf-8"))
    assert marked == ["4 %", "\N{EN DASH}"]
    assert all(words in parsed.words for words in ("50 to 70", "from 2.00", "something is missing", "1 of 18 figures."))
    assert "Diversity" not in parsed.words


def test_same_data_same_bytes_and_an_older_page_is_replaced(tmp_path: Path) -> None:
    data = model("A", 2.5)
    first = write(tmp_path, data).read_bytes()
    write(tmp_path, model("B", 2.4))
    assert write(tmp_path, data).read_bytes() == first
    assert stat.S_IMODE((tmp_path / "index.html").stat().st_mode) & 0o600 == 0o600
