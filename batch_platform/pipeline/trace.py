"""Trace a score back to the rows of the sources, and a source forward to the predictions made from it.

Which rows of a source made a score cannot be known in general: a feature may count a million of them. So the trace shows
the rows of a source that have the key of the score, or, if the source lacks columns of the key, its name, its version and
the columns read from it. Reads the published copy, and the sources as they are now.
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
    """The model that gave a score, and how it was trained."""

    version: str
    sha256: str
    estimator: str
    params: dict[str, Any]
    metrics: dict[str, float]
    trained_from: datetime
    trained_until: datetime
    rows_trained: int
    decision: str  # the last one
    run_id: str


@dataclass(frozen=True)
class TracedFeatures:
    """The feature file that a score was made from, and the versions of the sources it was built from."""

    file: str
    rows: int
    sha256: str
    code_version: str
    sources: dict[str, str]  # versions by name
    built_at: datetime
    run_id: str


@dataclass(frozen=True)
class TracedSource:
    """A source that a score was made from, and the rows that it has for the key of the score now."""

    name: str
    kind: str
    version: str | None  # recorded when the features were built
    unchanged: bool | None  # whether it still has that version; None if it cannot be read
    columns: list[str] | None  # that the features read from it; None if not known
    rows_of_key: int | None  # number of rows with the key; None if it lacks columns of the key
    rows: tuple[dict[str, Any], ...]  # the first of these rows, with those columns
    note: str


@dataclass(frozen=True)
class Trace:
    """The outcome of one row, and what produced it."""

    outcome: Literal["scored", "rejected"]
    row: dict[str, Any]  # of the table `predictions` or `rejected_rows`
    commit: ScoreRun
    model: TracedModel
    features: TracedFeatures
    sources: tuple[TracedSource, ...] = ()  # filled by `with_source_rows`


def trace(spec: PipelineSpec, home: Home, key: Mapping[str, str]) -> list[Trace]:
    """Trace the scored and rejected rows of a key, newest partition first.

    Args:
        spec: The pipeline.
        home: The home with its published copy.
        key: Values as text by key column; some of the key columns are enough.

    Raises:
        WrongUseError: A name is not a key column.
        DataError: No row has the key.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    known = spec.features.key
    if unknown := [name for name in key if name not in known]:
        msg = f"{spec.name} has no key column {listed(map(repr, unknown))}; its key is {listed(known)}."
        raise WrongUseError(msg, hint=did_you_mean(unknown[0], known))
    with open_published(home) as con:
        traces = _Tracer(con, spec, home, read_registry(con, spec.name)).traces(key)
    if not traces:
        row = ", ".join(f"{name}={value}" for name, value in key.items())
        msg = f"{spec.name}: no scored or rejected row has {row}."
        raise DataError(msg, hint=f"batch-platform status {spec.name} shows which partitions are scored.")
    return traces


Record = TypeVar("Record", ScoreRun, FeatureBuild)


