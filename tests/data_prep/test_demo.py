"""The synthetic corpus: it goes the way of every folder, and says what it is."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from audio_ct.errors import InputError, MissingError
from audio_ct.tokens.store import TokenStore
from data_prep import demo
from data_prep.corpus import options_for
from data_prep.skeleton import prepare


def test_sentences_are_many_and_different() -> None:
    sentences = (Path(demo.__file__).parent / "demo_text.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(sentences)) == len(sentences) >= 40
    assert all(sentence.isascii() and sentence[-1] in ".?" and len(sentence) < 100 for sentence in sentences)


def test_a_missing_engine_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'audio-ct\[demo\]'"):
        prepare(demo.CORPUS, None, tmp_path / "store")
    with pytest.raises(InputError, match="leave the source out"):
        prepare(demo.CORPUS, tmp_path, tmp_path / "store")


def test_the_store_is_synthetic_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hibari")
    read_text = Path.read_text
    shortened = "\n".join(f"Sentence {word}." for word in ("one", "two", "three", "four"))
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: shortened if path.name == "demo_text.txt" else read_text(path, **how)
    )
    monkeypatch.setattr(demo, "SENTENCES_PER_TASK", 2)
    summaries = [
        prepare(demo.CORPUS, None, tmp_path / name, options=options_for(demo.CORPUS, jobs=1)) for name in ("a", "b")
    ]
    assert summaries[0]["digest"] == summaries[1]["digest"]
    store = TokenStore.open(tmp_path / "a")
    store.verify()
    assert store.corpus["synthetic"] is True
    assert store.codec.sample_rate_hz == 8000
    recordings = list(itertools.chain.from_iterable(store.recordings(split) for split in store.splits))
    assert {recording.speaker for recording in recordings} == {demo.SPEAKER}
    assert {recording.text for recording in recordings} == set(shortened.splitlines())
    assert all(len(np.unique(store.tokens(split, 0))) > 50 for split in store.splits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
