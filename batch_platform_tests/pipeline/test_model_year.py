"""The life of a model over a year of flights: monthly versions, one refused, a challenger, a rollback and what came of it.

Everything through the command line, the UI's own interface and SQL, as people would.
"""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import date
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
from batch_platform_tests.harness.checkout import ROOT
from batch_platform_tests.harness.command_line import Answer, published, run_command
from batch_platform_tests.harness.dagster_project import PACKAGE
from batch_platform_tests.harness.served import Ui, finished, launch, served

pytestmark = pytest.mark.release

SHIPPED = Path(sources.__file__).parent
FLIGHTS = SHIPPED / "data" / "flights.parquet"
NAME = "flight_delays"
FIRST, LAST = "2013-03-01", "2013-12-31"
SCORED = 306
MOST_ROWS = 40_000  # of up to 290,000 that a model of a late month would learn from: the year is about what follows
WORSE = {"max_iter": 1, "max_leaf_nodes": 2, "min_samples_leaf": 40_000}
REFUSED_PERIOD, WITHDRAWN_FROM = "2013-10-01", "2013-12-10"
YEAR = r"(\d+) partitions of features, (\w+) models, (\d+) scored and evaluated partitions"
COUNTS = ("all days", "months", "scored days")
STATED: dict[str, dict[str, tuple[str, ...]]] = {  # by page and pattern, which figures its groups are
    "README.md": {r"of a real table of ([\d,]+) flights": ("all flights",), YEAR: COUNTS},
    "batch_platform/guide/monitoring.md": {
        r"of at most ([\d,]+) rows, the AUC of all flights is (0\.\d+), the mean of the days (0\.\d+)": (
            "most rows",
            "AUC",
            "mean AUC of the days",
        )
    },
    "batch_platform/guide/performance.md": {
        YEAR: COUNTS,
        r"models of at most ([\d,]+) rows \| (0\.\d+) \|": ("most rows", "AUC"),
        r"\| flights of two months, by day \| ([\d,]+) \|": ("flights of two months",),
    },
}
MEASURED = ("roc_auc", "accuracy", "brier", "log_loss", "average_precision")
CHALLENGER = {
    "name": "linear",
    "estimator": "sklearn.linear_model.LogisticRegression",
    "params": {"max_iter": 200, "tol": 0.01},  # it has converged all the same, in a fifteenth of the steps
}
CHECKED = """
query ($key: AssetKeyInput!, $check: String!) {assetCheckExecutions(assetKey: $key, checkName: $check, limit: 1000) {
  evaluation {success partition}
}}"""


