"""Every measure by name, and what scoring and evaluation do with all of them.

A module of a user's project adds its own to `MEASURES` before the pipelines are loaded. Scored measures are replaced in the
order of the dictionary: drift reads the profiles.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import Asset, Check, Commits, Measure, ScoredPart, ScoredPartition
from batch_platform.monitoring.measures.challengers import CHALLENGERS
from batch_platform.monitoring.measures.drift import DRIFT
from batch_platform.monitoring.measures.estimates import ESTIMATES
from batch_platform.monitoring.measures.health import CHAMPION_AGE, REJECTED_SHARE, VOLUME
from batch_platform.monitoring.measures.importance import IMPORTANCE
from batch_platform.monitoring.measures.interval_coverage import INTERVAL_COVERAGE
from batch_platform.monitoring.measures.performance import PERFORMANCE
from batch_platform.monitoring.measures.profiles import PROFILES
from batch_platform.monitoring.measures.rejections import REJECTIONS
from batch_platform.monitoring.measures.scores import SCORES
from batch_platform.warehouse import descriptions
from batch_platform.warehouse.descriptions import Description
from batch_platform.warehouse.ledger import note

MEASURES: dict[str, Measure[Any]] = {
    measure.name: measure
    for measure in (
        *(REJECTIONS, REJECTED_SHARE, VOLUME, SCORES, CHAMPION_AGE, CHALLENGERS, PROFILES, ESTIMATES, DRIFT),
        *(IMPORTANCE, PERFORMANCE, INTERVAL_COVERAGE),
    )
}


def scored_measures() -> dict[str, Measure[Any]]:
    """The measures that are computed when a partition is scored."""
    return {name: measure for name, measure in MEASURES.items() if measure.compute is None}


def evaluated_measures(spec: PipelineSpec | None = None) -> dict[str, Measure[Any]]:
    """The measures that are computed when a partition is evaluated; of a pipeline, those that it asks for."""
    measures = {name: measure for name, measure in MEASURES.items() if measure.compute is not None}
    return {name: measure for name, measure in measures.items() if spec is None or measure.declared(spec)}


def measures_on(asset: Asset) -> dict[str, Measure[Any]]:
    """The measures that an asset shows."""
    return {name: measure for name, measure in MEASURES.items() if measure.asset == asset}


def declared_checks(spec: PipelineSpec, asset: Asset) -> dict[str, Check[Any]]:
    """The checks of the measures that an asset shows, by measure; a measure that is not judged is left out."""
    checks = {name: measure.check(spec) for name, measure in measures_on(asset).items()}
    return {name: check for name, check in checks.items() if check is not None}


def staged_values(parts: Mapping[str, ScoredPart]) -> dict[str, Mapping[str, Any]]:
    """The values that are known before partitions are committed, by measure and partition key."""
    return {name: measure.stage(parts) for name, measure in scored_measures().items() if measure.stage is not None}


def replace_measures(con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]) -> None:
    """Replace the rows of every measure of scoring, within the caller's transaction."""
    note(con, [change for measure in scored_measures().values() for change in measure.replace_in(con, commits, parts)])


def read_values(
    con: duckdb.DuckDBPyConnection, commits: Commits, staged: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The value of every measure of committed partitions, by partition key and measure; `staged` are known already."""
    for run in commits.runs:
        commits.past.add(run)
    known, values = staged or {}, {key: dict[str, Any]() for key in commits.keys}
    for name, measure in scored_measures().items():
        if name in known or measure.is_read:
            of_measure = known[name] if name in known else measure.read_from(con, commits)
            for key in values.keys() & of_measure.keys():
                values[key][name] = of_measure[key]
    return values


def further_rows(partition: ScoredPartition) -> dict[str, pl.DataFrame]:
    """The rows that measures have beside those of their tables, of a partition that was evaluated with labels, by name."""
    further = dict[str, pl.DataFrame]()
    for measure in MEASURES.values():
        if measure.beside is not None:
            further |= measure.beside(partition)
    return further


def settle_measures(
    con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str], rows: Mapping[str, pl.DataFrame]
) -> None:
    """Complete what evaluated partitions decide of other rows, within the caller's transaction; `rows` are further ones by name."""
    for measure in MEASURES.values():
        if measure.settle is not None:
            measure.settle(con, pipeline, keys, rows)


def _tables() -> dict[str, Description]:
    return {name: table for measure in MEASURES.values() for name, table in measure.described.items()}


def is_table(name: str) -> bool:
    """Return whether further rows of a measure are those of a table."""
    return name in _tables()


descriptions.COLLECTED.append(_tables)
