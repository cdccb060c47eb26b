"""Stop requests are counted, and handlers are as before afterwards."""

import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from audio_ct.signals import stop_on_signals

pytestmark = pytest.mark.fault("signals")

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Python's usual handler of SIGINT, which it leaves out where it was started in the background of a shell."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def test_every_signal_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with caplog.at_level(logging.WARNING), stop_on_signals("stopping") as stop:
        assert stop.asked == 0
        for asked, number in enumerate((*NUMBERS, signal.SIGTERM), start=1):
            os.kill(os.getpid(), number)
            assert stop.asked == asked
    assert caplog.messages == ["stopping"] * 3
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_the_second_signal_can_have_its_usual_effect() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with stop_on_signals("stopping", after_first="restore") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == 1
        assert [signal.getsignal(number) for number in NUMBERS] == before
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_another_thread_changes_nothing() -> None:
    handlers: list[object] = []

    def work() -> None:
        with stop_on_signals("stopping") as stop:
            handlers.extend([signal.getsignal(signal.SIGINT), stop.asked])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT), 0]
