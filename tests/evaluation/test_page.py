"""The comparison page: it holds what it should, nothing from elsewhere, and survives hostile names and gaps.

In headless Chromium it has no script errors, fits a phone, and is worked by keyboard alone.
"""

import base64
import copy
import io
import json
import re
import shutil
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audio_ct.evaluation.hearing_table import FIGURES
from audio_ct.evaluation.page import write_page
from audio_ct.evaluation.preferences import preference_table, read_answers

pytestmark = pytest.mark.xdist_group("pitch")

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
        "seed": 0,
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
    assert parsed.count("script") == clean.count("script") == 3
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


def test_a_model_whose_waveforms_fail_the_checks_is_best_in_nothing(tmp_path: Path) -> None:
    silent, other = model("silent", 2.0), model("other", 2.6)
    table = hearing(silent, other)
    for row, warnings in zip(table["rows"][2:], ([["silence: level -90 dBFS"], []], [[], []]), strict=True):
        row["warnings"] = warnings
    page = write(tmp_path, silent, other, hearing=table)
    # Not even the second best is in bold: it is not the best.
    assert len(re.findall(r'class="best">2\.\d', page.read_text("utf-8"))) == 0
    assert "silent: 1 of its 2 waveforms fail the checks" in Parsed(page).words
    heard = write(tmp_path / "heard", silent, other)
    assert len(re.findall(r'class="best">2\.\d', heard.read_text("utf-8"))) == 2
    assert "fail the checks," not in Parsed(heard).words


@pytest.mark.parametrize("ends", [(-np.inf, np.inf), (2.5, 2.5)])
def test_the_interval_of_a_single_recording_is_unknown(ends: tuple[float, float], tmp_path: Path) -> None:
    alone = [model(name, 2.5, interval=list(ends)) for name in ("A", "B")]
    page = write(tmp_path, *alone, differences=[difference("A", "B", 0.0, *ends)])
    words = Parsed(page).words
    assert words.count("interval unknown") == 2
    assert "No intervals are drawn" in words
    assert 'class="span"' not in page.read_text("utf-8")
    one_known = write(tmp_path / "one", alone[0], model("C", 2.6)).read_text("utf-8")
    assert one_known.count('class="span"') == one_known.count('class="point unknown"') == 1


def test_pitch_and_level_are_drawn_and_said(tmp_path: Path) -> None:
    (tone,) = tones(150, 0.1)[:1]
    silence = {"label": "silence", "waveform": np.zeros(1000, np.float32), "warnings": []}
    page = write(tmp_path, model("A", 2.5, samples=[tone, silence]))
    spoken = [str(each["aria-label"]) for _, each in Parsed(page).elements if each.get("class") == "contours"]
    assert re.fullmatch(r"Of seed 0: pitch 1[45]\d Hz in the middle, level from -\d+ to -\d\d dBFS", spoken[1])
    assert spoken[2] == "Of silence: no pitch, level from -120 to -120 dBFS"
    drawn = re.findall(r'class="pitch" d="([^"]*)"', page.read_text("utf-8"))
    assert drawn[2] == ""
    # 150 Hz lies 43 % up from 60 to 500 Hz on a scale of octaves.
    heights = [float(place) for place in re.findall(r"[ML]\d+ (\d+)", drawn[1])]
    assert np.median(heights) == pytest.approx(57, abs=2)


LONG_NAME = "a-model-with-a-name-that-is-longer-than-any-phone-is-wide/and-then-some"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def tones(frequency_hz: float, amplitude: float) -> list[dict[str, Any]]:
    times = np.arange(RATE_HZ // 4) / RATE_HZ
    waveforms = [amplitude * np.sin(2 * np.pi * (frequency_hz + 10 * seed) * times) for seed in range(3)]
    return [
        {"label": f"seed {seed}", "waveform": waveform.astype(np.float32), "warnings": []}
        for seed, waveform in enumerate(waveforms)
    ]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = model(LONG_NAME, 2.5, samples=tones(150, 0.02)), model("net", 2.6, samples=tones(200, 0.5))
    return write(tmp_path_factory.mktemp("page"), *models, real={"samples": tones(120, 0.1)})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium (Debian: apt-get install chromium) by Playwright; without them the tests are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, of the extra `dev`")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page on a phone of 360 px; whatever a script throws or the console says fails the test."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, accept_downloads=True)
    # Beside other work.
    context.set_default_timeout(180_000)
    page = context.new_page()
    faults: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    context.close()
    assert faults == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def judge(page: Any, keys: list[str]) -> None:
    """Answer pairs by keys: A and B are heard, then the key of each pair."""
    for key in keys:
        page.keyboard.press("a")
        page.locator("[data-status]", has_text="Now hear B").wait_for()
        page.keyboard.press("b")
        page.locator("[data-status]", has_text="Choose").wait_for()
        page.keyboard.press(key)


