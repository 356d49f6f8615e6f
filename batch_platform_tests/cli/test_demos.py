"""Each demo runs from nothing, is better than the simplest models beside it, and stays out of everybody's way until it is asked for."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from batch_platform.monitoring.comparison import Difference, paired_difference
from batch_platform.monitoring.outcomes import PARTITION, Outcomes
from batch_platform.pipeline.shipped import DEMOS_VARIABLE, FLIGHTS, FOLDER, shipped
from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.command_line import run_command

DEMOS = [name for name in shipped() if name != FLIGHTS]
EVERYDAY = "customer_segments"
LEAST_POINTS = 534  # of whoever is accepted: odds of 5 good to 1 bad


@dataclass(frozen=True)
class Demo:
    """A demo that has run."""

    folder: Path
    name: str
    report: dict[str, Any]

    def sql(self, query: str) -> pl.DataFrame:
        """The answer of the published copy, in which `features` are the features of every partition."""
        home = self.folder / ".batch_platform"
        with duckdb.connect(str(home / "published.duckdb"), read_only=True) as con:
            con.execute(f"USE {self.name}")
            files = home / "lake" / self.name / "features" / "*.parquet"
            path = "regexp_extract(filename, '([0-9-]+)[.]', 1) AS of_partition"
            return con.sql(
                f"WITH features AS (SELECT *, {path} FROM read_parquet('{files}', filename = true)) {query}"
            ).pl()

    def measured(self, model: str = "champion") -> float:
        """The gate's metric of a model over all that was scored."""
        (value,) = [it["value"] for it in self.report["measured"] if it["model"] == model]
        return value


def lead(metric: str, rows: pl.DataFrame, first: Any, second: Any, unit: str) -> Difference:
    """By how much the first predictions have a lower error than the second ones, as the pages state it."""
    binary = "event" in rows.columns
    truth = rows["event" if binary else "outcome_value"].to_numpy()
    units = {unit: rows[unit if unit in rows.columns else "partition_key"].rank("dense").to_numpy()}
    weights = rows["outcome_weight"].to_numpy() if "outcome_weight" in rows.columns else None
    made = [np.column_stack([1 - it, it]) if binary else it for it in (np.asarray(second), np.asarray(first))]
    task, classes = ("binary", (False, True)) if binary else ("regression", ())
    both = [Outcomes(task, it, truth, classes, units=units, weights=weights) for it in made]
    difference = paired_difference(metric, *both)
    assert difference is not None
    return difference


def credit_default(demo: Demo) -> None:
    assert demo.measured() > 0.72
    costs = dict(
        demo.sql(
            "SELECT metric, sum(value * rows) / sum(rows) FROM performance WHERE metric LIKE 'decision_cost%'"
            " AND challenger IS NULL GROUP BY ALL"
        ).iter_rows()
    )
    assert costs["decision_cost"] < 0.93 * costs["decision_cost_always"] < costs["decision_cost_never"]
    rows = demo.sql(
        "SELECT score, outcome = 'bad' AS bad FROM predictions JOIN outcomes USING (applicant_id, partition_key)"
    )
    assert abs(rows["score"].mean() - rows["bad"].mean()) < 0.06, "probabilities come true on average"
    reasons = demo.sql("SELECT decision, len(reasons) AS count FROM predictions").unique().sort("decision")
    assert reasons.rows() == [(False, None), (True, 3)]
    by_points = demo.sql("SELECT decision, min(points), max(points) FROM predictions GROUP BY ALL ORDER BY decision")
    assert by_points.rows()[0][1] >= LEAST_POINTS >= by_points.rows()[1][2]


