"""Performance over many partitions: every metric of all their labelled rows together, not the mean of daily values.

Computed from the published tables alone: `outcomes` holds the label of every row that was measured, so that each metric is
exact for any window, segment and model. Partitions that a model has learned from are left out, and those that were scored
again and not measured since.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, did_you_mean, listed
from batch_platform.declaration.inputs import WEIGHT
from batch_platform.declaration.predictions import DECISION, rule_in
from batch_platform.monitoring.decisions import as_decided
from batch_platform.monitoring.measures.challengers import RUNS, SCORES
from batch_platform.monitoring.measures.performance import (
    OUTCOME_WEIGHT,
    OUTCOMES,
    PERFORMANCE,
    metric_rows,
    named_classes,
)
from batch_platform.monitoring.metrics import Metric
from batch_platform.monitoring.outcomes import (
    CLASSIFICATION,
    UNKNOWN,
    Outcomes,
    UnitRule,
    class_texts,
    prediction_columns,
)
from batch_platform.monitoring.segments import named_texts
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, ScoreRun, read_latest
from batch_platform.warehouse.sql import has_table, literal, quoted, table_columns

MOST_ROWS = (
    2_000_000  # rows of a window that are measured; of more, those with a hash of their key in reach are measured
)
_PARTITION, _OF_OUTCOMES = "partition_key", ("outcome", "outcome_value", OUTCOME_WEIGHT, "run_id")
_TRUTH, _VALUE, _UNIT = "__truth", "__value", "__unit_"  # the last is followed by the name of a unit


@dataclass(frozen=True)
class Pool:
    """Rows that are measured together."""

    model_version: str | None = None  # None for all versions that scored the rows
    challenger: str | None = None  # None for the models that served
    segment_column: str | None = None  # None for all rows
    segment: str | None = None


@dataclass(frozen=True, kw_only=True)
class PooledMetric(Pool):
    """A metric of the labelled rows of many partitions."""

    metric: str
    value: float
    low: float | None
    high: float | None
    rows: int
    positives: int | None
    rows_labelled: int
    rows_of_unknown_class: int
    unknown_classes: str | None
    partitions: int


def pooled_performance(  # noqa: PLR0913 - what is pooled, and how it is broken down
    con: duckdb.DuckDBPyConnection,
    pipeline: str,
    first: str | None = None,
    last: str | None = None,
    *,
    partitions: Collection[str] | None = None,
    by: Sequence[str] = (),
    metrics: Sequence[Metric] = (),
    only: Collection[str] | None = None,
    of_segments: Collection[str] | None = None,
    by_version: bool = True,
    unit: UnitRule = UnitRule(),  # noqa: B008 - immutable
) -> pl.DataFrame:
    """The metrics of partitions from `first` to `last`, both included; a row is a `PooledMetric`.

    `con` is a connection to the published copy. With `partitions`, only these of them count. There are rows for all models that served, for each of their versions (unless
    `by_version` is false), for each challenger, and for each value of every column in `by`, which is a kept column of the
    predictions. Versions that know other classes are not measured together. `metrics` are measured beside the built-in ones.
    Most of the time goes into intervals: `only` names the metrics to measure, `of_segments` those of segments; None: all.
    `unit` is what the pipeline declares of rows that depend on each other.

    Raises:
        DataError: Nothing was evaluated with labels, or the predictions have no column of `by`.
    """
    if not has_table(con, pipeline, OUTCOMES):
        msg = f"{pipeline}: no partition was measured against labels yet."
        raise DataError(msg, hint=f"batch-platform run {pipeline} measures partitions whose labels are known.")
    keys = [key for key in measured_partitions(con, pipeline, first, last) if partitions is None or key in partitions]
    query = f"SELECT version, task, classes FROM {LEDGERS_SCHEMA}.model_versions WHERE pipeline = $pipeline"
    newest = read_latest(con, ScoreRun, pipeline, keys[-1:]).values()
    rule = next((run.decision_rule for run in newest), None)
    kinds = {
        version: _Kind(task, tuple(json.loads(classes)), rule)
        for version, task, classes in con.execute(query, {"pipeline": pipeline}).fetchall()
    }
    pooled = list[PooledMetric]()
    for rows in _scored(con, pipeline, keys, by, unit):
        challenger, versions = rows["challenger"][0], sorted(set(rows["model_version"]))
        if by_version and len(versions) > 1:
            for version in versions:
                of_version = rows.filter(pl.col("model_version") == version)
                pooled += _of_rows(kinds[version], of_version, metrics, Pool(version, challenger), only)
        if len({kinds[version] for version in versions}) > 1:  # probabilities of other classes
            continue
        kind = kinds[versions[0]]
        for metric in _of_rows(kind, rows, metrics, Pool(challenger=challenger), only):
            pooled.append(metric)
            if by_version and len(versions) == 1:
                pooled.append(replace(metric, model_version=versions[0]))
        key = rows.select(name for name, _ in table_columns(con, pipeline, OUTCOMES) if name in rows.columns)
        key = key.select(pl.exclude(_PARTITION, *_OF_OUTCOMES))
        for column in by:
            for (segment,), of_segment in rows.group_by(named_texts(rows[column], key), maintain_order=True):
                pool = Pool(challenger=challenger, segment_column=column, segment=segment)
                pooled += _of_rows(kind, of_segment, metrics, pool, of_segments)
    return pl.DataFrame([vars(metric) for metric in pooled], schema=_schema(PooledMetric), orient="row")


def measured_partitions(
    con: duckdb.DuckDBPyConnection, pipeline: str, first: str | None, last: str | None
) -> list[str]:
    """The partitions whose present predictions were measured on rows that the model had not learned from, in order.

    Those from `first` to `last`, both included; None: from the beginning or to the end. A snapshot counts
    if some of its labelled rows were not learned from: it was measured on these.
    """
    within = "partition_key >= coalesce($first, '') AND partition_key <= coalesce($last, partition_key)"
    stated = f"SELECT partition_key, NULL::BOOLEAN AS seen FROM {LEDGERS_SCHEMA}.evaluations WHERE false"
    if "in_sample" in {name for name, _ in table_columns(con, pipeline, PERFORMANCE.name)}:
        table = f"{quoted(pipeline)}.{quoted(PERFORMANCE.name)}"
        stated = f"SELECT partition_key, bool_or(in_sample) AS seen FROM {table} WHERE challenger IS NULL AND {within} GROUP BY ALL"
    newest = "SELECT partition_key, max(seq) AS seq, arg_max({0}, seq) AS {0} FROM {1}.{2} WHERE pipeline = $pipeline AND {3} GROUP BY ALL"
    runs = newest.format("in_sample", LEDGERS_SCHEMA, "score_runs", within)
    evaluations = newest.format("score_seq", LEDGERS_SCHEMA, "evaluations", within)
    query = f"""
        SELECT partition_key FROM ({runs}) AS run JOIN ({evaluations}) AS evaluation USING (partition_key)
        LEFT JOIN ({stated}) USING (partition_key)
        WHERE score_seq = run.seq AND NOT coalesce(seen, in_sample) ORDER BY ALL
    """
    values = {"pipeline": pipeline, "first": first, "last": last}
    return [key for (key,) in con.execute(query, values).fetchall()]


@dataclass(frozen=True)
class _Kind:
    """The kind of scores of a version: only scores of one kind can be pooled."""

    task: str
    classes: tuple[Any, ...]
    rule: str | None  # rule of decision of the newest partition, by which the costs of all are measured

    def truth(self, rows: pl.DataFrame) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """The true values, or the true classes as the model writes them, and of these the positions; of other classes, the text."""
        if self.task == "regression":
            return rows[_VALUE].to_numpy(), None
        texts = rows[_TRUTH]
        places = {text: at for at, text in enumerate(class_texts(self.classes))}
        at = texts.replace_strict(places, default=UNKNOWN, return_dtype=pl.Int64).to_numpy()
        truth = np.array([*self.classes, None], dtype=object)[at]
        if (strange := at == UNKNOWN).any():
            truth[strange] = texts.filter(pl.Series(strange)).to_numpy()
        return truth, at if self.task in CLASSIFICATION else None

    def outcomes(self, rows: pl.DataFrame) -> Outcomes:
        """Rows of versions of this kind, as metrics take them."""
        truth, positions = self.truth(rows)
        units = {name.removeprefix(_UNIT): rows[name].to_numpy() for name in rows.columns if name.startswith(_UNIT)}
        columns = prediction_columns(self.task, self.classes)
        predicted = rows[columns[-1]].to_numpy()
        if self.task == "binary":
            predicted = np.column_stack([1 - predicted, predicted])
        elif self.task == "multiclass":
            predicted = rows.select(columns[1:]).to_numpy()
        # Rows that were measured before a weight was declared have none: then all count alike.
        weighted = WEIGHT in rows.columns and not rows[WEIGHT].null_count()
        weights = rows[WEIGHT].to_numpy() if weighted else None
        outcomes = Outcomes(
            self.task, predicted, truth, self.classes, units=units, positions=positions, weights=weights
        )
        return as_decided(outcomes, rows, rule_in(self.rule))


def _of_rows(
    kind: _Kind, rows: pl.DataFrame, metrics: Sequence[Metric], pool: Pool, only: Collection[str] | None = None
) -> Iterator[PooledMetric]:
    outcomes = kind.outcomes(rows)
    strange = rows[_TRUTH].filter(~outcomes.of_known_class)
    unknown, partitions = named_classes(strange), rows[_PARTITION].n_unique()
    for name, value, low, high, measured, positives in metric_rows(outcomes, metrics, only):
        yield PooledMetric(
            **vars(pool),
            metric=name,
            value=value,
            low=low,
            high=high,
            rows=measured,
            positives=positives,
            rows_labelled=rows.height,
            rows_of_unknown_class=len(strange),
            unknown_classes=unknown,
            partitions=partitions,
        )


def _scored(
    con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str], by: Sequence[str], unit: UnitRule
) -> Iterator[pl.DataFrame]:
    """The labelled rows of some partitions and their units, with the scores of the models that served and, in turn, of each challenger."""
    schema, values = quoted(pipeline), {"keys": list(keys)}
    present = [name for name, _ in table_columns(con, pipeline, "predictions")]
    if unknown := [name for name in by if name not in present]:
        msg = f"{pipeline}.predictions has no column {listed(map(repr, unknown))}; it has {listed(present)}."
        raise DataError(msg, hint=did_you_mean(unknown[0], present))
    recorded = [name for name, _ in table_columns(con, pipeline, OUTCOMES)]
    joined = [name for name in recorded if name not in (*_OF_OUTCOMES, _PARTITION)]
    counts = ", ".join(f"count({quoted(name)})" for name in joined)
    counted = con.execute(f"SELECT count(*), {counts} FROM {schema}.{OUTCOMES} WHERE partition_key IN $keys", values)
    ((rows, *filled),) = counted.fetchall()
    key = [
        name for name, count in zip(joined, filled, strict=True) if count == rows
    ]  # the columns of an earlier key are all null
    by = [*by, *(name for name in unit.columns if name in present)]
    on, by = ", ".join(map(quoted, [_PARTITION, *key])), [name for name in dict.fromkeys(by) if name not in key]
    needed = {_PARTITION, *key, *by, "challenger", "model_version", "prediction", "score", DECISION}
    step = -(-rows // MOST_ROWS)
    chosen = f"partition_key IN $keys{f' AND hash({on}) % {step} = 0' if step > 1 else ''}"
    weight = f", {OUTCOME_WEIGHT} AS {WEIGHT}" if OUTCOME_WEIGHT in recorded else ""
    truth = (
        f"SELECT {on}, outcome AS {_TRUTH}, outcome_value AS {_VALUE}{weight} FROM {schema}.{OUTCOMES} WHERE {chosen}"
    )
    segments = "".join(f", {quoted(name)}" for name in by)
    columns = ", ".join(quoted(name) for name in present if name in needed or name.startswith("score_"))
    served = f"SELECT {columns}, NULL::VARCHAR AS challenger FROM {schema}.predictions"
    tables = [(served, "")]
    if has_table(con, pipeline, SCORES):
        query = f"SELECT DISTINCT challenger FROM {schema}.{RUNS} WHERE partition_key IN $keys AND NOT in_sample ORDER BY ALL"
        for (name,) in con.execute(query, values).fetchall():
            of_name = f"challenger = {literal(name)}"
            unseen = f"partition_key IN (SELECT partition_key FROM {schema}.{RUNS} WHERE {of_name} AND NOT in_sample)"
            kept = f"(SELECT {on}{segments} FROM {schema}.predictions)" if by else ""
            own = [name for name, _ in table_columns(con, pipeline, SCORES)]
            columns = ", ".join(quoted(name) for name in own if name in needed or name.startswith("score_"))
            scores = f"SELECT {columns} FROM {schema}.{SCORES} WHERE {of_name} AND {unseen}"
            tables.append((scores, f"JOIN {kept} USING ({on})" if by else ""))
    for scores, further in tables:
        joined_rows = f"({scores}) {further} JOIN ({truth}) USING ({on})"
        rows_of_model = con.sql(f"FROM {joined_rows} WHERE {chosen} ORDER BY {on}", params=values).pl()
        if rows_of_model.height:
            units = unit.numbers(rows_of_model, key, partition=_PARTITION)
            yield rows_of_model.with_columns(pl.Series(f"{_UNIT}{name}", of) for name, of in units.items())


def _schema(record: type) -> dict[str, Any]:
    types = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "date": pl.Date}
    return {item.name: types[str(getattr(item.type, "__name__", item.type)).split(" |")[0]] for item in fields(record)}
