"""Recency, frequency and money of every customer who has bought before the month begins.

Logarithms, since k-means draws borders at equal distances: from one purchase to two is as far as from five to ten.
"""

import polars as pl

from batch_platform.declaration.calendar import Partition


def of_customers(purchases: pl.LazyFrame, partition: Partition) -> pl.LazyFrame:
    """One row for each customer; money is summed in cents, so that every run gives the same bits."""
    month = partition.start.date()
    cents = (100 * pl.col("dollars")).round().cast(pl.Int64).sum()
    return (
        purchases.filter(pl.col("day") < month)
        .group_by("customer_id")
        .agg(
            recency=(month - pl.col("day").max()).dt.total_days(),  # days since the last purchase
            frequency=pl.len(),  # purchases
            money=cents / 100 / pl.len(),  # dollars a purchase
        )
        .with_columns(
            log_recency=pl.col("recency").log1p(),
            log_frequency=pl.col("frequency").log(),
            log_money=pl.col("money").log1p(),
        )
    )
