"""The sensor that tells people when something goes wrong with a pipeline: once per fault and day.

It looks at the runs and at the results of checks that Dagster has recorded, and at what the published copy says failed. It reads
no table that a writer could hold. Which faults it announced on which day, which results it has seen, and which messages a receiver
does not have yet stand in the cursor of the sensor, which Dagster stores when a tick ends. So each receiver gets each message once;
it gets one twice only if it answers later than Apprise waits, or if the daemon or the code server dies, or the tick takes more than
Dagster's minute, after the message was sent.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import quote

import dagster as dg
from pydantic import TypeAdapter, ValidationError

from batch_platform.components.checks import NEWEST_SCORED, OF_THE_RUN
from batch_platform.components.dagster_internals import NOT_FINISHED_STATUSES, check_results
from batch_platform.components.receivers import Message, Severity, deliver, identity
from batch_platform.components.runs import Target, keys_of_range, newest_ended
from batch_platform.components.schedules import MOST_BYTES
from batch_platform.components.wiring import PIPELINE_TAG, Wiring, clear_failures, now
from batch_platform.declaration.calendar import Calendar
from batch_platform.declaration.errors import NothingPublishedError, WrongUseError, listed
from batch_platform.declaration.redaction import redact
from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.measure import ALARMS
from batch_platform.pipeline.health import freshness
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.steps import ASSET_OF, ranges
from batch_platform.warehouse.deletion import read_dropped
from batch_platform.warehouse.failures import Failure, read_failures
from batch_platform.warehouse.published import reading_published

UI_VARIABLE, UI = "BATCH_PLATFORM_UI", "http://127.0.0.1:3000"  # address at which people open the UI
SECONDS_BETWEEN_LOOKS = 30
MOST_RESULTS = 10_000  # results of a check that one look reads
MOST_OF_HISTORY = 400  # results of a check that the first look reads
MOST_RANGES = 10  # ranges of partitions in a message
MOST_SHOWN = 4  # texts or numbers of a failed check in a message
LONGEST_DETAIL = 600  # characters
UNPARTITIONED = ""
_SEVERITIES: dict[str, Severity] = {"warn": "warning", "fail": "failure"}


@dataclass(frozen=True)
class Subject:
    """Subject of a fault: the runs that make an asset, or a check on it."""

    asset: str
    check: str | None = None


@dataclass(frozen=True)
class Trouble:
    """Trouble with one partition."""

    severity: Severity
    since: datetime
    detail: str  # a sentence, or a few numbers
    run_id: str | None = None
    columns: Mapping[str, Severity] = field(default_factory=dict[str, Severity])  # empty where no column is to blame

    def faults(self, subject: Subject) -> dict[str, str]:
        """Map the identity of each fault to the column to blame, which is empty if there is none."""
        columns = self.columns or {"": self.severity}
        return {
            "/".join((subject.asset, subject.check or "", severity, column)): column
            for column, severity in columns.items()
        }


Troubles = Mapping[str, Trouble]  # by partition key, which is empty for an asset without partitions


@dataclass(frozen=True)
class Looked:
    """State that one look leaves for the next."""

    results_until: int | None = None  # id of the newest result of a check that was seen; None before the first look
    announced: dict[str, date] = field(default_factory=dict[str, date])  # newest day on which each fault was announced
    waiting: tuple[Message, ...] = ()  # messages that some receiver does not have yet


_CURSOR = TypeAdapter(Looked)


def build_sensors(wiring: Wiring) -> list[dg.SensorDefinition]:
    """Build the sensor of a pipeline, stopped until it is switched on; empty without receivers."""
    urls = wiring.spec.monitoring.notify
    if not urls:
        return []

    @dg.sensor(
        name=f"{wiring.spec.name}_alerts",
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
        description=(
            "Tells the addresses of monitoring.notify when a run or a check of the pipeline fails, once per fault and day. "
            "A message that a receiver does not take is sent again at the next tick."
        ),
        tags={PIPELINE_TAG: wiring.spec.name},
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        with clear_failures():
            last = _last_look(context)
            looked = look(wiring, context.instance, list(_checks_of(wiring, context)), last, now())
            outcome = deliver(urls, looked.waiting)
            context.update_cursor(_CURSOR.dump_json(replace(looked, waiting=outcome.waiting)).decode())
        waiting = (
            f"{len(outcome.waiting)} waiting: {'; '.join(outcome.failures)}" if outcome.waiting else "none waiting"
        )
        return dg.SkipReason(f"Messages: {outcome.sent} sent, {waiting}.")

    return [alerts]


def _last_look(context: dg.SensorEvaluationContext) -> Looked:
    try:
        return _CURSOR.validate_json(context.cursor) if context.cursor else Looked()
    except ValidationError:
        context.log.warning("The cursor was not written by this version of the sensor, which begins anew.")
        return Looked()


def _checks_of(wiring: Wiring, context: dg.SensorEvaluationContext) -> Iterator[dg.AssetCheckKey]:
    """Yield every check on an asset of the pipeline, also those of the user, except freshness, which `look` judges itself."""
    if (repository := context.repository_def) is not None:
        for key in sorted(repository.asset_graph.asset_check_keys, key=lambda key: key.name):
            if key.asset_key.path[0] == wiring.spec.name and key.name != NEWEST_SCORED:
                yield key


def look(
    wiring: Wiring, instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey], last: Looked, at: datetime
) -> Looked:
    """Look at what is wrong now; messages about what has changed since the last look wait to be sent."""
    dropped, failures = _published(wiring)
    troubles, until = _of_checks(instance, checks, wiring.spec.partitions.calendar, last, dropped)
    troubles |= _of_runs(wiring, instance, failures, at) | _of_freshness(wiring, at)
    receivers = tuple(map(identity, wiring.spec.monitoring.notify))
    messages, announced = announce(wiring, troubles, last.announced)
    new = tuple(replace(message, waiting=receivers) for message in messages)
    return Looked(until, announced, (*last.waiting, *new))


def announce(
    wiring: Wiring, troubles: Mapping[Subject, Troubles], announced: Mapping[str, date]
) -> tuple[list[Message], dict[str, date]]:
    """Write a message about each subject with faults that were not announced on their day; return also the day of each fault.

    The day is that of the newest trouble, in the pipeline's time zone: what fails again on a later day is announced again.
    """
    zone = wiring.spec.partitions.calendar.zone
    messages, days = list[Message](), dict(announced)
    for subject, by_partition in troubles.items():
        new = dict[str, Trouble]()
        columns = dict[str, None]()
        for key, trouble in sorted(by_partition.items()):
            day = trouble.since.astimezone(zone).date()
            for fault, column in trouble.faults(subject).items():
                if day > announced.get(fault, date.min):
                    new[key] = trouble
                    columns |= {column: None} if column else {}
                    days[fault] = max(day, days.get(fault, day))
        if new:
            messages.append(_message(wiring, subject, new, list(columns)))
    newest = max(days.values(), default=date.min)
    current = {fault for subject, all_ in troubles.items() for it in all_.values() for fault in it.faults(subject)}
    return messages, {fault: day for fault, day in days.items() if day == newest or fault in current}


def _published(wiring: Wiring) -> tuple[frozenset[str], list[Failure]]:
    """Return the partitions that were dropped, and the failures of all others, without those of undeclared deliveries."""
    name, deliveries = wiring.spec.name, {delivery.asset for delivery in wiring.spec.predictions.deliver}
    try:
        with reading_published(wiring.pipeline().home) as con:
            dropped = frozenset(read_dropped(con, name))
            return dropped, [
                failure
                for failure in read_failures(con, name).values()
                if failure.partition_key not in dropped and (not failure.of_delivery or failure.step in deliveries)
            ]
    except NothingPublishedError:
        return frozenset(), []


def _of_checks(
    instance: dg.DagsterInstance,
    checks: Iterable[dg.AssetCheckKey],
    calendar: Calendar,
    last: Looked,
    dropped: frozenset[str],
) -> tuple[dict[Subject, dict[str, Trouble]], int]:
    """Find the troubles that each check reports, and the id of the newest result that need not be read again.

    Results of a run that goes on are left for later: then a backfill is judged as a whole.
    """
    going_on = {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))}
    troubles: dict[Subject, dict[str, Trouble]] = {}
    seen, unfinished, first = [last.results_until or 0], list[int](), last.results_until is None
    for check in checks:
        subject = Subject(check.asset_key.path[-1], check.name)
        newest: dict[str, Trouble | None] = {}  # newest result by partition; None where the check passed
        most = MOST_OF_HISTORY if first else MOST_RESULTS
        for record in check_results(instance, check, after=last.results_until or 0, most=most):
            event = record.event
            result = event.asset_check_evaluation if event else None
            if record.run_id in going_on:
                unfinished.append(record.id)
            elif result is not None and event is not None and (keys := _partitions_of(result, calendar)):
                seen.append(record.id)
                since = datetime.fromtimestamp(event.timestamp, UTC)
                trouble = None if result.passed else _failed(result, since, record.run_id)
                for key in keys:
                    newest.setdefault(key, trouble)
        passed = {key for key, trouble in newest.items() if trouble is None}
        failed = {key: trouble for key, trouble in newest.items() if trouble is not None}
        if first:  # what later partitions got over is history
            latest = max(passed, default=UNPARTITIONED)
            failed = {key: trouble for key, trouble in failed.items() if key >= latest}
        if failed := {key: trouble for key, trouble in failed.items() if key not in dropped}:
            troubles[subject] = failed
    return troubles, min(max(seen), *(id_ - 1 for id_ in unfinished)) if unfinished else max(seen)


def _partitions_of(result: dg.AssetCheckEvaluation, calendar: Calendar) -> list[str]:
    """Return the partitions of a result; none for a result that only sums up or repeats those of partitions."""
    if result.description == OF_THE_RUN:
        return []
    if result.partition is None:  # about all partitions together
        return [UNPARTITIONED]
    return keys_of_range(calendar, result.partition) or [result.partition]


def _failed(result: dg.AssetCheckEvaluation, since: datetime, run_id: str) -> Trouble:
    """Describe a failed result by the first lines of text in its metadata, or else by the first numbers."""
    values = {name: entry.value for name, entry in result.metadata.items()}
    texts = {name: value for name, value in values.items() if isinstance(value, str) and "\n" not in value}
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    shown = [f"{name}: {value}" for name, value in (texts or numbers).items()][:MOST_SHOWN]
    if result.description and result.description != result.partition:
        shown.insert(0, result.description)
    severity: Severity = "failure" if result.severity == dg.AssetCheckSeverity.ERROR else "warning"
    alarms: Any = values.get(ALARMS) if result.check_name in MEASURES else None
    columns: dict[str, Severity] = {name: _SEVERITIES[level] for name, level in dict(alarms or {}).items()}
    return Trouble(severity, since, _cut("; ".join(shown)), run_id, columns)


def _of_runs(
    wiring: Wiring, instance: dg.DagsterInstance, failures: Sequence[Failure], at: datetime
) -> dict[Subject, dict[str, Trouble]]:
    """Find recorded failures with their reasons, and what is left undone by failed runs that recorded no reason."""
    troubles: dict[Subject, dict[str, Trouble]] = {}
    for failure in failures:
        text = f"{failure.reason} Hint: {failure.hint}" if failure.hint else failure.reason
        trouble = Trouble("failure", failure.failed_at, _cut(text), failure.run_id)
        troubles.setdefault(Subject(failure.step), {})[failure.partition_key] = trouble
    explained = {failure.run_id for failure in failures}
    fine = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED)
    failed = {
        target: ended
        for target, ended in newest_ended(wiring, instance).items()
        if ended.run.status not in fine and ended.run.run_id not in explained
    }
    undone = _undone(wiring, at) if failed else frozenset[Target]()
    reasons: dict[str, str] = {}
    for (asset, key), ended in sorted(failed.items()):
        if key and (asset, key) not in undone:
            continue
        run_id = ended.run.run_id
        if run_id not in reasons:
            reasons[run_id] = _cut(_reason(instance, run_id))
        trouble = Trouble("failure", ended.at or at, reasons[run_id], run_id)
        troubles.setdefault(Subject(asset), {}).setdefault(key, trouble)
    return troubles


def _of_freshness(wiring: Wiring, at: datetime) -> dict[Subject, dict[str, Trouble]]:
    """Report the newest partition that `monitoring.fresh_by` expects by now, if it is not scored."""
    spec = wiring.spec
    if spec.monitoring.fresh_by is None:
        return {}
    aspect = freshness(spec, wiring.pipeline().published_state(most_bytes=MOST_BYTES), at)
    if aspect.passed:
        return {}
    since = spec.periods.deadline(spec.partitions.calendar.named(aspect.partition)) if aspect.partition else at
    return {Subject("predictions", NEWEST_SCORED): {UNPARTITIONED: Trouble("failure", since, aspect.text)}}


def _undone(wiring: Wiring, at: datetime) -> frozenset[Target]:
    """Return the assets and partitions that are due."""
    plan = make_plan(wiring.spec, wiring.pipeline().published_state(most_bytes=MOST_BYTES), PlanRequest(at))
    return frozenset((ASSET_OF.get(item.name, item.name), item.partition.key) for item in plan.items)


def _reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return the reason of a failed run, from its first failed step, else from Dagster."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        failure = entry.dagster_event.step_failure_data if entry.dagster_event else None
        if failure is not None and failure.user_failure_data and failure.user_failure_data.description:
            return failure.user_failure_data.description
        if failure is not None and failure.error is not None:
            return " ".join((failure.error.cause or failure.error).message.split())
    messages = [entry.user_message for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)]
    return messages[-1] if messages else "Its process ended unexpectedly."


def _message(wiring: Wiring, subject: Subject, troubles: Troubles, columns: Sequence[str]) -> Message:
    """Write the message about a fault: what, where, how bad, since when, and where to look."""
    worst = max(troubles, key=lambda key: (troubles[key].severity == "failure", key))
    trouble = troubles[worst]
    name, zone = wiring.spec.name, wiring.spec.partitions.calendar.zone
    where = shown_partitions(_calendar(wiring, subject), sorted(troubles))
    outcome = "gives a warning" if trouble.severity == "warning" else "failed"
    what = f"{f'the check {subject.check} on ' if subject.check else ''}{subject.asset} {outcome}"
    since = min(other.since for other in troubles.values()).astimezone(zone)
    lines = [
        f"Pipeline: {name}",
        f"What: {what}",
        *([f"Partitions: {where}"] if where else []),
        *([f"Columns: {listed(columns)}"] if columns else []),
        f"How bad: {trouble.severity}. {trouble.detail}".rstrip(),
        f"Since: {since:%Y-%m-%d %H:%M} {zone.key}",
        f"See: {_link(name, subject, trouble.run_id)}",
    ]
    if not wiring.spec.monitoring.notify_values:
        lines = [without_keys(line, wiring.spec.features.key) for line in lines]
    title = f"{name}: {what}{f' ({where})' if where else ''}"
    return Message(redact(title), redact("\n".join(lines)), trouble.severity, ())


def without_keys(text: str, key: Sequence[str]) -> str:
    """A text about some rows up to their first key, as errors write it, and its hint."""
    names = "|".join(map(re.escape, key))
    return re.sub(rf"(?<!\w)(?:{names})=.*?(?= Hint: |$)", "(rows are not named).", text)


def _link(pipeline: str, subject: Subject, run_id: str | None) -> str:
    """Link to the page of the UI that shows a fault, at the address of `batch-platform ui` or of UI_VARIABLE."""
    address = os.environ.get(UI_VARIABLE, UI).rstrip("/")
    if subject.check is not None:
        return f"{address}/assets/{pipeline}/{subject.asset}?view=checks&checkDetail={quote(subject.check)}"
    return f"{address}/runs/{run_id}" if run_id else f"{address}/assets/{pipeline}/{subject.asset}"


def shown_partitions(calendar: Calendar, keys: Sequence[str]) -> str:
    """Write partitions as ranges, such as `2024-02-01...2024-02-05, 2024-02-10 (6)`; empty for an asset without partitions."""
    keys = [key for key in keys if key]
    joined = [(key, key) for key in keys]
    with suppress(WrongUseError):  # partitions as they were declared when the fault was recorded
        joined = [(members[0].key, members[-1].key) for members in ranges(map(calendar.named, keys))]
    shown = [first if first == last else f"{first}...{last}" for first, last in joined[:MOST_RANGES]]
    more = f" and {len(joined) - MOST_RANGES} more" if len(joined) > MOST_RANGES else ""
    count = f" ({len(keys):,})" if len(keys) > 1 else ""
    return f"{', '.join(shown)}{more}{count}"


def _calendar(wiring: Wiring, subject: Subject) -> Calendar:
    calendar = wiring.spec.partitions.calendar
    return (wiring.spec.periods.serving or calendar) if subject.asset == "model" else calendar


def _cut(text: str) -> str:
    """Shorten a text without its secrets, which are removed first: a part of an encoded secret would not be recognised."""
    clean = redact(text)
    return clean if len(clean) <= LONGEST_DETAIL else f"{clean[:LONGEST_DETAIL]}…"
