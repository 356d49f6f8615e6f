"""What is scored, missing, stale and why; and what produced a score.

Reads what is recorded and asks `plan.py`; changes nothing.
"""

import json
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb

from batch_platform.errors import DataError, IntegrityError, WrongUseError, did_you_mean, listed
from batch_platform.home import Home
from batch_platform.learners import Challenger
from batch_platform.ledger import LEDGERS_SCHEMA, FeatureBuild, ScoreRun
from batch_platform.plan import Item, Kind, Plan, State
from batch_platform.registry import Registry, read_registry
from batch_platform.sources import quoted
from batch_platform.spec import PipelineSpec
from batch_platform.staleness import Staleness, staleness_of

Condition = Literal["scored", "stale", "failed", "missing", "blocked"]


@dataclass(frozen=True)
class PartitionStatus:
    """Where one partition stands."""

    partition: str
    condition: Condition
    reason: str
    model_version: str | None
    rows_in: int | None
    rows_scored: int | None
    rows_rejected: int | None
    committed_at: datetime | None
    run_id: str | None
    evaluated: bool


@dataclass(frozen=True)
class ChallengerStatus:
    """Where a declared challenger stands at a time."""

    name: str
    version: str | None  # that scores beside the champion; None where there is none yet
    metrics: dict[str, float]
    failure: str | None  # why there is no newer one


@dataclass(frozen=True)
class PipelineStatus:
    """Where a pipeline stands at a time."""

    pipeline: str
    at: datetime
    counts: dict[Condition, int]  # how many partitions are in each condition
    champion: str | None
    champion_metrics: dict[str, float]
    challengers: list[ChallengerStatus]
    last_commit: datetime | None
    last_run: str | None
    due: dict[Kind, int]  # how many partitions of each kind are to be brought up to date
    only_in_dagster: list[str]  # partitions of predictions that it thinks done and the ledger does not hold
    only_in_ledger: list[str]  # and the reverse: committed, but Dagster never heard of it
    partitions: list[PartitionStatus]


@dataclass(frozen=True)
class TracedModel:
    """The model that gave a score, and what it was made from."""

    version: str
    sha256: str
    estimator: str
    params: dict[str, Any]
    metrics: dict[str, float]
    trained_from: datetime
    trained_until: datetime
    rows_trained: int
    decision: str  # what was decided of it last
    run_id: str


@dataclass(frozen=True)
class TracedFeatures:
    """The feature file that a score was made from, and the sources as they were read for it."""

    file: str
    rows: int
    sha256: str
    code_version: str
    sources: dict[str, str]  # versions by name
    built_at: datetime
    run_id: str


@dataclass(frozen=True)
class TracedSource:
    """A source that a score was made from, and what it holds of the score's key now."""

    name: str
    kind: str
    version: str | None  # recorded when the features were built
    unchanged: bool | None  # whether that is its version now; None where it cannot be read
    columns: list[str] | None  # that the features are known to read of it; None where that is not known
    rows_of_key: int | None  # how many rows bear the key; None where it has not the columns of the key
    rows: tuple[dict[str, Any], ...]  # the first of them, with those columns
    note: str


@dataclass(frozen=True)
class Trace:
    """What became of one row, and what produced it."""

    outcome: Literal["scored", "rejected"]
    row: dict[str, Any]  # as its table holds it
    commit: ScoreRun
    model: TracedModel
    features: TracedFeatures
    sources: tuple[TracedSource, ...] = ()  # once they are looked at


