"""Trees of scikit-learn of every kind, fitted to random tables."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from sklearn import ensemble, tree
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from batch_platform.kernels.forest.compiled import (
    CompilablePredictor,
    CompiledPredictor,
    compile_predictor,
    generated_rows,
    same_outcome,
)
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.flavours.sklearn import SklearnPredictor


@dataclass(frozen=True)
class Shape:
    """The training data of an ensemble, and how large it grows."""

    seed: int = 0
    rows: int = 200
    columns: int = 4
    classes: int = 2
    trees: int = 5
    leaves: int = 31
    depth: int = 6
    missing: float = 0.0
    categories: int = 0  # of the last column; 0 makes it a number


SHAPES = st.builds(
    Shape,
    seed=st.integers(0, 10_000),
    rows=st.integers(40, 250),
    columns=st.integers(1, 5),
    classes=st.sampled_from([2, 3, 9]),
    trees=st.integers(1, 6),
    leaves=st.sampled_from([2, 3, 31, 32, 33, 64, 65, 200]),
    depth=st.sampled_from([1, 3, 5, 6, 7, 20]),
    missing=st.sampled_from([0.0, 0.2]),
    categories=st.sampled_from([0, 3, 63, 64, 65, 200]),
)


def histogram(shape: Shape, kind: type, **params: Any) -> Any:
    categorical = [shape.columns - 1] if shape.categories else None
    return kind(
        max_iter=shape.trees,
        max_leaf_nodes=shape.leaves,
        min_samples_leaf=1,
        categorical_features=categorical,
        early_stopping=False,
        **params,
    )


def grown(shape: Shape, kind: type, **params: Any) -> Any:
    return kind(n_estimators=shape.trees, max_depth=shape.depth, random_state=shape.seed, **params)


def single(shape: Shape, kind: type, **params: Any) -> Any:
    return kind(max_depth=shape.depth, random_state=shape.seed, **params)


def boosted(shape: Shape, kind: type, **params: Any) -> Any:
    return kind(n_estimators=shape.trees, max_depth=min(shape.depth, 8), random_state=shape.seed, **params)


CLASSIFIERS: dict[str, Callable[[Shape], Any]] = {
    "histogram": lambda shape: histogram(shape, ensemble.HistGradientBoostingClassifier),
    "random forest": lambda shape: grown(shape, ensemble.RandomForestClassifier),
    "extra trees": lambda shape: grown(shape, ensemble.ExtraTreesClassifier, max_features=1),
    "boosted": lambda shape: boosted(shape, ensemble.GradientBoostingClassifier),
    "boosted from zero": lambda shape: boosted(shape, ensemble.GradientBoostingClassifier, init="zero"),
    "decision tree": lambda shape: single(shape, tree.DecisionTreeClassifier),
    "extra tree": lambda shape: single(shape, tree.ExtraTreeClassifier),
    "imputed forest": lambda shape: make_pipeline(
        SimpleImputer(keep_empty_features=True), grown(shape, ensemble.RandomForestClassifier)
    ),
    "scaled histogram": lambda shape: make_pipeline(
        StandardScaler(), histogram(replace(shape, categories=0), ensemble.HistGradientBoostingClassifier)
    ),
}
REGRESSORS: dict[str, Callable[[Shape], Any]] = {
    "histogram": lambda shape: histogram(shape, ensemble.HistGradientBoostingRegressor),
    "histogram, poisson": lambda shape: histogram(shape, ensemble.HistGradientBoostingRegressor, loss="poisson"),
    "histogram, gamma": lambda shape: histogram(shape, ensemble.HistGradientBoostingRegressor, loss="gamma"),
    "random forest": lambda shape: grown(shape, ensemble.RandomForestRegressor),
    "extra trees": lambda shape: grown(shape, ensemble.ExtraTreesRegressor),
    "boosted": lambda shape: boosted(shape, ensemble.GradientBoostingRegressor),
    "decision tree": lambda shape: single(shape, tree.DecisionTreeRegressor),
    "extra tree": lambda shape: single(shape, tree.ExtraTreeRegressor),
}


def table(shape: Shape, rows: int, *, missing: bool = True) -> np.ndarray:
    """Rows with ties, numbers that 32 bits cannot hold, and codes of categories in the last column."""
    random = np.random.default_rng([shape.seed, rows])
    matrix = random.normal(size=(rows, shape.columns))
    matrix[:, ::2] = matrix[:, ::2].round(1)
    if shape.categories:
        matrix[:, -1] = random.integers(0, shape.categories, rows)
    if missing:
        matrix[random.random(matrix.shape) < shape.missing] = np.nan
    return np.asfortranarray(matrix)


def learned(name: str, make: Callable[[Shape], Any], shape: Shape, task: str) -> SklearnPredictor:
    """An estimator fitted to labels that follow every column."""
    matrix = table(shape, shape.rows, missing=not name.startswith("boosted"))
    random = np.random.default_rng(shape.seed)
    signal = np.sin(3 * np.nan_to_num(matrix, nan=0.7)).sum(axis=1) + 0.1 * random.normal(size=shape.rows)
    if task == "regression":
        truth = np.exp(signal)
    else:
        truth = np.digitize(signal, np.quantile(signal, np.arange(1, shape.classes) / shape.classes))
    with one_thread():
        return SklearnPredictor(make(shape).fit(matrix, truth), task)


def odd_rows(shape: Shape, predictor: CompilablePredictor) -> list[np.ndarray]:
    """Fresh rows, some unlike any in training, some without a value, and those that a proof is made of."""
    fresh = table(shape, 300)
    strange = fresh.copy(order="F")
    strange[::3] *= 1.7
    strange[1::7, -1] = np.arange(-3.5, 300, 0.5)[: len(strange[1::7])]
    unseen = fresh.copy(order="F")
    unseen[::2, -1] = np.nan
    return [fresh, strange, unseen, fresh[:64], fresh[:1], *generated_rows(predictor.parts(), shape.seed)]


def assert_the_same_bits(shape: Shape, predictor: CompilablePredictor) -> CompiledPredictor:
    compiled = compile_predictor(predictor)
    for matrix in odd_rows(shape, predictor):
        assert same_outcome(predictor, compiled, matrix)
    return compiled
