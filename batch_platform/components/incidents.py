"""Incidents: troubles with a pipeline that people hear of once when they begin, when they get worse, and when they are over.

Nothing here reads a clock, a table or the network: troubles come in, and the incidents that began, got worse and ended come out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

JOINS_WITHIN = timedelta(days=1)
Severity = Literal["warning", "failure"]
Causes = Mapping[str, Severity]  # severity by column


@dataclass(frozen=True)
class Subject:
    """Subject of an incident: the runs that make an asset, or a check on it."""

    asset: str
    check: str | None = None


@dataclass(frozen=True)
class Trouble:
    """Trouble with one partition."""

    severity: Severity
    since: datetime
    detail: str  # a sentence, or a few numbers
    run_id: str | None = None
    columns: Causes = field(default_factory=dict[str, Severity])  # empty where no column is to blame

    @property
    def causes(self) -> Causes:
        """The columns to blame, or an empty name if there are none."""
        return self.columns or {"": self.severity}


@dataclass(frozen=True)
class Incident:
    """The same trouble with one or more partitions; the key of a partition is empty where the asset has none."""

    subject: Subject
    troubled: tuple[str, ...]  # keys of its partitions, sorted
    recovered: tuple[str, ...]  # keys of partitions that are no longer part of it
    severity: Severity
    since: datetime
    opened_at: datetime
    detail: str
    run_id: str | None
    columns: Causes = field(default_factory=dict[str, Severity])  # columns to blame, each as bad as it ever was

    @property
    def causes(self) -> Causes:
        """The columns to blame, or an empty name if there are none."""
        return self.columns or {"": self.severity}

    @property
    def partitions(self) -> tuple[str, ...]:
        """Every partition that is or was part of it."""
        return tuple(sorted({*self.troubled, *self.recovered}))


@dataclass(frozen=True)
class Changes:
    """The incidents after a look, and those that began, got worse and ended with it."""

    going_on: tuple[Incident, ...]
    begun: tuple[Incident, ...]
    worse: tuple[Incident, ...]
    ended: tuple[Incident, ...]


def follow(
    going_on: Sequence[Incident],
    troubles: Mapping[Subject, Mapping[str, Trouble]],
    now: datetime,
    before: Callable[[str], str | None],
) -> Changes:
    """Compare the incidents of the last look with all that is wrong now, by subject and partition key.

    A partition joins an incident of its subject that began less than a day ago, so that a backfill makes one incident, and
    an incident that holds the partition `before` it, so that trouble that goes on does not begin anew every day. Both must
    have a cause in common: a column that no such incident knows begins another one, however long the first goes on. A
    cause that only gave a warning so far and fails now makes the incident worse.
    """
    looked_at = [_with_recovered(incident, troubles.get(incident.subject, {})) for incident in going_on]
    kept = [incident for incident in looked_at if incident.troubled]
    begun, worse = list[Incident](), set[int]()
    for subject, of_subject in troubles.items():
        new = dict[str, Trouble]()
        for key, trouble in sorted(of_subject.items()):
            unknown = dict[str, Severity](trouble.causes)
            for at in _joinable(kept, subject, key, now, before):
                shared: Causes = {cause: unknown.pop(cause) for cause in kept[at].causes if cause in unknown}
                if shared:
                    kept[at], is_worse = _joined(kept[at], key, trouble, shared)
                    worse |= {at} if is_worse else set()
            if unknown:
                new[key] = replace(trouble, severity=_worst(unknown), columns=unknown if trouble.columns else {})
        if new:
            begun.append(_opened(subject, new, now))
    ended = tuple(incident for incident in looked_at if not incident.troubled)
    return Changes((*kept, *begun), tuple(begun), tuple(kept[at] for at in sorted(worse)), ended)


def after_checks(
    going_on: Sequence[Incident],
    subject: Subject,
    passed: Collection[str],
    failed: Mapping[str, Trouble],
    dropped: Collection[str] = (),
) -> dict[str, Trouble]:
    """Find the troubles by a check, given the newest result of each partition since the last look.

    A partition that failed is over once it passes or is `dropped`. It is also over once a later partition passes while none fails: what was
    wrong with a day that is gone need not be repaired.
    """
    known = dict[str, Trouble]()
    for incident in going_on:
        for key in incident.troubled if incident.subject == subject else ():
            if key not in passed and key not in dropped:
                columns: Causes = {**known[key].columns, **incident.columns} if key in known else incident.columns
                known[key] = Trouble(incident.severity, incident.since, incident.detail, incident.run_id, columns)
    if known and not failed and max(passed, default="") > max(known):
        return {}
    return known | {key: trouble for key, trouble in failed.items() if key not in dropped}


def _with_recovered(incident: Incident, troubles: Mapping[str, Trouble]) -> Incident:
    """Move partitions that have no trouble any more, or only for another cause, to the recovered ones."""
    troubled = [key for key in incident.troubled if key in troubles and {*troubles[key].causes} & {*incident.causes}]
    return replace(
        incident,
        troubled=tuple(troubled),
        recovered=tuple(sorted({*incident.partitions} - {*troubled})),
    )


def _joinable(
    kept: Sequence[Incident], subject: Subject, key: str, now: datetime, before: Callable[[str], str | None]
) -> list[int]:
    """Return the positions of the incidents that a partition may be part of, those that hold it first."""
    of_subject = [at for at, incident in enumerate(kept) if incident.subject == subject]
    holding = [at for at in of_subject if key in kept[at].troubled]
    near = [at for at in of_subject if now - kept[at].opened_at < JOINS_WITHIN or before(key) in kept[at].troubled]
    return list(dict.fromkeys([*holding, *near]))


def _joined(incident: Incident, key: str, trouble: Trouble, shared: Causes) -> tuple[Incident, bool]:
    """Return the incident with a partition that shares a cause with it, and whether that makes it worse."""
    joined = replace(
        incident,
        troubled=tuple(sorted({*incident.troubled, key})),
        recovered=tuple(other for other in incident.recovered if other != key),
    )
    risen = {cause: severity for cause, severity in shared.items() if severity == "failure" != incident.causes[cause]}
    if not risen:
        return joined, False
    columns = {**incident.columns, **risen} if incident.columns else {}
    worse = replace(joined, severity="failure", detail=trouble.detail, run_id=trouble.run_id, columns=columns)
    return worse, True


def _worst(causes: Causes) -> Severity:
    return "failure" if "failure" in causes.values() else "warning"


def _opened(subject: Subject, troubles: Mapping[str, Trouble], now: datetime) -> Incident:
    """Open an incident of some partitions, with the detail of the worst; among equals, of the newest."""
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
        columns={
            cause: _worst({key: trouble.columns.get(cause, "warning") for key, trouble in troubles.items()})
            for cause in dict.fromkeys(cause for trouble in troubles.values() for cause in trouble.columns)
        },
    )