def market_risk(demo: Demo) -> None:
    rows = demo.sql("FROM predictions JOIN outcomes USING (symbol, partition_key)")
    error = (rows["outcome_value"] - rows["prediction"]).abs().mean()
    assert error == pytest.approx(demo.measured(), abs=1e-9)
    assert error < 0.9 * (rows["outcome_value"] - rows["last_day"]).abs().mean(), "than the last day"
    assert error < (rows["outcome_value"] - rows["outcome_value"].mean()).abs().mean(), (
        "than the mean of the days to come"
    )
    covered = rows.select(pl.col("outcome_value").is_between("prediction_low", "prediction_high").mean()).item()
    assert 0.8 < covered < 0.96
    september = rows.filter(pl.col("partition_key").str.starts_with("2008-09"))
    assert (
        september.select(pl.col("outcome_value").is_between("prediction_low", "prediction_high").mean()).item() < 0.85
    )
    assert demo.measured() < demo.measured("har") < demo.measured("trees")
    har = rows.join(
        demo.sql("SELECT symbol, partition_key, prediction AS har FROM challenger_scores WHERE challenger = 'har'"),
        ["symbol", "partition_key"],
    )
    of_last_day = lead("mae", rows, rows["prediction"], rows["last_day"], PARTITION)
    assert of_last_day.low < 0 < of_last_day.estimate, "half a year is too short to be sure"
    of_har = lead("mae", har, har["prediction"], har["har"], PARTITION)
    assert of_har.low < 0 < of_har.high, "no difference from the published model is shown"


def repeat_buyers(demo: Demo) -> None:
    rows = demo.sql(
        "SELECT p.partition_key, p.score, p.decision, o.outcome = 'true' AS bought, f.purchases FROM predictions AS p"
        " JOIN outcomes AS o USING (customer_id, partition_key)"
        " JOIN features AS f ON f.customer_id = p.customer_id AND f.of_partition = p.partition_key"
    )
    assert rows.height == 6 * 23_570
    assert roc_auc_score(rows["bought"], rows["score"]) == pytest.approx(demo.measured(), abs=1e-9)
    assert demo.measured() > roc_auc_score(rows["bought"], rows["purchases"]) + 0.01
    called = rows.filter("decision")
    assert called.group_by("partition_key").len()["len"].to_list() == [500] * 6
    by_frequency = rows.sort("purchases", descending=True, maintain_order=True).group_by("partition_key").head(500)
    assert called["bought"].mean() > by_frequency["bought"].mean() + 0.03


def customer_segments(demo: Demo) -> None:
    assert sum(demo.report["segments"].values()) == 23_570
    moved = demo.sql(
        "SELECT b.partition_key, avg((a.prediction = b.prediction)::INT) AS stayed FROM predictions AS a JOIN predictions AS b"
        " ON a.customer_id = b.customer_id AND b.partition_key::DATE = a.partition_key::DATE + INTERVAL 1 MONTH GROUP BY ALL"
    )
    assert moved.height == 8
    assert moved["stayed"].min() > 0.84, "segments keep their numbers from month to month"
    means = demo.sql("SELECT prediction, avg(frequency) AS often, avg(recency) AS ago FROM predictions GROUP BY ALL")
    assert means.sort("often")["prediction"].last() == means.sort("ago")["prediction"].first(), "the loyal came lately"
    (typical, stayed) = (
        demo.sql(query)
        for block in blocks("sql", GUIDE["tables"])
        if demo.name in block
        for query in block.split(";")
        if query.strip()
    )
    assert stayed["rows"].sum() == 23_570
    assert stayed["stayed"].min() > 0.5
    assert typical.height


def patient_risk(demo: Demo) -> None:
    rows = demo.sql(
        "FROM predictions JOIN outcomes USING (patient_id, visited_at, partition_key)"
        " JOIN features USING (patient_id, visited_at)"
    ).with_columns(event=pl.col("outcome") == "true")
    share = rows["event"].mean()
    assert demo.measured() < 0.6 * share * (1 - share), "than the share of events"
    assert abs(rows["score"].mean() - share) < 0.02, "probabilities come true on average"
    auc = roc_auc_score(rows["event"], rows["score"])
    assert auc > 0.9
    scores = "SELECT patient_id, visited_at, score AS mayo FROM challenger_scores WHERE challenger = 'mayo'"
    both = rows.join(demo.sql(scores), ["patient_id", "visited_at"])
    assert both.height == rows.height
    assert auc > roc_auc_score(both["event"], both["mayo"]) > 0.89, "than the score that the clinic published"
    assert lead("brier", both, both["score"], both["mayo"], "patient_id").low > 0
    new = both.join(
        demo.sql("SELECT patient_id FROM features GROUP BY ALL HAVING min(visited_at) >= '1982-01-01'"), "patient_id"
    )
    of_new = lead("brier", new, new["score"], new["mayo"], "patient_id")
    assert (of_new.rows, of_new.groups) == (164, 50)
    assert of_new.low < 0 < of_new.high, "no lead on patients of whom the model knew nothing"


