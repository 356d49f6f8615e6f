"""Models of balanced samples: their probabilities are those of all rows, in every flavour and on every path."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.model import Model
from batch_platform.declaration.spec import Features
from batch_platform.models.fitting import fit
from batch_platform.models.refinements.calibration import PRIOR
from batch_platform.models.refinements.refinement import Applied, refined
from batch_platform_tests.harness.small_pipeline import carry_out, small_pipeline
from batch_platform_tests.models.prior_rows import drawn, rows

NOW = datetime(2024, 2, 3, 12, tzinfo=UTC)  # the model of February is due, and two days that it serves
FEATURES = Features.model_validate({"sql": "f.sql", "key": ["id"]})
ESTIMATORS = {
    "sklearn.ensemble.HistGradientBoostingClassifier": {"max_iter": 30, "max_leaf_nodes": 7},
    "sklearn.linear_model.LogisticRegression": {},
    "lightgbm.LGBMClassifier": {"n_estimators": 30, "num_leaves": 7, "verbosity": -1},
    "xgboost.XGBClassifier": {"n_estimators": 30, "max_depth": 3},
}


@pytest.mark.unit
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6), st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_the_correction_undoes_what_sampling_does_to_the_probability_of_a_class(weights, rates):
    truth = np.array(weights) / sum(weights)  # of the classes, given the features
    sampled = truth * rates[: len(truth)]

    class InSample:
        def predict(self, matrix):
            return np.tile(sampled / sampled.sum(), (len(matrix), 1))

    learned = {"rates": np.array(rates[: len(truth)])}
    shown = refined(InSample(), [Applied(PRIOR, learned)]).predict(np.zeros((3, 1)))
    np.testing.assert_allclose(shown, np.tile(truth, (3, 1)), rtol=1e-12)
    odds = np.log(shown[0, 1] / shown[0, 0]) - np.log(sampled[1] / sampled[0])
    assert odds == pytest.approx(np.log(rates[0] / rates[1]), abs=1e-9), "a shift of the log-odds"


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_probability_of_a_rare_class_is_its_share_of_all_rows(estimator, classes):
    data = drawn(classes)
    params = ESTIMATORS[estimator] | ({"random_state": 1} if "Logistic" not in estimator else {})
    fitted = fit(Model(estimator=estimator), FEATURES, data, params)
    matrix, truth = fitted.signature.contract.encode(data.evaluate), data.evaluate["label"].to_numpy()
    shown, raw = fitted.scorer.predict(matrix), fitted.predictor.predict(matrix)
    shares = np.array([(truth == label).mean() for label in fitted.signature.classes])
    np.testing.assert_allclose(shown.mean(axis=0), shares, rtol=0.2)
    assert (raw.mean(axis=0)[1:] > 2 * shares[1:]).all(), "which the model alone gets wrong"
    trivial = fitted.trivial.baseline.metrics["log_loss"]
    assert trivial == pytest.approx(-(shares * np.log(shares)).sum(), rel=0.02), (
        "the trivial model knows the shares too"
    )
    assert fitted.metrics["log_loss"] < trivial


def test_a_sample_in_proportion_that_keeps_few_rows_of_a_class_is_remarked_upon():
    linear = Model(estimator="sklearn.linear_model.LogisticRegression")
    (remark,) = fit(linear, FEATURES, drawn(2, 500, balanced=False), {}).remarks
    assert remark.startswith("the sample holds ")
    assert "rows of the class true; model.train.sample: balanced keeps" in remark
    assert fit(linear, FEATURES, drawn(2, 500), {}).remarks == ()


def test_a_balanced_sample_for_anything_but_a_classifier_is_refused(tmp_path):
    model = {"estimator": "sklearn.cluster.KMeans", "params": None, "train": {"sample": "balanced"}}
    pipeline = small_pipeline(tmp_path, model=model, labels=None)
    with pytest.raises(BatchPlatformError, match=r"model\.train\.sample: balanced is for classifiers only"):
        carry_out(pipeline, NOW)


@pytest.mark.unit
def test_without_a_maximum_each_class_has_as_many_rows_as_the_rarest_and_the_whole_window_keeps_that():
    data = drawn(3, most=None)
    counts = data.fit["label"].value_counts()["count"]
    assert counts.n_unique() == 1
    assert counts[0] == min(data.classes_before_cap.values())
    whole = data.whole(900, stratified=True)
    assert whole.rows_before_cap == 40_000
    assert set(whole.fit["label"].value_counts()["count"]) == {300}
    assert sum(whole.classes_before_cap.values()) == 40_000


@pytest.mark.unit
def test_the_reference_profile_of_a_balanced_sample_is_that_of_all_rows():
    data = drawn(2)
    model = Model(estimator="sklearn.tree.DecisionTreeClassifier", params={"max_depth": 2})
    reference, everybody = fit(model, FEATURES, data, {}).reference, rows(40_000, 2, 1)
    (x,) = [profile for profile in reference.features if profile.name == "x"]
    spread = everybody["x"].std()
    assert abs(data.fit["x"].mean() - everybody["x"].mean()) > spread / 8, "the sample itself is another one"
    assert abs(x.mean - everybody["x"].mean()) < spread / 25
    assert x.rows < data.fit.height
