"""Progress: a bar on a terminal, plain lines elsewhere, nothing where it is not wanted."""

import logging
import re

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
    assert "1,500 of 2,000 steps" in printed.err
    assert re.search(r"steps[^\n]*\n[^\n]*5\.1 bits", printed.err), "the figures stand beneath the bar"
    assert "a plain line" not in printed.err


def test_what_is_logged_stands_above_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        with Progress("tiny", 2000, unit="steps") as progress:
            progress.update(1000, "5.1 bits")
            logging.getLogger("audio_ct").warning("validated")
        logging.getLogger("audio_ct").warning("afterwards")
    finally:
        logging.getLogger().removeHandler(handler)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n")
    assert "validated" in [line.strip() for line in printed.splitlines()]
    assert printed.rstrip().endswith("afterwards")


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
