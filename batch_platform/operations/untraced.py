"""The error for a row that cannot be traced: it is not scored yet, it was erased, or there is none."""

import json
from collections.abc import Mapping
from contextlib import suppress

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WrongUseError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import read_registry
from batch_platform.planning.trainings import first_served
from batch_platform.warehouse.erasures import read_erasures, subject_hash
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.instance import in_memory
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun, read_latest
from batch_platform.warehouse.sql import literal, quoted


def untraced(
    con: duckdb.DuckDBPyConnection, home: Home, spec: PipelineSpec, key: Mapping[str, str], only: str | None
) -> DataError:
    """The error for a key of which no row is scored or rejected, in one partition `only` or in any."""
    name, row = spec.name, _named(key if only is None else {**key, "partition": only})
    unscored = _unscored(con, home, spec, key)
    if unscored is not None and only in (None, unscored.key):
        first = first_served(spec, read_registry(con, name))
        msg = f"{name}, partition {unscored.key}: the row with {row} is not scored."
        if first is not None and unscored.start < first.start:
            msg = f"{msg} It is warm-up, which models only learn from: the first model serves from {first.key}."
        hint = f"batch-platform status {name} shows which partitions are scored, and why others are not."
        return DataError(msg, hint=hint)
    others = set[str]()
    for erasure in read_erasures(con, name):
        columns = json.loads(erasure.columns)
        if not {*columns} <= {*key}:
            others |= {*columns} - {*key}
        elif subject_hash(home, subject := {column: key[column] for column in columns}) == erasure.subject:
            at = f"{erasure.erased_at:%Y-%m-%d %H:%M:%S} UTC"
            msg = f"{name}: what had {_named(subject)} was erased at {at} by {erasure.actor}; no row is left."
            hint = f"in batch_platform.erasures, run_id '{erasure.run_id}' tells how many rows of which tables it had."
            return DataError(msg, hint=hint)
    msg = f"{name}: no scored or rejected row has {row}."
    if others:
        msg += f" Rows were erased by {listed(others)}; if this was one of them, nothing tells it any more."
    hint = (
        f"batch-platform status {name} shows which partitions are scored; batch-platform run {name} --recheck finds rows "
        "that came later than `late` says."
    )
    return DataError(msg, hint=hint)


def _named(values: Mapping[str, str]) -> str:
    return ", ".join(f"{column}={value}" for column, value in values.items())


def _unscored(
    con: duckdb.DuckDBPyConnection, home: Home, spec: PipelineSpec, key: Mapping[str, str]
) -> Partition | None:
    """The first partition that is not scored and whose features hold a row with these values of the key; None without one."""
    scored, calendar = read_latest(con, ScoreRun, spec.name), spec.partitions.calendar
    same = (
        " AND ".join(f"CAST({quoted(column)} AS VARCHAR) = ${at}" for at, column in enumerate(key, start=1)) or "true"
    )
    with in_memory() as features, suppress(WrongUseError):  # a partition that is no longer declared
        for name, build in sorted(read_latest(con, FeatureBuild, spec.name).items()):
            path = home.feature_file(spec.name, name, build.sha256)
            if name in scored or not path.is_file():
                continue
            rows = f"FROM read_parquet({literal(str(path))}, hive_partitioning = false) WHERE {same} LIMIT 1"
            if features.execute(rows, [*key.values()]).fetchone():
                return calendar.named(name)
    return None