def status_of(  # noqa: PLR0913 - each is one record of the pipeline
    spec: PipelineSpec,
    state: State,
    plan: Plan,
    now: datetime,
    failed: Mapping[str, str],
    materialized: AbstractSet[str] | None = None,
) -> PipelineStatus:
    """Say where every partition stands that is due at a time.

    Args:
        spec: The pipeline.
        state: What is recorded.
        plan: What is due at `now`.
        now: The time.
        failed: Run by partition key where the last attempt failed.
        materialized: Keys of the predictions that Dagster thinks done; None: they are not held against the ledger.
    """
    due = {item.partition.key: item for item in plan.of("predictions")}
    blocked = {item.partition.key: item for item in plan.blocked}
    out_of_date = staleness_of(state, plan)
    partitions = [
        _partition_status(state, partition.key, due, blocked, failed, out_of_date)
        for partition in spec.partitions.calendar.due(now)
    ]
    keys = {partition.partition for partition in partitions}
    told, committed = keys & (state.scores.keys() if materialized is None else materialized), keys & state.scores.keys()
    last = max(state.scores.values(), key=lambda run: run.seq, default=None)
    champion = state.registry.champion(now)
    return PipelineStatus(
        pipeline=spec.name,
        at=now,
        counts=dict(Counter(partition.condition for partition in partitions)),
        champion=champion.version if champion else None,
        champion_metrics=champion.metric_values if champion else {},
        challengers=[_challenger_status(state.registry, one, now) for one in spec.challengers],
        last_commit=last.committed_at if last else None,
        last_run=last.run_id if last else None,
        due=dict(Counter(item.kind for item in plan.items)),
        only_in_dagster=sorted(told - committed),
        only_in_ledger=sorted(committed - told),
        partitions=partitions,
    )


def trace(spec: PipelineSpec, home: Home, key: Mapping[str, str]) -> list[Trace]:
    """What produced the scored or rejected rows of a key, newest partition first.

    Args:
        spec: The pipeline.
        home: Where its published copy lies.
        key: Values, as text, by key column; all key columns, or as many as are known.

    Raises:
        WrongUseError: A name is no key column.
        DataError: Nothing is published, or no row has the key.
    """
    known = spec.features.key
    if unknown := [name for name in key if name not in known]:
        msg = f"{spec.name} has no key column {listed(map(repr, unknown))}; its key is {listed(known)}."
        raise WrongUseError(msg, hint=did_you_mean(unknown[0], known))
    found: list[Trace] = []
    if home.published.exists():
        with duckdb.connect(str(home.published.resolve()), read_only=True) as con:
            con.execute("SET TimeZone = 'UTC'")
            found = _Tracer(con, spec, home, read_registry(con, spec.name)).traces(key)
    if not found:
        row = ", ".join(f"{name}={value}" for name, value in key.items())
        msg = f"{spec.name}: no scored or rejected row has {row}."
        raise DataError(msg, hint=f"batch-platform status {spec.name} shows which partitions are scored.")
    return found


def _challenger_status(registry: Registry, one: Challenger, now: datetime) -> ChallengerStatus:
    tried = [training for training in registry.challenged if training.challenger == one.name]
    if one.version is None:
        version = registry.contender(one.name, now)
        failure = tried[-1].failure if tried else None
    else:
        version = next((known for known in registry.versions if known.version == one.version), None)
        failure = None if version else f"there is no version {one.version}"
    return ChallengerStatus(
        name=one.name,
        version=version.version if version else None,
        metrics=version.metric_values if version else {},
        failure=failure,
    )


def _partition_status(  # noqa: PLR0913 - each is one record of the pipeline
    state: State,
    key: str,
    due: Mapping[str, Item],
    blocked: Mapping[str, Item],
    failed: Mapping[str, str],
    found: Staleness,
) -> PartitionStatus:
    run = state.scores.get(key)
    condition: Condition = "scored" if run else "missing"
    reason = found.remarks.get(key, "")
    if key in due and key in failed:
        condition, reason = "failed", f"run {failed[key]} failed"
    elif key in found.stale:
        condition, reason = "stale", found.stale[key]
    elif key in blocked:
        condition, reason = "blocked", blocked[key].reason
    return PartitionStatus(
        partition=key,
        condition=condition,
        reason=reason,
        model_version=run.model_version if run else None,
        rows_in=run.rows_in if run else None,
        rows_scored=run.rows_scored if run else None,
        rows_rejected=run.rows_rejected if run else None,
        committed_at=run.committed_at if run else None,
        run_id=run.run_id if run else None,
        evaluated=key in state.evaluations,
    )


Record = TypeVar("Record", ScoreRun, FeatureBuild)


