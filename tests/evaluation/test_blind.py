"""Pairs that are judged blind, and the table of what listeners answered."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_ct.evaluation.blind import MAX_PAIRS, Sound, draw_pairs, gains

RATE_HZ = 16_000


def sounds(model: str | None, num: int, amplitude: float = 0.1) -> list[Sound]:
    random = np.random.default_rng(len(model or ""))
    return [
        Sound(f"{model}-{index}", model, f"seed {index}", amplitude * random.standard_normal(4000).astype(np.float32))
        for index in range(num)
    ]


def pairs(*models: list[Sound], real: int = 8, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    return draw_pairs(sounds(None, real), models, sample_rate_hz=RATE_HZ, seed=seed)["questions"]


def test_every_sound_of_a_model_is_judged_once_beside_real_speech_and_beside_other_models() -> None:
    drawn = pairs(sounds("a", 6), sounds("b", 6))
    assert len(drawn["real"]) == 12
    assert len(drawn["better"]) == 6
    for question, models in (("real", {None}), ("better", {"a", "b"})):
        for pair in drawn[question]:
            found = {pair["first"]["model"], pair["second"]["model"]}
            assert len(found) == 2
            assert found >= models
    heard = [sound["id"] for pair in drawn["real"] for sound in (pair["first"], pair["second"]) if sound["model"]]
    assert sorted(heard) == sorted(f"{model}-{index}" for model in "ab" for index in range(6))
    # Which side is the real one tells nothing: half and half.
    assert sum(pair["first"]["model"] is None for pair in drawn["real"]) == 6


def test_no_question_takes_long_and_no_model_is_heard_more_than_another() -> None:
    drawn = pairs(*(sounds(model, 8) for model in ("a", "b", "c", "d")))
    assert [len(of_question) for of_question in drawn.values()] == [MAX_PAIRS, MAX_PAIRS]
    of_models = Counter(pair["first"]["model"] or pair["second"]["model"] for pair in drawn["real"])
    assert set(of_models.values()) == {MAX_PAIRS // 4}
    assert set(Counter(frozenset((p["first"]["model"], p["second"]["model"])) for p in drawn["better"]).values()) == {4}


def test_the_seed_and_the_sounds_decide() -> None:
    first, again, other = (
        draw_pairs(sounds(None, 4), [sounds("a", 4)], sample_rate_hz=RATE_HZ, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["questions"] != other["questions"]
    assert first["comparison"] == other["comparison"]
    louder = draw_pairs(sounds(None, 4), [sounds("a", 4, 0.2)], sample_rate_hz=RATE_HZ, seed=0)
    assert louder["comparison"] != first["comparison"]


def test_a_model_without_sound_and_a_page_without_real_speech_have_no_pairs() -> None:
    empty = [Sound("a-0", "a", "seed 0", np.zeros(0, np.float32))]
    assert pairs(empty) == {"real": [], "better": []}
    assert pairs(sounds("b", 2), real=0) == {"real": [], "better": []}


def test_gains_level_what_sounds_and_clip_nothing() -> None:
    random = np.random.default_rng(0)
    loud, soft = 0.3 * random.standard_normal(8000), 0.02 * random.standard_normal(8000)
    soft[:4000] = 0
    spiky = soft.copy()
    spiky[6000] = 1.0
    for a, b in ((loud, soft), (spiky, loud)):
        first, second = gains(a, b, RATE_HZ)
        levelled = [np.sqrt(np.mean((gain * x[x != 0]) ** 2)) for gain, x in ((first, a), (second, b))]
        assert levelled[0] == pytest.approx(levelled[1], rel=0.1)
        assert max(np.abs(first * a).max(), np.abs(second * b).max()) <= 1.0001
    assert gains(np.zeros(100), loud, RATE_HZ)[0] == 1


def answer(question: str, first: str | None, second: str | None, chosen: str) -> dict[str, Any]:
    return {
        "question": question,
        "first": {"model": first, "label": "x"},
        "second": {"model": second, "label": "y"},
        "chosen": chosen,
    }


def write_answers(path: Path, *answers: dict[str, Any], **changes: Any) -> Path:
    sheet = {
        "format": "audio-ct answers 1",
        "comparison": "0123",
        "title": "Trial",
        "listener": path.stem,
        "name": "",
        "answers": list(answers),
        **changes,
    }
    path.write_text(json.dumps(sheet))
    return path


def test_answers_of_two_listeners_become_a_table(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_answers(
        tmp_path / "one.json",
        *[answer("real", None, "net", "first")] * 8,
        *[answer("real", "net", None, "first")] * 2,
        answer("better", "net", "ct", "second"),
    )
    two = write_answers(
        tmp_path / "two.json", answer("better", "ct", "net", "first"), answer("better", "ct", "net", "neither")
    )
    assert command("preferences", one, two, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    (real,), (better,) = table["real"], table["better"]
    assert (real["model"], real["taken"], real["of"], real["share"]) == ("net", 2, 10, 0.2)
    # Clopper and Pearson's for 2 of 10.
    assert real["interval"] == pytest.approx([0.0252, 0.5561], abs=1e-4)
    assert real["p_value"] == pytest.approx(0.109375)
    assert (better["a"], better["b"], better["a_better"], better["of"], better["no_preference"]) == (
        "ct",
        "net",
        2,
        2,
        1,
    )
    assert (table["num_listeners"], table["num_answers"]) == (2, 13)
    assert command("preferences", one, two) == 0
    out = capsys.readouterr().out
    assert "net: 2 of 10 taken for real, 20% [3%, 56%]" in out
    assert "ct over net: 2 of 2, 100% [16%, 100%], no preference 1 times" in out


def test_no_preference_alone_is_no_share(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("preferences", write_answers(tmp_path / "a.json", answer("better", "a", "b", "neither"))) == 0
    assert "a over b: 0 of 0, no answers, no preference 1 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a file"),
        ("{", "name a file that a comparison page saved"),
        ('{"format": "other"}', "format: Input should be 'audio-ct answers 1'"),
        ([answer("real", "a", "b", "first")], "answers.0 is no pair of its question"),
        ([answer("real", None, "b", "neither")], "answers.0 is no pair of its question"),
        ([answer("better", "a", "a", "first")], "answers.0 is no pair of its question"),
        ([answer("better", "a", "b", "third")], "answers.0.chosen"),
    ],
)
def test_what_is_no_file_of_answers_is_told_in_a_line(
    content: Any, words: str, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        write_answers(path, *content)
    assert command("preferences", path) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_answers_to_two_pages_or_twice_are_refused(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_answers(tmp_path / "one.json", answer("better", "a", "b", "first"))
    other = write_answers(tmp_path / "two.json", comparison="4567", name="Ann")
    assert command("preferences", one, other) == 2
    assert "listener 'Ann' are about page 4567" in capsys.readouterr().err
    assert command("preferences", one, one) == 2
    assert "given twice" in capsys.readouterr().err
