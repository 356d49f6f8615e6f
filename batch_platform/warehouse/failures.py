"""Failed steps, in two tables of a pipeline: `failures`, and `refused_rows`, the rows that cost a partition its publication.

A failure stands until the same step of the same partition is tried again: the next failure replaces it, a success removes
it, each within the transaction that records the attempt.

Fingerprints of sources with the rows of many partitions, as they were last read, are in the table `fingerprints`. They only save
reading a source again whose version is still the same; what features were built from stands in their ledger.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NewType

import duckdb

from batch_platform.declaration.predictions import PREFIX
from batch_platform.warehouse.descriptions import write_comments
from batch_platform.warehouse.ledger import create_table, insert, journal, note_partitions, read_records
from batch_platform.warehouse.sql import has_table, quoted

FAILURES, REFUSED_ROWS = "failures", "refused_rows"
MOST_ALIKE = 100  # maximum number of refused rows kept per partition, column and reason
DeliveredAsset = NewType("DeliveredAsset", str)  # the asset of a delivery
FailedStep = Literal["features", "model", "predictions", "performance"] | DeliveredAsset


@dataclass(frozen=True)
class Failure:
    """The newest attempt at a step of a partition, which failed."""

    step: FailedStep
    partition_key: str  # key of the partition, or of a model's serving period
    reason: str
    hint: str | None
    declared: str  # hash of the declaration, with another one of which the step may succeed
    failed_at: datetime
    run_id: str

    @property
    def of_delivery(self) -> bool:
        """True for a delivery, which neither holds up nor fails another step."""
        return self.step.startswith(PREFIX)


def read_failures(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[tuple[FailedStep, str], Failure]:
    """The failures of a pipeline, however it was declared, by step and partition key."""
    if not has_table(con, pipeline, FAILURES):
        return {}
    failures = read_records(con, Failure, f"{quoted(pipeline)}.{FAILURES} ORDER BY partition_key, step", {})
    return {(failure.step, failure.partition_key): failure for failure in failures}


def replace_failures(
    con: duckdb.DuckDBPyConnection,
    pipeline: str,
    step: FailedStep,
    failures: Sequence[Failure],
    refused: Mapping[str, Sequence[Path]],
) -> None:
    """Record failures of a step, and of partitions with too many rejected rows some of those rows, by partition key."""
    create_table(con, pipeline, FAILURES, Failure)
    forget_failures(con, pipeline, step, [failure.partition_key for failure in failures])
    insert(con, FAILURES, [vars(failure) for failure in failures], schema=pipeline)
    note_partitions(con, pipeline, FAILURES, [failure.partition_key for failure in failures])
    if files := [str(file) for key in refused for file in refused[key]]:
        alike = "PARTITION BY partition_key, column_name, reason"
        sample = (
            f"SELECT *, count(*) OVER ({alike}) AS rows_alike FROM read_parquet($files, hive_partitioning := false) "
            f"QUALIFY row_number() OVER ({alike} ORDER BY key) <= {MOST_ALIKE}"
        )
        name = f"{quoted(pipeline)}.{REFUSED_ROWS}"
        con.execute(f"CREATE TABLE IF NOT EXISTS {name} AS {sample} LIMIT 0", {"files": files})
        write_comments(con, pipeline, REFUSED_ROWS)
        con.execute(f"INSERT INTO {name} BY NAME {sample}", {"files": files})
        note_partitions(con, pipeline, REFUSED_ROWS, list(refused))


def forget_failures(
    con: duckdb.DuckDBPyConnection, pipeline: str, step: FailedStep, partition_keys: Collection[str]
) -> None:
    """Remove what is recorded of the last attempt at a step of some partitions."""
    keys = {"keys": list(partition_keys)}
    tables = {FAILURES: " AND step = $step"} | ({REFUSED_ROWS: ""} if step == "predictions" else {})
    for table, condition in tables.items():
        if has_table(con, pipeline, table):
            where = f"FROM {quoted(pipeline)}.{table} WHERE partition_key IN $keys{condition}"
            values = keys | ({"step": step} if condition else {})
            found = [key for (key,) in con.execute(f"SELECT DISTINCT partition_key {where}", values).fetchall()]
            if found:
                con.execute(f"DELETE {where}", values)
                note_partitions(con, pipeline, table, found)


FINGERPRINTS = "fingerprints"


@dataclass(frozen=True)
class SourceFingerprints:
    """The fingerprints of all partitions in one version of a source."""

    read_by: Literal["features", "labels"]  # the queries of both read different columns
    source: str
    version: str
    fingerprints: str  # JSON


def read_fingerprints(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[SourceFingerprints]:
    """Read the fingerprints of a pipeline's sources."""
    if not has_table(con, pipeline, FINGERPRINTS):
        return []
    return read_records(con, SourceFingerprints, f"{quoted(pipeline)}.{FINGERPRINTS}", {})


def replace_fingerprints(con: duckdb.DuckDBPyConnection, pipeline: str, rows: Collection[SourceFingerprints]) -> None:
    """Record what sources hold, within the caller's transaction; what was known of the same sources is replaced."""
    if not rows:
        return
    create_table(con, pipeline, FINGERPRINTS, SourceFingerprints)
    table = f"{quoted(pipeline)}.{FINGERPRINTS}"
    for row in rows:
        con.execute(f"DELETE FROM {table} WHERE read_by = $by AND source = $of", {"by": row.read_by, "of": row.source})
    insert(con, FINGERPRINTS, [vars(row) for row in rows], schema=pipeline)
    journal(con, [(pipeline, FINGERPRINTS, None)])
