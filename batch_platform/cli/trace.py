"""The `trace` command: from a score back to the rows of its sources, or from a source forward to predictions."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from shlex import quote

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.calendar import Calendar
from batch_platform.declaration.errors import WrongUseError, counted, number
from batch_platform.operations.trace import (
    PARTITION,
    Dependents,
    TracedReasons,
    TracedSource,
    dependents,
    trace,
    with_source_rows,
)
from batch_platform.planning.steps import ranges


@click.command(
    "trace",
    epilog=terminal.examples(
        "trace flight_delays flight_id=2013-03-01T10:00Z-UA-475-EWR --reasons",
        "trace flight_delays --source weather --partition 2013-03-01",
    ),
)
@click.argument("pipeline")
@click.argument("key", nargs=-1, metavar="[KEY=VALUE...]")
@click.option("--source", metavar="SOURCE", help="List the predictions that depend on this source instead.")
@click.option("--partition", "only", metavar="KEY", help="With --source: only this partition of the source.")
@click.option("--reasons", "explained", is_flag=True, help="Compute what moved the score most, where it is not stored.")
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
    folder: Path | None, pipeline: str, key: tuple[str, ...], source: str | None, only: str | None, *, explained: bool
) -> None:
    """Show what produced a score of PIPELINE, or what depends on one of its sources.

    A row is given by its key as KEY=VALUE; if it occurs in several partitions, partition=K selects one of them. Shown are the row, the model and its training window, the feature file, the
    rows of the sources, and the run; with --reasons the columns that moved the score most, where the model can tell.
    """
    declared = find_project(folder).declared_as(pipeline)
    example = f"batch-platform trace {pipeline} {' '.join(f'{quote(name)}=…' for name in declared.spec.features.key)}"
    if bool(key) == bool(source) or (only and not source):
        msg = "give either KEY=VALUE of a row, or --source, to which --partition may be added."
        raise WrongUseError(msg, hint=example)
    if source and explained:
        msg = "--reasons is for a row, not for --source."
        raise WrongUseError(msg, hint=f"{example} --reasons")
    if wrong := [part for part in key if "=" not in part]:
        msg = f"{wrong[0]!r} is not KEY=VALUE."
        raise WrongUseError(msg, hint=example)
    if key and all(part.startswith(f"{PARTITION}=") for part in key) and PARTITION not in declared.spec.features.key:
        msg = "a partition alone names no row."
        raise WrongUseError(msg, hint=f"{example} {key[0]}")
    builder, home = declared.builder, declared.home
    if source is not None:
        predictions = dependents(builder, home, source, only)
        terminal.report(predictions)
        _show_dependents(predictions, declared.spec.partitions.calendar)
        return
    of_key = dict(part.split("=", 1) for part in key)
    traces = trace(declared.spec, home, of_key, declared.bundle if explained else None)
    rows = with_source_rows(builder, traces)
    terminal.report(rows)
    for row in rows:
        fields = asdict(row)
        del fields["sources"], fields["reasons"]
        terminal.show_fields(fields)
        if row.reasons is not None:
            _show_reasons(row.reasons)
        for traced in row.sources:
            _show_source(traced)


def _show_reasons(reasons: TracedReasons) -> None:
    if reasons.note:
        terminal.say(f"reasons: {reasons.note}")
        return
    terminal.say(
        f"reasons, computed now: what moved the raw score ({reasons.unit}) from its base value {number(reasons.base)}:"
    )
    for reason in reasons.largest:
        value = "missing" if reason["value"] is None else reason["value"]
        terminal.say(f"  {reason['feature']} ({value}): {number(reason['contribution'], '+.4g')}")


def _show_source(source: TracedSource) -> None:
    terminal.say(f"source {source.name} ({source.kind}):")
    terminal.say(f"  version: {source.version or '-'}{'' if source.unchanged else ', not as it is now'}")
    terminal.say(f"  columns read: {'not known' if source.columns is None else ', '.join(source.columns) or 'none'}")
    if source.note:
        terminal.say(f"  {source.name} {source.note}")
    if source.rows_of_key is not None:
        terminal.say(f"  rows of this key: {source.rows_of_key:,}")
    for row in source.rows:
        terminal.show_fields({"row": row}, indent=2)


def _show_dependents(dependent: Dependents, calendar: Calendar) -> None:
    source = f"partition {dependent.partition} of {dependent.source}" if dependent.partition else dependent.source
    partitions = dependent.partitions
    terminal.say(
        f"{dependent.pipeline}: {counted(len(partitions), 'partition')}, {counted(dependent.rows_scored, 'row')}, depend on {source}"
    )
    terminal.say(f"  {dependent.note}")
    for version, count in dependent.versions.items():
        terminal.say(f"  version {version}: features of {counted(count, 'partition')}")
    if dependent.models:
        terminal.say(f"  models trained on it: {', '.join(dependent.models)}")
    for (through, model), members in groupby(
        partitions, key=lambda partition: (partition.through, partition.model_version)
    ):
        keys = terminal.spans(ranges(calendar.named(partition.partition) for partition in members))
        terminal.say(f"  {keys}: through its {' and its '.join(through)}, scored by {model}")
