"""From a score back to the rows of the sources, and from a source forward to the predictions made from it.

Which rows of a source made a score cannot be known in general: a feature may count a million of them. So what is shown
of a source is the rows that bear the score's own key, where it has the key's columns, and else its name, its version
and the columns that are read of it. Reads what is recorded and published, and the sources as they are now.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    DataError,
    IntegrityError,
    SourceError,
    WrongUseError,
    did_you_mean,
    listed,
)
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.build import FeatureBuilder
from batch_platform.features.lineage.records import Lineage
from batch_platform.features.sources.opening import SourceConnection
from batch_platform.models.registry import Registry, Version, read_registry
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, FeatureBuild, ScoreRun
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import quoted


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


def trace(spec: PipelineSpec, home: Home, key: Mapping[str, str]) -> list[Trace]:
    """What produced the scored or rejected rows of a key, newest partition first.

    Args:
        spec: The pipeline.
        home: Where its published copy lies.
        key: Values, as text, by key column; all key columns, or as many as are known.

    Raises:
        WrongUseError: A name is no key column.
        DataError: No row has the key.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    known = spec.features.key
    if unknown := [name for name in key if name not in known]:
        msg = f"{spec.name} has no key column {listed(map(repr, unknown))}; its key is {listed(known)}."
        raise WrongUseError(msg, hint=did_you_mean(unknown[0], known))
    with open_published(home) as con:
        found = _Tracer(con, spec, home, read_registry(con, spec.name)).traces(key)
    if not found:
        row = ", ".join(f"{name}={value}" for name, value in key.items())
        msg = f"{spec.name}: no scored or rejected row has {row}."
        raise DataError(msg, hint=f"batch-platform status {spec.name} shows which partitions are scored.")
    return found


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
        file = self.home.feature_file(self.spec.name, commit.partition_key, build.sha256)
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
        decided = self.registry.last_decision(name)
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


MOST_ROWS = 20
Way = Literal["features", "model"]


@dataclass(frozen=True)
class Dependent:
    """A partition of predictions that depends on a source."""

    partition: str
    through: tuple[Way, ...]  # its features were built from it; its model was trained on it
    source_version: str | None  # that its features were built from
    model_version: str
    rows_scored: int
    committed_at: datetime
    run_id: str


@dataclass(frozen=True)
class Dependents:
    """The predictions that depend on a source, or on one partition of it."""

    pipeline: str
    source: str
    partition: str | None  # None for all of the source
    note: str
    rows_scored: int
    versions: dict[str, int]  # how many partitions were built from which version of the source
    models: list[str]  # the versions trained on it that serve one of the partitions
    partitions: list[Dependent]


def with_source_rows(builder: FeatureBuilder, found: Sequence[Trace]) -> list[Trace]:
    """Traces, each with what its sources hold of it now."""
    if not found:
        return []
    partitions = [builder.spec.partitions.calendar.named(one.commit.partition_key) for one in found]
    try:
        lineage = builder.asked_lineage(partitions[0])
    except SourceError:
        lineage = builder.lineage
    traced = [_traced(builder, name, lineage, list(zip(found, partitions, strict=True))) for name in lineage.sources]
    return [replace(one, sources=tuple(of[at] for of in traced)) for at, one in enumerate(found)]


def dependents(builder: FeatureBuilder, home: Home, source: str, partition_key: str | None) -> Dependents:
    """The committed partitions of predictions that depend on a source, oldest first.

    Args:
        builder: Of the pipeline.
        home: Where its published copy lies.
        source: The name of the source.
        partition_key: One partition of it, which tells predictions apart only where each partition has a file of its own.

    Raises:
        WrongUseError: There is no such source or partition.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    spec = builder.spec
    if source not in spec.sources:
        msg = f"{spec.name} has no source {source!r}; it has {listed(spec.sources)}."
        raise WrongUseError(msg, hint=did_you_mean(source, spec.sources))
    asked = None if partition_key is None else spec.partitions.calendar.named(partition_key)
    own = spec.sources[source].by_partition
    with open_published(home) as con:
        rows = con.execute(_COMMITTED, {"pipeline": spec.name}).fetchall()
        versions = {one.version: one for one in read_registry(con, spec.name).versions}
    window = asked if own else None
    ways = _ways(builder, source)
    partitions = [found for row in rows if (found := _dependent(row, source, ways, window, versions)) is not None]
    return Dependents(
        pipeline=spec.name,
        source=source,
        partition=partition_key,
        note=_note(source, ways, asked, own=own),
        rows_scored=sum(one.rows_scored for one in partitions),
        versions=dict(Counter(one.source_version for one in partitions if one.source_version is not None)),
        models=sorted({one.model_version for one in partitions if "model" in one.through}),
        partitions=partitions,
    )


_COMMITTED = f"""
WITH newest AS (
    FROM {LEDGERS_SCHEMA}.score_runs WHERE pipeline = $pipeline
    QUALIFY row_number() OVER (PARTITION BY partition_key ORDER BY seq DESC) = 1
)
SELECT
    partition_key, model_version, rows_scored, committed_at, run_id,
    (
        SELECT arg_max(sources, seq) FROM {LEDGERS_SCHEMA}.feature_builds AS build
        WHERE pipeline = $pipeline AND build.partition_key = newest.partition_key
            AND sha256 = newest.input_hash AND build.seq < newest.seq
    )