@dataclass(frozen=True)
class _Tracer:
    """Traces rows through a published copy."""

    con: duckdb.DuckDBPyConnection
    spec: PipelineSpec
    home: Home
    registry: Registry

    def traces(self, key: Mapping[str, str]) -> list[Trace]:
        tables = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE schema_name = $schema"
        columns = self.con.execute(tables, {"schema": self.spec.name}).fetchall()
        types = {column: dtype for table, column, dtype in columns if table == "predictions"}
        present = {table for table, *_ in columns}
        scored = self._rows("predictions", key, types) if "predictions" in present else []
        rejected = self._rows("rejected_rows", key, types) if "rejected_rows" in present else []
        traces = [
            *(self._trace("scored", row) for row in scored),
            *(self._trace("rejected", _read_json(row)) for row in rejected),
        ]
        return sorted(traces, key=lambda trace: trace.commit.partition_start, reverse=True)

    def _rows(self, table: str, key: Mapping[str, str], types: Mapping[str, str]) -> list[dict[str, Any]]:
        """Read the rows whose key has these values, each written as the column's type or as its text."""
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
            msg = f"{self.spec.name}, partition {values['partition_key']}: {ledger} has no row for this score."
            raise IntegrityError(msg, hint="the warehouse was changed by other means; restore it from a backup.")
        return record(*rows[0])

    def _model(self, name: str) -> TracedModel:
        version = self.registry.named(name)
        decision = self.registry.last_decision(name)
        return TracedModel(
            version=name,
            sha256=version.sha256,
            estimator=version.estimator,
            params=json.loads(version.params),
            metrics=version.metric_values,
            trained_from=version.trained_from,
            trained_until=version.trained_until,
            rows_trained=version.rows_trained,
            decision="none" if decision is None else f"{decision.action} by {decision.actor}: {decision.reason}",
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
    """Parse the key and the features of a rejected row."""
    return {**row, "key": json.loads(row["key"]), "row": json.loads(row["row"])}


MOST_ROWS = 20
Way = Literal["features", "model"]


@dataclass(frozen=True)
class Dependent:
    """A partition of predictions that depends on a source."""

    partition: str
    through: tuple[Way, ...]  # its features were built from it; its model was trained on it
    source_version: str | None  # its features were built from it
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
    versions: dict[str, int]  # number of partitions built from each version of the source
    models: list[str]  # versions trained on the source that scored one of the partitions
    partitions: list[Dependent]


def with_source_rows(builder: FeatureBuilder, traces: Sequence[Trace]) -> list[Trace]:
    """Add to traces what the sources hold for them now."""
    if not traces:
        return []
    partitions = [builder.spec.partitions.calendar.named(trace.commit.partition_key) for trace in traces]
    try:
        lineage = builder.asked_lineage(partitions[0])
    except SourceError:
        lineage = builder.lineage
    dated = list(zip(traces, partitions, strict=True))
    by_source = [_traced(builder, name, lineage, dated) for name in lineage.sources]
    return [replace(trace, sources=tuple(traced[at] for traced in by_source)) for at, trace in enumerate(traces)]


def dependents(builder: FeatureBuilder, home: Home, source: str, partition_key: str | None) -> Dependents:
    """List the committed partitions of predictions that depend on a source, oldest first.

    Args:
        builder: The builder of the pipeline.
        home: The home with its published copy.
        source: Name of the source.
        partition_key: A partition of the source; selects predictions only if the source has a file for each partition.

    Raises:
        WrongUseError: There is no such source or partition.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    spec = builder.spec
    if source not in spec.sources:
        msg = f"{spec.name} has no source {source!r}; it has {listed(spec.sources)}."
        raise WrongUseError(msg, hint=did_you_mean(source, spec.sources))
    partition = None if partition_key is None else spec.partitions.calendar.named(partition_key)
    by_partition = spec.sources[source].by_partition
    with open_published(home) as con:
        rows = con.execute(_COMMITTED, {"pipeline": spec.name}).fetchall()
        versions = {version.version: version for version in read_registry(con, spec.name).versions}
    window = partition if by_partition else None
    ways = _ways(builder, source)
    dependents = [_dependent(row, source, ways, window, versions) for row in rows]
    partitions = [dependent for dependent in dependents if dependent is not None]
    return Dependents(
        pipeline=spec.name,
        source=source,
        partition=partition_key,
        note=_note(source, ways, partition, by_partition=by_partition),
        rows_scored=sum(dependent.rows_scored for dependent in partitions),
        versions=dict(Counter(dependent.source_version for dependent in partitions if dependent.source_version)),
        models=sorted({dependent.model_version for dependent in partitions if "model" in dependent.through}),
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
    """In which ways predictions can depend on a source; a model learns from both features and labels."""
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
    learned = model is not None and (
        window is None or (model.trained_from < window.end and window.start < model.trained_until)
    )
    if "model" in ways and learned:
        through.append("model")
    if not through:
        return None
    version = recorded.get(source) if "features" in through else None
    return Dependent(key, tuple(through), version, model_version, rows_scored, committed_at, run_id)


def _note(source: str, ways: Collection[Way], partition: Partition | None, *, by_partition: bool) -> str:
    """Explain the list."""
    if not ways:
        return f"neither the features nor the labels read {source!r}."
    if "features" not in ways:
        return f"only the labels read {source!r}: the models learned from it."
    if by_partition:
        return (
            f"{source!r} has a file for each partition: features are built from their own file, models learn from the "
            "files of a training window."
        )
    inseparable = "" if partition is None else f"; its rows of {partition.key} cannot be told apart"
    return f"{source!r} is one table for all partitions{inseparable}. Each partition was built from the table as it was then."


def _traced(
    builder: FeatureBuilder, name: str, lineage: Lineage, dated: Sequence[tuple[Trace, Partition]]
) -> list[TracedSource]:
    """Look up the key of each trace in one source, which is opened once."""
    sources = builder.sources
    read = lineage.read_of(name) if lineage.complete else None
    traced: list[TracedSource] = []
    with ExitStack() as stack:
        con: SourceConnection | None = None
        for trace, partition in dated:
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
                changed = [] if unchanged else ["has changed since the features were built from it"]
                unkeyed = (
                    [] if count is not None else ["lacks columns of the key: which of its rows were used is not known"]
                )
                note = "; ".join([*changed, *unkeyed])
                traced.append(replace(source, unchanged=unchanged, rows_of_key=count, rows=rows, note=note))
    return traced


def _key_of(trace: Trace, names: Sequence[str]) -> dict[str, Any]:
    values = trace.row["key"] if trace.outcome == "rejected" else trace.row
    return {name: values[name] for name in names}


def _rows_of_key(
    con: SourceConnection, name: str, lineage: Lineage, key: Mapping[str, Any], read: Sequence[str] | None
) -> tuple[int | None, tuple[dict[str, Any], ...]]:
    """Count the rows of a source with a key, and return the first of them; None if the source lacks a column of the key."""
    view = con.duckdb.sql(f"FROM {quoted(name)}")
    types = {column.lower(): (column, str(dtype)) for column, dtype in zip(view.columns, view.types, strict=True)}
    named: dict[str, Any] = {}
    for column, value in key.items():
        copied = lineage.of(column).copy_of
        source_column = (copied.column if copied is not None and copied.source == name else column).lower()
        if source_column not in types:
            return None, ()
        named[source_column] = value
    same = [f"{quoted(types[key][0])} = TRY_CAST($value{at} AS {types[key][1]})" for at, key in enumerate(named)]
    bound = {f"value{at}": value for at, value in enumerate(named.values())}
    where = f"FROM {quoted(name)} WHERE {' AND '.join(same)}"
    ((count,),) = con.duckdb.execute(f"SELECT count(*) {where}", bound).fetchall()
    shown = {*named, *(types if read is None else map(str.lower, read))}
    wanted = [column for lower, (column, _) in types.items() if lower in shown]
    query = f"SELECT {', '.join(map(quoted, wanted))} {where} LIMIT {MOST_ROWS}"
    rows = con.duckdb.execute(query, bound).fetchall()
    return int(count), tuple(dict(zip(wanted, row, strict=True)) for row in rows)
