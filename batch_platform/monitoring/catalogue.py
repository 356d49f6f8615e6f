"""Every measure by name, and what scoring and evaluation do with all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf
from typing import Annotated, Any, get_args

import duckdb
import polars as pl

from batch_platform.declaration import extensions
from batch_platform.declaration.errors import number
from batch_platform.declaration.extensions import Registry
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.divergence import Level
from batch_platform.monitoring.measure import (
    ALARMS,
    Asset,
    Check,
    Commits,
    EvaluatedMeasure,
    Judged,
    Judgement,
    Measure,
    ScoredMeasure,
    ScoredPart,
    ScoredPartition,
    table_of,
)
from batch_platform.warehouse import descriptions
from batch_platform.warehouse.descriptions import Description
from batch_platform.warehouse.ledger import create_table, insert, note, note_partitions, read_records
from batch_platform.warehouse.sql import has_table, quoted

MEASURES: Registry[Measure[Any]] = extensions.MEASURES
HEALTH, CAUSES = "health", ", "  # the table, and what stands between the causes of an alarm
_SEVERITIES: dict[Level, str | None] = {"none": None, "warn": "warning", "fail": "error"}


def scored_measures() -> dict[str, ScoredMeasure[Any]]:
    """The measures that are computed when a partition is scored."""
    return {name: measure for name, measure in MEASURES.items() if isinstance(measure, ScoredMeasure)}


def evaluated_measures(spec: PipelineSpec | None = None) -> dict[str, EvaluatedMeasure]:
    """The measures that are computed when a partition is evaluated; of a pipeline, those that it asks for."""
    measures = {name: measure for name, measure in MEASURES.items() if isinstance(measure, EvaluatedMeasure)}
    return {name: measure for name, measure in measures.items() if spec is None or measure.declared(spec)}


def measures_on(asset: Asset) -> dict[str, Measure[Any]]:
    """The measures that an asset shows."""
    return {name: measure for name, measure in MEASURES.items() if measure.asset == asset}


def declared_checks(spec: PipelineSpec, asset: Asset) -> dict[str, Check[Any]]:
    """The checks of the measures that an asset shows, by measure; a measure that is not judged is left out."""
    checks = {name: measure.check(spec) for name, measure in measures_on(asset).items()}
    return {name: check for name, check in checks.items() if check is not None}


def judgements(spec: PipelineSpec, asset: Asset, values: Mapping[str, Any], task: str) -> dict[str, Judged]:
    """The judgements of a partition by the checks of an asset, by measure; a measure that has nothing to judge is left out."""
    checks = declared_checks(spec, asset).items()
    judged = {name: check.judge(values[name], task) for name, check in checks if name in values}
    return {name: judgement for name, judgement in judged.items() if judgement is not None}


def staged_values(parts: Mapping[str, ScoredPart]) -> dict[str, Mapping[str, Any]]:
    """The values that are known before partitions are committed, by measure and partition key."""
    staged = {name: measure.stage(parts) for name, measure in scored_measures().items()}
    return {name: values for name, values in staged.items() if values is not None}


def replace_measures(con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]) -> None:
    """Replace the rows of every measure of scoring, within the caller's transaction."""
    note(con, [change for measure in scored_measures().values() for change in measure.replace(con, commits, parts)])


