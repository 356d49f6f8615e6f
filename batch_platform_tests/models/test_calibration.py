"""Calibrated probabilities: scikit-learn's own, on every path alike, learned from rows that neither the model nor the gate has seen."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from xxhash import xxh3_64_intdigest

from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.inputs import WEIGHT
from batch_platform.declaration.model import Model
from batch_platform.declaration.spec import Features
from batch_platform.features.history import PARTITION_START, TrainingData
from batch_platform.models.bundle import Manifest, read_manifest
from batch_platform.models.declared_model import check_model
from batch_platform.models.fitting import Fitted, fit, refit
from batch_platform.models.refinements.calibration import CALIBRATION, PRIOR
from batch_platform.models.refinements.known import Declared
from batch_platform.models.refinements.refinement import Applied, refined
from batch_platform.models.registry import Registry
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.pipeline.challengers import check_challengers
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import (
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
    small_spec,
)
from batch_platform_tests.harness.tiers import crossed
from batch_platform_tests.pipeline.snapshots import MONDAY, snapshots

NOW = datetime(2024, 2, 3, 12, tzinfo=UTC)  # the model of February is due, and two days that it serves
FEATURES = Features.model_validate({"sql": "f.sql", "key": ["id"]})
FOREST = "sklearn.ensemble.RandomForestClassifier"
LINEAR = "sklearn.linear_model.LogisticRegression"
ESTIMATORS: dict[str, dict[str, Any]] = {
    "sklearn.ensemble.HistGradientBoostingClassifier": {"max_iter": 20},
    "sklearn.ensemble.GradientBoostingClassifier": {"n_estimators": 10},
    FOREST: {"n_estimators": 10},
    LINEAR: {},
    "sklearn.naive_bayes.GaussianNB": {},
    "lightgbm.LGBMClassifier": {"n_estimators": 10, "verbosity": -1},
    "xgboost.XGBClassifier": {"n_estimators": 10, "max_depth": 3},
}


def rows(count: int, classes: int, seed: int, days: int = 10) -> pl.DataFrame:
    """Rows of some days, whose class follows the columns."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 3))
    odds = np.column_stack([np.zeros(count), *(2 * x[:, at % 3] + x[:, (at + 1) % 3] for at in range(1, classes))])
    shares = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    label = (shares.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    starts = [start + timedelta(days=at * days // count) for at in range(count)]
    return pl.DataFrame(
        {
            **{name: x[:, at] for at, name in enumerate("abc")},
            "label": label if classes > 2 else label.astype(bool),
            PARTITION_START: pl.Series(starts, dtype=pl.Datetime("us", "UTC")),
        }
    )


@cache
def data(classes: int) -> TrainingData:
    return TrainingData(rows(1_500, classes, 1), rows(400 * classes, classes, 2), "label").divided()


def declared(method: str, *, checked: bool = True) -> tuple[Declared, ...]:
    """The refinements of a pipeline that calibrates; unless it is checked, a calibration is applied however good it is."""
    calibration = CALIBRATION if checked else replace(CALIBRATION, check=None)
    return Declared(PRIOR, "proportional"), Declared(calibration, method)


@cache
def calibrated(estimator: str, classes: int, method: str) -> Fitted:
    model = Model(estimator=estimator)
    return fit(model, FEATURES, data(classes), ESTIMATORS[estimator], declared=declared(method, checked=False))


def by_scikit_learn(fitted: Fitted, method: str, matrix: NDArray[np.float64]) -> NDArray[Any]:
    """The probabilities of scikit-learn, calibrated on the first part of the evaluation window."""
    first, contract = data(len(fitted.signature.classes)).unseen, fitted.signature.contract
    labels = first["label"].to_numpy()
    if "XGB" in type(fitted.estimator).__name__:  # knows classes by their positions
        labels = np.searchsorted(fitted.signature.classes, labels)
    frozen = CalibratedClassifierCV(FrozenEstimator(fitted.estimator), method=method)
    return frozen.fit(contract.encode(first), labels).predict_proba(matrix)


@pytest.mark.parametrize(("estimator", "classes", "method"), crossed(ESTIMATORS, [2, 3, 9], ["isotonic", "sigmoid"]))
def test_calibrated_probabilities_are_those_of_scikit_learn_to_the_last_bit(estimator, classes, method):
    fitted = calibrated(estimator, classes, method)
    assert [each.refinement.name for each in fitted.refinements.applied] == ["calibration"]
    matrix = fitted.signature.contract.encode(data(classes).evaluate)
    # Linear models are added up in another order, and where the fit of a sigmoid ends depends on the last bits of its scores.
    tolerance = 1e-8 if estimator == LINEAR else 0
    expected = by_scikit_learn(fitted, method, matrix)
    np.testing.assert_allclose(fitted.scorer.predict(matrix), expected, rtol=0, atol=tolerance)


@pytest.mark.unit
def test_a_calibration_that_makes_it_worse_beyond_chance_is_reported_and_not_applied():
    smooth = TrainingData(rows(1_500, 2, 1), rows(1_200, 2, 2), "label").divided()
    fine = fit(Model(estimator=LINEAR), FEATURES, smooth, {}, declared=declared("isotonic"))
    (remark,) = fine.remarks
    assert remark.startswith(
        "its probabilities are not calibrated, since those with model.calibrate (isotonic) are worse than its own: brier 0.149 against 0.146 on 600 rows"
    )
    assert fine.refinements.applied == ()
    facts = fine.refinements.facts["calibration"]
    assert facts["applied"] is False
    assert facts["brier_after"] > facts["brier_before"] == fine.metrics["brier"]


@pytest.mark.unit
def test_a_calibration_that_is_more_reliable_is_applied_although_it_ranks_less_finely():
    before, after = np.linspace(0.301, 0.499, 2_000), np.full(2_000, 0.5)  # too low, but it ranks
    truth = np.random.default_rng(1).random(2_000) < np.where(np.arange(2_000) < 1_000, 0.2, 0.8)
    raw, stepped = (
        Outcomes("binary", np.column_stack([1 - each, each]), truth, [False, True]) for each in (before, after)
    )
    check = CALIBRATION.check({"method": "isotonic", "rows": 2_000}, raw, stepped)
    assert check.facts["brier_after"] > check.facts["brier_before"]
    assert (check.facts["applied"], check.objection) == (True, "")


def test_a_calibration_of_a_forest_makes_its_probabilities_come_true():
    classes = 3
    fitted = fit(Model(estimator=FOREST), FEATURES, data(classes), ESTIMATORS[FOREST], declared=declared("isotonic"))
    facts = fitted.refinements.facts["calibration"]
    assert facts["applied"] is True
    assert facts["rows"] == data(classes).unseen.height
    for metric in ("brier", "log_loss", "calibration_error"):
        assert facts[f"{metric}_after"] < facts[f"{metric}_before"]
    assert facts["brier_after"] == fitted.metrics["brier"], "it is measured where the gate measures"


@pytest.mark.unit
def test_a_class_with_few_rows_in_the_first_half_leaves_the_model_uncalibrated_with_a_remark():
    few = data(2)
    first = few.unseen.with_columns(label=pl.int_range(pl.len()) < 9)
    fitted = fit(Model(estimator=LINEAR), FEATURES, replace(few, first_part=first), {}, declared=declared("sigmoid"))
    assert fitted.remarks == (
        (
            "its probabilities are not calibrated (model.calibrate: sigmoid): the 400 rows in the first half of the evaluation window "
            "hold too few of the classes True: 9; a longer model.train.evaluate has more"
        ),
    )
    assert fitted.refinements.applied == ()


@pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
@pytest.mark.parametrize("classes", [2, 3])
def test_declared_weights_count_in_the_calibration_as_in_scikit_learn(classes, method):
    weight = np.random.default_rng(3).integers(0, 9, data(classes).unseen.height) / 4
    first = data(classes).unseen.with_columns(pl.Series(WEIGHT, weight))
    weighed = replace(data(classes), first_part=first)
    made = fit(
        Model(estimator=FOREST), FEATURES, weighed, {"n_estimators": 10}, declared=declared(method, checked=False)
    )
    matrix = made.signature.contract.encode(data(classes).evaluate)
    frozen = CalibratedClassifierCV(FrozenEstimator(made.estimator), method=method)
    with pytest.warns(UserWarning, match="sample weights will only be used for the calibration itself"):
        frozen.fit(made.signature.contract.encode(first), first["label"].to_numpy(), sample_weight=weight)
    assert made.scorer.predict(matrix).tobytes() == frozen.predict_proba(matrix).tobytes()
    assert (made.scorer.predict(matrix) != calibrated(FOREST, classes, method).scorer.predict(matrix)).any()


@pytest.mark.parametrize(("learned", "stays"), [(75, False), (1_400, True)])
def test_a_calibration_of_a_fit_that_learned_far_less_than_the_one_that_serves_is_reported_and_not_applied(
    learned, stays
):
    known, model = data(2), Model(estimator=LINEAR)
    grouped = replace(known, fit=known.fit.head(learned), earlier=known.fit, rows_apart=1_500 - learned)
    judged = fit(model, FEATURES, grouped, {}, declared=declared("sigmoid", checked=False))
    served = refit(model, FEATURES, grouped.whole(None, stratified=True), {}, judged)
    fresh = rows(4_000, 2, 7)
    matrix, truth = served.signature.contract.encode(fresh), fresh["label"].to_numpy()
    shown, raw = (each.predict(matrix) for each in (served.scorer, served.predictor))
    (remark,) = [remark for remark in served.remarks if "calibrate" in remark] or [""]
    if stays:
        assert served.refinements.applied == judged.refinements.applied
        assert (shown != raw).any()
        assert not remark
        return
    assert (shown == raw).all()
    assert "the fit that was judged learned from 3% of the rows of the one that serves" in remark
    assert served.refinements.facts["calibration"] == {"applied": False}, "what was measured does not serve"
    worse = judged.refinements.around(served.predictor).predict(matrix)
    assert np.mean((raw[:, 1] - truth) ** 2) < np.mean((worse[:, 1] - truth) ** 2)


@pytest.mark.unit
def test_a_row_of_which_no_class_is_probable_gets_equal_shares():
    calibrators = [{"scores": np.array([0.0, 1.0]), "probabilities": np.array([0.0, top])} for top in (1.0, 0.5, 0.0)]
    learned = {"method": "isotonic", "decides": False, "single": False, "calibrators": calibrators}

    class Given:
        def predict(self, matrix):
            return matrix

    shown = refined(Given(), [Applied(CALIBRATION, learned)]).predict(np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_array_equal(shown, [[1 / 3, 1 / 3, 1 / 3], [2 / 3, 1 / 3, 0]])


def manifest_of(pipeline: Pipeline) -> Manifest:
    (version,) = pipeline.state().registry.of_model
    return read_manifest(pipeline.home.bundle("small", version.version), version.sha256)


def test_the_gate_sees_the_second_half_of_the_window_only_and_the_calibration_the_first(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW, model={"calibrate": "isotonic", "train": {"evaluate": "14 days"}})
    manifest, (version,) = manifest_of(pipeline), pipeline.state().registry.of_model
    labelled = small_events().filter(pl.col("returned").is_not_null())
    bounds = [datetime(2024, 1, day, 23, tzinfo=UTC) for day in (16, 23, 30)]
    known = bounds[1] - timedelta(days=1)  # labels of the last day are not known yet when the second half begins
    first, second = (
        labelled.filter(pl.col("ts").is_between(since, until, closed="left"))
        for since, until in ((bounds[0], known), bounds[1:])
    )
    evaluation = manifest.evaluation
    assert (evaluation.start, evaluation.end) == (bounds[1].isoformat(), bounds[2].isoformat())
    assert (evaluation.rows, evaluation.rows_refined) == (second.height, first.height)
    assert manifest.refinements["calibration"]["rows"] == first.height
    assert manifest.refinements["calibration"]["brier_after"] == evaluation.metrics["brier"]
    assert len(pipeline.bundle(version).judged.rows) == second.height
    assert manifest.training.rows == labelled.filter(pl.col("ts") < bounds[2]).height, "the second fit learns from all"


def test_the_rows_held_out_of_a_snapshot_are_divided_by_the_hash_of_their_key(tmp_path):
    pipeline = snapshots(
        tmp_path,
        model={"calibrate": "sigmoid", "train": {"every": None, "window": None, "evaluate": None, "held_out": "40%"}},
    )
    carry_out(pipeline, MONDAY)
    manifest = manifest_of(pipeline)
    known = small_events().head(2_000).filter(pl.col("returned").is_not_null())
    keys = (f"{row}\0{shop}".encode() for row, shop in known.select("id", "shop").iter_rows())
    places = [xxh3_64_intdigest(key, 0) / 2**64 for key in keys]
    assert manifest.evaluation.rows_refined == sum(place < 0.2 for place in places)
    assert manifest.evaluation.rows == sum(0.2 <= place < 0.4 for place in places)
    assert manifest.refinements["calibration"]["rows"] == manifest.evaluation.rows_refined


@pytest.mark.full
def test_a_challenger_without_calibration_is_judged_by_the_rows_that_judge_a_calibrated_model(tmp_path):
    plain = {"name": "plain", "estimator": FOREST, "params": {"n_estimators": 5}}
    calibrating = {"train": {"evaluate": "14 days"}, "calibrate": "sigmoid"}
    pipeline = small_pipeline(tmp_path, challengers=[plain], model=calibrating)
    carry_out(pipeline, NOW)
    challenger = pipeline.state().registry.challenger_at("plain", NOW)
    assert challenger is not None
    of_challenger = read_manifest(pipeline.home.bundle("small", challenger.version), challenger.sha256)
    judged = [manifest.evaluation for manifest in (manifest_of(pipeline), of_challenger)]
    assert len({(each.start, each.end, each.rows) for each in judged}) == 1
    assert [each.rows_refined > 0 for each in judged] == [True, False]
    assert of_challenger.refinements == {}


@pytest.mark.unit
def test_a_calibration_of_anything_but_a_classifier_is_refused_with_its_key(tmp_path):
    ridge = "sklearn.linear_model.Ridge"
    with pytest.raises(WrongUseError, match=r"model\.calibrate: isotonic is for .* and this is a regression"):
        check_model(Model(estimator=ridge, calibrate="isotonic"), tmp_path)
    challenger = {"name": "ridge", "estimator": ridge, "calibrate": "sigmoid"}
    with pytest.raises(WrongUseError, match=r"challengers\.ridge\.calibrate: sigmoid is for"):
        check_challengers(small_spec(challengers=[challenger]), tmp_path, Registry("small"))


@pytest.mark.unit
def test_a_calibration_without_labels_and_one_of_a_finished_version_are_refused_at_load():
    with pytest.raises(ValidationError, match=r"model\.calibrate: a calibration is learned from labels"):
        small_spec(labels=None, model={"calibrate": "sigmoid"})
    with pytest.raises(ValidationError, match="`calibrate` cannot be given to the version"):
        small_spec(challengers=[{"name": "old", "version": "2024-01-01-3f9c1a2b", "calibrate": "sigmoid"}])
    with pytest.raises(ValidationError, match="'isotonic' or 'sigmoid'"):
        small_spec(model={"calibrate": "platt"})


@pytest.mark.unit
def test_a_changed_calibration_makes_the_newest_model_due_and_leaving_it_out_changes_no_fingerprint():
    plain, fitted, other = (small_spec(model={"calibrate": each}).model for each in (None, "isotonic", "sigmoid"))
    assert plain.fingerprint == small_spec().model.fingerprint == "638740407324"
    assert len({plain.fingerprint, fitted.fingerprint, other.fingerprint}) == 3
