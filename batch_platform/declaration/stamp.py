"""The stamp of what is recorded."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Stamp:
    """The run that records something, and its time. Only the outermost caller reads a clock and passes it on here."""

    run_id: str
    at: datetime  # start of the run, with a time zone
    clock: Callable[[], datetime] | None = None  # gives the times of events; None: every event gets the time `at`

    def now(self) -> datetime:
        """The time to record for an event; no decision depends on it."""
        return self.at if self.clock is None else self.clock()