def read_values(
    con: duckdb.DuckDBPyConnection, commits: Commits, staged: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The value of every measure of committed partitions, by partition key and measure; `staged` are known already."""
    for run in commits.runs:
        commits.past.add(run)
    known, values = staged or {}, {key: dict[str, Any]() for key in commits.keys}
    for name, measure in scored_measures().items():
        if name in known or measure.is_read:
            of_measure = known[name] if name in known else measure.read(con, commits)
            for key in values.keys() & of_measure.keys():
                values[key][name] = of_measure[key]
    return values


def further_rows(partition: ScoredPartition) -> dict[str, pl.DataFrame]:
    """The rows that measures have beside those of their tables, of a partition that was evaluated with labels, by name."""
    further = dict[str, pl.DataFrame]()
    for measure in MEASURES.values():
        further |= measure.beside(partition)
    return further


def settle_measures(
    con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str], rows: Mapping[str, pl.DataFrame]
) -> None:
    """Complete what evaluated partitions decide of other rows, within the caller's transaction; `rows` are further ones by name."""
    for measure in MEASURES.values():
        measure.settle(con, pipeline, keys, rows)


@dataclass(frozen=True)
class HealthRow:
    """The judgement of a partition by a check; a row of the table `health`."""

    partition_key: str
    asset: Annotated[str, "asset that shows it: predictions, drift or performance"]
    check_name: Annotated[str, "name of the check"]
    passed: Annotated[bool, "whether nothing is wrong"]
    severity: Annotated[str | None, "warning or error; null where it passed"]
    text: Annotated[str, "what was judged, in words"]
    columns: Annotated[
        str, "columns or other causes of the alarm, with commas between them, the worst first; empty without any"
    ]
    judged_at: Annotated[datetime, "when, in UTC"]
    model_version: Annotated[str, "version that scored the partition"]
    run_id: str


@dataclass(frozen=True)
class Subject:
    """A partition that is judged: the values of its measures by name, and who made them when."""

    partition_key: str
    values: Mapping[str, Any]
    task: str
    model_version: str
    run_id: str
    at: datetime


def replace_judgements(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, assets: Sequence[Asset], subjects: Sequence[Subject]
) -> None:
    """Judge partitions by the checks of some assets, and replace their rows within the caller's transaction."""
    rows = [row for asset in assets for subject in subjects for row in _rows(spec, asset, subject)]
    if not rows and not has_table(con, spec.name, HEALTH):
        return
    create_table(con, spec.name, HEALTH, HealthRow)
    keys = [subject.partition_key for subject in subjects]
    con.execute(
        f"DELETE FROM {quoted(spec.name)}.{HEALTH} WHERE partition_key IN $keys AND asset IN $assets",
        {"keys": keys, "assets": list(assets)},
    )
    insert(con, HEALTH, [vars(row) for row in rows], schema=spec.name)
    note_partitions(con, spec.name, HEALTH, keys)


def _rows(spec: PipelineSpec, asset: Asset, subject: Subject) -> Iterator[HealthRow]:
    checks = declared_checks(spec, asset)
    for name, judged in judgements(spec, asset, subject.values, subject.task).items():
        yield HealthRow(
            partition_key=subject.partition_key,
            asset=asset,
            check_name=checks[name].name or name,
            passed=judged.level == "none",
            severity=_SEVERITIES[judged.level],
            text=in_words(judged),
            columns=CAUSES.join(cause for cause, _ in judged.shown.get(ALARMS, ())),
            judged_at=subject.at,
            model_version=subject.model_version,
            run_id=subject.run_id,
        )


@dataclass(frozen=True)
class FailedCheck:
    """A check that a partition failed, as it stands in the table `health`."""

    partition_key: str
    asset: str
    check: str  # its name
    level: Level
    text: str  # what was judged, in words
    faults: tuple[str, ...]  # causes of the alarm that are no columns, the worst first
    # Whether the rows or labels are not what they should be, so that the report gives the partition's figures apart.
    doubtful: bool
    run_id: str
    extent: float | None = None  # how bad the partition is, see `Check.extent`; None where it is not compared


def read_failed_checks(con: duckdb.DuckDBPyConnection, spec: PipelineSpec) -> list[FailedCheck]:
    """The checks that partitions failed, oldest partition first, without those that are no longer declared, or accepted by now.

    What `run`, `status`, health and the report say of a check comes from here; Dagster's checks show the same judgements.
    """
    if not has_table(con, spec.name, HEALTH):
        return []
    measured = {
        check.name or name: (name, check)
        for asset in get_args(Asset)
        for name, check in declared_checks(spec, asset).items()
    }
    declared = {name: check for name, (_, check) in measured.items()}
    places = {name: at for at, name in enumerate(declared)}
    levels: dict[str | None, Level] = {text: level for level, text in _SEVERITIES.items()}
    failed = list[FailedCheck]()
    for row in read_records(con, HealthRow, f"{quoted(spec.name)}.{HEALTH} WHERE NOT passed", {}):
        if row.check_name in declared:
            check = declared[row.check_name]
            faults = tuple(cause for cause in row.columns.split(CAUSES) if cause in check.faults)
            if check.accepted(row.partition_key, faults):
                continue
            level, judged = levels[row.severity], (row.partition_key, row.asset, row.check_name)
            failed.append(FailedCheck(*judged, level, row.text, faults, check.doubtful and bool(faults), row.run_id))
    extents = {
        name: _extents(con, spec, *measured[name], [check.partition_key for check in failed if check.check == name])
        for name in {check.check for check in failed}
    }
    failed = [
        replace(check, extent=extents[check.check].get((check.partition_key, next(iter(check.faults), ""))))
        for check in failed
    ]
    return sorted(failed, key=lambda check: (check.partition_key, places[check.check]))


def _extents(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, measure: str, check: Check[Any], keys: Sequence[str]
) -> dict[tuple[str, str], float | None]:
    """The extents of failed partitions by key and cause; empty where the check does not compare partitions."""
    extents, table = dict[tuple[str, str], float | None](), f"{quoted(spec.name)}.{quoted(measure)}"
    for cause, sql in check.extent.items():
        rows = con.execute(
            f"SELECT partition_key, {sql} FROM {table} WHERE partition_key IN $keys", {"keys": list(keys)}
        )
        extents |= {(key, cause): value for key, value in rows.fetchall()}
    return extents


def grouped(failed: Sequence[FailedCheck]) -> list[list[FailedCheck]]:
    """Failed checks in groups of the same check and faults; those that put rows or labels in doubt come first."""
    groups = dict[tuple[str, tuple[str, ...]], list[FailedCheck]]()
    for check in sorted(failed, key=lambda check: not check.doubtful):
        groups.setdefault((check.check, check.faults), []).append(check)
    return [*groups.values()]


def texts_in_short(failed: Sequence[FailedCheck]) -> str:
    """The text that failed checks have in common, or else that of the worst partition, by default the newest, with its key."""
    worst = max(reversed(failed), key=lambda check: -inf if check.extent is None else check.extent)
    return worst.text if len({check.text for check in failed}) == 1 else f"{worst.text} ({worst.partition_key})"


def in_words(judged: Judged) -> str:
    """A judgement in words: its texts, or else its numbers."""
    if isinstance(judged, Judgement):
        side = "at most" if judged.lower_is_better else "at least"
        return f"{judged.name} {number(judged.value)}, {side} {number(judged.bound)} is expected"
    texts = [value for value in judged.shown.values() if type(value) is str]
    numbers = (f"{name} {number(value)}" for name, value in judged.shown.items() if type(value) in (int, float))
    return "; ".join(texts or numbers)


def _tables() -> dict[str, Description]:
    tables = {name: table for measure in MEASURES.values() for name, table in measure.described.items()}
    return {**tables, HEALTH: table_of(HealthRow, "the judgement of a partition by a check")}


def is_table(name: str) -> bool:
    """Return whether further rows of a measure are those of a table."""
    return name in _tables()


descriptions.COLLECTED.append(_tables)