def student_grades(demo: Demo) -> None:
    rows = demo.sql(
        "FROM predictions JOIN outcomes USING (pupil_id, partition_key) JOIN features USING (pupil_id)"
    ).with_columns(pl.col("math2").fill_null(pl.col("math2").mean()))
    weights = rows["outcome_weight"]
    assert rows.group_by("school_id").agg(pl.sum("outcome_weight"))["outcome_weight"].to_list() == pytest.approx(
        [1] * 32
    )
    slope, offset = np.polyfit(rows["math2"], rows["outcome_value"], 1, w=weights.sqrt())
    line = offset + slope * rows["math2"]
    error = np.average((rows["outcome_value"] - line) ** 2, weights=weights) ** 0.5
    assert error < rows["outcome_value"].std()
    assert lead("rmse", rows, rows["prediction"], line, PARTITION).low > 0, "than a line through the grade before"
    assert {it["model"] for it in demo.report["measured"]} == {"champion", "tree", "network", "trees"}
    assert demo.measured() < demo.measured("tree")
    covered = rows.select(pl.col("outcome_value").is_between("prediction_low", "prediction_high").mean()).item()
    assert 0.75 < covered < 0.88
    lowest = rows.filter(pl.col("prediction") < pl.col("prediction").quantile(0.2))
    weakest = rows["outcome_value"].quantile(0.25)
    assert (lowest["outcome_value"] < weakest).mean() == pytest.approx(0.65, abs=0.01)


CHECKS: dict[str, Callable[[Demo], None]] = {
    check.__name__: check
    for check in (credit_default, market_risk, repeat_buyers, customer_segments, patient_risk, student_grades)
}


@pytest.fixture(scope="module")
def run_demo(tmp_path_factory) -> Callable[[str], Demo]:
    """Run a demo from nothing, once for all tests of it."""

    @cache
    def run(name: str) -> Demo:
        folder = tmp_path_factory.mktemp(name)
        answer = run_command(folder, "demo", name, "--json")
        assert answer.code == 0, answer.err
        return Demo(folder, name, json.loads(answer.out))

    return run


@pytest.mark.parametrize("name", [pytest.param(it, marks=[] if it == EVERYDAY else pytest.mark.full) for it in DEMOS])
def test_a_demo_runs_from_nothing_and_beats_the_simplest_models(run_demo, name):
    demo = run_demo(name)
    assert demo.report["outcome"]["rows_in"] == demo.report["outcome"]["rows_scored"] > 0
    CHECKS[name](demo)


@pytest.mark.full
@pytest.mark.parametrize("name", DEMOS)
def test_the_queries_of_its_page_the_status_and_the_report_show_a_demo_that_ran(run_demo, name):
    folder = run_demo(name).folder
    for query in blocks("sql", (FOLDER / name / "README.md").read_text(encoding="utf-8")):
        assert len(json.loads(run_command(folder, "sql", name, query, "--json").out)) > 3
    assert json.loads(run_command(folder, "status", name, "--json").out)[0]["pipeline"] == name
    assert run_command(folder, "report", name, "--out", "report.html").code == 0
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")


def test_demos_are_loaded_only_once_they_are_asked_for(cli, tmp_path):
    def listed(**variables: str) -> list[str]:
        return [it["pipeline"] for it in json.loads(cli(tmp_path, "status", "--json", **variables).out)]

    assert listed() == [FLIGHTS]
    assert listed(**{DEMOS_VARIABLE: "patient_risk"}) == [FLIGHTS, "patient_risk"]
    assert listed(**{DEMOS_VARIABLE: "all"}) == sorted(shipped())
    assert json.loads(cli(tmp_path, "status", "market_risk", "--json").out)[0]["pipeline"] == "market_risk"
    (tmp_path / ".batch_platform" / "lake" / "student_grades").mkdir(parents=True)  # it ran here before
    assert listed() == [FLIGHTS, "student_grades"]


def test_the_list_says_what_each_demo_predicts(cli, tmp_path):
    demos = json.loads(cli(tmp_path, "demo", "--list", "--json").out)
    assert [*demos] == shipped()
    assert demos[EVERYDAY] == "Segment of each customer by recency, frequency and money, once a month."
    answer = cli(tmp_path, "demo", "credit_defautl")
    assert answer.code == 2
    assert "There is no demo 'credit_defautl'" in answer.err


