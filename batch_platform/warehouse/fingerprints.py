"""Fingerprints of sources with the rows of many partitions, as they were last read: the table `fingerprints` of a pipeline.

It only saves reading a source again whose version is still the same; what features were built from stands in their ledger.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import duckdb

from batch_platform.warehouse.ledger import create_table, insert, journal, read_records
from batch_platform.warehouse.sql import has_table, quoted

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