def command(project: Path, *arguments: str) -> Answer:
    answer = run_command(project, *arguments)
    assert answer.code == 0, answer.err
    return answer


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The shipped pipeline with a challenger, learning from a sample, in a project of its own, brought up to date for the year."""
    folder = tmp_path_factory.mktemp("year")
    defs = folder / PACKAGE / "defs" / NAME
    defs.mkdir(parents=True)
    for path, text in project_files(PACKAGE).items():
        (folder / path).write_text(text)
    for name in ("features.sql", "labels.sql"):
        shutil.copy(SHIPPED / name, defs / name)
    declared = yaml.safe_load((SHIPPED / "defs.yaml").read_text())
    declared["attributes"]["challengers"] = [CHALLENGER]
    declared["attributes"]["model"]["train"]["max_rows"] = MOST_ROWS
    (defs / "defs.yaml").write_text(yaml.safe_dump(declared))
    command(folder, "run", NAME, "--from", FIRST, "--to", LAST)
    return folder


@pytest.fixture(scope="module")
def ui(project) -> Iterator[Ui]:
    with served(project, project / ".batch_platform") as running:
        yield running


def serving(project: Path) -> list[tuple[str, str, int]]:
    """Month, version and scored days."""
    query = (
        "SELECT left(partition_key, 7), model_version, count(DISTINCT partition_key) FROM flight_delays.predictions "
        "GROUP BY ALL ORDER BY ALL"
    )
    return published(project, query)


def test_each_month_is_scored_by_its_own_version(project):
    months = serving(project)
    assert [month for month, *_ in months] == [f"2013-{month:02}" for month in range(3, 13)]
    assert all(version.startswith(f"{month}-01-") for month, version, _ in months)
    assert sum(days for *_, days in months) == SCORED


def test_the_challenger_scored_every_row_that_the_champion_scored_and_is_measured_beside_it(project):
    rows = "SELECT (SELECT count(*) FROM flight_delays.predictions), (SELECT count(*) FROM flight_delays.challenger_scores)"
    ((by_champion, by_challenger),) = published(project, rows)
    assert by_champion == by_challenger
    query = (
        "SELECT challenger, count(*), avg(value) FROM flight_delays.performance WHERE metric = 'roc_auc' "
        "GROUP BY challenger ORDER BY challenger NULLS FIRST"
    )
    (_, days, champion), (name, days_of_challenger, challenger) = published(project, query)
    assert (name, days, days_of_challenger) == ("linear", SCORED, SCORED)
    assert 0.6 < challenger < champion, "that is why it is only a challenger"
    served_by = published(project, "SELECT DISTINCT model_version FROM flight_delays.predictions")
    never = published(project, "SELECT DISTINCT model_version FROM flight_delays.challenger_scores")
    assert not set(served_by) & set(never)


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


def test_what_the_readme_and_the_guide_state_of_the_flights_follows_from_the_raw_flights(scored):
    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York").dt.date()
    raw = pl.read_parquet(FLIGHTS).with_columns(day=local)
    known = raw.filter(pl.col("arr_delay").is_not_null())
    of_days = [recomputed(part)["roc_auc"] for _, part in scored.group_by("partition_key")]
    counted = {
        "all flights": f"{raw.height:,}",
        "all days": f"{raw['day'].n_unique()}",
        "months": {10: "ten"}[scored["month"].n_unique()],
        "scored days": f"{scored['partition_key'].n_unique()}",
        "flights of two months": f"{known.filter(local < date(2013, 3, 1)).height:,}",
        "most rows": f"{MOST_ROWS:,}",
        "AUC": f"{recomputed(scored)['roc_auc']:.3f}",
        "mean AUC of the days": f"{np.mean(of_days):.3f}",
    }
    for page, patterns in STATED.items():
        text = " ".join((ROOT / page).read_text().split())
        for pattern, names in patterns.items():
            stated = [match.groups() for match in re.finditer(pattern, text)]
            assert stated == [tuple(counted[name] for name in names)], (page, pattern)


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


def test_a_worse_candidate_trained_from_the_ui_is_refused_and_the_champion_goes_on(project, ui):
    before = serving(project)
    config = json.dumps({"ops": {f"{NAME}__model": {"config": {"params": WORSE}}}})
    chosen = {"assetSelection": [{"path": [NAME, "model"]}]}
    run_id = launch(ui, f"{NAME}_train", chosen, partition=REFUSED_PERIOD, config=config)
    run = ui.wait(lambda: finished(ui, run_id))
    assert run["status"] == "SUCCESS", "a refused version is not a failure"
    assert not passed(ui, "model", "gate", REFUSED_PERIOD)
    assert passed(ui, "model", "gate", "2013-03-01")
    decided = (
        "SELECT action, version FROM batch_platform.promotions WHERE action <> 'challenger' ORDER BY seq DESC LIMIT 1"
    )
    ((action, refused),) = published(project, decided)
    assert (action, refused[:10]) == ("refused", REFUSED_PERIOD)
    shown = command(project, "models", NAME, "show", refused).out
    assert "refused" in shown
    compared = command(project, "models", NAME, "compare", refused, before[7][1], "--json").json
    assert compared["metrics.roc_auc"][refused] < compared["metrics.roc_auc"][before[7][1]]
    assert command(project, "status", NAME, "--json").json[0]["counts"] == {"scored": SCORED, "warm-up": 365 - SCORED}
    assert serving(project) == before


def test_a_rollback_scores_again_and_sql_shows_the_model_then_and_today(project, ui):
    *_, november, december = [version for _, version, _ in serving(project)]
    flight = "SELECT min(flight_id) FROM flight_delays.predictions WHERE partition_key = '2013-12-24'"
    then_and_today = (
        "SELECT p.model_version, s.champion, s.condition FROM flight_delays.predictions AS p "
        "JOIN batch_platform.partition_status AS s ON s.pipeline = 'flight_delays' AND s.partition_key = p.partition_key "
        f"WHERE p.flight_id = ({flight})"
    )
    assert published(project, then_and_today) == [(december, december, "scored")]
    output = command(project, "models", NAME, "rollback", "--from", WITHDRAWN_FROM, "--reason", "too many alarms").out
    assert f"champion from then on: {november}, instead of {december}" in output
    assert published(project, then_and_today) == [(december, november, "stale")]
    command(project, "run", NAME, "--from", WITHDRAWN_FROM, "--to", LAST)
    assert published(project, then_and_today) == [(november, november, "scored")]
    days = {version: days for month, version, days in serving(project) if month == "2013-12"}
    assert days == {december: 9, november: 22}
    history = "SELECT action, version, reason FROM batch_platform.promotions ORDER BY seq DESC LIMIT 1"
    assert published(project, history) == [("withdrawn", december, "too many alarms")]
    traced = command(project, "trace", NAME, f"flight_id={published(project, flight)[0][0]}", "--json").json
    assert traced[0]["model"]["version"] == november
    assert passed(ui, "predictions", "rows_balance", "2013-12-24")


def passed(ui: Ui, asset: str, check: str, partition: str) -> bool:
    """Whether the newest evaluation of a check passed, according to the UI."""
    executions = ui.ask(CHECKED, key={"path": [NAME, asset]}, check=check)
    evaluations = [evaluation["evaluation"] for evaluation in executions if evaluation["evaluation"]]
    return next(evaluation["success"] for evaluation in evaluations if covers(evaluation["partition"], partition))


def covers(shown: str | None, partition: str) -> bool:
    """Whether a result is of a partition; partitions that pass in one run share a result, shown as FIRST...LAST."""
    first, _, last = (shown or "").partition("...")
    return first <= partition <= (last or first)
