"""The `health` command: one quick answer for probes, from what is published and recorded."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.instance import last_heartbeat
from batch_platform.cli.project import Project, find_project
from batch_platform.declaration.errors import BatchPlatformError, NothingPublishedError
from batch_platform.monitoring.measure import Aspect
from batch_platform.pipeline.health import freshness
from batch_platform.warehouse.database import require_not_lost
from batch_platform.warehouse.files import current_copy
from batch_platform.warehouse.lock import lock_timeout, standing_holder
from batch_platform.warehouse.published import reading_published
from batch_platform.warehouse.recovery import behind_since

DAEMON_LIMIT = timedelta(minutes=5)  # a daemon that works reports every 30 s


@dataclass(frozen=True)
class Answer:
    """The answer to a probe; times are in UTC."""

    healthy: bool
    problems: list[str]
    home: Path
    published_at: datetime | None  # time of the last change that readers see; None if nothing is published yet
    behind: bool  # the warehouse was written since
    lock_holder: str | None  # process that holds the warehouse
    lock_since: datetime | None
    daemon_at: datetime | None  # last sign of life of Dagster's daemon; None if none was ever started
    overdue: dict[str, Aspect]  # pipelines whose newest partition is not scored although it should be


@click.command("health", epilog=terminal.examples("health", "health --json"))
@terminal.reports
@click.pass_obj
def command(folder: Path | None) -> None:
    """Answer a probe: end with exit code 1 if the home, the lock or the daemon needs somebody, and say what is overdue.

    It waits for nothing, changes nothing and asks no source. What is overdue does not change the exit code, since starting
    a process again would not mend it: status --fail-on looks at the data.
    """
    project, now = find_project(folder), datetime.now(UTC)
    answer = _look(project, now)
    terminal.report(answer)
    for problem in answer.problems:
        terminal.fail(problem)
    if answer.healthy:
        published = (
            "nothing is published yet" if answer.published_at is None else f"published {_ago(answer.published_at, now)}"
        )
        daemon = "" if answer.daemon_at is None else f"; the daemon reported {_ago(answer.daemon_at, now)}"
        terminal.say(f"healthy: {published}{daemon}")
    for pipeline, aspect in answer.overdue.items():
        terminal.say(f"{pipeline} is overdue: {aspect.text}")
    if not answer.healthy:
        raise click.exceptions.Exit(1)


def _look(project: Project, now: datetime) -> Answer:
    home, problems = project.home, list[str]()
    copy, holder, overdue = current_copy(home), standing_holder(home), dict[str, Aspect]()
    try:
        require_not_lost(home)
        with reading_published(home):
            pass
        overdue = dict(_overdue(project, now))
    except NothingPublishedError:
        copy = None
    except BatchPlatformError as error:
        problems.append(str(error))
    if holder is not None and now - holder.since > timedelta(seconds=lock_timeout()):
        problems.append(
            f"Process {holder.process} has held the warehouse {home.warehouse} since {holder.since:%Y-%m-%d %H:%M:%S} UTC, longer "
            "than others wait for it. Hint: end that process; what it committed stays."
        )
    daemon_at = None
    try:
        daemon_at = last_heartbeat(home)
    except BatchPlatformError as error:
        problems.append(str(error))
    if daemon_at is not None and now - daemon_at > DAEMON_LIMIT:
        problems.append(
            f"Dagster's daemon last reported {_ago(daemon_at, now)}; without it no schedule works. Hint: start it again, for "
            "example with batch-platform ui."
        )
    return Answer(
        healthy=not problems,
        problems=problems,
        home=home.root,
        published_at=_changed_at(copy),
        behind=behind_since(home) is not None,
        lock_holder=None if holder is None else holder.process,
        lock_since=None if holder is None else holder.since,
        daemon_at=daemon_at,
        overdue=overdue,
    )


def _overdue(project: Project, now: datetime) -> Iterator[tuple[str, Aspect]]:
    for name, pipeline in project.declared.items():
        aspect = freshness(pipeline.spec, pipeline.published_ledgers(), now)
        if not aspect.passed:
            yield name, aspect


def _changed_at(copy: Path | None) -> datetime | None:
    return None if copy is None or not copy.exists() else datetime.fromtimestamp(copy.stat().st_mtime, UTC)


def _ago(at: datetime, now: datetime) -> str:
    return f"{terminal.roughly((now - at).total_seconds())} ago"
