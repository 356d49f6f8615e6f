"""What the tables and their columns hold, in words: written here once, kept in the database as comments, and shown in the UI."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import duckdb

from batch_platform.warehouse.sql import literal, quoted

LEDGERS_SCHEMA = "batch_platform"
_RUN = {"run_id": "Dagster run that wrote the row"}
_OF_PARTITION = {"partition_key": "key of the partition", **_RUN}
_IN_SAMPLE = "whether the model has learned from the partition"
_SEGMENT = {"segment_column": "kept column by which it is broken down", "segment": "value of that column"}
_ESTIMATE = {
    "metric": "name of the metric",
    "estimate": "its expected value",
    "low": "start of the interval in which 95 of 100 values are expected to come true",
    "high": "end of the interval",
    "realised": "what came true; null until labels are known, and where the model has learned from the partition",
    "rows": "scored rows",
    "model_version": "version that scored the partition",
}
_INTERVAL = {
    "metric": "name of the metric",
    "value": "value of the metric",
    "low": "start of its 95% interval, by resampling rows; null if it has none",
    "high": "end of its 95% interval",
    "rows": "rows that it was measured on",
    "positives": "how many of the labelled rows are positive; null without a positive class",
    "rows_labelled": "rows whose label was known",
    "rows_of_unknown_class": "labelled rows of a class that the model does not know: wrong where a metric judges decisions, left out where it judges probabilities",
    "unknown_classes": "names of these classes",
}
_SCORES = {
    "prediction": "predicted value or class",
    "score": "probability of the positive class, or how unusual a row is",
}
_PREDICTIONS = {
    **_SCORES,
    **_OF_PARTITION,
    "model_version": "version that scored it",
    "scored_at": "when it was scored, in UTC",
}


@dataclass(frozen=True)
class Description:
    """What a row of a table is, and what its columns hold; columns that a pipeline names itself are left out."""

    row: str
    columns: Mapping[str, str] = field(default_factory=dict[str, str])


_FILE = {
    **_OF_PARTITION,
    "part": "place among the files of the partition, from 0, in the order of the rows",
    "rows": "rows in it",
    "file_bytes": "its size in bytes",
    "xxh3": "hash of its bytes",
}
_CHALLENGER_SCORES = {
    **_SCORES,
    **_OF_PARTITION,
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
        {
            **_OF_PARTITION,
            "key": "its key, as JSON",
            "reason": "rule that it broke",
            "column_name": "column that broke the rule; null if the score did",
            "row": "the row as it was read, as JSON",
        },
    ),
    "outcomes": Description(
        "the label of a measured row, with its key",
        {
            **_OF_PARTITION,
            "outcome": "true class, as text; null in a regression",
            "outcome_value": "true value of a regression",
        },
    ),
    "performance_pooled": Description(
        "a metric of all measured rows of a month or a quarter together",
        {
            **_RUN,
            **_INTERVAL,
            "period": "month or quarter",
            "period_start": "its first day",
            "model_version": "version that was measured; null for all versions together",
            "challenger": "challenger that was measured; null for the models that served",
            "segment_column": "kept column by which it is broken down; null for all rows",
            "segment": "value of that column",
            "low": "start of its 95% interval, by resampling partitions; null if it has none",
            "partitions": "number of measured partitions",
            "evaluation_seq": "newest evaluation in it",
        },
    ),
    "performance": Description(
        "a metric of a partition, measured against its labels",
        {
            **_OF_PARTITION,
            **_INTERVAL,
            "in_sample": _IN_SAMPLE,
            "model_version": "version that was measured",
            "evaluated_at": "when it was measured, in UTC",
            "challenger": "challenger that was measured; null for the model that serves",
        },
    ),
    "profiles": Description(
        "what a column held in a partition; the rows of several partitions can be added up",
        {
            **_OF_PARTITION,
            "column_name": "a feature, or the column of the predictions; what estimates are made from",
            "role": "feature, prediction or estimate",
            "rows": "scored rows: nulls, unknown and the histogram add up to them",
            "nulls": "scored rows without a value",
            "unknown": "scored rows with a category that the model does not know",
            "rejected": "further rows, not scored because of this column; of the prediction, for a score that is not finite",
            "lowest": "least value; null for text",
            "highest": "greatest value; null for text",
            "mean": "mean of the values; null for text",
            "variance": "variance of the values, with n - 1; null for text",
            "edges": "where the cells of a number begin, ascending; null for text",
            "categories": "categories that are counted by name; null for a number",
            "histogram": "rows by cell: of a number below the first edge, from each edge up to the next, and from the last one upwards; of a text each category, then the others that the model knows",
            "model_version": "version that scored the partition, whose training fixed the cells",
        },
    ),
    "drift": Description(
        "how far a column of a partition is from a baseline",
        {
            **_OF_PARTITION,
            "column_name": "a feature, or the column of the predictions",
            "role": "feature or prediction",
            "baseline": "reference (the training data of the version), previous (partition) or week_before",
            "baseline_partition": "partition that it is compared with; null for the reference",
            "psi": "population stability index",
            "psi_by_chance": "index that chance alone gives on average to so few rows",
            "psi_usual": "highest index beyond chance among the partitions of the training data; null where it is not known",
            "p_value": "probability of such a difference if nothing changed and rows are independent",
            "jensen_shannon": "Jensen-Shannon distance to the base of 2, from 0 to 1",
            "ks": "Kolmogorov-Smirnov distance of the values, from 0 to 1; null for text",
            "null_share": "share of the rows without a value",
            "unknown_share": "share of the rows with a category that the model does not know",
            "outside_share": "share of the values outside the range that training saw; null for text",
            "level": "none, warn or fail, as declared when it was scored; null where it is not judged",
            "model_version": "version that scored the partition",
        },
    ),
    "drift_by_segment": Description(
        "how far the predictions of a segment of a partition are from those of the same segment in the reference",
        {
            **_OF_PARTITION,
            **_SEGMENT,
            "psi": "population stability index",
            "psi_by_chance": "index that chance alone gives on average to so few rows",
            "psi_usual": "highest index beyond chance among the partitions that no fit has seen, of the segment and of all rows; null where it is not known",
            "p_value": "probability of such a difference if nothing changed and rows are independent",
            "rows": "scored rows of the segment",
            "baseline_rows": "rows of the segment that the version was judged by",
            "level": "none, warn or fail, as declared when it was scored; null where it is not judged",
            "model_version": "version that scored the partition",
        },
    ),
    "estimates": Description(
        "a metric of a partition as it was expected before its labels were known",
        {**_OF_PARTITION, **_ESTIMATE},
    ),
    "estimates_by_segment": Description(
        "the same for each value of the columns in monitoring.segments",
        {
            **_OF_PARTITION,
            **_ESTIMATE,
            **_SEGMENT,
            "rows": "scored rows of the segment",
        },
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
    "challengers": Description(
        "what a challenger did with a partition",
        {
            **_OF_PARTITION,
            "rank_correlation": "agreement with the scores of the model that serves, 1 at most",
            "decisions_flipped": "share of rows that both models decide differently",
            "failure": "why it could not score; null if it did",
        },
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
    "failures": Description("a partition whose last attempt at a step failed", _OF_PARTITION),
    "fingerprints": Description(
        "a source with the rows of many partitions: the rows and a hash of each partition in it"
    ),
    "refused_rows": Description("a rejected row of a partition that was not published for them", _OF_PARTITION),
    "suspected_leaks": Description(
        "a feature that tells the label of a version suspiciously well",
        {
            "model_version": "version that learned from it",
            "serving_period": "serving period of the version",
            "column_name": "the feature; null if only the metrics of the whole model are suspicious",
            "reason": "what is suspicious",
            "allowed": "whether model.allow_suspected_leaks named it; the version waits for promotion otherwise",
            "found_at": "when the version was trained, in UTC",
            **_RUN,
        },
    ),
    "backtests": Description("a metric of a partition by a tested model"),
    "backtest_scores": Description("a row as a tested model scored it", {**_SCORES, **_OF_PARTITION}),
}
OF_ALL: dict[str, Description] = {  # in the schema of the ledgers
    "score_runs": Description(
        "a committed partition of predictions; the newest of a partition counts",
        {
            **_OF_PARTITION,
            "rows_in": "rows of the features",
            "rows_scored": "rows with a prediction",
            "rows_rejected": "rows that broke the contract; with rows_scored they add up to rows_in",
            "model_version": "version that scored it",
            "input_hash": "hash of the features",
            "in_sample": _IN_SAMPLE,
            "decision_seq": "seq of the row of promotions by which the version served; null if it was named for the run",
            "hindsight": "whether that was decided after the partition had ended, or the version was named for the run",
        },
    ),
    "model_versions": Description("a trained version"),
    "promotions": Description("a decision on a version, with its reason and evidence"),
    "model_trainings": Description("what came of training the model of a serving period"),
    "challenger_trainings": Description("what came of training a challenger for a serving period"),
    "feature_builds": Description("a built partition of features; the newest of a partition counts"),
    "evaluations": Description("an evaluated partition; the newest of a partition counts"),
    "partition_status": Description(
        "a scored partition as it stood at computed_at",
        {**_OF_PARTITION, "condition": "scored or stale", "champion": "version that would score it now"},
    ),
}


def described(schema: str, table: str) -> Description | None:
    """What a table holds; None for a table of a user."""
    return (OF_ALL if schema == LEDGERS_SCHEMA else OF_PIPELINES).get(table)


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
