"""Compiled trees return the bits, and raise the errors, of scikit-learn's own code for every matrix."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from sklearn import ensemble, tree
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from batch_platform.kernels.forest import arrays
from batch_platform.kernels.forest import compiled as proof_of
from batch_platform.kernels.forest.compiled import (
    compile_predictor,
    prove,
    proven_predictor,
    same_outcome,
)
from batch_platform.kernels.forest.ensembles import NotCompilableError
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform_tests.harness.tiers import crossed, examples
from batch_platform_tests.kernels.random_trees import (
    CLASSIFIERS,
    REGRESSORS,
    SHAPES,
    Shape,
    assert_the_same_bits,
    learned,
    table,
)


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def isolation(shape: Shape, **params: Any) -> SklearnPredictor:
    forest = ensemble.IsolationForest(n_estimators=shape.trees, random_state=shape.seed, **params)
    return SklearnPredictor(forest.fit(table(shape, shape.rows, missing=False)), "outliers")


KINDS: dict[str, Callable[[Shape], SklearnPredictor]] = {
    **{f"classes of {name}": partial(learned, name, make, task="multiclass") for name, make in CLASSIFIERS.items()},
    **{f"values of {name}": partial(learned, name, make, task="regression") for name, make in REGRESSORS.items()},
    "isolation forest": isolation,
    "isolation forest of some columns": partial(isolation, max_features=0.5),
}


@pytest.mark.parametrize("kind", KINDS)
@examples(8)
@given(shape=SHAPES)
def test_every_ensemble_gives_the_scores_of_scikit_learn_bit_for_bit(kind: str, shape: Shape):
    assert_the_same_bits(shape, KINDS[kind](shape))


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
    predictor = learned("histogram", CLASSIFIERS["histogram"], shape, "binary")
    assert assert_the_same_bits(shape, predictor).flat.kernel_name == kernel


def test_a_search_among_ten_thousand_thresholds_finds_each():
    shape = Shape(rows=4000, columns=2, trees=8, depth=40)
    predictor = learned("extra trees", REGRESSORS["extra trees"], shape, "regression")
    compiled = assert_the_same_bits(shape, predictor)
    assert compiled.flat.encoding.levels.max() == 4
    thresholds = np.unique(np.concatenate([member.tree_.threshold for member in predictor.estimator.estimators_]))
    for values in (thresholds, np.nextafter(thresholds, np.inf), np.nextafter(thresholds, -np.inf)):
        assert same_outcome(predictor, compiled, np.column_stack([values, values[::-1]]))


def test_a_value_goes_left_up_to_exactly_its_threshold_in_32_bits():
    predictor = SklearnPredictor(tree.DecisionTreeRegressor().fit([[0.1], [0.3]], [1.0, 2.0]), "regression")
    cut = np.float32(predictor.estimator.tree_.threshold[0])
    up = np.nextafter(cut, np.float32(1))
    halfway = (float(cut) + float(up)) / 2
    matrix = np.array([[float(cut)], [np.nextafter(halfway, 0)], [np.nextafter(halfway, 1)], [float(up)]])
    expected = predictor.predict(matrix)
    assert {1.0, 2.0} == set(expected.tolist())
    np.testing.assert_array_equal(compile_predictor(predictor).predict(matrix), expected)


@pytest.mark.parametrize(("name", "classes"), crossed(["histogram", "random forest", "boosted"], [2, 9]))
def test_batches_layouts_and_threads_change_no_bit(name: str, classes: int):
    shape = Shape(rows=600, classes=classes, missing=0.0 if name.startswith("boosted") else 0.1, categories=7)
    native = learned(name, CLASSIFIERS[name], shape, "multiclass")
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


@pytest.mark.parametrize("name", ["histogram", "random forest", "boosted", "decision tree", "imputed forest"])
def test_what_scikit_learn_refuses_is_refused_in_the_same_words(name: str):
    predictor = learned(name, CLASSIFIERS[name], Shape(), "binary")
    compiled = compile_predictor(predictor)
    for matrix in (np.empty((0, 4)), np.zeros((5, 3)), *(np.full((5, 4), odd) for odd in (np.inf, 1e39, np.nan))):
        assert same_outcome(predictor, compiled, matrix)


def test_a_proof_takes_all_held_out_rows_up_to_its_limit_and_beyond_it_evenly_spaced_ones(monkeypatch):
    shape = Shape()
    predictor = learned("histogram", CLASSIFIERS["histogram"], shape, "binary")
    monkeypatch.setattr(proof_of, "MAX_HELD_OUT", 100)
    none, *more = [prove(predictor, table(shape, rows)).compiled.rows for rows in (0, 100, 101, 200, 201)]
    assert [rows - none for rows in more] == [100, 51, 100, 67]


@pytest.mark.parametrize(
    ("estimator", "truth", "reason"),
    [
        (ensemble.AdaBoostClassifier(n_estimators=2), [0, 1] * 10, "AdaBoostClassifier is not a tree ensemble"),
        (
            make_pipeline(StandardScaler(), LinearRegression()),
            [0.0, 1.0] * 10,
            "LinearRegression is not a tree ensemble",
        ),
        (ensemble.RandomForestRegressor(2), [[0.0, 1.0]] * 20, "RandomForestRegressor predicts 2 columns at once"),
        (
            ensemble.GradientBoostingRegressor(init=LinearRegression()),
            [0.0, 1.0] * 10,
            "the prediction of another model",
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_a_model_that_cannot_be_compiled_stays_native_and_says_why(estimator: Any, truth: list[Any], reason: str):
    matrix = np.random.default_rng(0).normal(size=(20, 2))
    predictor = SklearnPredictor(estimator.fit(matrix, truth), "regression")
    with pytest.raises(NotCompilableError, match=reason):
        compile_predictor(predictor)
    proof = prove(predictor, matrix).compiled
    assert (proof.kernel, proof.rows) == (None, 0)
    assert reason in (proof.reason or "")


def a_leaf_off_by_its_last_bit(flat: arrays.Flat) -> None:
    flat.trees.value[-1] = np.nextafter(flat.trees.value[-1], np.inf)


def a_threshold_off_by_one(flat: arrays.Flat) -> None:
    flat.trees.cut[len(flat.trees.cut) // 2] += 1


def missing_values_sent_the_other_way(flat: arrays.Flat) -> None:
    flat.encoding.missing[:] = 0


def infinities_let_in(flat: arrays.Flat) -> None:
    flat.encoding.kind[:] = 0


FAULTS = [
    (a_leaf_off_by_its_last_bit, "random forest"),
    (a_threshold_off_by_one, "histogram"),
    (missing_values_sent_the_other_way, "histogram"),
    (infinities_let_in, "random forest"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_array_is_found_by_the_proof_and_the_native_path_serves(monkeypatch, fault, name: str):
    shape = Shape(missing=0.2, depth=5)
    predictor = learned(name, CLASSIFIERS[name], shape, "binary")
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
