"""From a score back to the rows of the sources, and from a source forward to the predictions made from it.

Which rows of a source made a score cannot be known in general: a feature may count a million of them. So what is shown
of a source is the rows that bear the score's own key, where it has the key's columns, and else its name, its version
and the columns that are read of it. Reads what is recorded and published, and the sources as they are now.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import duckdb

from batch_platform.errors import DataError, SourceError, WrongUseError, did_you_mean, listed
from batch_platform.features import FeatureBuilder
from batch_platform.home import Home
from batch_platform.ledger import LEDGERS_SCHEMA
from batch_platform.lineage.records import Lineage
from batch_platform.partitions import Partition
from batch_platform.registry import Version, read_registry
from batch_platform.sources import SourceConnection, Sources, quoted
from batch_platform.status import Trace, TracedSource

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
        DataError: Nothing is published.
    """
    spec = builder.spec
    if source not in spec.sources:
        msg = f"{spec.name} has no source {source!r}; it has {listed(spec.sources)}."
        raise WrongUseError(msg, hint=did_you_mean(source, spec.sources))
    asked = None if partition_key is None else spec.partitions.calendar.named(partition_key)
    own = spec.sources[source].by_partition
    if not home.published.exists():
        msg = f"{spec.name}: nothing is published in {home.root} yet."
        raise DataError(msg, hint=f"batch-platform run {spec.name} scores what is due.")
    with duckdb.connect(str(home.published.resolve()), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
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
    """What one source, opened once, holds of each trace."""
    spec = builder.spec
    alone = Sources(spec.model_copy(update={"sources": {name: spec.sources[name]}}), builder.sources.folder)
    read = lineage.read_of(name) if lineage.complete else None
    traced: list[TracedSource] = []
    with alone.connect() as con:
        opened = False
        for one, partition in found:
            recorded = one.features.sources.get(name)
            try:
                unchanged = recorded == alone.versions(partition)[name]
                con.move(partition) if opened else con.open(partition)
                opened = True
                count, rows = _rows_of_key(con, name, lineage, _key_of(one, spec.features.key), read)
            except SourceError as error:
                note = f"cannot be read now: {error.message}"
                traced.append(TracedSource(name, spec.sources[name].kind, recorded, None, read, None, (), note))
                continue
            note = _told(unchanged=unchanged, keyed=count is not None)
            traced.append(TracedSource(name, spec.sources[name].kind, recorded, unchanged, read, count, rows, note))
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
