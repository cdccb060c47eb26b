"""The models that come with the package: there, small, described, and loaded by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

import audio_ct
from audio_ct.errors import MissingError
from audio_ct.pretrained import shipped
from audio_ct.recipe import load_recipe

MAXIMUM_BYTES = 12e6
NAMES = ["syllables", "syllables-wavenet"]


def test_each_is_small_and_has_a_card_that_says_what_it_is() -> None:
    assert sorted(shipped()) == NAMES
    assert "GNU GENERAL PUBLIC LICENSE" in (shipped()[NAMES[0]].parent / "COPYING").read_text(encoding="utf-8")
    for name, folder in shipped().items():
        assert sum(path.stat().st_size for path in folder.iterdir()) < MAXIMUM_BYTES
        manifest = json.loads((folder / "manifest.json").read_text())
        card = (folder / "README.md").read_text(encoding="utf-8")
        for needed in (
            f"audio-ct sample {name}",
            "GPL",
            "klettres",
            f"{manifest['tokens'] / 1e6:.1f}M",
            "Known faults",
        ):
            assert needed in card, f"{name}'s card lacks {needed!r}"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_what_export_writes(name: str, command: Callable[..., int], tmp_path: Path) -> None:
    assert command("export", name, "--out", tmp_path / name, "--licence", "GPL-2.0-or-later") == 0
    folder = shipped()[name]
    assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in folder.iterdir()}
    for file in ("README.md", "model.safetensors"):
        assert (tmp_path / name / file).read_bytes() == (folder / file).read_bytes()
    # Its text grows by every key that is new.
    assert load_recipe(tmp_path / name / "recipe.yaml") == load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_each_is_sampled_by_name(
    name: str, command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("sample", name, "--num", 2, "--seconds", 0.05) == 0
    files = sorted(tmp_path.glob(f"out/{name}/{name}-0?.wav"))
    assert [soundfile.info(file).frames for file in files] == [800, 800]
    assert json.loads(files[0].with_suffix(".json").read_text())["checkpoint"] == name


def test_what_is_there_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "syllables").mkdir()
    with pytest.raises(MissingError, match="no whole checkpoint there"):
        audio_ct.load("syllables")


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(MissingError, match=r"no-such-model: .* no model of that name; there are syllables, "):
        audio_ct.load("no-such-model")
