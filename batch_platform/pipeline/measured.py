"""The measures and checks of the newest partitions, read from the published copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from batch_platform.declaration.errors import NothingPublishedError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.catalogue import FailedCheck, read_failed_checks
from batch_platform.monitoring.measure import Commits
from batch_platform.monitoring.measures.drift import DRIFT
from batch_platform.monitoring.measures.estimates import ESTIMATES
from batch_platform.monitoring.measures.performance import PERFORMANCE
from batch_platform.monitoring.usual import Past
from batch_platform.planning.state import State
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import reading_published


@dataclass(frozen=True)
class Measured:
    """The measures of the newest partitions, and the checks that any partition failed."""

    # Values of the newest scored partition, by measure.
    newest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    evaluated: str | None = None  # the newest partition whose labels are known
    performance: pl.DataFrame | None = None  # its metrics
    failed: Sequence[FailedCheck] = ()  # checks that partitions failed, oldest partition first
    gone: Sequence[str] = ()  # sources whose files are gone


def newest_measured(home: Home, spec: PipelineSpec, state: State) -> Measured:
    """Read the measures of the newest partitions, and the checks that any failed, from the published copy."""
    newest, evaluated = newest_of(state, state.scores), newest_of(state, state.evaluations)
    if newest is None:
        return Measured()
    commits = Commits(spec, home, [state.scores[newest]], Past(spec.partitions.calendar, ()), {})
    try:
        with reading_published(home) as con:
            values = {measure.name: measure.read(con, commits).get(newest) for measure in (DRIFT, ESTIMATES)}
            keys = [] if evaluated is None else [evaluated]
            rows = PERFORMANCE.rows(con, spec.name, keys).filter(pl.col("challenger").is_null())
            failed = read_failed_checks(con, spec)
    except NothingPublishedError:
        return Measured()
    return Measured(values, evaluated, rows, failed)


def published_failed_checks(home: Home, spec: PipelineSpec) -> list[FailedCheck]:
    """The checks that partitions failed as they are published; see `read_failed_checks`."""
    try:
        with reading_published(home) as con:
            return read_failed_checks(con, spec)
    except NothingPublishedError:
        return []


def newest_of(state: State, keys: Mapping[str, object]) -> str | None:
    """The newest of some scored partitions."""
    starts = ((state.scores[key].partition_start, key) for key in keys if key in state.scores)
    return max(starts, default=(None, None))[1]
