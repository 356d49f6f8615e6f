"""Evaluation: committed predictions are compared with the labels known now, whatever became of the model since."""

from datetime import UTC, datetime

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.metrics import measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.small_pipeline import carry_out, finished_pipeline, small_events, small_pipeline

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
IN_FEBRUARY = pl.col("ts") >= datetime(2024, 1, 31, 23, tzinfo=UTC)


def day(pipeline, key="2024-02-03"):
    return pipeline.spec.partitions.calendar.named(key)


def performance(pipeline, key="2024-02-03") -> dict[str, float]:
    with pipeline.warehouse.open() as con:
        query = "SELECT metric, value FROM small.performance WHERE partition_key = $key"
        return dict(con.execute(query, {"key": key}).fetchall())


def test_the_metrics_of_a_partition_are_those_of_its_rows_and_labels(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    with pipeline.warehouse.open() as con:
        scored = con.sql("SELECT id, score FROM small.predictions WHERE partition_key = '2024-02-03'").pl()
    labelled = scored.join(small_events(), on="id").filter(pl.col("returned").is_not_null()).sort("id")
    probabilities = labelled.select(1 - pl.col("score"), score2="score").to_numpy()
    expected = measure(Outcomes("binary", probabilities, labelled["returned"].to_numpy(), [False, True]))
    coverage = {"label_coverage": labelled.height / scored.height, "label_class_unknown": 0.0}
    coverage["label_not_known_yet"] = 1 - coverage["label_coverage"]
    assert performance(pipeline) == pytest.approx(expected | coverage)
    assert pipeline.state().evaluations["2024-02-03"].rows_labelled == labelled.height


def test_labels_that_are_nan_are_not_known_yet_and_those_of_an_unknown_class_are_named(tmp_path):
    kind = pl.when(pl.col("returned")).then(1.0).otherwise(0.0)
    odd = (
        pl.when(pl.col("id") % 4 == 0)
        .then(float("nan"))
        .when((pl.col("id") % 4 == 1) & IN_FEBRUARY)
        .then(7.0)
        .otherwise(kind)
    )
    pipeline = small_pipeline(tmp_path, events=small_events().with_columns(returned=odd))
    carry_out(pipeline, NOW)
    shares = {name: value for name, value in performance(pipeline).items() if name.startswith("label_")}
    assert shares == {"label_coverage": 0.5, "label_not_known_yet": 0.25, "label_class_unknown": 0.25}
    with pipeline.warehouse.open() as con:
        beside = "rows_labelled, rows_of_unknown_class, unknown_classes"
        query = f"SELECT DISTINCT {beside} FROM small.performance WHERE partition_key = '2024-02-03'"
        assert con.execute(query).fetchall() == [(30, 10, "7.0")]
    assert performance(pipeline)["accuracy"] <= 20 / 30


def test_a_partition_that_is_not_scored_does_not_hold_up_others(tmp_path):
    pipeline = small_pipeline(tmp_path)
    carry_out(pipeline, datetime(2024, 2, 10, tzinfo=UTC))
    seen = []
    with pytest.raises(DataError, match="2024-02-20: it is not scored yet"):
        seen += pipeline.evaluate([day(pipeline, "2024-02-20"), day(pipeline)], Stamp("again", NOW))
    assert [measured.partition for measured in seen] == [day(pipeline)]
    assert pipeline.state().evaluations[day(pipeline).key].run_id == "again"
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(datetime(2024, 2, 10, tzinfo=UTC))).items == []
