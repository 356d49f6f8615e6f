"""Rules of decision on plain arrays: thresholds that follow from costs, and classes of least cost."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.predictions import Decide, rule_in, rule_text
from batch_platform.models.refinements.refinement import may_be_selected
from batch_platform.monitoring.decisions import as_decided, rule_of
from batch_platform.monitoring.metrics import measure
from batch_platform.monitoring.outcomes import Outcomes

pytestmark = pytest.mark.unit

CLASSES = ["a", "b", "c"]
COSTS = {"a": {"b": 1, "c": 2}, "b": {"a": 5, "c": 1}, "c": {"a": 3, "b": 1}}


def rule(**declared: object) -> Decide:
    return Decide.model_validate(declared)


def draws(rows: int = 20_000) -> Outcomes:
    """Calibrated probabilities of a class that a quarter of the rows have."""
    random = np.random.default_rng(0)
    score = random.beta(1, 3, rows)
    return Outcomes("binary", np.column_stack([1 - score, score]), random.random(rows) < score, [False, True])


def under(declared: Decide) -> Outcomes:
    """The same rows, decided by a rule."""
    return replace(draws(), rule=rule_of(declared, "binary", [False, True]))


@pytest.mark.parametrize(
    ("declared", "threshold"),
    [
        (rule(threshold=0.3), 0.3),
        (rule(costs={"false_positive": 1, "false_negative": 8}), 1 / 9),
        (rule(costs={True: {False: 8}, False: {True: 1}}), 1 / 9),
        (rule(benefit=40, cost=2), 0.05),
    ],
)
def test_a_row_is_acted_on_from_the_threshold_that_a_rule_means(declared, threshold):
    made_out = rule_of(declared, "binary", [False, True])
    score = np.array([0, np.nextafter(threshold, 0), threshold, np.nextafter(threshold, 1), 1])
    assert made_out.decided(np.column_stack([1 - score, score])).tolist() == [0, 0, 1, 1, 1]
    single = score.astype(np.float32)
    decided = made_out.decided(np.column_stack([1 - single, single])).tolist()
    assert decided == (single.astype(np.float64) >= threshold).astype(int).tolist()


def test_the_threshold_that_follows_from_costs_costs_least_on_calibrated_probabilities():
    for declared in (rule(costs={"false_positive": 1, "false_negative": 8}), rule(benefit=40, cost=2)):
        measured = measure(under(declared))
        cost, hindsight = measured["decision_cost"], measured["decision_cost_in_hindsight"]
        assert cost < min(measured["decision_cost_always"], measured["decision_cost_never"])
        assert hindsight <= cost <= hindsight + 0.01 * abs(hindsight)


def test_of_several_classes_the_one_of_least_expected_cost_is_decided_and_the_first_of_equal_ones():
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], 1000)
    made_out = rule_of(rule(costs=COSTS), "multiclass", CLASSES)
    matrix = np.array([[0, 1, 2], [5, 0, 1], [3, 1, 0]])
    assert made_out.decided(shares).tolist() == (shares @ matrix).argmin(axis=1).tolist()
    alike = rule(costs={name: dict.fromkeys(set(CLASSES) - {name}, 1) for name in CLASSES})
    assert rule_of(alike, "multiclass", CLASSES).decided(np.full((1, 3), 1 / 3)).tolist() == [0]


def test_a_share_of_the_rows_is_rounded_down():
    assert [rule(top="29%").most(rows) for rows in (0, 3, 100, 101)] == [0, 0, 29, 29]
    assert [rule(top=500).most(rows) for rows in (0, 499, 501)] == [0, 499, 500]
    assert rule(top="100%").most(7) == 7


def test_stored_decisions_are_measured_whatever_the_rule_would_decide():
    outcomes = Outcomes("binary", np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]), np.array([1, 0, 1]), [0, 1])
    rows = pl.DataFrame({"decision": [True, False, None]})
    assert as_decided(outcomes, rows, rule(top=1)).decisions.tolist() == [1, 0, 1]
    assert as_decided(outcomes, rows, None).decisions.tolist() == [0, 1, 1]
    by_class = Outcomes("multiclass", np.eye(3), np.array(CLASSES), CLASSES)
    decided = as_decided(by_class, pl.DataFrame({"decision": ["c", "a", "b"]}), rule(costs=COSTS))
    assert decided.decisions.tolist() == [2, 0, 1]
    assert measure(decided)["decision_cost"] == pytest.approx((2 + 5 + 1) / 3)


@pytest.mark.parametrize(
    ("declared", "task", "classes", "refusal"),
    [
        (rule(threshold=0.3), "regression", [], "needs probabilities of classes, and the model is of the task reg"),
        (rule(top=3), "multiclass", CLASSES, "has 3 classes (a, b, c), among which only `costs` by class can decide"),
        (rule(costs={**COSTS, "C": {"a": 1}}), "multiclass", CLASSES, "the model has no class 'C'"),
        (rule(costs={**COSTS, "c": {"a": 1}}), "multiclass", CLASSES, "correct c.b"),
    ],
)
def test_a_rule_that_does_not_fit_a_model_is_refused_with_its_key(declared, task, classes, refusal):
    with pytest.raises(DataError) as error:
        rule_of(declared, task, classes)
    assert refusal in error.value.message
    assert "predictions.decide" in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    "declared", [rule(threshold="30%"), rule(costs=COSTS), rule(benefit=40, cost=2), rule(top="5%")]
)
def test_the_text_of_a_rule_gives_the_rule_back(declared):
    assert rule_in(rule_text(declared)) == declared
    assert rule_text(rule(costs=dict(reversed(COSTS.items())))) == rule_text(rule(costs=COSTS))


def test_the_rows_that_may_be_selected_hold_those_that_are():
    score = np.random.default_rng(0).random(1000).round(2)
    probabilities = np.column_stack([1 - score, score])
    for declared, most in ((rule(threshold=0.9), 120), (rule(top=30), 60), (rule(top="3%"), 1000)):
        maybe = may_be_selected(declared, probabilities, "binary", [False, True]).to_numpy()
        assert maybe.sum() <= most
        made_out = rule_of(declared, "binary", [False, True]).decided(probabilities)
        selected = score >= np.sort(score)[-30] if made_out is None else made_out == 1
        assert not (selected & ~maybe).any()
    assert len(may_be_selected(rule(top=30), np.empty((0, 2)), "binary", [False, True])) == 0
    assert may_be_selected(rule(costs=COSTS), np.eye(3), "multiclass", CLASSES).all()
