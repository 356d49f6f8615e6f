"""Trace a score back to the rows of the sources, and a source forward to the predictions made from it.

Which rows of a source made a score cannot be known in general: a feature may count a million of them. So the trace shows
the rows of a source that have the key of the score, or, if the source lacks columns of the key, its name, its version and
the columns read from it. Reads the published copy, and the sources as they are now.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    DataError,
    IntegrityError,
    SourceError,
    WrongUseError,
    did_you_mean,
    listed,
    named,
)
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.build import FeatureBuilder
from batch_platform.features.origins import Lineage
from batch_platform.features.row_checks import instants
from batch_platform.kernels.forest.ensembles import NotCompilableError
from batch_platform.models.bundle import OpenVersion
from batch_platform.models.refinements.reasons import REASONS, explained_outputs, explainer_of, reasons_of
from batch_platform.models.refinements.refinement import model_of
from batch_platform.models.registry import Version, has_seen, read_registry
from batch_platform.operations.export import scored_file
from batch_platform.planning.trainings import first_served
from batch_platform.sources.opening import SourceConnection
from batch_platform.warehouse.deletion import read_erasures, subject_hash
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, FeatureBuild, ScoreRun, as_record, read_latest
from batch_platform.warehouse.published import reading_published
from batch_platform.warehouse.sql import in_memory, json_pointer, quoted, read_file

MOST_ROWS, MOST_REASONS = 20, 10
PARTITION = "partition"  # beside the columns of a key
RowState = Literal["scored", "rejected"]
Way = Literal["features", "model"]
_TABLES: dict[RowState, str] = {"scored": "predictions", "rejected": "rejected_rows"}


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
    row: (
        dict[str, Any] | None
    )  # the row that the model read; None if it was rejected, or if the file is gone or damaged


@dataclass(frozen=True)
class TracedSource:
    """A source that a score was made from, and the rows that it has for the key of the score now."""

    name: str
    kind: str
    version: str | None  # recorded when the features were built
    unchanged: bool | None  # whether it still has that version; None if it cannot be read
    columns: list[str] | None  # columns that the features read; None if not known
    rows_of_key: int | None  # number of rows with the key; None if it lacks columns of the key
    rows: tuple[dict[str, Any], ...]  # the first of these rows, with those columns
    note: str


@dataclass(frozen=True)
class TracedReasons:
    """The reasons of a score that has none stored, computed from the bundle that gave it and the row that it read."""

    unit: str = ""  # unit of the raw score, which the base value and all contributions add up to
    base: float | None = None
    largest: tuple[dict[str, Any], ...] = ()  # feature, value as text, and contribution of at most MOST_REASONS
    note: str = ""  # why there are none


@dataclass(frozen=True)
class Trace:
    """The outcome of one row, and what produced it."""

    outcome: RowState
    row: dict[str, Any]  # row of the table `predictions` or `rejected_rows`
    commit: ScoreRun
    model: TracedModel
    features: TracedFeatures
    reasons: TracedReasons | None = None  # None of a rejected row, where the row holds them, and unless asked for
    sources: tuple[TracedSource, ...] = ()  # filled by `with_source_rows`


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


def trace(
    spec: PipelineSpec, home: Home, key: Mapping[str, str], open_version: OpenVersion | None = None
) -> list[Trace]:
    """Trace the scored and rejected rows of a key, newest partition first; some columns of the key are enough.

    A key that occurs in several partitions is narrowed down by one of them, as `partition`, unless a column has that name.
    With `open_version`, reasons that are not stored are computed.

    Raises:
        WrongUseError: A name is not a key column, or there is no such partition.
        DataError: No row has the key.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    known, name = spec.features.key, spec.name
    only = None if PARTITION in known else key.get(PARTITION)
    if only is not None:
        spec.partitions.calendar.named(only)
        key = {column: value for column, value in key.items() if column != PARTITION}
    if unknown := [column for column in key if column not in known]:
        msg = f"{name} has no key column {listed(map(repr, unknown))}; its key is {listed(known)}."
        raise WrongUseError(msg, hint=did_you_mean(unknown[0], known))
    with reading_published(home) as con:
        rows = _rows(con, spec, key, only)
        if not rows:
            raise _untraced(con, home, spec, key, only)
        runs = read_latest(con, ScoreRun, name, {row["partition_key"] for _, row in rows})
        builds, registry = _builds_scored(con, runs.values()), read_registry(con, name)
    traces: list[Trace] = []
    for outcome, row in rows:
        run, build = runs.get(row["partition_key"]), builds.get(row["partition_key"])
        if run is None or run.run_id != row["run_id"] or build is None:
            msg = f"{name}, partition {row['partition_key']}: the ledgers have no row for this score."
            raise IntegrityError(msg, hint="the warehouse was changed by other means; restore it from a backup.")
        version, last = registry.named(run.model_version), registry.last_decision(run.model_version)
        decision = next((event for event in registry.promotions if event.seq == run.decision_seq), last)
        model = as_record(
            TracedModel,
            version,
            params=json.loads(version.params),
            metrics=version.metric_values,
            decision="none" if decision is None else f"{decision.action} by {decision.actor}: {decision.reason}",
        )
        read = _scored_row(home, run, {column: row[column] for column in known}) if outcome == "scored" else None
        features = as_record(
            TracedFeatures,
            build,
            file=str(home.feature_file(name, run.partition_key, build.sha256)),
            sources=json.loads(build.sources),
            row=None if read is None or not read.height else read.row(0, named=True),
        )
        reasons = None
        if open_version is not None and outcome == "scored" and row.get(REASONS.name) is None:
            reasons = _reasons(open_version, version, read)
        traces.append(Trace(outcome, row, run, model, features, reasons))
    return sorted(traces, key=lambda trace: trace.commit.partition_start, reverse=True)


