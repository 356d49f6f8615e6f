"""The checks that partitions failed, as `run` and `status` show them."""

from collections.abc import Collection, Sequence

from batch_platform.cli import terminal
from batch_platform.declaration.calendar import Calendar
from batch_platform.monitoring.catalogue import FailedCheck, grouped, texts_in_short
from batch_platform.pipeline.measured import published_failed_checks
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.steps import ranges


def failed_in(pipeline: Pipeline, run_ids: Collection[str]) -> list[FailedCheck]:
    """The checks that partitions failed as some runs scored or evaluated them."""
    failed = published_failed_checks(pipeline.home, pipeline.spec) if run_ids else []
    return [check for check in failed if check.run_id in run_ids]


def show_failed(failed: Sequence[FailedCheck], calendar: Calendar) -> None:
    """Show a line for each check with its partitions, and for each cause where rows or labels are in doubt."""
    for checks in grouped(failed):
        partitions = terminal.spans(ranges(calendar.named(check.partition_key) for check in checks))
        terminal.say(f"  {partitions}: check {checks[0].check}: {texts_in_short(checks)}")
