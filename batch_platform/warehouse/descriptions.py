"""Descriptions of tables and columns, kept in the database as comments and shown in the UI.

The tables that this room makes, copies or drops by name are described here. A room above registers its own: a table of its own in `OF_PIPELINES`, beside the
code that makes it, and the tables of measures, which may be added at any time, as a function in `COLLECTED`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import duckdb

from batch_platform.warehouse.sql import literal, quoted

LEDGERS_SCHEMA = "batch_platform"
RUN = {"run_id": "Dagster run that wrote the row"}
OF_PARTITION = {"partition_key": "key of the partition", **RUN}
MODEL_VERSION = "version that scored the partition"
IN_SAMPLE = "whether it is measured on rows that the model has learned from; of a snapshot, these are left out if there are others"
SEGMENT = {"segment_column": "kept column by which it is broken down", "segment": "value of that column"}
SCORES = {
    "prediction": "predicted value or class",
    "score": "probability of the positive class, or how unusual a row is",
    "prediction_low": "start of the interval of the true value",
    "prediction_high": "end of that interval",
    "reasons": "columns that moved the raw score most, the largest contribution first, in the unit that the version's manifest names "
    "(log-odds, probability or the label's own); calibration comes after the raw score",
    "decision": "whether to act on the row, or the decided class, by the rule in score_runs; null without a rule",
}
_PREDICTIONS = {
    **SCORES,
    **OF_PARTITION,
    "model_version": "version that scored it",
    "scored_at": "when it was scored, in UTC",
}


@dataclass(frozen=True)
class Description:
    """The meaning of a row of a table, and of its columns; columns that a pipeline names itself are left out."""

    row: str
    columns: Mapping[str, str] = field(default_factory=dict[str, str])


_FILE = {
    **OF_PARTITION,
    "part": "place among the files of the partition, from 0, in the order of the rows",
    "rows": "rows in it",
    "file_bytes": "its size in bytes",
    "xxh3": "hash of its bytes",
}
_REJECTED = {
    **OF_PARTITION,
    "key": "its key, as JSON",
    "reason": "rule that it broke",
    "column_name": "column that broke the rule; null if the score did",
    "row": "the row as it was read, as JSON",
}
_CHALLENGER_SCORES = {
    **SCORES,
    **OF_PARTITION,
    "challenger": "its name",
    "model_version": "version of the challenger",
    "scored_at": "when it was scored, in UTC",
}
OF_PIPELINES: dict[str, Description] = {
    "predictions": Description(
        "a scored row, with its key, time and kept columns",
        _PREDICTIONS,
    ),
    "prediction_files": Description(
        "a Parquet file with predictions of a partition",
        {
            **_FILE,
            "file": "name in the folder lake/<pipeline>/predictions/<partition_key> of the home",
            "columns": "for each column of predictions its name and type in the file, as JSON",
        },
    ),
    "predictions_in_duckdb": Description(
        "a scored row of a partition that is not in files, where predictions is a view",
        _PREDICTIONS,
    ),
    "rejected_rows": Description(
        "a row that broke the contract and was not scored",
        _REJECTED,
    ),
    "challenger_scores": Description(
        "a row as a challenger scored it beside the model that serves",
        _CHALLENGER_SCORES,
    ),
    "challenger_score_files": Description(
        "a Parquet file with the scores of a challenger in a partition",
        {
            **_FILE,
            "part": "place among the files of the challenger in the partition, from 0, in the order of the rows",
            "challenger": "its name",
            "file": "name in the folder lake/<pipeline>/challenger_scores/<partition_key> of the home",
            "columns": "for each column of challenger_scores its name and type in the file, as JSON",
        },
    ),
    "challenger_scores_in_duckdb": Description(
        "a challenger's score of a row that is not in files, where challenger_scores is a view",
        _CHALLENGER_SCORES,
    ),
    "dropped_partitions": Description(
        "a partition that was deleted for good; it stays away until it is named",
        {
            "partition_key": "key of the partition",
            "rows": "rows of the pipeline's tables that were deleted with it",
            "actor": "who deleted it",
            "dropped_at": "when, in UTC",
            "run_id": "the deletion, which may have taken several partitions",
        },
    ),
    "fingerprints": Description(
        "a source with the rows of many partitions: the rows and a hash of each partition in it",
        {
            "read_by": "features or labels, whose queries read different columns",
            "source": "its name; or model, performance",
            "version": "version of the source that was read; for model and performance, what is taken for the inputs that records of earlier releases lack",
            "fingerprints": "number and hash of the rows of each partition, as JSON",
        },
    ),
    "backtests": Description(
        "a metric of a partition by a tested model",
        {
            **OF_PARTITION,
            "backtest_id": "the backtest",
            "metric": "its name; null if nothing could be measured",
            "value": "the metric of the tested model",
            "production_value": "the metric of the version that served, on the same rows",
            "rows_measured": "rows with a label that the tested model scored, and the version that served, if one did",
            "model_version": "tested version; null for a model that is not registered",
            "production_version": "version that served the partition",
            "in_sample": IN_SAMPLE,
            "note": "why nothing could be measured, or what limits it",
        },
    ),
    "backtest_scores": Description("a row as a tested model scored it", {**SCORES, **OF_PARTITION}),
    "failures": Description(
        "a partition whose last attempt at a step failed",
        {
            **OF_PARTITION,
            "step": "asset that failed: features, model, predictions, performance or that of a delivery",
            "partition_key": "key of the partition, or of the serving period of a model",
            "reason": "what happened",
            "hint": "what helps; null if nothing is known",
            "declared": "hash of the declaration; with another one the step may succeed",
            "failed_at": "when, in UTC",
        },
    ),
    "refused_rows": Description(
        "a rejected row of a partition that was not published for them",
        {
            **_REJECTED,
            "rows_alike": "rows of the partition with the same column and reason, of which up to 100 are kept",
        },
    ),
}
RECORD = {
    "seq": "number of the row; a later row has a higher one",
    "pipeline": "its name",
    "run_id": "Dagster run or command that wrote the row",
}
_TRAINING = {
    **RECORD,
    "serving_period": "partition or period from whose start on the model serves",
    "declared": "hash of the declaration that it was trained by",
    "version": "the trained version; null if the training failed",
    "failure": "why it failed; null if it did not",
    "trained_at": "when, in UTC",
}
_SCORED = {
    **OF_PARTITION,
    "partition_start": "its start",
    "partition_end": "its end, which is the start of the next one",
    "rows_in": "rows of the features",
    "rows_scored": "rows with a prediction",
    "rows_rejected": "rows that broke the contract; with rows_scored they add up to rows_in",
    "model_version": "version that scored it",
    "committed_at": "when the rows were committed",
}
OF_ALL: dict[str, Description] = {  # tables in the schema of the ledgers
    "score_runs": Description(
        "a committed partition of predictions; the newest of a partition counts",
        {
            **_SCORED,
            **RECORD,
            "model_sha256": "hash of that version's bundle",
            "input_hash": "hash of the features",
            "code_version": "hash of the code and the declared rules that scored it",
            "engine": "what scored it, local or spark, and remarks on how",
            "started_at": "when scoring began",
            "in_sample": IN_SAMPLE,
            "decision_seq": "seq of the row of promotions by which the version served; null if it was named for the run",
            "decision_rule": "rule of predictions.decide by which its rows are decided, as JSON; null without one",
            "hindsight": "whether that was decided after the partition had ended, or the version was named for the run",
        },
    ),
    "model_versions": Description(
        "a trained version",
        {
            **RECORD,
            "version": "its name: the serving period and the beginning of the bundle's hash",
            "serving_period": "partition or period from whose start on it serves",
            "serving_start": "that start",
            "sha256": "hash of the bundle",
            "flavour": "kind of the stored model, such as sklearn or lightgbm",
            "task": "binary, multiclass, regression, clustering or outliers",
            "estimator": "class or file that was declared",
            "params": "its parameters, as JSON",
            "trained_from": "start of the training data",
            "trained_until": "end of the training data",
            "rows_trained": "rows that it learned from",
            "rows_evaluated": "later rows that it was judged on",
            "metrics": "metrics on these rows, as JSON",
            "features_code_version": "hash of the code that made the features",
            "created_at": "when it was trained",
            "classes": "classes of the label, of two the positive one last, as JSON",
            "label_sources": "hashes of the labels that it learned and of their sources",
        },
    ),
    "promotions": Description(
        "a decision on a version, with its reason and evidence",
        {
            **RECORD,
            "version": "the version",
            "action": "approved, refused, waiting, challenger, withdrawn, retired or removed",
            "reason": "why",
            "evidence": "metrics and comparisons that it rests on, as JSON",
            "actor": "who decided: the gate or a person",
            "decided_at": "when, in UTC",
            "holds_from": "start of the first partition for which it holds; null: it holds for all",
        },
    ),
    "model_trainings": Description("what came of training the model of a serving period", _TRAINING),
    "challenger_trainings": Description(
        "what came of training a challenger for a serving period", {**_TRAINING, "challenger": "its name"}
    ),
    "feature_builds": Description(
        "a built partition of features; the newest of a partition counts",
        {
            **OF_PARTITION,
            **RECORD,
            "rows": "rows in the file of features",
            "sha256": "hash of the file",
            "xxh3": "second hash of the file, which is quicker to check",
            "file_bytes": "size of the file in bytes",
            "code_version": "hash of the code that made it",
            "sources": "version of each source that was read, as JSON",
            "fingerprints": "number and hash of the rows read of each source with rows of many partitions, as JSON",
            "built_at": "when, in UTC",
        },
    ),
    "evaluations": Description(
        "an evaluated partition; the newest of a partition counts",
        {
            **OF_PARTITION,
            **RECORD,
            "score_seq": "seq of the row of score_runs whose predictions were measured",
            "rows_scored": "rows with a prediction",
            "rows_labelled": "rows of these with a label",
            "label_sources": "version of each source of labels, or number and hash of its rows of the partition, as JSON; also of labels.sql and of what monitoring measures",
            "evaluated_at": "when, in UTC",
        },
    ),
    "partition_status": Description(
        "a scored partition as it stood at computed_at",
        {
            **_SCORED,
            "pipeline": RECORD["pipeline"],
            "condition": "scored or stale",
            "reason": "why it is stale; null if it is not",
            "champion": "version that would score it now",
            "computed_at": "when this was found out, in UTC",
        },
    ),
    "changes": Description(
        "a changed partition of a table, from which the published copy is brought up to date",
        {
            "seq": RECORD["seq"],
            "schema_name": "schema of the table",
            "table_name": "the table",
            "partition_key": "key of the partition; null if the whole table changed",
            "change_id": "unique name of the change",
        },
    ),
    "meta": Description(
        "the warehouse, in a single row",
        {"format": "version of the layout of its tables", "created_at": "when it was made"},
    ),
}


COLLECTED: list[Callable[[], Mapping[str, Description]]] = []  # further tables of pipelines, from the rooms above


def tables_of_pipelines() -> dict[str, Description]:
    """The tables of a pipeline by name, those included that the rooms above have registered."""
    return OF_PIPELINES | {name: table for collect in COLLECTED for name, table in collect().items()}


def reserved_tables() -> tuple[str, ...]:
    """The names of tables that a pipeline has, or that its assets are called."""
    return (*tables_of_pipelines(), "features", "model", "models")


def described(schema: str, table: str) -> Description | None:
    """The description of a table; None for a table of a user."""
    return (OF_ALL if schema == LEDGERS_SCHEMA else tables_of_pipelines()).get(table)


def write_comments(
    con: duckdb.DuckDBPyConnection,
    schema: str,
    table: str,
    database: str | None = None,
    *,
    kind: Literal["TABLE", "VIEW"] = "TABLE",
) -> None:
    """Write the descriptions of a table and its columns to the database where they are missing, within the caller's transaction."""
    description = described(schema, table)
    if description is None:
        return
    values = {"database": database, "schema": schema, "table": table}
    where = "database_name = coalesce($database, current_database()) AND schema_name = $schema AND table_name = $table"
    name = f"{quoted(database)}." if database else ""
    name += f"{quoted(schema)}.{quoted(table)}"
    of_kind = where.replace("table_name", f"{kind.lower()}_name")
    if con.execute(f"SELECT 1 FROM duckdb_{kind.lower()}s() WHERE {of_kind} AND comment IS NULL", values).fetchall():
        con.execute(f"COMMENT ON {kind} {name} IS {literal(description.row)}")
    lacking = con.execute(
        f"SELECT column_name FROM duckdb_columns() WHERE {where} AND comment IS NULL", values
    ).fetchall()
    for (column,) in lacking:
        if text := description.columns.get(column):
            con.execute(f"COMMENT ON COLUMN {name}.{quoted(column)} IS {literal(text)}")


def comment_columns(con: duckdb.DuckDBPyConnection, schema: str, table: str, texts: Mapping[str, str]) -> None:
    """Let the comments of those columns of a table or view that there are be these texts, within the caller's transaction."""
    if not texts:
        return
    query = "SELECT column_name, comment FROM duckdb_columns() WHERE database_name = current_database() AND schema_name = $schema AND table_name = $table"
    for column, comment in con.execute(query, {"schema": schema, "table": table}).fetchall():
        if (text := texts.get(column)) is not None and text != comment:
            con.execute(f"COMMENT ON COLUMN {quoted(schema)}.{quoted(table)}.{quoted(column)} IS {literal(text)}")
