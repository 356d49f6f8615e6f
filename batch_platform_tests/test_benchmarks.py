"""The benchmarks at small sizes: contenders that need no installation do the same work, and the reports are true."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

from batch_platform_tests.benchmarks import __main__ as benchmarks
from batch_platform_tests.benchmarks import environments, history, kernels, refinements, tables
from batch_platform_tests.benchmarks import scoring as scoring_benchmark
from batch_platform_tests.benchmarks.contenders import Scores, require_same
from batch_platform_tests.benchmarks.data import days_of, spread, write_days
from batch_platform_tests.benchmarks.environments import Environments, Options
from batch_platform_tests.benchmarks.measuring import OURS, ROOT, Cost, Result, medians, run
from batch_platform_tests.benchmarks.reporting import losses, table

pytestmark = pytest.mark.full  # those that run a benchmark are for a release

HERE = [OURS, "script"]
TRIED = ["linear", "categorical"]  # text columns, trees and linear models; the other kinds differ in the estimator only
ROWS = 5_000
TODAY = date(2026, 3, 1)


def benchmark(folder: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Run the benchmarks here; returns the JSON and the Markdown."""
    files = ["--json", str(folder / "results.json"), "--markdown", str(folder / "results.md"), "--folder", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring_benchmark, "DAYS", 6)
        benchmarks.main([*arguments, *files])
    return json.loads((folder / "results.json").read_text()), (folder / "results.md").read_text()


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    only = ",".join([*HERE, *TRIED, "large"])
    return benchmark(tmp_path_factory.mktemp("scoring"), "scoring", f"--rows={ROWS}", f"--only={only}", "--repeat=1")


@pytest.mark.release
def test_every_contender_scores_all_rows_and_the_scores_agree(scoring):
    results, _ = scoring
    assert [(result["rows"], result["workload"], result["contender"]) for result in results] == [
        (ROWS, kind, name) for kind in TRIED for name in HERE
    ], "the run itself ends where rows are missing or scores differ"


@pytest.mark.release
def test_the_markdown_names_machine_versions_medians_and_where_we_lose(scoring):
    _, text = scoring
    assert all(f"| {kind} | {ROWS:,} | {name} |" in text for kind in TRIED for name in HERE)
    assert "Where we lose time:" in text
    assert " GiB, Linux; each measured 1 times, in turn" in text
    assert all(library in text for library in ("duckdb 2.", "polars 2.", "scikit-learn 1.", "dagster 1."))


@pytest.mark.release
def test_commits_of_many_writers_are_counted(tmp_path):
    results, text = benchmark(tmp_path, "commit", "--rows=5000", "--repeat=1")
    assert [(result["workload"], result["contender"], result["rows"]) for result in results] == [
        ("commit", OURS, 1000),
        ("commit", "plain_insert", 1000),
        ("commit_wait", OURS, 100),
    ]
    assert "Of 80 commits by 8 writers at once, 0 were lost." in text


@pytest.mark.release
def test_compiled_trees_are_compared_with_the_library_that_grew_them_and_with_others(tmp_path, monkeypatch):
    """Of the others one, that cannot be installed."""
    monkeypatch.setattr(kernels, "SIZES", [(10, 20)])
    monkeypatch.setitem(environments.PINNED, "lignum", (f"pylignum @ file://{tmp_path}/missing.whl",))
    here = (OURS, "its own library")
    only = ",".join([*here, "lignum"])
    arguments = "kernels", "--rows=20000", "--repeat=1", f"--only={only}", f"--environments={tmp_path}"
    results, text = benchmark(tmp_path, *arguments)
    kinds = ["histogram trees", "histogram trees, categories", "random forest", "LightGBM", "XGBoost"]
    sized = ["LightGBM, 10 x 20", "XGBoost, 10 x 20"]
    assert [(result["workload"], result["contender"]) for result in results] == [
        *((kind, name) for kind in kinds for name in here),
        *((kind, name) for kind in sized for name in (*here, "lignum")),
    ]
    assert (
        text.count("| not measured | lignum cannot be installed; leave it out with --only. pip ended with: ERROR") == 2
    )
    same = [line for line in text.splitlines() if line.endswith(" | yes |")]
    assert [line.split(" | ")[0] for line in same if OURS in line] == [f"| {kind}" for kind in [*kinds, *sized]]


