"""Incidents: what is wrong with a pipeline, told once when it begins and once when it is over.

Nothing here reads a clock, a table or the network: what is wrong comes in, and which incidents began and ended comes out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

JOINS_WITHIN = timedelta(days=1)
Severity = Literal["warning", "failure"]


@dataclass(frozen=True)
class Subject:
    """What an incident is about: the runs that make an asset, or a check on it."""

    asset: str
    check: str | None = None


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one partition."""

    severity: Severity
    since: datetime
    detail: str  # a sentence, or a few numbers
    run_id: str | None = None


@dataclass(frozen=True)
class Incident:
    """The same trouble with one or more partitions; the key of a partition is empty where the asset has none."""

    subject: Subject
    troubled: tuple[str, ...]  # partitions, in order of their keys
    recovered: tuple[str, ...]  # partitions that were part of it
    severity: Severity
    since: datetime
    opened_at: datetime
    detail: str
    run_id: str | None

    @property
    def partitions(self) -> tuple[str, ...]:
        """Every partition that is or was part of it."""
        return tuple(sorted({*self.troubled, *self.recovered}))


@dataclass(frozen=True)
class Changes:
    """The incidents after a look, and those that began and ended with it."""

    going_on: tuple[Incident, ...]
    begun: tuple[Incident, ...]
    ended: tuple[Incident, ...]


def follow(
    going_on: Sequence[Incident],
    troubles: Mapping[Subject, Mapping[str, Trouble]],
    now: datetime,
    before: Callable[[str], str | None],
) -> Changes:
    """Compare the incidents of the last look with all that is wrong now, by subject and partition key.

    A partition joins an incident of its subject that began less than a day ago, so that a backfill makes one incident, and
    an incident that holds the partition `before` it, so that trouble that goes on does not begin anew every day.
    """
    looked_at = [_with_recovered(incident, troubles.get(incident.subject, {})) for incident in going_on]
    kept = [incident for incident in looked_at if incident.troubled]
    begun: list[Incident] = []
    for subject, of_subject in troubles.items():
        known = {key for incident in kept if incident.subject == subject for key in incident.troubled}
        unknown = sorted({*of_subject} - known)
        apart = [key for key in unknown if not _joins(kept, subject, key, now, before)]
        if apart:
            begun.append(_opened(subject, {key: of_subject[key] for key in apart}, now))
    return Changes((*kept, *begun), tuple(begun), tuple(incident for incident in looked_at if not incident.troubled))


def after_checks(
    going_on: Sequence[Incident],
    subject: Subject,
    passed: Collection[str],
    failed: Mapping[str, Trouble],
    dropped: Collection[str] = (),
) -> dict[str, Trouble]:
    """What is wrong by a check, given the newest result of each partition since the last look.

    A partition that failed is over once it passes or is `dropped`. It is also over once a later partition passes while none fails: what was
    wrong with a day that is gone need not be repaired.
    """
    known = {
        key: Trouble(incident.severity, incident.since, incident.detail, incident.run_id)
        for incident in going_on
        if incident.subject == subject
        for key in incident.troubled
        if key not in passed and key not in dropped
    }
    if known and not failed and max(passed, default="") > max(known):
        return {}
    return known | {key: trouble for key, trouble in failed.items() if key not in dropped}


def _with_recovered(incident: Incident, troubles: Mapping[str, Trouble]) -> Incident:
    recovered = {key for key in incident.troubled if key not in troubles}
    return replace(
        incident,
        troubled=tuple(key for key in incident.troubled if key in troubles),
        recovered=tuple(sorted({*incident.recovered, *recovered})),
    )


def _joins(
    kept: list[Incident], subject: Subject, key: str, now: datetime, before: Callable[[str], str | None]
) -> bool:
    """Whether a partition is part of an incident that goes on; if so, it is added to it."""
    for at, incident in enumerate(kept):
        if incident.subject != subject:
            continue
        if now - incident.opened_at < JOINS_WITHIN or before(key) in incident.troubled:
            kept[at] = replace(
                incident,
                troubled=tuple(sorted({*incident.troubled, key})),
                recovered=tuple(other for other in incident.recovered if other != key),
            )
            return True
    return False


def _opened(subject: Subject, troubles: Mapping[str, Trouble], now: datetime) -> Incident:
    """An incident of some partitions, with the detail of the worst, and of the newest of these."""
    worst = max(troubles, key=lambda key: (troubles[key].severity == "failure", key))
    return Incident(
        subject=subject,
        troubled=tuple(sorted(troubles)),
        recovered=(),
        severity=troubles[worst].severity,
        since=min(trouble.since for trouble in troubles.values()),
        opened_at=now,
        detail=troubles[worst].detail,
        run_id=troubles[worst].run_id,
    )
