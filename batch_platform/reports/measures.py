"""Measures that have no section of their own in the report: what each says, and its numbers over the partitions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from batch_platform.declaration.wording import number
from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.measures.evaluated import INTERVAL_COVERAGE
from batch_platform.monitoring.measures.scored import IMPORTANCE
from batch_platform.reports.span import Span
from batch_platform.reports.wording import plain, when

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
