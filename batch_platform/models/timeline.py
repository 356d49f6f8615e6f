"""The timeline of a pipeline's model: from which partition on which version serves, and by which decision.

Every approval is an entry "from X on, version V serves", whoever made it and whenever: the gate's holds from the serving period
on, that of a person from the partition on that was named. An entry holds until the next one begins. So a version that is
promoted from a partition on really serves from there, also where newer versions exist, until the next model is approved.

Any later decision against a version, such as a rollback, cancels its earlier entries from the partition on at which that
decision begins to hold; there, what had served before serves again.

A partition is served by the entry that holds at its start. When the decision was made does not matter for that, and no clock
is read: a decision of today about March counts for March, and scores that March got before are stale. The ledger says which
scores were made so: `hindsight` of `score_runs` is true where the decision was made only after the partition had ended.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from operator import itemgetter

from batch_platform.declaration.calendar import Partition
from batch_platform.warehouse.ledger import Promotion, Version


@dataclass(frozen=True)
class Stretch:
    """A stretch of time in which one version serves by one decision."""

    begin: datetime
    end: datetime | None  # exclusive; None: until further notice
    version: Version
    decision: Promotion

    @property
    def approved_from(self) -> datetime:
        """The instant from which the decision holds; before the stretch, another version may have served that was cancelled later."""
        return _holds_from(self.version, self.decision)

    def is_hindsight(self, partition: Partition) -> bool:
        """Return whether the version was approved to serve a partition only after the partition had ended."""
        return self.decision.decided_at >= partition.end


def _holds_from(version: Version, approval: Promotion) -> datetime:
    return max(version.serving_start, approval.holds_from or version.serving_start)


@dataclass(frozen=True)
class _Entry:
    """An approval."""

    begin: datetime
    number: int  # position of the decision among all decisions
    version: Version
    decision: Promotion


@dataclass(frozen=True)
class Timeline:
    """The decisions on the versions of a pipeline, in order of time."""

    versions: Mapping[str, Version]  # key: name
    decisions: Sequence[Promotion]

    def at(self, instant: datetime) -> Stretch | None:
        """The stretch in which an instant lies; None if no version serves then."""
        changes = bisect_right(self._changes, instant, key=itemgetter(0))
        return self._changes[changes - 1][1] if changes else None

    @cached_property
    def stretches(self) -> list[Stretch]:
        """The stretches, in order; between two of them there may be a time in which no version serves."""
        return [stretch for _, stretch in self._changes if stretch is not None]

    @cached_property
    def _changes(self) -> list[tuple[datetime, Stretch | None]]:
        """The instants at which another entry begins to hold, in order, each with the stretch in which it holds."""
        decided = {decision.holds_from for decision in self.decisions if decision.holds_from is not None}
        holding: list[tuple[datetime, _Entry | None]] = []
        for instant in sorted(decided | {version.serving_start for version in self.versions.values()}):
            entry = next((entry for entry in self._newest_first if self._holds(entry, instant)), None)
            if entry != (holding[-1][1] if holding else None):
                holding.append((instant, entry))
        ends = [*(begin for begin, _ in holding), None][1:]
        return [
            (begin, None if entry is None else Stretch(begin, end, entry.version, entry.decision))
            for (begin, entry), end in zip(holding, ends, strict=True)
        ]

    @cached_property
    def _newest_first(self) -> list[_Entry]:
        """The approvals, that with the latest begin first; of equal begins, the one decided last."""
        entries = [
            _Entry(_holds_from(version, decision), number, version, decision)
            for number, decision in enumerate(self.decisions)
            if decision.action == "approved" and (version := self.versions.get(decision.version)) is not None
        ]
        return sorted(entries, key=lambda entry: (entry.begin, entry.number), reverse=True)

    @cached_property
    def _against(self) -> dict[str, list[tuple[int, Promotion]]]:
        """The decisions against each version, with their positions."""
        against: dict[str, list[tuple[int, Promotion]]] = {}
        for number, decision in enumerate(self.decisions):
            if decision.action != "approved":
                against.setdefault(decision.version, []).append((number, decision))
        return against

    def _holds(self, entry: _Entry, instant: datetime) -> bool:
        """Return whether an entry has begun at an instant, and no later decision cancels it there."""
        return entry.begin <= instant and not any(
            number > entry.number and (decision.holds_from is None or decision.holds_from <= instant)
            for number, decision in self._against.get(entry.version.version, ())
        )
