"""How far a run has come, for whoever runs it in this process: the command line draws its bars from it."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One finished partition of an asset."""

    asset: str
    partition_key: str
    done: int
    total: int
    rows: int


Listener = Callable[[Step], None]

_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Call a function for every partition that a run in this thread finishes."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(step: Step) -> None:
    """Tell the listener, if there is one."""
    if (listener := _listener.get()) is not None:
        listener(step)
