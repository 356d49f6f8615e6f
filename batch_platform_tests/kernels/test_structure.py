"""A tree whose indices lead out of it, or back, is refused before its library walks it."""

import json

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    BaggingRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from skops import io

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.model import Model
from batch_platform.kernels.forest.compiled import PlainTrees, TreePredictor
from batch_platform.kernels.forest.estimators import malformed_estimator
from batch_platform.models.declared_model import read_import
from batch_platform.models.flavours.sklearn import SklearnPredictor

pytestmark = pytest.mark.unit

RANDOM = np.random.default_rng(3)
MATRIX = np.column_stack([RANDOM.random((200, 3)), RANDOM.integers(0, 5, 200)])
LATE = MATRIX[:, 0] + MATRIX[:, 3] / 5 > 1
SMALL = {"n_estimators": 3, "random_state": 0}
SOUND = [
    DecisionTreeClassifier(),
    RandomForestClassifier(**SMALL),
    GradientBoostingClassifier(**SMALL),
    BaggingRegressor(max_features=0.5, **SMALL),
    IsolationForest(max_features=0.5, **SMALL),
    HistGradientBoostingClassifier(max_iter=3, categorical_features=[3]),
    make_pipeline(SimpleImputer(), CalibratedClassifierCV(RandomForestClassifier(**SMALL), cv=2)),
    StackingClassifier(
        [("tree", DecisionTreeClassifier()), ("boosted", HistGradientBoostingClassifier(max_iter=2))], cv=2
    ),
    TransformedTargetRegressor(HistGradientBoostingRegressor(max_iter=3)),
]


@pytest.mark.parametrize("estimator", SOUND, ids=lambda estimator: type(estimator).__name__)
def test_what_scikit_learn_fits_is_sound(estimator):
    assert malformed_estimator(estimator.fit(MATRIX, LATE)) is None


def broken_tree(**changes):
    """A fitted tree with fields of its first node, or its number of nodes, changed."""
    estimator = DecisionTreeRegressor(max_depth=3).fit(MATRIX, LATE)
    state = estimator.tree_.__getstate__()
    count = changes.pop("node_count", state["node_count"])
    nodes = state["nodes"].copy()
    for name, value in changes.items():
        nodes[name][0] = value
    estimator.tree_.__setstate__(state | {"nodes": nodes, "node_count": count})
    return estimator


def broken_histogram(**changes):
    estimator = HistGradientBoostingRegressor(max_iter=2, categorical_features=[3]).fit(MATRIX, LATE)
    for name, value in changes.items():
        estimator._predictors[1][0].nodes[name][0] = value
    return estimator


def of_other_columns():
    forest = RandomForestClassifier(**SMALL).fit(MATRIX, LATE)
    wider = RandomForestClassifier(**SMALL).fit(np.column_stack([MATRIX, MATRIX]), LATE)
    forest.estimators_[1] = wider.estimators_[1]
    return forest


BROKEN = {
    "its own child": lambda: broken_tree(left_child=0),
    "a child beyond the end": lambda: broken_tree(right_child=99_999_999),
    "a column beyond the last": lambda: broken_tree(feature=4),
    "more nodes than it holds": lambda: broken_tree(node_count=1 << 40),
    "a tree of a wider forest": of_other_columns,
    "a histogram's own child": lambda: broken_histogram(left=0),
    "a histogram's child beyond the end": lambda: broken_histogram(right=4_000_000_000),
    "a histogram's set of another column": lambda: broken_histogram(is_categorical=1, feature_idx=2),
    "a histogram's set that is not there": lambda: broken_histogram(is_categorical=1, feature_idx=0, bitset_idx=9_999),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tree_that_contradicts_itself_is_refused(name):
    broken = BROKEN[name]()
    assert malformed_estimator(broken)
    assert malformed_estimator(make_pipeline(SimpleImputer(), broken)), "wherever it is held"


def test_such_a_file_of_skops_is_refused_before_it_scores(tmp_path):
    (tmp_path / "model.skops").write_bytes(io.dumps(broken_histogram(feature_idx=77)))
    with pytest.raises(DataError, match=r"model\.skops is damaged: a tree splits by a column beyond its 4"):
        read_import(Model.model_validate({"import": "model.skops"}), tmp_path, {})


@pytest.mark.full
def test_such_a_file_of_xgboost_is_refused_before_it_scores(tmp_path):
    import xgboost

    fitted = xgboost.XGBClassifier(n_estimators=2, max_depth=3).fit(MATRIX, LATE)
    text = fitted.get_booster().save_raw(raw_format="json")
    for field, value, problem in (
        ("left_children", 0, "has nodes that lie outside of it, or that several nodes lead to"),
        ("split_indices", 77, "splits by a column beyond its 4"),
    ):
        broken = json.loads(text)
        broken["learner"]["gradient_booster"]["model"]["trees"][1][field][0] = value
        (tmp_path / "model.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=rf"model.json is damaged: tree 1 {problem}"):
            read_import(Model.model_validate({"import": "model.json"}), tmp_path, {})


def test_a_value_on_its_threshold_goes_left_and_a_missing_one_where_the_library_sends_it():
    values, labels = [[0.0], [1.0], [2.0], [np.nan], [np.nan]], [1.0, 2.0, 3.0, 4.0, 4.0]
    estimator = DecisionTreeRegressor().fit(values, labels)
    predictor = SklearnPredictor(estimator, "regression")
    cuts = [[cut] for cut in estimator.tree_.threshold if np.isfinite(cut) and cut > 0]
    matrix = np.array([*values, *cuts])
    parts = predictor.parts()
    plain = TreePredictor(predictor, parts, PlainTrees.of(parts.ensemble))
    assert len(cuts) > 1
    np.testing.assert_array_equal(plain.evaluated(matrix), estimator.predict(matrix))