def _rows(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, key: Mapping[str, str], only: str | None
) -> list[tuple[RowState, dict[str, Any]]]:
    """Read the rows whose key has these values, each written as the column's type or as its text; `only` of one partition.

    A time without a zone is one on the clocks of the pipeline.
    """
    tables = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE schema_name = $schema"
    columns = con.execute(tables, {"schema": spec.name}).fetchall()
    types = {column: dtype for table, column, dtype in columns if table == "predictions"}
    rows: list[tuple[RowState, dict[str, Any]]] = []
    for outcome, table in _TABLES.items():
        if table not in {name for name, *_ in columns}:
            continue
        conditions, bound = list[str](), dict[str, str]()
        if only is not None:
            conditions.append("partition_key = $partition")
            bound["partition"] = only
        for at, (name, value) in enumerate(key.items()):
            dtype = types.get(name, "VARCHAR")
            bound[f"value{at}"] = _with_zone(value, spec) if dtype == "TIMESTAMP WITH TIME ZONE" else value
            column = quoted(name)
            if outcome == "rejected":
                bound[f"path{at}"] = json_pointer(name)
                column = f"json_extract_string(key, $path{at})"
            same = f"TRY_CAST({column} AS {dtype}) = TRY_CAST($value{at} AS {dtype})"
            conditions.append(f"(CAST({column} AS VARCHAR) = $value{at} OR {same})")
        selected = con.sql(f"FROM {quoted(spec.name)}.{table} WHERE {' AND '.join(conditions)}", params=bound)
        for values in selected.fetchall():
            row = dict(zip(selected.columns, values, strict=True))
            parsed = {"key": json.loads(row["key"]), "row": json.loads(row["row"])} if outcome == "rejected" else {}
            rows.append((outcome, row | parsed))
    return rows


def _with_zone(value: str, spec: PipelineSpec) -> str:
    """The text of a time, in UTC if it names no zone; any other text as it is."""
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return value
    return value if time.tzinfo else str(instants(pl.Series([time]), spec.partitions.calendar.zone)[0])


