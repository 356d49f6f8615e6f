"""Groups in the report: how many rows each cluster, or the outliers, have, and how many moved between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.warehouse.sql import quoted

STANDS_OUT, USUAL = "stands out", "as usual"


@dataclass(frozen=True)
class GroupFigures:
    """The groups of the newest partition, beside those of the one before."""

    newest: str
    before: str | None
    names: list[str]
    sizes: Mapping[str, int]  # rows by group
    sizes_before: Mapping[str, int]
    moves: Mapping[tuple[str, str], int]  # rows of both partitions by their group before and now

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """The groups as columns of numbers."""
        return [(name, True) for name in self.names]

    @property
    def stayed(self) -> int:
        """The rows of both partitions that are in the same group."""
        return sum(rows for (start, end), rows in self.moves.items() if start == end)

    @property
    def followed(self) -> int:
        """The rows that are in both partitions."""
        return sum(self.moves.values())


def read_groups(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, keys: Sequence[str], *, outliers: bool = False
) -> GroupFigures:
    """Read the groups of the newest of some partitions; rows are followed by their key. Outliers and the other rows are groups too."""
    newest, before = keys[-1], keys[-2] if len(keys) > 1 else None
    table, key = f"{quoted(spec.name)}.predictions", ", ".join(map(quoted, spec.features.key))
    name = f"if(prediction = -1, '{STANDS_OUT}', '{USUAL}')" if outliers else "prediction::VARCHAR"
    chosen = f"SELECT {key}, {name} AS name FROM {table} WHERE partition_key = "
    sizes = f"SELECT name, count(*) AS rows FROM ({chosen} $key) GROUP BY ALL ORDER BY ALL"
    now, then = (dict(con.execute(sizes, {"key": at}).fetchall()) for at in (newest, before))
    query = f"""
        SELECT earlier.name, later.name, count(*) FROM ({chosen} $newest) AS later JOIN ({chosen} $before) AS earlier USING ({key})
        GROUP BY ALL ORDER BY ALL
    """
    moves = {
        (start, end): rows for start, end, rows in con.execute(query, {"newest": newest, "before": before}).fetchall()
    }
    return GroupFigures(newest, before, sorted({*now, *then}), now, then, moves)
