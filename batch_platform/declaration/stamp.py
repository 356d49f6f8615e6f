"""The stamp of what is recorded."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Stamp:
    """Which run records something, and when. Only the outermost caller reads a clock and passes it on here.

    Args:
        run_id: The run.
        at: When the run began, with a time zone.
        clock: Clock for the times of events; without it, every event gets the time `at`.
    """

    run_id: str
    at: datetime
    clock: Callable[[], datetime] | None = None

    def now(self) -> datetime:
        """The time to record for an event; no decision depends on it."""
        return self.at if self.clock is None else self.clock()