def _reasons(open_version: OpenVersion, version: Version, read: pl.DataFrame | None) -> TracedReasons:
    """The largest contributions to the score of the row that a version has read."""
    if read is None or not read.height:
        return TracedReasons(note="the features that the model read are gone")
    try:
        bundle = open_version(version)
        contract, predictor = bundle.contract, bundle.for_rows(read.height)
        learned = next((it.learned for it in bundle.refinements if it.refinement.name == REASONS.name), {})
        explainer = explainer_of(model_of(predictor), bundle.signature, learned.get("means", ()))
        rows = contract.split(read).kept
        if not rows.height:
            return TracedReasons(note="the row that the model read breaks a rule that is declared now")
        matrix = contract.encode(rows)
        outputs = explained_outputs(predictor.predict(matrix))
        reasons = reasons_of(rows, explainer.of(matrix, outputs), contract, min(MOST_REASONS, matrix.shape[1]))
    except (NotCompilableError, DataError, IntegrityError, WrongUseError) as error:
        return TracedReasons(note=f"they cannot be computed: {error}")
    base = explainer.bases[outputs[0] if len(explainer.bases) > 1 else 0]
    return TracedReasons(explainer.unit, float(base), tuple(reasons[0].to_list()))


def _scored_row(home: Home, run: ScoreRun, key: Mapping[str, Any]) -> pl.DataFrame | None:
    """The row of the features that a scored row was made from, if it is there; None if its file is gone or damaged."""
    try:
        path = scored_file(home, run)
    except IntegrityError:
        return None
    same = " AND ".join(f"{quoted(column)} = ${at}" for at, column in enumerate(key, start=1))
    with in_memory() as con:
        query = f"FROM {read_file(path)} WHERE {same} LIMIT 1"
        return con.sql(query, params=[*key.values()]).pl()


def _builds_scored(con: duckdb.DuckDBPyConnection, runs: Collection[ScoreRun]) -> dict[str, FeatureBuild]:
    """The build of features that each run scored, by partition key."""
    columns = ", ".join(f"build.{quoted(item.name)}" for item in fields(FeatureBuild))
    query = f"""
        SELECT {columns}
        FROM {LEDGERS_SCHEMA}.feature_builds AS build JOIN {LEDGERS_SCHEMA}.score_runs AS run
            ON build.pipeline = run.pipeline AND build.partition_key = run.partition_key
            AND build.sha256 = run.input_hash AND build.seq < run.seq
        WHERE run.seq IN $seqs
        QUALIFY row_number() OVER (PARTITION BY run.seq ORDER BY build.seq DESC) = 1
    """
    builds = [FeatureBuild(*row) for row in con.execute(query, {"seqs": [run.seq for run in runs]}).fetchall()]
    return {build.partition_key: build for build in builds}


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

    The key of a partition of the source selects predictions only if the source has a file for each partition.

    Raises:
        WrongUseError: There is no such source or partition.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    spec = builder.spec
    by_partition = named(source, spec.sources, f"{spec.name} has no source {source!r}; it has").by_partition
    partition = None if partition_key is None else spec.partitions.calendar.named(partition_key)
    with reading_published(home) as con:
        runs = read_latest(con, ScoreRun, spec.name)
        builds = _builds_scored(con, runs.values())
        versions = {version.version: version for version in read_registry(con, spec.name).versions}
    ways, window = _ways(builder, source), partition if by_partition else None
    partitions: list[Dependent] = []
    for run in sorted(runs.values(), key=lambda run: run.partition_start):
        build, version = builds.get(run.partition_key), None
        through: list[Way] = []
        if "features" in ways and build is not None and (window is None or window.key == run.partition_key):
            version = json.loads(build.sources).get(source)
            if version is not None:
                through.append("features")
        if "model" in ways and (window is None or has_seen(versions[run.model_version], window)):
            through.append("model")
        if through:
            facts = {"partition": run.partition_key, "through": tuple(through), "source_version": version}
            partitions.append(as_record(Dependent, run, **facts))
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


def _ways(builder: FeatureBuilder, source: str) -> set[Way]:
    """In which ways predictions can depend on a source; a model learns from both features and labels."""
    ways: set[Way] = set()
    if source in builder.lineage.sources:
        ways |= {"features", "model"}
    if source in builder.labels_lineage.sources:
        ways.add("model")
    return ways


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


def _untraced(
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
            rows = f"FROM {read_file(path)} WHERE {same} LIMIT 1"
            if features.execute(rows, [*key.values()]).fetchone():
                return calendar.named(name)
    return None
