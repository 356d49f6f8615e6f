"""The measure `rejections`: the rejected rows of a partition by column and reason.

The rows are in the table `rejected_rows`, which is written with the predictions; here they are only counted.
"""

from collections import defaultdict
from collections.abc import Collection

import duckdb

from batch_platform.monitoring.markdown import listing
from batch_platform.monitoring.measure import Measure
from batch_platform.warehouse.sql import has_table, quoted

TABLE = "rejected_rows"


def reasons_by_partition(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, dict[str, int]]:
    """The number of rejected rows of partitions by column and reason, by partition key."""
    if not has_table(con, pipeline, TABLE):
        return {}
    chosen = f"FROM {quoted(pipeline)}.{TABLE} WHERE partition_key IN $keys"
    query = f"SELECT partition_key, column_name, reason, count(*) AS n {chosen} GROUP BY ALL ORDER BY ALL"
    reasons = defaultdict[str, dict[str, int]](dict)
    for key, column, reason, count in con.execute(query, {"keys": list(partition_keys)}).fetchall():
        reasons[key][in_words(column, reason)] = int(count)
    return reasons


def in_words(column: str | None, reason: str) -> str:
    """The reason of a rejected row, with its column; None if the row was rejected for its score."""
    return f"{column}: {reason}" if column else reason


REJECTIONS = Measure[dict[str, int]](
    name="rejections",
    description="How many rows of each partition were rejected, by reason.",
    stage=lambda parts: {key: dict(part.reasons) for key, part in parts.items() if part.reasons},
    read=lambda con, commits: reasons_by_partition(con, commits.pipeline, commits.keys),
    shown=lambda reasons: {"rejected": listing(("reason", "rows"), reasons)},
)
