"""One suite that every measure of labelled partitions passes."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from batch_platform.monitoring.catalogue import MEASURES, declared_checks, evaluated_measures
from batch_platform.monitoring.measure import Expected, Intervals, ScoredPartition
from batch_platform.monitoring.metrics import measure
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.monitoring.every_task import LABELS, OUTCOMES, TASKS

pytestmark = pytest.mark.unit

ROWS = 300
SHARED_COLUMNS = {"partition_key", "model_version", "evaluated_at", "run_id", "challenger"}
EXPECTED = {  # metrics that are estimated before labels are known
    "binary": Expected("roc_auc", 0.9, 0.85, 0.95, before=(-0.5, 0.3, -1.0)),
    "multiclass": Expected("log_loss", 0.9, 0.8, 1.0, before=(-0.5, 0.3, -1.0)),
    "regression": Expected("mae", 1.0, 0.9, 1.1, before=(-0.5, 0.3, -1.0)),
}
ONLY_OF = {"interval_coverage": ("regression",), "concept_drift": EXPECTED, "cluster_profiles": ("clustering",)}
every_measure = pytest.mark.parametrize("record", evaluated_measures().values(), ids=evaluated_measures())
every_task = pytest.mark.parametrize("task", TASKS)
every_task_of_every_measure = pytest.mark.parametrize(
    ("record", "task"),
    [
        pytest.param(record, task, id=f"{task}-{name}")
        for name, record in evaluated_measures().items()
        for task in TASKS
        if task in ONLY_OF.get(name, TASKS)
    ],
)


def scored(task: str) -> ScoredPartition:
    """The random outcomes of a task as a scored partition, two rows of which have no label."""
    outcomes = OUTCOMES[task]
    predictions = pl.DataFrame({"id": range(ROWS), "prediction": outcomes.predicted.argmax(axis=-1)})
    if task in LABELS:
        columns = outcomes.predicted[:, 1:] if task == "binary" else outcomes.predicted
        scores = {f"score_{at}": columns[:, at] for at in range(columns.shape[1])}
        predictions = predictions.with_columns(**{name: pl.Series(values) for name, values in scores.items()})
    else:
        predictions = predictions.with_columns(prediction=pl.Series(outcomes.predicted))
        predictions = predictions.with_columns(score="prediction") if task == "outliers" else predictions
    features = predictions if outcomes.matrix is None else predictions.hstack(pl.DataFrame(outcomes.matrix))
    intervals = Intervals(level=0.9, correlation=0.01) if task == "regression" else None
    if intervals is not None:
        ends = {"prediction_low": pl.col("prediction") - 0.5, "prediction_high": pl.col("prediction") + 0.5}
        predictions = predictions.with_columns(**ends)
    labels = None if outcomes.truth is None else pl.DataFrame({"id": range(ROWS), "label": outcomes.truth})[2:]
    return ScoredPartition(
        task,
        outcomes.classes,
        ["id"],
        predictions,
        labels,
        lambda: (features, outcomes.matrix),
        intervals=intervals,
        expected=EXPECTED.get(task),
    )


def only(partition: ScoredPartition, rows: np.ndarray) -> ScoredPartition:
    """Some rows of a partition, in the order given."""
    predictions = partition.predictions[rows]

    def read_features() -> tuple[pl.DataFrame, np.ndarray]:
        frame, matrix = partition.read_features()
        return frame[rows], matrix[rows]

    return replace(partition, predictions=predictions, read_features=read_features)


@every_task_of_every_measure
def test_the_rows_have_the_columns_of_the_table_even_without_a_single_prediction(record, task):
    for rows in (np.arange(0), np.arange(1), np.arange(ROWS)):
        computed = record.compute(only(scored(task), rows))
        assert dict(computed.schema) == record.types
    assert not SHARED_COLUMNS & set(record.columns)
    assert computed.height > 0


@every_task_of_every_measure
def test_the_order_of_the_rows_does_not_matter(record, task):
    shuffled = only(scored(task), np.random.default_rng(3).permutation(ROWS))
    assert_frame_equal(record.compute(shuffled), record.compute(scored(task)), check_row_order=False, rel_tol=1e-12)


@every_task
def test_performance_is_the_metrics_of_the_labelled_rows_and_their_share(task):
    partition, outcomes = scored(task), OUTCOMES[task]
    record = MEASURES["performance"]
    numbers = record.numbers(record.compute(partition))
    if task == "clustering":
        assert numbers == measure(outcomes)
        return
    labelled = replace(outcomes, predicted=outcomes.predicted[2:], truth=outcomes.truth[2:], rule=None)
    coverage = {"label_coverage": (ROWS - 2) / ROWS, "label_not_known_yet": 2 / ROWS}
    coverage |= {"label_class_unknown": 0.0} if task in LABELS else {}
    assert numbers == pytest.approx(measure(labelled) | coverage, rel=1e-12)
    assert set(record.compute(partition)["rows_labelled"]) == {ROWS - 2}


def test_a_label_of_a_class_that_the_model_does_not_know_is_counted_and_named_beside_each_metric():
    partition, record = scored("multiclass"), MEASURES["performance"]
    labels = partition.labels.with_columns(label=pl.when(pl.col("id") < 12).then(pl.lit("new")).otherwise("label"))
    rows = record.compute(replace(partition, labels=labels))
    assert set(rows.select("rows_labelled", "rows_of_unknown_class", "unknown_classes").rows()) == {(298, 10, "new")}
    assert dict(rows.select("metric", "rows").rows()) == {
        **dict.fromkeys(("log_loss", "brier", "roc_auc"), 288),
        **dict.fromkeys(("accuracy", "f1"), 298),
        "label_coverage": 300,
        "label_not_known_yet": 300,
        "label_class_unknown": 300,
    }
    numbers, known = record.numbers(rows), record.numbers(record.compute(replace(partition, labels=labels[10:])))
    assert numbers["accuracy"] == pytest.approx(known["accuracy"] * 288 / 298)
    assert numbers["log_loss"] == known["log_loss"]
    assert numbers["label_coverage"] == pytest.approx(288 / 300)
    assert numbers["label_not_known_yet"] == pytest.approx(2 / 300)
    assert numbers["label_class_unknown"] == pytest.approx(10 / 300)


@pytest.mark.parametrize(
    ("metric", "row", "passed"),
    [
        (None, {"value": 0.5}, False),
        (None, {"value": 0.5, "low": 0.3, "high": 0.7}, True),
        ("log_loss", {"value": 0.7}, False),
        ("log_loss", {"value": 0.7, "low": 0.61, "high": 0.8}, False),
        ("bias", {"value": -0.7, "low": -0.8, "high": -0.61}, False),
        ("bias", {"value": -0.7, "low": -1.8, "high": 0.9}, True),
    ],
)
def test_performance_is_judged_by_the_metric_of_the_gate_and_warned_of_only_beyond_chance(metric, row, passed):
    spec = small_spec(monitoring={"performance": {"warn_below": 0.6}}, model={"promote": {"metric": metric}})
    check, record, name = (
        declared_checks(spec, "performance")["performance"],
        MEASURES["performance"],
        metric or "roc_auc",
    )
    empty = dict.fromkeys(record.columns)
    rows = pl.DataFrame([empty | {"metric": name, "rows": 40, "positives": 9} | row], schema=record.types)
    judgement = check.judge(rows, "binary")
    assert (judgement.name, judgement.bound) == (name, 0.6)
    assert judgement.value == abs(row["value"])
    assert judgement.passed is passed
    assert judgement.remarks == {"rows": 40, "positives": 9} | {key: row[key] for key in ("low", "high") if key in row}
    assert check.judge(rows.with_columns(metric=pl.lit("accuracy")), "binary") is None
    assert check.judge(rows.with_columns(in_sample=True), "binary") is None
    assert ("at most" if metric else "at least") in check.description
