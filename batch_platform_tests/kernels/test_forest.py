"""Compiled trees return the bits, and raise the errors, of their library's own code for every matrix."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from hypothesis import given
from sklearn import ensemble
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from batch_platform.kernels.forest import arrays
from batch_platform.kernels.forest.compiled import compile_predictor, prove, proven_predictor, same_outcome
from batch_platform.kernels.forest.ensembles import NotCompilableError
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.contract import Signature
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform_tests.harness.tiers import crossed, examples
from batch_platform_tests.kernels.random_trees import MODELS, SHAPES, Shape, assert_the_same_bits, learned, light, table


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("name", MODELS)
@examples(8)
@given(shape=SHAPES)
def test_every_ensemble_gives_the_scores_of_its_library_bit_for_bit(name: str, shape: Shape):
    assert_the_same_bits(shape, learned(name, shape))


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        (Shape(leaves=32), "leaf masks of 32 bits"),
        (Shape(leaves=33), "leaf masks of 64 bits"),
        (Shape(leaves=64), "leaf masks of 64 bits"),
        (Shape(leaves=65), "descent"),
        (Shape(leaves=32, categories=70), "leaf masks of 32 bits"),
        (Shape(leaves=64, categories=200, missing=0.1), "leaf masks of 64 bits"),
        (Shape(leaves=65, categories=200, missing=0.1), "descent with sets"),
    ],
)
def test_the_kernel_follows_from_the_largest_tree_and_the_categories(shape: Shape, kernel: str):
    shape = replace(shape, rows=2000)
    assert assert_the_same_bits(shape, learned("histogram, classes", shape)).flat.kernel_name == kernel


def test_a_search_among_ten_thousand_thresholds_finds_each():
    shape = Shape(rows=4000, columns=2, trees=8, depth=40)
    predictor = learned("extra trees, values", shape)
    compiled: Any = assert_the_same_bits(shape, predictor)
    assert compiled.flat.encoding.levels.max() == 4
    thresholds = np.unique(np.concatenate([member.tree_.threshold for member in predictor.estimator.estimators_]))
    for values in (thresholds, np.nextafter(thresholds, np.inf), np.nextafter(thresholds, -np.inf)):
        assert same_outcome(predictor, compiled, np.column_stack([values, values[::-1]]))


@pytest.mark.parametrize(
    ("name", "classes"), crossed(["histogram", "random forest", "boosted", "lightgbm", "xgboost"], [2, 9])
)
def test_batches_layouts_and_threads_change_no_bit(name: str, classes: int):
    shape = Shape(rows=600, classes=classes, missing=0.0 if name == "boosted" else 0.1, categories=7)
    native = learned(f"{name}, classes", shape)
    compiled = compile_predictor(native)
    matrix = table(shape, 3000)
    whole = native.predict(matrix)
    shared = matrix.copy(order="F")
    shared.flags.writeable = False
    for layout in (matrix, np.ascontiguousarray(matrix), np.repeat(matrix, 2, axis=0)[::2], shared):
        assert compiled.predict(layout).tobytes() == whole.tobytes()
    for predictor in (native, compiled):
        for size in (1, 2, 63, 64, 65, 2047, 2048, 2049):
            head = matrix[: size * 40]
            parts = [predictor.predict(head[at : at + size]) for at in range(0, len(head), size)]
            assert np.concatenate(parts).tobytes() == whole[: len(head)].tobytes()
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(compiled.predict, [matrix] * 12))
    assert {result.tobytes() for result in results} == {whole.tobytes()}


@pytest.mark.parametrize("name", ["histogram", "random forest", "boosted", "decision tree", "imputed"])
def test_what_scikit_learn_refuses_is_refused_in_the_same_words(name: str):
    predictor = learned(f"{name}, classes", Shape())
    compiled = compile_predictor(predictor)
    for matrix in (np.empty((0, 4)), np.zeros((5, 3)), *(np.full((5, 4), odd) for odd in (np.inf, 1e39, np.nan))):
        assert same_outcome(predictor, compiled, matrix)


def test_numbers_that_lightgbm_treats_as_zero_take_the_path_of_zero():
    random = np.random.default_rng(0)
    matrix = random.choice([-1.0, 0.0, 1.0], (500, 2))
    model = lightgbm.LGBMRegressor(n_estimators=4, min_child_samples=1, verbose=-1)
    model.fit(matrix, (matrix[:, 0] == 0) * 3.0 + matrix[:, 1])
    shape = Shape(columns=2)
    predictor: Any = flavour_of(model).reloaded(model, Signature("regression", [], shape.contract))
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
    for model, best in ((extremely, extremely.best_iteration + 1), (lightly, lightly.best_iteration_)):
        predictor: Any = flavour_of(model).reloaded(model, Signature("regression", [], shape.contract))
        assert len(assert_the_same_bits(shape, predictor).parts.ensemble.trees) == best < 100


FOREIGN = [
    (ensemble.AdaBoostClassifier(n_estimators=2), "AdaBoostClassifier is not a tree ensemble"),
    (make_pipeline(StandardScaler(), LinearRegression()), "LinearRegression is not a tree ensemble"),
    (ensemble.RandomForestRegressor(2), "RandomForestRegressor predicts 2 columns at once"),
    (ensemble.GradientBoostingRegressor(init=LinearRegression()), "the prediction of another model"),
    (light(linear_tree=True), "its leaves are linear models"),
    (light(zero_as_missing=True), "it treats zeros as missing values"),
    (light(reg_sqrt=True), "'regression sqrt' does to a sum is not known"),
    (lambda _: xgboost.XGBRegressor(booster="gblinear", n_estimators=2), "gblinear is more than a sum of trees"),
    (light(), "more than 255 categories"),
]


@pytest.mark.parametrize(("model", "reason"), FOREIGN, ids=[reason for _, reason in FOREIGN])
def test_a_model_that_is_more_than_known_trees_stays_with_its_library_and_says_why(model: Any, reason: str):
    shape = Shape(rows=2000, categories=300) if "255" in reason else Shape(rows=50)
    matrix = table(shape, shape.rows)
    truth = (matrix[:, 0] > 0) * 1.0
    truths = np.column_stack([truth, truth]) if "2 columns" in reason else truth
    if hasattr(model, "fit"):
        predictor: Any = SklearnPredictor(model.fit(matrix, truths), "regression")
    else:
        model = model(shape)
        model.fit(matrix, np.sin(3 * matrix).sum(axis=1), **({"categorical_feature": [3]} if shape.categories else {}))
        predictor = flavour_of(model).reloaded(model, Signature("regression", [], shape.contract))
    with pytest.raises(NotCompilableError, match=reason):
        compile_predictor(predictor)
    proof = prove(predictor, matrix).compiled
    assert (proof.kernel, proof.rows) == (None, 0)
    assert reason in (proof.reason or "")


def a_leaf_off_by_its_last_bit(flat: Any) -> None:
    flat.trees.value[-1] = np.nextafter(flat.trees.value[-1], np.inf)


def a_threshold_off_by_one(flat: Any) -> None:
    flat.trees.cut[len(flat.trees.cut) // 2] += 1


def missing_values_sent_the_other_way(flat: Any) -> None:
    flat.encoding.missing[:] = 0


def infinities_let_in(flat: Any) -> None:
    flat.encoding.kind[:] = 0


FAULTS = [
    (a_leaf_off_by_its_last_bit, "random forest, classes"),
    (a_threshold_off_by_one, "histogram, classes"),
    (missing_values_sent_the_other_way, "histogram, classes"),
    (infinities_let_in, "random forest, classes"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_array_is_found_by_the_proof_and_the_native_path_serves(monkeypatch, fault, name: str):
    shape = Shape(missing=0.2, depth=5)
    predictor = learned(name, shape)
    assert prove(predictor, table(shape, 100)).compiled.kernel == "leaf masks of 32 bits"
    flatten = arrays.flatten

    def wrong(read: Any) -> arrays.Flat:
        flat = flatten(read)
        fault(flat)
        return flat

    monkeypatch.setattr(arrays, "flatten", wrong)
    proof = prove(predictor, table(shape, 100)).compiled
    assert proof.kernel is None
    assert "differs from the library's own result" in (proof.reason or "")
    with pytest.raises(NotCompilableError, match="differs from the library's own result"):
        proven_predictor(predictor)


OF_ANOTHER_PROCESS = """
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from batch_platform.kernels.forest import kernels
from batch_platform.kernels.forest.compiled import compile_predictor
from batch_platform.models.flavours.sklearn import SklearnPredictor
matrix = np.random.default_rng(0).normal(size=(200, 3))
native = SklearnPredictor(HistGradientBoostingRegressor(max_iter=3).fit(matrix, matrix[:, 0]), "regression")
compiled = compile_predictor(native)
assert compiled.predict(matrix).tobytes() == native.predict(matrix).tobytes()
print(sum(kernels.leaf_masks_32.stats.cache_hits.values()), sum(kernels.leaf_masks_32.stats.cache_misses.values()))
"""


@pytest.mark.full
def test_compiled_code_is_reused_by_the_next_process_and_survives_two_processes_at_once(tmp_path):
    command, environment = [sys.executable, "-c", OF_ANOTHER_PROCESS], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    at_once = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate()[0].strip() for process in at_once} <= {"0 1", "1 0"}
    assert subprocess.check_output(command, env=environment, text=True).strip() == "1 0"
