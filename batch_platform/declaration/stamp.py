"""Who writes, and when."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Stamp:
    """Who writes, and when: given by the edge, so that nothing below reads a clock.

    Args:
        run_id: Of the run.
        at: When the run began; with a time zone.
        clock: The edge's clock, for the moments in which things happen; left out, all happens at the beginning.
    """

    run_id: str
    at: datetime
    clock: Callable[[], datetime] | None = None

    def now(self) -> datetime:
        """The time to record for what happens now; nothing is decided by it."""
        return self.at if self.clock is None else self.clock()
