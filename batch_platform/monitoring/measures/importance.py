"""The measure `importance`: how much each column moved the scores of a partition, summed up from the reasons that are stored with them."""

import polars as pl

from batch_platform.monitoring.measure import Column, Measure, ScoredPart
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.replacing import rows_of_files
from batch_platform.warehouse.sql import in_memory

# Two plain scans: one query that counts the rows too would first put all reasons aside in memory.
_EXPLAINED = "SELECT count(reasons) FROM {rows}"
_REASONS = """
    SELECT
        reason.feature AS feature,
        sum(abs(reason.contribution)) / $explained AS mean_contribution,
        count(*) / $explained AS share
    FROM (SELECT unnest(reasons) AS reason FROM {rows})
    GROUP BY ALL ORDER BY mean_contribution DESC, feature
"""


def _score(_: ScoreRun, part: ScoredPart) -> pl.DataFrame:
    rows, values = rows_of_files(part.predictions)
    with in_memory() as con:
        ((explained,),) = con.execute(_EXPLAINED.format(rows=rows), values).fetchall()
        return con.sql(_REASONS.format(rows=rows), params={**values, "explained": explained}).pl()


IMPORTANCE = Measure[pl.DataFrame](
    name="importance",
    description="How much each column moved the scores of a partition, by the reasons of its rows.",
    row="a column that is among the reasons of a partition",
    columns={
        "feature": Column(pl.String, "the column"),
        "mean_contribution": Column(
            pl.Float64, "mean absolute contribution over the rows with reasons, 0 where the column is not among them"
        ),
        "share": Column(pl.Float64, "share of the rows with reasons that have the column among them"),
    },
    score=_score,
    declared=lambda spec: spec.predictions.reasons is not None,
    numbers=lambda rows: {f"importance_{name}": mean for name, mean, _ in rows.iter_rows()},
)
