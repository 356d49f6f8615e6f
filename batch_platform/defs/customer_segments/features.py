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
            recency=(month - pl.col("day").max()).dt.total_days().log1p(),  # days since the last purchase
            frequency=pl.len().log(),  # purchases
            money=(cents / 100 / pl.len()).log1p(),  # dollars a purchase
        )
    )
