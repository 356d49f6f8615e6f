"""Compiled boosters: the bits of LightGBM's and XGBoost's own code, for whatever matrix comes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import lightgbm
import numpy as np
import pytest
import xgboost
from hypothesis import given

from batch_platform.kernels.forest.compiled import CompilablePredictor, compile_predictor, prove, same_outcome
from batch_platform.kernels.forest.ensembles import NotCompilableError
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.contract import Signature
from batch_platform.models.flavours.known import flavour, flavour_of
from batch_platform_tests.harness.tiers import crossed, examples
from batch_platform_tests.kernels.random_boosters import BOOSTERS, contract, extreme, learned, light
from batch_platform_tests.kernels.random_trees import SHAPES, Shape, assert_the_same_bits, table


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("name", BOOSTERS)
@examples(12)
@given(shape=SHAPES)
def test_every_booster_gives_the_scores_of_its_library_bit_for_bit(name: str, shape: Shape):
    assert_the_same_bits(shape, learned(name, shape))


@pytest.mark.parametrize(
    ("shape", "name"),
    crossed(
        [
            Shape(rows=3000, missing=0.1, categories=7),
            Shape(rows=3000, classes=3, categories=70),
            Shape(rows=3000, leaves=200, depth=20),
        ],
        ["lightgbm, classes", "xgboost, classes", "lightgbm, values", "xgboost, values"],
    ),
)
def test_the_compiled_form_itself_scores_whatever_a_contract_accepts(monkeypatch, shape: Shape, name: str):
    predictor = learned(name, shape)
    compiled = compile_predictor(predictor)
    rows = table(shape, 2000)
    expected = predictor.predict(rows)
    monkeypatch.setattr(type(predictor), "predict", None)
    assert compiled.predict(rows).tobytes() == expected.tobytes()
    with ThreadPoolExecutor(4) as threads:
        assert {scores.tobytes() for scores in threads.map(compiled.predict, [rows] * 8)} == {expected.tobytes()}


def test_numbers_that_lightgbm_treats_as_zero_take_the_path_of_zero():
    random = np.random.default_rng(0)
    matrix = random.choice([-1.0, 0.0, 1.0], (500, 2))
    model = lightgbm.LGBMRegressor(n_estimators=4, min_child_samples=1, verbose=-1)
    model.fit(matrix, (matrix[:, 0] == 0) * 3.0 + matrix[:, 1])
    shape = Shape(columns=2)
    predictor = flavour("lightgbm").reloaded(model, Signature("regression", [], contract(shape)))
    assert isinstance(predictor, CompilablePredictor)
    compiled = assert_the_same_bits(shape, predictor)
    smallest = float(np.float32(1e-35))
    assert smallest in np.abs(compiled.parts.ensemble.trees[0].threshold)
    near = [0.0, -0.0, 1e-36, -1e-36, smallest, -smallest, np.nextafter(smallest, 1), np.nextafter(-smallest, -1)]
    rows = np.column_stack([near * 2, near[::-1] * 2])
    assert len(set(predictor.predict(rows).tolist())) > 1
    assert same_outcome(predictor, compiled, rows)


def test_only_the_rounds_up_to_the_best_count_where_training_stopped_early():
    shape = Shape(rows=400)
    matrix = table(shape, shape.rows)
    truth = np.nan_to_num(matrix[:, 0]) + np.random.default_rng(0).normal(size=shape.rows)
    known, held_out = (matrix[:200], truth[:200]), (matrix[200:], truth[200:])
    extremely = xgboost.XGBRegressor(n_estimators=200, early_stopping_rounds=3, n_jobs=1)
    lightly = lightgbm.LGBMRegressor(n_estimators=200, early_stopping_rounds=3, verbose=-1)
    extremely.fit(*known, eval_set=[held_out], verbose=False)
    lightly.fit(*known, eval_X=held_out[0], eval_y=held_out[1])
    for model in (extremely, lightly):
        predictor = flavour_of(model).reloaded(model, Signature("regression", [], contract(shape)))
        assert isinstance(predictor, CompilablePredictor)
        compiled = assert_the_same_bits(shape, predictor)
        best = model.best_iteration + 1 if isinstance(model, xgboost.XGBModel) else model.best_iteration_
        assert len(compiled.parts.ensemble.trees) == best < 100


NOT_COMPILABLE = {
    "linear models in the leaves": (light(linear_tree=True), Shape(), "its leaves are linear models"),
    "zeros are missing": (light(zero_as_missing=True), Shape(), "it treats zeros as missing values"),
    "roots": (light(reg_sqrt=True), Shape(), "'regression sqrt' does to a sum is not known"),
    "a linear booster": (extreme(booster="gblinear"), Shape(), "gblinear is more than a sum of trees"),
    "many categories": (light(), Shape(rows=2000, categories=300), "more than 255 categories"),
}


@pytest.mark.parametrize("name", NOT_COMPILABLE)
def test_a_booster_that_is_more_than_trees_stays_with_its_library_and_says_why(name: str):
    make, shape, reason = NOT_COMPILABLE[name]
    matrix = table(shape, shape.rows)
    model = make(shape)
    if name == "a linear booster":
        model.set_params(max_leaves=None, max_depth=None, min_child_weight=None)
    known = {"categorical_feature": [shape.columns - 1]} if shape.categories else {}
    model.fit(matrix, np.sin(3 * matrix).sum(axis=1), **known)
    predictor = flavour_of(model).reloaded(model, Signature("regression", [], contract(shape)))
    assert isinstance(predictor, CompilablePredictor)
    with pytest.raises(NotCompilableError, match=reason):
        compile_predictor(predictor)
    proof = prove(predictor, matrix).compiled
    assert (proof.kernel, proof.rows) == (None, 0)
    assert reason in (proof.reason or "")
