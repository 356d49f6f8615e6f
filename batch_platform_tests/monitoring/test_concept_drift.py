"""Labels that contradict the predictions: told for exchanged labels, however rare a class is, and neither by chance nor on a bad day."""

import numpy as np
import polars as pl
import pytest

from batch_platform.monitoring.measure import Expected, ScoredPartition
from batch_platform.monitoring.measures.evaluated import CONCEPT_DRIFT, CONTRADICTION
from batch_platform_tests.harness.small_pipeline import small_spec

RARE, WEAK = 0.03, 0.45  # typical probabilities of the positive class


def chances(random: np.random.Generator, typical: float, rows: int) -> np.ndarray:
    """Probabilities that differ from row to row."""
    return 1 / (1 + np.exp(-random.normal(np.log(typical / (1 - typical)), 0.8, rows)))


def measured(scores: np.ndarray, truth: np.ndarray) -> pl.DataFrame:
    """The measure of a partition with these scores and labels, whose scores are the true probabilities."""
    of_rows = -scores * np.log(scores) - (1 - scores) * np.log(1 - scores)  # expected loss
    spread = scores * (1 - scores) * np.log(scores / (1 - scores)) ** 2  # its variance
    reach = 1.96 * np.sqrt(spread.sum()) / len(scores)
    expected = Expected("roc_auc", 0.7, 0.4, 1.0, log_loss=(of_rows.mean(), of_rows.mean() + reach))
    keys = pl.Series(range(len(scores)))
    predictions = pl.DataFrame({"id": keys, "prediction": scores > 0.5, "score": scores})
    labels = pl.DataFrame({"id": keys, "label": truth})

    def no_features() -> tuple[pl.DataFrame, np.ndarray]:
        raise AssertionError

    return CONCEPT_DRIFT.compute(
        ScoredPartition("binary", [False, True], ["id"], predictions, labels, no_features, expected=expected)
    )


@pytest.mark.parametrize("typical", [RARE, 0.2])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("rows", [60, 500])
def test_exchanged_labels_contradict_the_predictions_however_rare_a_class_is(typical, share, rows):
    random = np.random.default_rng(1)
    scores = chances(random, typical, rows)
    truth = random.random(rows) < scores
    assert not measured(scores, truth)["contradicted"].any()
    (row,) = measured(scores, truth ^ (random.random(rows) < share)).to_dicts()
    assert row["contradicted"]
    assert row["metric"] == "log_loss"
    assert row["value"] > np.log(2) > row["estimate"]
    finding = CONCEPT_DRIFT.check(small_spec()).judge(pl.DataFrame([row]), "2024-02-01")
    assert finding.level == "warn"
    assert finding.shown["what"].startswith(CONTRADICTION)


@pytest.mark.full
def test_a_weak_model_is_hardly_ever_contradicted_by_chance():
    random = np.random.default_rng(4)
    found = 0
    for _ in range(1500):
        scores = chances(random, WEAK, 60)
        found += measured(scores, random.random(60) < scores)["contradicted"].sum()
    assert found <= 2
