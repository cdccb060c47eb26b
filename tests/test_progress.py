"""Progress: a bar on a terminal, plain lines elsewhere, nothing where it is not wanted."""

import pytest

from audio_ct.progress import Progress


@pytest.mark.parametrize("done", [0, 500])
def test_a_terminal_shows_a_bar_with_the_newest_figures(
    done: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress("tiny", 2000, unit="steps", done=done) as progress:
        progress.update(1000, "5.1 bits")
        progress.update(1500)
        progress.line("a plain line")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "1,500 of 2,000 steps · 5.1 bits" in printed.err
    assert "a plain line" not in printed.err


def test_elsewhere_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("encoding", 40, unit="recordings", tenths=True) as progress:
        for done in (1, 2, 7, 8, 9, 10, 40):
            progress.update(done)
        progress.line("the end")
    lines = [f"encoding: {done} of 40 recordings" for done in (7, 8, 40)]
    assert capsys.readouterr().err.splitlines() == [*lines, "the end"]
    with Progress("sampling", 40, unit="samples") as progress:
        progress.update(40)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_nothing_is_shown_where_it_is_not_wanted(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("encoding", 10, unit="recordings", shown=False, tenths=True) as progress:
        progress.update(10)
        progress.line("done")
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