@pytest.mark.release
def test_each_refinement_is_compared_with_the_same_scoring_without_it(tmp_path):
    results, text = benchmark(
        tmp_path, "refinements", "--rows=4000", f"--only={','.join(refinements.CASES)}", "--repeat=1"
    )
    beside = {result["workload"]: result for result in results}
    assert beside.keys() == refinements.CASES.keys()
    for name, case in refinements.CASES.items():
        if name != case.beside:
            seconds, memory = (beside[name][of] / beside[case.beside][of] - 1 for of in ("core_seconds", "peak_mib"))
            assert f"| {name} | {seconds:+.1%} | {memory:+.1%} |" in text
    assert "rows get reasons in a core-second." in text


def grown(commits: dict[str, dict[str, list[float]]]) -> list[Result]:
    return [
        Result(line, commit, 9.0, 10, 50.0, seconds)
        for commit, lines in commits.items()
        for line, measured in lines.items()
        for seconds in measured
    ]


def test_history_names_the_lines_that_take_more_than_a_twentieth_more_core_seconds_than_at_the_commit_before():
    results = grown(
        {
            "older": {"trees": [1.0], "status": [9.0]},
            "before": {"trees": [2.0, 9.0, 2.0], "status": [1.0], "linear": [1.0]},
            "last": {"trees": [2.2, 0.1, 2.2], "status": [1.04], "text": [5.0]},
        }
    )
    assert history.slower(results) == ["trees (1.10)"]
    assert history.slower(results[:2]) == []
    text = history.conclude(results)
    assert "| trees | 1.00 | 2.00 (2.00) | 2.20 (1.10) |" in text
    assert "| linear | not measured | 1.00 | not measured |" in text
    assert text.endswith("Lines slower than before by more than 5%: trees (1.10).")


