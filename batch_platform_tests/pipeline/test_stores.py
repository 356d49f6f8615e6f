"""A pipeline whose predictions and challengers' scores are in files reads, is measured, traced and repaired like any other."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.drop import drop_partitions, held_partitions
from batch_platform.pipeline.export import export
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.trace import trace
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.reports.report import write_report
from batch_platform.warehouse.user_tables import TableName, open_table, stored_partitions
from batch_platform.warehouse.verify import verify
from batch_platform_tests.faults.invariants import NOW, SCORED, days, prepared
from batch_platform_tests.harness.small_pipeline import carry_out

IN_FILES = {"predictions": {"store": "parquet"}}
CHALLENGED = {"challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}]}
OF_RUNS = ("run_id", "scored_at", "evaluated_at")


def scored_again(folder: Path, **declared: Any) -> Pipeline:
    """Ten days, scored and measured again by the pipeline as declared, and by a challenger that learns only now."""
    pipeline = prepared(folder, **CHALLENGED, **declared)
    carry_out(pipeline, NOW, "challenger")
    list(pipeline.score(days(pipeline, *SCORED), Stamp("again", NOW), force=True))
    carry_out(pipeline, NOW, "measured")
    return pipeline


@pytest.fixture(scope="module")
def in_duckdb(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return scored_again(tmp_path_factory.mktemp("duckdb"))


@pytest.fixture
def in_files(tmp_path: Path) -> Pipeline:
    return scored_again(tmp_path, **IN_FILES)


def outputs(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """What readers get."""
    exported = folder / f"{pipeline.spec.predictions.store}.parquet"
    export(pipeline, exported, features=True)
    (traced,) = trace(pipeline.spec, pipeline.home, {"id": "1300"})
    figures = asdict(write_report(pipeline, NOW, file=folder / "report.html").figures)
    table = TableName("small", "performance")
    performance = open_table(pipeline.home, table).pl().drop(OF_RUNS, strict=False).sort(pl.all())
    return {
        "export": pl.read_parquet(exported).drop(OF_RUNS, strict=False).to_dicts(),
        "trace": (traced.outcome, {name: value for name, value in traced.row.items() if name not in OF_RUNS}),
        "report": {name: str(value) for name, value in figures.items() if name in ("performance", "segments")},
        "performance": performance.to_dicts(),
        "asset": open_table(pipeline.home, TableName("small", "predictions"), partitions=SCORED[:2]).pl().height,
        "partitions": stored_partitions(pipeline.home, TableName("small", "predictions")),
        "challenger": open_table(pipeline.home, TableName("small", "challenger_scores"))
        .pl()
        .drop(*OF_RUNS, "model_version", strict=False)
        .sort("id")
        .to_dicts(),
        "partitions of the challenger": stored_partitions(pipeline.home, TableName("small", "challenger_scores")),
        "due": make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items,
    }


def test_readers_get_the_same_from_each_store(in_duckdb, in_files, tmp_path):
    assert outputs(in_files, tmp_path) == outputs(in_duckdb, tmp_path)
    assert verify(in_files.home).differing == ()
    for table in ("predictions", "challenger_scores"):
        assert {path.parent.name for path in in_files.home.lake.glob(f"small/{table}/*/*.parquet")} == {*SCORED}
    with in_files.warehouse.open() as con:
        assert con.execute("SELECT count(*) FROM small.challenger_scores_in_duckdb").fetchall() == [(0,)]


def test_a_lost_or_cut_file_makes_its_partition_due_even_if_nothing_is_rescored(in_files):
    spec = in_files.spec.model_copy(
        update={"predictions": in_files.spec.predictions.model_copy(update={"rescore": "never"})}
    )
    pipeline = Pipeline(spec, in_files.folder, in_files.home)
    lost, cut, *_ = sorted(pipeline.home.lake.glob("small/predictions/*/*"))
    *_, of_challenger = sorted(pipeline.home.lake.glob("small/challenger_scores/*/*"))
    of_challenger.unlink()
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    plan = make_plan(spec, pipeline.state(), PlanRequest(NOW))
    reason = "a file of its predictions is gone or changed"
    reasons = dict.fromkeys(SCORED[:2], reason) | {SCORED[-1]: "a file of its challenger_scores is gone or changed"}
    assert {item.partition.key: item.reason for item in plan.of("predictions")} == reasons
    assert plan.stale == reasons
    carry_out(pipeline, NOW, "repaired")
    assert make_plan(spec, pipeline.state(), PlanRequest(NOW)).items == []
    assert {key for key, run in pipeline.state().scores.items() if run.run_id == "repaired"} == {*reasons}
    assert verify(pipeline.home).differing == ()


def test_dropped_partitions_take_their_files_with_them(in_files):
    holding = held_partitions(in_files, SCORED[:2])
    assert holding.rows["predictions"] == 80
    drop_partitions(in_files, SCORED[:2], "me", Stamp("drop", NOW))
    for table in ("predictions", "challenger_scores"):
        assert {path.parent.name for path in in_files.home.lake.glob(f"small/{table}/*/*")} == {*SCORED[2:]}
    assert stored_partitions(in_files.home, TableName("small", "predictions")) == {*SCORED[2:]}
