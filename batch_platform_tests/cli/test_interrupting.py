"""A signal ends the command even where a callback loses the exception that its handler raises."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable

import pytest
from dagster import DagsterExecutionInterruptedError

from batch_platform.cli.app import resend_lost_interruptions

LONG = 600  # seconds


def interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGTERM)


LOST: dict[str, Callable[[], object]] = {
    "called from C": ctypes.CFUNCTYPE(None)(interrupt),
    "printed": lambda: sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, DagsterExecutionInterruptedError])
def test_an_interruption_that_is_lost_is_sent_again(monkeypatch, capfd, lose, kind):
    def handle(*_: object) -> None:
        raise kind

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    former = signal.signal(signal.SIGTERM, handle)
    try:
        resend_lost_interruptions()
        with pytest.raises(kind):
            lose_and_go_on(lose)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert kind.__name__ not in capfd.readouterr().err


def lose_and_go_on(lose: Callable[[], object]) -> None:
    lose()
    threading.Event().wait(LONG)


def test_other_errors_that_are_dropped_are_still_shown(monkeypatch, capfd):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    resend_lost_interruptions()

    @ctypes.CFUNCTYPE(None)
    def fails() -> None:
        raise ValueError("shown")

    fails()
    sys.excepthook(ValueError, ValueError("printed"), None)
    shown = capfd.readouterr().err
    assert "ValueError: shown" in shown
    assert "ValueError: printed" in shown