def test_a_kept_line_holds_the_figures_of_a_commit_and_the_next_call_begins_with_the_newest(tmp_path, monkeypatch):
    asked = ["git", "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setattr(history, "FILE", tmp_path / "history.jsonl")
    history.keep(grown({f"{commit}+": {"trees": [2.0, 1.0, 9.0]}}))
    (written,) = map(json.loads, history.FILE.read_text().splitlines())
    assert written["lines"]["trees"] == {"rows": 10, "core_seconds": 2.0, "seconds": 9.0, "peak_mib": 50}
    assert history.default_commits() == (commit, ".")


@pytest.mark.release
def test_history_measures_a_commit_and_the_working_tree_in_turn(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "TOLERATED", 100)
        results, text = benchmark(
            tmp_path, "history", "--at=HEAD", "--at=.", "--rows=2000", "--repeat=2", "--only=commit,publish"
        )
    before, here = results[0]["contender"], results[1]["contender"]
    assert here == f"{before}+"
    assert [(result["workload"], result["contender"]) for result in results] == [
        (line, commit) for line in ("commit", "publish") for commit in (before, here, before, here)
    ]
    assert "Lines slower than before" in text
    assert "not measured" not in text


@pytest.mark.release
def test_growth_says_what_each_further_partition_costs(tmp_path):
    results, text = benchmark(tmp_path, "growth", "--partitions=5,3", "--repeat=1")
    names = ["backfill", "one partition", "status", "tick", "first tick", "load", "training"]
    assert [(result["rows"], result["workload"]) for result in results] == [(n, name) for n in (3, 5) for name in names]
    seconds = {(result["workload"], result["rows"]): result["core_seconds"] for result in results}
    slope = 1000 * (seconds["status", 5] - seconds["status", 3]) / 2
    assert f"| status | {seconds['status', 3]:.2f} | {seconds['status', 5]:.2f} | {slope:.2f} |" in text
    (records,) = (line for line in text.splitlines() if line.startswith("| MiB of Dagster's records |"))
    assert float(records.split("|")[2]) > 0.1


def written(file: Path, score: list[float]) -> Scores:
    rows = pl.DataFrame({"id": range(len(score)), "score": score, "day": "2026-01-01"})
    with duckdb.connect(str(file)) as con:
        con.register("rows", rows.with_columns(prediction=pl.col("score") > 0.5).to_arrow())
        con.execute("CREATE TABLE scores AS FROM rows")
    return Scores(file, "scores", "day", ["2026-01-01"])


@pytest.mark.parametrize(
    ("score", "complaint"),
    [([0.25, 0.75 + 1e-6], "other scores for 1 rows"), ([0.25], "1 rows instead of 2"), ([0.25, 0.75], None)],
)
def test_a_contender_that_does_different_work_ends_the_run(tmp_path, score, complaint):
    first, second = (written(tmp_path / name, scores).rows() for name, scores in (("1", [0.25, 0.75]), ("2", score)))
    check = partial(require_same, "second", second, first, 1e-9)
    if complaint is None:
        check()
    else:
        with pytest.raises(SystemExit, match=complaint):
            check()


def test_the_table_is_the_same_whenever_it_is_written_and_has_the_rows_asked_for(tmp_path):
    days = days_of(spread(1001, 30), TODAY)
    for folder in ("one", "two"):
        write_days(tmp_path / folder, days, 400)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    measured = pl.concat(pl.read_parquet(tmp_path / "one" / f"{key}.parquet") for key in days.keys)
    assert measured.height == 1001
    assert measured["id"].is_unique().all()
    assert pl.read_parquet(tmp_path / "one" / "labels.parquet").height == 400


def test_the_peak_is_that_of_the_largest_process_even_if_nobody_waits_for_it(tmp_path):
    child = "import time; held = bytearray(300 * 2**20); print(len(held), flush=True); time.sleep(10)"
    parent = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "child.stdout.readline(); time.sleep(3)"
    )
    assert 300 < run([sys.executable, "-c", parent], tmp_path).peak_mib < 400
    assert run([sys.executable, "-c", "pass"], tmp_path).peak_mib < 100, "the memory of this process does not count"


def test_core_seconds_are_those_of_all_processes_also_of_those_that_nobody_waits_for(tmp_path):
    work = "import time\nwhile time.process_time() < 0.5: pass"
    left = f"{work}\nprint(flush=True)\ntime.sleep(5)"
    parent = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {work!r}], check=True)\n"
        f"lives = subprocess.Popen([sys.executable, '-c', {left!r}], stdout=subprocess.PIPE)\n"
        "lives.stdout.readline()\n"
        f"{work}"
    )
    cost = run([sys.executable, "-c", parent], tmp_path)
    assert 1.45 < cost.core_seconds < 3
    assert run([sys.executable, "-c", "import time; time.sleep(1)"], tmp_path).core_seconds < 0.5


def results_of(seconds: dict[str, list[float]]) -> list[Result]:
    return [
        Result("trees", name, measured, 100, 10.0, 2 * measured)
        for name, times in seconds.items()
        for measured in times
    ]


def test_reports_show_medians_and_ratios_and_where_we_lose():
    results = results_of({OURS: [2.0, 9.0, 1.0], "script": [1.0, 1.0, 5.0], "ray": [8.0, 8.0, 8.0]})
    assert [median.seconds for median in medians(results).values()] == [2.0, 1.0, 8.0]
    lines = [line.split("|") for line in table(results).splitlines()[2:]]
    assert [line[-3].strip() for line in lines] == [line[-2].strip() for line in lines] == ["1.00", "0.50", "4.00"]
    assert (
        losses(results) == "Where we lose time: to script on trees of 100 rows (0.50). "
        "Where we lose core-seconds: to script on trees of 100 rows (0.50). Where we lose memory: nowhere."
    )


