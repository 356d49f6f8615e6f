"""The peer of `full_year`: a plain in-memory script that trains and scores the year of flights.

An engineer writes it in an afternoon: the same SQL day by day over DuckDB tables in memory, the same estimator evaluated
and then fitted again for each month on what was known before, each month scored in one call, and the scores inserted into
DuckDB. It has no ledger, hashes, contract, resume, rejected rows or lineage.

    python -m batch_platform_tests.benchmarks.year_script OUTPUT.duckdb
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from batch_platform.defs.flight_delays import sources

FOLDER = Path(sources.__file__).parent
ZONE = ZoneInfo("America/New_York")
TEXT = ["carrier", "origin", "dest"]
PARAMS = {
    "max_iter": 100,
    "learning_rate": 0.08,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 400,
    "l2_regularization": 10.0,
    "max_features": 0.3,
    "early_stopping": False,
    "random_state": 0,
}


def build() -> pl.DataFrame:
    """Features and labels of every day of the year, in memory."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'America/New_York'")
    for name in ("flights", "weather", "planes"):
        con.register("frame", getattr(sources, name)().collect())
        con.execute(f"CREATE TABLE {name} AS FROM frame")
    features, labels = (FOLDER / "features.sql").read_text(), (FOLDER / "labels.sql").read_text()
    days = []
    for number in range(365):
        day = datetime(2013, 1, 1, tzinfo=ZONE) + timedelta(days=number)
        bounds = {"partition_start": day.astimezone(UTC), "partition_end": (day + timedelta(days=1)).astimezone(UTC)}
        rows = con.sql(features, params=bounds).pl()
        days.append(
            rows.join(con.sql(labels, params=bounds).pl(), on="flight_id", how="left").with_columns(
                day=pl.lit(day.date())
            )
        )
    return pl.concat(days)


def matrix(rows: pl.DataFrame, names: list[str], categories: dict[str, list[str]]) -> np.ndarray:
    """The features as numbers; text as codes."""
    coded = [pl.col(name).cast(pl.Enum(known), strict=False).to_physical() for name, known in categories.items()]
    return rows.with_columns(coded).select(pl.col(names).cast(pl.Float64)).fill_null(np.nan).to_numpy()


def main(output: str) -> None:
    """Train ten models, score ten months, insert the scores."""
    rows = build()
    names = [name for name in rows.columns if name not in ("flight_id", "scheduled_departure", "late", "day")]
    scored = []
    for month in range(3, 13):
        start = datetime(2013, month, 1, tzinfo=UTC).date()
        end = datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=UTC).date()
        known = rows.filter(pl.col("day") < start - timedelta(days=1), pl.col("late").is_not_null())
        last = known["day"].max()
        held_out = pl.col("day") > last - timedelta(days=14)
        fit, evaluate = known.filter(~held_out), known.filter(held_out)
        categories = {name: fit[name].drop_nulls().unique().sort().to_list() for name in TEXT}
        model = HistGradientBoostingClassifier(categorical_features=[names.index(name) for name in TEXT], **PARAMS)
        model.fit(matrix(fit, names, categories), fit["late"].to_numpy())
        auc = roc_auc_score(evaluate["late"], model.predict_proba(matrix(evaluate, names, categories))[:, 1])
        if auc < 0.6:
            sys.exit(f"the model of {start} is worse than required: {auc}")
        categories = {name: known[name].drop_nulls().unique().sort().to_list() for name in TEXT}
        model.fit(matrix(known, names, categories), known["late"].to_numpy())
        served = rows.filter(pl.col("day") >= start, pl.col("day") < end)
        score = model.predict_proba(matrix(served, names, categories))[:, 1]
        kept = served.select("flight_id", "scheduled_departure", *TEXT, "day", "late")
        scored.append(kept.with_columns(score=score, prediction=score > 0.5))
    predictions = pl.concat(scored)
    with duckdb.connect(output) as con:
        con.execute("CREATE TABLE predictions AS SELECT * EXCLUDE late FROM predictions")
    known = predictions.drop_nulls("late")
    auc = float(roc_auc_score(known["late"], known["score"]))
    sys.stdout.write(json.dumps({"rows_scored": predictions.height, "roc_auc": auc}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
