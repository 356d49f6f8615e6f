"""Groups in the report: how many rows each cluster, or the outliers, have, how many moved between them, and what tells clusters apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from batch_platform.declaration.errors import counted
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.wording import number
from batch_platform.monitoring.measures.evaluated import CLUSTER_PROFILES
from batch_platform.reports.wording import words
from batch_platform.warehouse.sql import quoted

STANDS_OUT, USUAL = "stands out", "as usual"
MOST_COLUMNS = 8  # columns by which groups are described
STRUCTURE = {"strongly": 0.7, "reasonably well": 0.5, "weakly": 0.25}  # silhouettes (Kaufman and Rousseeuw, 1990)


@dataclass(frozen=True)
class GroupFigures:
    """The groups of the newest partition, beside those of the one before."""

    spec: PipelineSpec
    newest: str
    before: str | None
    names: list[str]
    sizes: Mapping[str, int]  # rows by group
    sizes_before: Mapping[str, int]
    moves: Mapping[tuple[str, str], int]  # rows of both partitions by their group before and now
    profiles: pl.DataFrame  # of the newest partition; the columns that tell the groups apart best come first

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

    def share_stayed(self, name: str) -> float | None:
        """The share of the rows that were in a group before that are in it still; None if none of them is in both partitions."""
        rows = sum(count for (start, _), count in self.moves.items() if start == name)
        return self.moves.get((name, name), 0) / rows if rows else None

    @property
    def typical(self) -> dict[str, dict[str, str]]:
        """The mean, or the most frequent text with its share, by column and group, of the columns that tell the groups apart best."""
        typical, descriptions = dict[str, dict[str, str]](), self.spec.column_descriptions
        values = self.profiles.select("column_name", "cluster", "mean", "category", "share")
        for column, cluster, mean, text, share in values.iter_rows():
            shown = number(mean, ".3g") if text is None else f"{text.strip() or '(blank)'} ({share:.0%})"
            label = ": ".join(filter(None, (words(column), descriptions.get(column))))
            typical.setdefault(label, {})[str(cluster)] = shown
        return dict(list(typical.items())[:MOST_COLUMNS])

    def in_words(self, newest: str, *, outliers: bool) -> str:
        """Say which group changed most or how many rows stand out, and how many rows moved between groups."""
        rows, moved = f"{sum(self.sizes.values()):,} rows of {newest}", "moved to another group"
        text = f"The {rows} are in {counted(len(self.sizes), 'group')}."
        changes = {name: self.sizes.get(name, 0) - self.sizes_before.get(name, 0) for name in self.names}
        name = max(changes, key=lambda name: abs(changes[name]), default="")
        if outliers:
            odd, earlier = (sizes.get(STANDS_OUT, 0) for sizes in (self.sizes, self.sizes_before))
            before = (
                f", after {earlier:,} of {sum(self.sizes_before.values()):,} in the {self.spec.partitions.every} before"
                if self.sizes_before
                else ""
            )
            text = f"Of the {rows}, {odd:,} stand out{before}."
            moved = "stand out in only one of the two"
        elif self.sizes_before and (change := changes[name]):
            before, how = self.sizes_before.get(name), "gained" if change > 0 else "lost"
            relative = f"{change / before:+.0%}" if before else "it is new"
            text = f"Group {name} {how} {counted(abs(change), 'row')} ({relative}), the largest change among the {len(changes)} groups of {newest}."
        if self.followed:
            others = self.followed - self.stayed
            text += f" Of {self.followed:,} rows that were also scored in the {self.spec.partitions.every} before, {others:,} ({others / self.followed:.1%}) {moved}."
        return text


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
    names = sorted({*now, *then}, key=lambda name: (len(name), name))
    profiles = CLUSTER_PROFILES.rows(con, spec.name, [newest]).filter(pl.col("challenger").is_null())
    profiles = profiles.sort("explained", "column_name", descending=[True, False], nulls_last=True)
    return GroupFigures(spec, newest, before, names, now, then, moves, profiles)
