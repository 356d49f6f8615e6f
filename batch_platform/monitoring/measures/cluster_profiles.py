"""The measure `cluster_profiles`: the typical values of each cluster of a partition, and how far each column tells the clusters apart."""

import polars as pl

from batch_platform.monitoring.measure import Column, Measure, ScoredPartition
from batch_platform.monitoring.segments import LEAST_KEYS

LEAST_ROWS = 5  # rows behind a typical value: that of fewer would tell what somebody's row held


def _compute(partition: ScoredPartition) -> pl.DataFrame:
    profiles = [pl.DataFrame(schema=CLUSTER_PROFILES.types)]
    if partition.task == "clustering":
        frame, _ = partition.read_features()
        # Whatever names somebody is left out: the key, columns that tell units apart, and text that no model is given.
        left_out = {*partition.predictions.columns, *partition.unit.columns}
        for column in frame.select(pl.exclude(left_out)):
            is_text = isinstance(column.dtype, pl.String | pl.Categorical | pl.Enum)
            if column.dtype.is_numeric() or column.dtype == pl.Boolean:
                profiles.append(_profile(frame["prediction"], column.cast(pl.Float64)))
            elif is_text and column.name not in partition.not_given:
                profiles.append(_profile(frame["prediction"], column.cast(pl.String)))
    return pl.concat(profiles, how="diagonal_relaxed")


def _profile(clusters: pl.Series, column: pl.Series) -> pl.DataFrame:
    """The rows of a column; what is explained is eta squared, and of text Goodman and Kruskal's tau: of the chance that two rows differ."""
    value = pl.col("value")
    if column.dtype == pl.Float64:
        known = value.filter(value.is_finite())
        spread, typical = known.var(ddof=0), {"mean": pl.when(known.len() >= LEAST_ROWS).then(known.mean())}
    else:
        known = value.drop_nulls()
        counts, enough = known.unique_counts(), pl.when(known.unique_counts().max() >= LEAST_KEYS)
        spread = 1 - (counts / known.len()).pow(2).sum()
        typical = {"category": enough.then(known.mode().min()), "share": enough.then(counts.max() / pl.len())}
    frame, spread = pl.DataFrame({"cluster": clusters, "value": column}), spread * known.len()
    of_clusters = frame.group_by("cluster").agg(rows=pl.len(), within=spread, **typical).sort("cluster")
    total, differ = frame.select(total=spread, differ=known.min() != known.max()).row(0)
    explained = max(0.0, 1 - of_clusters["within"].sum() / total) if differ and total else None
    of_column = {"column_name": pl.lit(column.name), "explained": pl.lit(explained, pl.Float64)}
    return of_clusters.drop("within").with_columns(**of_column)


CLUSTER_PROFILES = Measure[pl.DataFrame](
    name="cluster_profiles",
    description="The typical values of each cluster, and how far each column tells clusters apart.",
    row="the typical value of a column in a cluster of a partition",
    columns={
        "cluster": Column(pl.Int64, "number of the cluster"),
        "rows": Column(pl.Int64, "rows of the cluster"),
        "column_name": Column(pl.String, "column of the features: any number, and text that the model is given"),
        "mean": Column(pl.Float64, f"mean of a number; null for text, and of fewer than {LEAST_ROWS} values"),
        "category": Column(pl.String, f"most frequent text; null for a number, and of fewer than {LEAST_KEYS} rows"),
        "share": Column(pl.Float64, "share of the rows of the cluster that have this text"),
        "explained": Column(pl.Float64, "share of the column's variance that lies between the clusters, from 0 to 1"),
    },
    declared=lambda spec: spec.labels is None,
    compute=_compute,
    has_section=True,
)