@pytest.mark.release
def test_a_table_that_a_package_ships_is_measured_from_its_file_to_predictions(cli, tmp_path, monkeypatch):
    """In this process, with the commands that the benchmark starts as processes."""

    def here(command: list[str], folder: Path) -> Cost:
        answer = cli(folder, *command[1:])
        if answer.code:
            raise SystemExit(answer.err)
        return Cost(1.5, 2.5, 10.0, answer.out)

    monkeypatch.setattr(tables, "run", here)
    monkeypatch.setitem(tables.TABLES, "no label", replace(tables.TABLES["iris"], label="colour"))
    options = Options(1, 1, frozenset({"iris", "no label"}), Environments(tmp_path), tmp_path)
    measured, failed = tables.measure(options)
    assert (measured.workload, measured.rows, measured.columns) == ("iris", 150, 5)
    assert (measured.seconds, measured.core_seconds) == (3.0, 5.0)
    assert measured.proposed == "target of 4 columns, snapshot, HistGradientBoostingClassifier"
    with duckdb.connect(str(tmp_path / "iris/.batch_platform/published.duckdb"), read_only=True) as con:
        ((rows, judged, metrics),) = con.sql(
            "SELECT rows_trained, rows_evaluated, metrics FROM batch_platform.model_versions"
        ).fetchall()
    assert (rows + judged, judged) == (150, measured.rows_measured)
    assert measured.metric == "log loss"
    assert measured.ours == pytest.approx(json.loads(metrics)["log_loss"])
    assert max(measured.ours, measured.trees) < measured.trivial == pytest.approx(np.log(3), rel=0.02)
    worse = measured.worse_than_trees
    assert worse.low < worse.share < worse.high
    assert measured.worse_than_trivial.high < -0.3
    assert "has no column 'colour'" in failed.failure
    text = tables.conclude([measured, failed])
    assert f"| {worse} | {measured.rows_measured} |" in text
    assert "1 of 2 tables run, 0 with enough rows for a verdict." in text
    assert "has no column 'colour'" in text


def test_a_table_misses_the_goal_only_if_chance_cannot_explain_it():
    noise = np.random.default_rng(1).uniform(0.5, 1.5, 400)
    of_chance, certain = np.column_stack([noise, np.roll(noise, 1)]), np.column_stack([1.1 * noise, noise])
    days = [f"day {row // 40}" for row in range(400)]
    for compared, squared, share, low in (
        (certain, False, 0.1, 0.1),
        (certain, True, np.sqrt(1.1) - 1, np.sqrt(1.1) - 1),
        (of_chance, False, 0.0, -0.05),
    ):
        worse = tables.worse_by(compared, range(400), squared=squared)
        assert worse.share == pytest.approx(share, abs=1e-9)
        assert worse.low == pytest.approx(low, abs=0.02)
    same_days = np.repeat(np.random.default_rng(2).normal(1.0, 0.3, (10, 2)), 40, axis=0)
    by_row, by_day = (tables.worse_by(same_days, drawn, squared=False) for drawn in (range(400), days))
    assert by_day.high - by_day.low > 3 * (by_row.high - by_row.low), "the rows of one day are one draw"
    results = [
        tables.TableResult(
            name, OURS, 1.0, 1, 1.0, 1.0, rows_measured=400, ours=1.0, trees=1.0, trivial=1.0, worse_than_trees=worse
        )
        for name, worse in {
            "certain": tables.worse_by(certain, range(400), squared=False),
            "chance": tables.Worse(0.2, -0.1, 0.5),
        }.items()
    ]
    assert "by more than 5%, beyond chance: certain +10% (+10% to +10%). Worse" in tables.conclude(results)
