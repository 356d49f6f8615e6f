"""A pipeline whose predictions and challengers' scores are in files reads, is measured, traced and repaired like any other."""

from pathlib import Path
from typing import Any

import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.recovery import verify
from batch_platform_tests.faults.invariants import NOW, SCORED, days, prepared
from batch_platform_tests.harness.small_pipeline import carry_out

IN_FILES = {"predictions": {"store": "parquet"}}
CHALLENGED = {"challengers": [{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}]}


def scored_again(folder: Path, **declared: Any) -> Pipeline:
    """Ten days, scored and measured again by the pipeline as declared, and by a challenger that learns only now."""
    pipeline = prepared(folder, **CHALLENGED, **declared)
    carry_out(pipeline, NOW, "challenger")
    list(pipeline.score(days(pipeline, *SCORED), Stamp("again", NOW), force=True))
    carry_out(pipeline, NOW, "measured")
    return pipeline


@pytest.fixture
def in_files(tmp_path: Path) -> Pipeline:
    return scored_again(tmp_path, **IN_FILES)


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
