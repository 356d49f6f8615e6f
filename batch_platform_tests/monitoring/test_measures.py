"""One suite that every measure passes."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from batch_platform.monitoring.catalogue import MEASURES, declared_checks
from batch_platform.monitoring.measure import Judgement, ScoredPartition
from batch_platform.monitoring.metrics import measure
from batch_platform_tests.monitoring.test_metrics import LABELS, OUTCOMES, TASKS
from batch_platform_tests.small_pipeline import small_spec

ROWS = 300
SHARED_COLUMNS = {"partition_key", "model_version", "evaluated_at", "run_id", "challenger"}
every_measure = pytest.mark.parametrize("record", MEASURES.values(), ids=MEASURES)
every_task = pytest.mark.parametrize("task", TASKS)


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
    labels = None if outcomes.truth is None else pl.DataFrame({"id": range(ROWS), "label": outcomes.truth})[2:]
    return ScoredPartition(task, outcomes.classes, ["id"], predictions, labels, lambda: (predictions, outcomes.matrix))


def only(partition: ScoredPartition, rows: np.ndarray) -> ScoredPartition:
    """Some rows of a partition, in the order given."""
    predictions = partition.predictions[rows]

    def read_features() -> tuple[pl.DataFrame, np.ndarray]:
        frame, matrix = partition.read_features()
        return frame[rows], matrix[rows]

    return replace(partition, predictions=predictions, read_features=read_features)


@every_measure
@every_task
def test_the_rows_have_the_columns_of_the_table_even_without_a_single_prediction(record, task):
    for rows in (np.arange(0), np.arange(1), np.arange(ROWS)):
        computed = record.compute(only(scored(task), rows))
        assert dict(computed.schema) == dict(record.columns)
    assert not SHARED_COLUMNS & set(record.columns)
    assert computed.height > 0


@every_measure
@every_task
def test_the_same_partition_gives_the_same_rows_bit_for_bit(record, task):
    assert record.compute(scored(task)).equals(record.compute(scored(task)))


@every_measure
@every_task
def test_the_order_of_the_rows_does_not_matter(record, task):
    shuffled = only(scored(task), np.random.default_rng(3).permutation(ROWS))
    assert_frame_equal(record.compute(shuffled), record.compute(scored(task)), check_row_order=False, rel_tol=1e-12)


@every_measure
@every_task
def test_numbers_are_finite_and_named(record, task):
    numbers = record.numbers(record.compute(scored(task)))
    assert numbers
    assert all(isinstance(name, str) and np.isfinite(value) for name, value in numbers.items())
    assert record.numbers(record.compute(only(scored(task), np.arange(0)))) is not None


@every_measure
def test_a_measure_describes_itself_and_is_judged_only_if_that_is_declared(record):
    assert record.description.endswith(".")
    assert record.name == next(name for name, listed in MEASURES.items() if listed is record)
    assert record.check(small_spec()) is None


@every_task
def test_performance_is_the_metrics_of_the_labelled_rows_and_their_share(task):
    partition, outcomes = scored(task), OUTCOMES[task]
    record = MEASURES["performance"]
    numbers = record.numbers(record.compute(partition))
    if task == "clustering":
        assert numbers == measure(outcomes)
        return
    labelled = replace(outcomes, predicted=outcomes.predicted[2:], truth=outcomes.truth[2:])
    assert numbers == pytest.approx(measure(labelled) | {"label_coverage": (ROWS - 2) / ROWS}, rel=1e-12)
    assert set(record.compute(partition)["rows_labelled"]) == {ROWS - 2}


def test_a_label_of_a_class_that_the_model_does_not_know_is_not_counted():
    partition = scored("multiclass")
    labels = partition.labels.with_columns(label=pl.when(pl.col("id") < 10).then(pl.lit("new")).otherwise("label"))
    strange = replace(partition, labels=labels)
    assert strange.labelled.height == ROWS - 10


@every_task
def test_a_supervised_model_is_not_measured_without_labels(task):
    record = MEASURES["performance"]
    numbers = record.numbers(record.compute(replace(scored(task), labels=None)))
    assert set(numbers) == {"clustering": {"silhouette"}, "outliers": {"outlier_share"}}.get(task, set())


def test_a_clustering_with_labels_is_measured_too():
    clustering = scored("clustering")
    labels = pl.DataFrame({"id": range(0, ROWS, 2), "label": ["a"] * (ROWS // 2)})
    record = MEASURES["performance"]
    numbers = record.numbers(record.compute(replace(clustering, labels=labels)))
    assert numbers == measure(OUTCOMES["clustering"]) | {"label_coverage": 0.5}


@pytest.mark.parametrize(
    ("metric", "value", "passed"),
    [(None, 0.5, False), (None, 0.6, True), ("log_loss", 0.7, False), ("log_loss", 0.6, True)],
)
def test_performance_is_judged_by_the_metric_of_the_gate(metric, value, passed):
    spec = small_spec(monitoring={"performance": {"warn_below": 0.6}}, model={"promote": {"metric": metric}})
    check = declared_checks(spec)["performance"]
    judgement = check.judge({metric or "roc_auc": value}, "binary")
    assert judgement == Judgement(metric or "roc_auc", value, 0.6, lower_is_better=metric == "log_loss")
    assert judgement.passed is passed
    assert check.judge({"accuracy": 1.0}, "binary") is None
    assert ("at most" if metric else "at least") in check.description
