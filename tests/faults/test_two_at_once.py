"""A command that writes into a folder is refused, in one line, while another process works there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.locks import LOCK_FILE, hold

COMMANDS = {
    "train": ("train", "recipes/demo/wavenet.yaml", "--set", "corpus.store={store}", "--run-dir", "{out}"),
    "sample": ("sample", "syllables", "--seconds", "0.01", "--out", "{out}"),
    "inspect": ("inspect", "syllables", "--store", "{store}", "--out", "{out}"),
    "study": ("study", "{study}", "--out", "{out}"),
    "prep": ("prep", "folder", "{recordings}", "--out", "{out}"),
    "corpus page": ("corpus", "page", "{store}", "--out", "{out}"),
    "corpus export": ("corpus", "export", "{store}", "--speaker", "a", "--out", "{out}"),
    "corpus subset": ("corpus", "subset", "{store}", "--speakers", "a", "--out", "{out}"),
}


@pytest.fixture(scope="module")
def study_path(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    base = Path("recipes/demo/wavenet.yaml").read_text(encoding="utf-8").replace("stores/demo", str(store_path))
    (folder / "base.yaml").write_text(base)
    return folder


@pytest.mark.fault("two at once")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_is_refused_in_a_line_and_changes_nothing(
    command: Callable[..., int],
    store_path: Path,
    study_path: Path,
    recordings_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    out = tmp_path / "out"
    places = {
        "store": store_path,
        "recordings": recordings_folder,
        "study": study_path,
        "out": out,
    }
    # A store grows beside its place.
    held = tmp_path / ".out.partial" if name in ("prep", "corpus subset") else out
    with hold(held, name="the first"):
        assert command(*(word.format(**places) for word in COMMANDS[name])) == 2
        assert [path.name for path in held.iterdir()] == [LOCK_FILE]
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("audio-ct: ")]) == 1, said
    assert "by process" in said[-1]
