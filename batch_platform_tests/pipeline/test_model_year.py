"""The numbers of a year of flights: monthly models, and their metrics recomputed by other code."""

import shutil
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
import yaml
from scipy.stats import rankdata

from batch_platform.cli.project import project_files
from batch_platform.defs.flight_delays import sources
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform_tests.harness.command_line import Answer, run_command
from batch_platform_tests.harness.dagster_project import PACKAGE

pytestmark = pytest.mark.release

SHIPPED = Path(sources.__file__).parent
FLIGHTS = SHIPPED / "data" / "flights.parquet"
NAME = "flight_delays"
FIRST, LAST = "2013-03-01", "2013-12-31"
SCORED = 306
MOST_ROWS = 40_000  # of up to 290,000 that a model of a late month would learn from: the year is about what follows
MEASURED = ("roc_auc", "accuracy", "brier", "log_loss", "average_precision")


def command(project: Path, *arguments: str) -> Answer:
    answer = run_command(project, *arguments)
    assert answer.code == 0, answer.err
    return answer


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The shipped pipeline, learning from a sample, in a project of its own, brought up to date for the year."""
    folder = tmp_path_factory.mktemp("year")
    defs = folder / PACKAGE / "defs" / NAME
    defs.mkdir(parents=True)
    for path, text in project_files(PACKAGE).items():
        (folder / path).write_text(text)
    for name in ("features.sql", "labels.sql"):
        shutil.copy(SHIPPED / name, defs / name)
    declared = yaml.safe_load((SHIPPED / "defs.yaml").read_text())
    declared["attributes"]["model"]["train"]["max_rows"] = MOST_ROWS
    (defs / "defs.yaml").write_text(yaml.safe_dump(declared))
    command(folder, "run", NAME, "--from", FIRST, "--to", LAST)
    return folder


@pytest.fixture(scope="module")
def scored(project) -> pl.DataFrame:
    """Every scored flight whose outcome is known, read from the raw flights: partition, month, score and whether it was late."""
    with duckdb.connect(str(project / ".batch_platform" / "published.duckdb"), read_only=True) as con:
        query = (
            "SELECT p.partition_key, left(p.partition_key, 7) AS month, p.score, f.arr_delay >= 30 AS late "
            "FROM flight_delays.predictions AS p JOIN read_parquet($flights) AS f USING (flight_id) WHERE f.arr_delay IS NOT NULL"
        )
        return con.sql(query, params={"flights": str(FLIGHTS)}).pl()


def test_the_metrics_of_every_day_and_month_are_those_of_the_raw_flights_recomputed_by_other_code(project, scored):
    with duckdb.connect(str(project / ".batch_platform" / "published.duckdb"), read_only=True) as con:
        stated = con.sql(
            "SELECT partition_key, metric, value, rows, positives FROM flight_delays.performance WHERE challenger IS NULL"
        ).pl()
        months_of = {key[:7] for key in scored["partition_key"]}
        pooled = {
            month: pooled_performance(con, "flight_delays", month, f"{month}~", by_version=False) for month in months_of
        }
    days = {key: recomputed(part) for (key,), part in scored.group_by("partition_key")}
    months = {month: recomputed(part) for (month,), part in scored.group_by("month")}
    assert (len(days), len(months)) == (SCORED, 10)
    checked = 0
    for key, metric, value, count, positives in stated.iter_rows():
        if metric in days[key]:
            assert value == pytest.approx(days[key][metric], abs=1e-12), (key, metric)
            assert (count, positives) == (days[key]["rows"], days[key]["positives"]), (key, metric)
            checked += 1
    assert checked == 5 * SCORED
    for month, metrics in months.items():
        for metric in MEASURED:
            (value,) = pooled[month].filter(pl.col("challenger").is_null(), metric=metric)["value"]
            assert value == pytest.approx(metrics[metric], abs=1e-12), (month, metric)


def recomputed(rows: pl.DataFrame) -> dict[str, float]:
    """The metrics by their textbook formulas, with code of SciPy and NumPy alone."""
    score, late = rows["score"].to_numpy(), rows["late"].to_numpy()
    positives, negatives = int(late.sum()), int((~late).sum())
    ranks = rankdata(score)
    chance = np.clip(np.where(late, score, 1 - score), np.finfo(np.float64).eps, 1)
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(late[order])
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # of the rows with one score
    precision, recall = hits[last] / (last + 1), hits[last] / positives
    return {
        "rows": len(score),
        "positives": positives,
        "roc_auc": (ranks[late].sum() - positives * (positives + 1) / 2) / (positives * negatives),
        "accuracy": float(np.mean((score > 0.5) == late)),
        "brier": float(np.mean((score - late) ** 2)),
        "log_loss": float(-np.mean(np.log(chance))),
        "average_precision": float(np.sum(np.diff(np.r_[0, recall]) * precision)),
    }
