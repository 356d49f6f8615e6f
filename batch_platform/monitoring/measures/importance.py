"""The measure `importance`: how much each column moved the scores of a partition, summed up from the reasons that are stored with them."""

import polars as pl

from batch_platform.monitoring.measure import Column, Measure, ScoredPart
from batch_platform.warehouse.instance import in_memory
from batch_platform.warehouse.ledger import ScoreRun

_QUERY = """
    WITH explained AS (FROM read_parquet($files, union_by_name := true, hive_partitioning := false) WHERE reasons IS NOT NULL)
    SELECT
        reason.feature AS feature,
        sum(abs(reason.contribution)) / (SELECT count(*) FROM explained) AS mean_contribution,
        count(*) / (SELECT count(*) FROM explained) AS share
    FROM explained, UNNEST(reasons) AS each_reason(reason)
    GROUP BY ALL ORDER BY mean_contribution DESC, feature
"""


def _score(_: ScoreRun, part: ScoredPart) -> pl.DataFrame:
    with in_memory() as con:
        return con.sql(_QUERY, params={"files": [str(file) for file in part.predictions]}).pl()


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
