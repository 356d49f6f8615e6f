"""A pipeline whose rows are of customers, and where their names are stored."""

import random
from string import ascii_letters
from typing import Any

import polars as pl

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, small_events

COLUMNS = {"amount": {"max": 250, "nullable": True}, "customer": {"feature": False}}  # a few amounts are rejected
CUSTOMERS: dict[str, Any] = {
    "features_sql": FEATURES_SQL.replace("known", "known, customer"),
    "features": {"columns": COLUMNS, "max_rejected": "50%"},
    "challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}],
}


def customers() -> pl.DataFrame:
    """The orders, each of a customer whose name no compression hides; every hundredth order is of the same customer."""
    events, drawn = small_events(), random.Random(7)
    names = ["".join(drawn.choices(ascii_letters, k=32)) for _ in range(events.height)]
    return events.with_columns(
        customer=pl.Series([names[at % 100 if at % 100 == 60 else at] for at in range(len(names))])
    )


def declared(store: str, **predictions: Any) -> dict[str, Any]:
    """Overrides of the declaration, as for `small_spec`."""
    keep = {"keep": ["shop", "customer"], "store": store, **predictions}
    return {"features": CUSTOMERS["features"], "challengers": CUSTOMERS["challengers"], "predictions": keep}


def holding(home: Home, *values: str) -> set[str]:
    """The files of a home with the bytes of one of some values; links are followed."""
    return {
        str(path.relative_to(home.root))
        for path in home.root.rglob("*")
        if path.is_file() and any(value.encode() in path.read_bytes() for value in values)
    }


def customers_of(pipeline: Pipeline, key: str) -> list[str]:
    """The customers of a partition whose names occur nowhere else."""
    with pipeline.warehouse.open() as con:
        rows = con.execute(
            "SELECT customer FROM small.predictions GROUP BY ALL HAVING list(DISTINCT partition_key) = [$key]",
            {"key": key},
        )
        return [customer for (customer,) in rows.fetchall()]