def reach(page: Any, selector: str) -> None:
    """Go to an element by Tab alone."""
    for _ in range(200):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{selector} cannot be reached by Tab")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 740})
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.evaluate("document.querySelector('[data-question=real]').click()")
    assert (
        opened.evaluate("document.querySelector('dialog').scrollWidth - document.querySelector('dialog').clientWidth")
        == 0
    )


def test_every_control_has_a_name_and_focus_is_seen(opened: Any) -> None:
    names = opened.evaluate(
        """[...document.querySelectorAll("audio, button, input, [role=img], [tabindex='0']")]
            .filter((each) => each.checkVisibility()).map(
            (each) => each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.[0]?.textContent)"""
    )
    assert names
    assert all(names)
    reach(opened, "[data-question=real]")
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_pairs_are_judged_by_keyboard_alone_kept_over_a_reload_and_saved(opened: Any, tmp_path: Path) -> None:
    reach(opened, "[data-question=real]")
    opened.keyboard.press("Enter")
    assert opened.locator("dialog h2").text_content() == "Which is real?"
    opened.keyboard.press("1")
    assert opened.locator("[data-status]").text_content() == "Hear both first."
    judge(opened, ["1", "2"])
    assert opened.locator("[data-progress]").text_content() == "Pair 3 of 6"
    opened.keyboard.press("Backspace")
    assert opened.locator("[data-progress]").text_content() == "Pair 2 of 6"
    judge(opened, ["1"])
    opened.keyboard.press("Escape")
    assert opened.evaluate("document.activeElement.dataset.question") == "real"
    opened.reload()
    assert opened.locator("[data-count=real]").text_content() == "2 of 6 pairs judged"
    assert opened.locator("[data-results]").is_hidden()
    reach(opened, "[data-question=real]")
    opened.keyboard.press("Enter")
    judge(opened, ["2"] * 4)
    assert opened.locator("dialog").is_hidden()
    assert "taken for real" in opened.locator("[data-results]").text_content()
    reach(opened, "[data-question=better]")
    opened.keyboard.press("Enter")
    judge(opened, ["0", "1", "2"])
    reach(opened, "[data-save]")
    with opened.expect_download() as download:
        opened.keyboard.press("Enter")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    sheet = read_answers(file)
    assert [answer.question for answer in sheet.answers] == ["real"] * 6 + ["better"] * 3
    assert [answer.chosen for answer in sheet.answers] == ["first"] * 2 + ["second"] * 4 + [
        "neither",
        "first",
        "second",
    ]
    table = preference_table([sheet])
    assert {row["model"]: row["of"] for row in table["real"]} == {LONG_NAME: 3, "net": 3}
    assert (table["better"][0]["of"], table["better"][0]["no_preference"]) == (2, 1)


def test_both_sounds_of_a_pair_are_heard_at_one_level(opened: Any) -> None:
    """What is decoded in the browser, times its gain, has the same root mean square."""
    levels = opened.evaluate(
        """async () => {
            const data = JSON.parse(document.getElementById("blind-data").textContent);
            const context = new OfflineAudioContext(1, 1, 16000);
            const level = async ({ id, gain }) => {
                const encoded = atob(document.getElementById(id).src.split(",")[1]);
                const bytes = Uint8Array.from(encoded, (letter) => letter.charCodeAt(0)).buffer;
                const samples = (await context.decodeAudioData(bytes)).getChannelData(0);
                return gain * Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
            };
            const pairs = [...data.questions.real, ...data.questions.better];
            return Promise.all(pairs.map(async (pair) => [await level(pair.first), await level(pair.second)]));
        }"""
    )
    assert len(levels) == 9
    for first, second in levels:
        assert first == pytest.approx(second, rel=0.02)


def test_without_storage_the_page_says_that_answers_must_be_saved(opened: Any) -> None:
    opened.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    opened.locator("[data-question=better]").click()
    judge(opened, ["1"])
    assert "save your answers" in opened.locator("[data-note]").text_content()


def test_answers_can_be_forgotten(opened: Any) -> None:
    opened.locator("[data-question=better]").click()
    judge(opened, ["1"])
    opened.keyboard.press("Escape")
    opened.locator("[data-forget]").click()
    assert opened.locator("[data-count=better]").text_content() == "1 of 3 pairs judged"
    opened.locator("[data-forget]").click()
    assert opened.locator("[data-count=better]").text_content() == "3 pairs"
    kept = opened.evaluate("JSON.parse(Object.values(localStorage)[0])")
    assert json.dumps(kept["better"]) == "[]"
