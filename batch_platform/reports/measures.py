"""Groups, and the measures that have no section of their own in the report: what each says, and its numbers over the partitions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from batch_platform.declaration.errors import counted, number
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.measures.evaluated import CLUSTER_PROFILES, INTERVAL_COVERAGE
from batch_platform.monitoring.measures.scored import IMPORTANCE
from batch_platform.reports.span import Span
from batch_platform.reports.wording import plain, when, words
from batch_platform.warehouse.sql import quoted

MOST_MONTHS = 12  # newest months whose intervals are listed
_RANGE = (("newest", True), ("lowest", True), ("highest", True), ("measured", True))
_COVERAGE = (("month", False), ("outcomes", True), ("inside", True), ("promised", True), ("mean width", True))
_IMPORTANCE = "In the unit of the model's raw score, such as log-odds; the largest of the newest come first."


@dataclass(frozen=True)
class FurtherMeasure:
    """A measure and its numbers as a table of texts."""

    description: str
    columns: Sequence[tuple[str, bool]]  # titles, and whether numbers stand below
    rows: Sequence[Sequence[str]]
    together: str = ""  # sentence on all partitions together
    finding: str = ""  # sentence on what stands in the way of trusting the predictions


def read_further_measures(con: duckdb.DuckDBPyConnection, pipeline: str, span: Span) -> list[FurtherMeasure]:
    """Read the measures that have numbers and no section of their own, of the model that served; without rows they are left out."""
    further = list[FurtherMeasure]()
    for name, measure in MEASURES.items():
        if measure.has_section or not measure.columns:
            continue
        by_partition, values = measure.served_rows(con, pipeline, span.keys), dict[str, list[float]]()
        if measure is INTERVAL_COVERAGE:
            further += _coverage(by_partition, span)
            continue
        for key in span.keys:
            if key in by_partition:
                for item, value in measure.numbers(by_partition[key]).items():
                    values.setdefault(item.removeprefix(f"{name}_"), []).append(value)
        if values:
            by_size = sorted(values.items(), key=lambda item: -item[1][-1] if measure is IMPORTANCE else 0)
            rows = [
                (plain(item), *(number(value, ".2g") for value in (of[-1], min(of), max(of))), number(len(of)))
                for item, of in by_size
            ]
            text = f"{measure.description} {_IMPORTANCE if measure is IMPORTANCE else ''}"
            further.append(FurtherMeasure(text, ((plain(name), False), *_RANGE), rows))
    return further


def _coverage(by_partition: Mapping[str, pl.DataFrame], span: Span) -> list[FurtherMeasure]:
    """Count the outcomes inside their intervals by month, without partitions that a model has learned from; a day may have two."""
    seen = [rows.with_columns(key=pl.lit(key)) for key, rows in sorted(by_partition.items())]
    rows = pl.concat(seen).filter(pl.col("segment_column").is_null(), ~pl.col("in_sample")) if seen else pl.DataFrame()
    if not rows.height:
        return []
    means = ((pl.col(name) * pl.col("rows")).sum() / pl.sum("rows") for name in ("coverage", "expected", "mean_width"))
    month = pl.col("key").str.head(len("2013-04")) + "-01"
    months = rows.group_by(month, maintain_order=True).agg(pl.sum("rows"), *means).tail(MOST_MONTHS)
    shown = [
        (when(key, monthly=True), number(count), f"{inside:.0%}", f"{due:.0%}", number(width, ".3g"))
        for key, count, inside, due, width in months.iter_rows()
    ]
    total, inside, due = rows.select(pl.sum("rows"), pl.sum("covered"), pl.col("expected").dot("rows")).row(0)
    together = f"{inside / total:.0%} of {total:,} outcomes lay inside; {due / total:.0%} were promised."
    few, finding = rows.filter(pl.col("high") < pl.col("expected")), ""
    if few.height:
        of_few, at = few.select(pl.sum("covered") / pl.sum("rows")).item(), span.at(few["key"].to_list())
        finding = (
            f"{inside / total:.0%} of all outcomes lay inside their intervals, and {due / total:.0%} were promised; but only {of_few:.0%} of those {at}, fewer by more than chance."
            if inside >= due
            else f"Only {of_few:.0%} of the outcomes {at} lay inside their intervals: fewer than the {due / total:.0%} that were promised, by more than chance."
        )
    return [FurtherMeasure("How many outcomes lay inside their intervals.", _COVERAGE, shown, together, finding)]


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