FROM newest ORDER BY partition_start
"""


def _ways(builder: FeatureBuilder, source: str) -> set[Way]:
    """How predictions can depend on a source: the model learns from features and labels."""
    ways: set[Way] = set()
    if source in builder.lineage.sources:
        ways |= {"features", "model"}
    if source in builder.labels_lineage.sources:
        ways.add("model")
    return ways


def _dependent(
    row: tuple[Any, ...],
    source: str,
    ways: Collection[Way],
    window: Partition | None,
    versions: Mapping[str, Version],
) -> Dependent | None:
    key, model_version, rows_scored, committed_at, run_id, sources = row
    recorded: dict[str, str] = json.loads(sources) if sources else {}
    model = versions.get(model_version)
    through: list[Way] = []
    if "features" in ways and source in recorded and (window is None or window.key == key):
        through.append("features")
    learnt = model is not None and (
        window is None or (model.trained_from < window.end and window.start < model.trained_until)
    )
    if "model" in ways and learnt:
        through.append("model")
    if not through:
        return None
    version = recorded.get(source) if "features" in through else None
    return Dependent(key, tuple(through), version, model_version, rows_scored, committed_at, run_id)


def _note(source: str, ways: Collection[Way], asked: Partition | None, *, own: bool) -> str:
    """What the list means."""
    if not ways:
        return f"neither the features nor the labels read {source!r}."
    if "features" not in ways:
        return f"only the labels read {source!r}: the models learnt from it."
    if own:
        return (
            f"{source!r} has a file for each partition: features are built from their own, models from all of a window."
        )
    left_open = "" if asked is None else f", so that what lies in {asked.key} cannot be told apart"
    return f"{source!r} is one table for all partitions{left_open}: each partition was built from it as it was then."


def _traced(
    builder: FeatureBuilder, name: str, lineage: Lineage, found: Sequence[tuple[Trace, Partition]]
) -> list[TracedSource]:
    """What one source, opened once, holds of the key of each trace."""
    sources = builder.sources
    read = lineage.read_of(name) if lineage.complete else None
    traced: list[TracedSource] = []
    with ExitStack() as stack:
        con: SourceConnection | None = None
        for trace, partition in found:
            recorded = trace.features.sources.get(name)
            source = TracedSource(name, builder.spec.sources[name].kind, recorded, None, read, None, (), "")
            try:
                unchanged = recorded == sources.version(name, partition)
                if con is None:
                    con = stack.enter_context(sources.connect(partition, names=[name]))
                else:
                    con.move(partition)
                count, rows = _rows_of_key(con, name, lineage, _key_of(trace, builder.spec.features.key), read)
            except (SourceError, duckdb.Error) as error:
                reason = error.message if isinstance(error, SourceError) else " ".join(str(error).split())
                traced.append(replace(source, note=f"cannot be read now: {reason}"))
            else:
                note = _told(unchanged=unchanged, keyed=count is not None)
                traced.append(replace(source, unchanged=unchanged, rows_of_key=count, rows=rows, note=note))
    return traced


def _key_of(one: Trace, names: Sequence[str]) -> dict[str, Any]:
    held = one.row["key"] if one.outcome == "rejected" else one.row
    return {name: held[name] for name in names}


def _told(*, unchanged: bool, keyed: bool) -> str:
    changed = [] if unchanged else ["has changed since the features were built from it"]
    lacking = [] if keyed else ["lacks columns of the key: which of its rows were used cannot be told"]
    return "; ".join([*changed, *lacking])


def _rows_of_key(
    con: SourceConnection, name: str, lineage: Lineage, key: Mapping[str, Any], read: Sequence[str] | None
) -> tuple[int | None, tuple[dict[str, Any], ...]]:
    """How many rows of a source bear a key, and the first of them; None where it lacks a column of the key."""
    view = con.duckdb.sql(f"FROM {quoted(name)}")
    types = {column.lower(): (column, str(dtype)) for column, dtype in zip(view.columns, view.types, strict=True)}
    named: dict[str, Any] = {}
    for column, value in key.items():
        copied = lineage.of(column).copy_of
        own = copied.column if copied is not None and copied.source == name else column
        if own.lower() not in types:
            return None, ()
        named[own.lower()] = value
    same = [f"{quoted(types[one][0])} = TRY_CAST($value{at} AS {types[one][1]})" for at, one in enumerate(named)]
    bound = {f"value{at}": value for at, value in enumerate(named.values())}
    where = f"FROM {quoted(name)} WHERE {' AND '.join(same)}"
    ((count,),) = con.duckdb.execute(f"SELECT count(*) {where}", bound).fetchall()
    shown = {*named, *(types if read is None else map(str.lower, read))}
    wanted = [column for lower, (column, _) in types.items() if lower in shown]
    query = f"SELECT {', '.join(map(quoted, wanted))} {where} LIMIT {MOST_ROWS}"
    rows = con.duckdb.execute(query, bound).fetchall()
    return int(count), tuple(dict(zip(wanted, row, strict=True)) for row in rows)
