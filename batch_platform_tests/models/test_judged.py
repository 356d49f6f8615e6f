"""The scores of evaluation rows that a bundle keeps: how many, which ones, and that two versions can be compared by them."""

import numpy as np
import pytest

from batch_platform.models.judged import MOST_ROWS, MOST_SCORES, JudgedScores, verdict_on_shared_rows
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.outcomes import Outcomes

pytestmark = pytest.mark.unit


def judged(rows: np.ndarray, labels: list[object], noise: float, task="multiclass") -> JudgedScores:
    """A classifier of rows whose true class follows from their names; the more noise, the worse it is."""
    random = np.random.default_rng(len(labels))
    positions = (rows % len(labels)).astype(np.int64)
    raw = np.eye(len(labels))[positions] + noise * random.random((len(rows), len(labels)))
    truth = np.array(labels)[positions]
    return JudgedScores(Outcomes(task, raw / raw.sum(axis=1, keepdims=True), truth, labels), rows)


def stored(scores: JudgedScores) -> JudgedScores:
    return JudgedScores.from_parquet(scores.to_parquet(), scores.outcomes.task, list(scores.outcomes.classes))


def names(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(2**40, count, replace=False).astype(np.uint64)


@pytest.mark.parametrize(
    ("task", "labels"), [("binary", [False, True]), ("binary", ["no", "yes"]), ("multiclass", [3, 1, 2])]
)
def test_what_is_read_from_the_file_is_what_was_written(task, labels):
    written = judged(names(50), labels, 1.0, task)
    read = stored(written)
    assert read.rows.tolist() == written.rows.tolist()
    assert read.outcomes.predicted.tolist() == written.outcomes.predicted.tolist()
    assert read.outcomes.truth is not None
    assert read.outcomes.truth.tolist() == written.outcomes.truth.tolist()


def test_of_many_rows_the_file_keeps_those_that_another_version_keeps_too():
    rows = names(130_000)
    first, second = (stored(judged(part, [False, True], 1.0, "binary")) for part in (rows[:-10_000], rows[10_000:]))
    assert len(first.rows) == len(second.rows) == MOST_ROWS
    assert len(np.intersect1d(first.rows, second.rows)) > 0.9 * MOST_ROWS
    many = stored(judged(names(30_000), list(range(50)), 1.0))
    assert many.outcomes.predicted.size == MOST_SCORES


def test_two_versions_are_compared_on_the_rows_that_both_have_whatever_their_order_and_classes():
    rows = names(3_000)
    good, bad = judged(rows, ["a", "b", "c"], 1.0), judged(rows[:500:-1], ["c", "a", "b", "d"], 9.0)
    relabelled = judged(rows, ["a", "b", "c"], 9.0)
    verdict = verdict_on_shared_rows("accuracy", stored(good), stored(relabelled))
    assert isinstance(verdict, Verdict)
    assert (verdict.word, verdict.rows) == ("better", 3_000)
    of_shared = verdict_on_shared_rows("log_loss", good, bad)
    assert isinstance(of_shared, Verdict)
    assert of_shared.rows == len(rows[:500:-1])


def test_what_cannot_be_compared_says_why():
    rows = names(100)
    binary, other = judged(rows, ["a", "b"], 1.0, "binary"), judged(rows, ["c", "d"], 1.0, "binary")
    elsewhere = judged(names(100, seed=1), ["a", "b"], 1.0, "binary")
    number = JudgedScores(Outcomes("regression", np.zeros(100), np.ones(100)), rows)
    assert verdict_on_shared_rows("roc_auc", binary, other) == "it knows other classes"
    assert verdict_on_shared_rows("roc_auc", binary, number) == "it is of another task, regression"
    assert verdict_on_shared_rows("roc_auc", binary, elsewhere) == "there is no evaluation row that both have scored"
    assert verdict_on_shared_rows("mae", binary, binary) == "mae cannot be measured on the rows that both can score"