@pytest.mark.parametrize("name", [EVERYDAY, FLIGHTS])
def test_a_copied_demo_is_a_project_of_the_users_own(cli, tmp_path, name):
    folder = tmp_path / "mine"
    assert cli(tmp_path, "demo", name, "--copy-to", str(folder)).code == 0
    place = folder / "pipelines" / "defs" / name
    assert {path.name for path in place.iterdir()} >= {"defs.yaml", "data", "__init__.py"}
    assert "batch_platform.defs" not in (place / "defs.yaml").read_text(encoding="utf-8")
    assert run_command(folder, "check").out.splitlines()[0] == f"{name}: ok"
    again = cli(tmp_path, "demo", name, "--copy-to", str(folder))
    assert again.code == 2
    assert f"{place} exists, and nothing was copied." in again.err


def test_the_ui_of_a_users_project_has_no_demos(cli, fresh):
    answer = cli(fresh, "ui", "--demos")
    assert answer.code == 2
    assert "is a project of your own" in answer.err


def test_the_table_of_capabilities_is_what_the_demos_declare():
    """A row is a key of the YAML, as `block.key` or `block.key: value`, and the demos that have it."""
    declared = all_declared()
    shown, _, _ = GUIDE["demos"].partition("## What no demo shows")
    rows = re.findall(r"^\| .+? \| `([^`]+)` \| (.+) \|$", shown, flags=re.MULTILINE)
    assert len(rows) > 20
    for key, names in rows:
        path, _, value = key.partition(": ")
        having = [name for name, attributes in declared.items() if _has(attributes, path.split("."), value)]
        assert re.findall(r"\w+", names) == having, key


def all_declared() -> dict[str, dict[str, Any]]:
    """What each shipped pipeline declares, by its name, with its sources as a list."""
    files = {name: (FOLDER / name / "defs.yaml").read_text(encoding="utf-8") for name in shipped()}
    declared = {name: yaml.safe_load(text)["attributes"] for name, text in files.items()}
    return {name: it | {"sources": [*it["sources"].values()]} for name, it in declared.items()}


def _has(attributes: Any, path: list[str], value: str) -> bool:
    for part in path:
        if isinstance(attributes, list):
            return any(_has(item, path[path.index(part) :], value) for item in attributes)
        if not isinstance(attributes, dict) or part not in attributes:
            return False
        attributes = attributes[part]
    return not value or str(attributes).removeprefix("sklearn.").lower() == value.lower()


def table_of(  # noqa: PLR0913 - what to ask of what
    name: str, sql: str, source: str, start: str, end: str, select: str = "SELECT *"
) -> pl.DataFrame:
    """What the SQL of a demo returns for a window, with some columns of the source replaced."""
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        (data,) = (FOLDER / name / "data").glob(f"{source}.*")
        con.execute(f"CREATE VIEW {source} AS {select} FROM '{data}'")
        query = (FOLDER / name / sql).read_text(encoding="utf-8")
        for parameter, instant in (("$partition_start", start), ("$partition_end", end)):
            query = query.replace(parameter, f"TIMESTAMPTZ '{instant}'")
        return con.sql(query).pl()


@pytest.mark.parametrize(
    ("name", "source", "time", "day", "outcomes"),
    [
        ("market_risk", "indices", "closes_at", "2008-10-10", ["open", "high", "low", "close"]),
        ("patient_risk", "visits", "visited_at", "1980-02-01", ["days_to_event", "days_followed"]),
        ("student_grades", "pupils", "enters_at", "1989-01-02", ["math3"]),
        ("credit_default", "applicants", "applied_at", "1974-03-01", ["creditability"]),
    ],
)
def test_features_of_a_partition_know_nothing_of_its_outcomes(name, source, time, day, outcomes):
    """The outcomes of the partition and of all that follows are replaced by others; its features stay as they are."""
    end = str(np.datetime64(day) + 31)
    later = [f"CASE WHEN {time} >= TIMESTAMPTZ '{day}' THEN NULL ELSE {it} END AS {it}" for it in outcomes]
    unknown = f"SELECT * REPLACE ({', '.join(later)})"
    window = (name, "features.sql", source, day, end if name != "market_risk" else str(np.datetime64(day) + 1))
    known = table_of(*window)
    assert known.height
    assert known.sort(known.columns).equals(table_of(*window, unknown).sort(known.columns))