@dataclass(frozen=True)
class _Tracer:
    """Follows rows back through a published copy."""

    con: duckdb.DuckDBPyConnection
    spec: PipelineSpec
    home: Home
    registry: Registry

    def traces(self, key: Mapping[str, str]) -> list[Trace]:
        tables = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE schema_name = $schema"
        found = self.con.execute(tables, {"schema": self.spec.name}).fetchall()
        types = {column: dtype for table, column, dtype in found if table == "predictions"}
        present = {table for table, *_ in found}
        scored = self._rows("predictions", key, types) if "predictions" in present else []
        rejected = self._rows("rejected_rows", key, types) if "rejected_rows" in present else []
        traces = [
            *(self._trace("scored", row) for row in scored),
            *(self._trace("rejected", _read_json(row)) for row in rejected),
        ]
        return sorted(traces, key=lambda one: one.commit.partition_start, reverse=True)

    def _rows(self, table: str, key: Mapping[str, str], types: Mapping[str, str]) -> list[dict[str, Any]]:
        """The rows whose key has given values, which may be written as the column's type or as the text of it."""
        conditions: list[str] = []
        bound: dict[str, str] = {}
        for at, (name, value) in enumerate(key.items()):
            bound[f"value{at}"] = value
            column = quoted(name)
            if table == "rejected_rows":
                bound[f"path{at}"] = "/" + name.replace("~", "~0").replace("/", "~1")  # a JSON pointer
                column = f"json_extract_string(key, $path{at})"
            dtype = types.get(name, "VARCHAR")
            same = f"TRY_CAST({column} AS {dtype}) = TRY_CAST($value{at} AS {dtype})"
            conditions.append(f"(CAST({column} AS VARCHAR) = $value{at} OR {same})")
        query = f"FROM {quoted(self.spec.name)}.{table} WHERE {' AND '.join(conditions)}"
        rows = self.con.sql(query, params=bound)
        return [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]

    def _trace(self, outcome: Literal["scored", "rejected"], row: dict[str, Any]) -> Trace:
        values = {"partition_key": row["partition_key"], "run_id": row["run_id"]}
        commit = self._newest(ScoreRun, "score_runs", "partition_key = $partition_key AND run_id = $run_id", values)
        values = {"partition_key": row["partition_key"], "sha256": commit.input_hash, "seq": commit.seq}
        condition = "partition_key = $partition_key AND sha256 = $sha256 AND seq < $seq"
        build = self._newest(FeatureBuild, "feature_builds", condition, values)
        file = self.home.features(self.spec.name, commit.partition_key)
        return Trace(outcome, row, commit, self._model(commit.model_version), _features(build, file))

    def _newest(self, record: type[Record], ledger: str, condition: str, values: Mapping[str, Any]) -> Record:
        columns = ", ".join(quoted(item.name) for item in fields(record))
        query = (
            f"SELECT {columns} FROM {LEDGERS_SCHEMA}.{ledger} "
            f"WHERE pipeline = $pipeline AND {condition} ORDER BY seq DESC LIMIT 1"
        )
        rows = self.con.execute(query, {"pipeline": self.spec.name, **values}).fetchall()
        if not rows:
            msg = f"{self.spec.name}, partition {values['partition_key']}: {ledger} holds no row of it."
            raise IntegrityError(msg, hint="the warehouse was changed by other means; restore it from a backup.")
        return record(*rows[0])

    def _model(self, name: str) -> TracedModel:
        version = self.registry.named(name)
        decided = self.registry.standing(name)
        return TracedModel(
            version=name,
            sha256=version.sha256,
            estimator=version.estimator,
            params=json.loads(version.params),
            metrics=version.metric_values,
            trained_from=version.trained_from,
            trained_until=version.trained_until,
            rows_trained=version.rows_trained,
            decision="none" if decided is None else f"{decided.action} by {decided.actor}: {decided.reason}",
            run_id=version.run_id,
        )


def _features(build: FeatureBuild, file: Path) -> TracedFeatures:
    return TracedFeatures(
        file=str(file),
        rows=build.rows,
        sha256=build.sha256,
        code_version=build.code_version,
        sources=json.loads(build.sources),
        built_at=build.built_at,
        run_id=build.run_id,
    )


def _read_json(row: dict[str, Any]) -> dict[str, Any]:
    """A rejected row with its key and its features read."""
    return {**row, "key": json.loads(row["key"]), "row": json.loads(row["row"])}
