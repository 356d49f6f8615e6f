"""Law 4 to the last bit: the score of a row does not depend on the rows beside it, whatever the model."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVR

from batch_platform.kernels.predictor import BLOCK_ROWS
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform_tests.harness.tiers import examples

pytestmark = pytest.mark.unit

ROWS, COLUMNS = 2 * BLOCK_ROWS + 333, 13
CLASSIFIERS = {
    "logistic": LogisticRegression(),
    "network": MLPClassifier((17, 5), max_iter=5, random_state=0),
    "vote": VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(5))], voting="soft"),
    "forest on components": make_pipeline(PCA(7), RandomForestClassifier(10, random_state=0)),
}
REGRESSORS = {"support vectors": SVR()}


@cache
def matrix() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, COLUMNS)) * np.geomspace(1e-3, 1e3, COLUMNS)


@cache
def fitted(name: str) -> SklearnPredictor:
    learned = matrix()[:250]
    values = learned @ np.geomspace(1e3, 1e-3, COLUMNS)
    if name in REGRESSORS:
        return SklearnPredictor(REGRESSORS[name].fit(learned, values), "regression")
    classes = np.digitize(values, np.quantile(values, [0.3, 0.6]))
    return SklearnPredictor(CLASSIFIERS[name].fit(learned, classes), "multiclass")


@cache
def whole(name: str) -> np.ndarray:
    return fitted(name).predict(matrix())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", [*CLASSIFIERS, *REGRESSORS])
@examples(6)
@given(seed=st.integers(0, 2**32), size=st.integers(1, ROWS), order=st.sampled_from("CF"))
def test_the_rows_beside_a_row_and_the_layout_of_the_table_change_no_bit_of_its_score(name, seed, size, order):
    chosen = np.random.default_rng(seed).permutation(ROWS)[:size]
    part = fitted(name).predict(np.array(matrix()[chosen], order=order))
    np.testing.assert_array_equal(part, whole(name)[chosen])
