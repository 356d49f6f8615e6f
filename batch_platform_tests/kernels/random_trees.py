"""Trees of scikit-learn and boosters of every kind, fitted to random tables."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightgbm
import numpy as np
import xgboost
from hypothesis import strategies as st
from sklearn import ensemble, tree
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from batch_platform.kernels.forest.compiled import (
    CompilablePredictor,
    TreePredictor,
    compile_predictor,
    generated_rows,
    same_outcome,
)
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.contract import Contract, ContractColumn, Signature
from batch_platform.models.flavours.known import flavour_of
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

    @property
    def contract(self) -> Contract:
        numbers = [ContractColumn(name=f"x{at}", type="float", nullable=True) for at in range(self.columns)]
        if self.categories:
            codes = tuple(map(str, range(self.categories)))
            numbers[-1] = ContractColumn(name="code", type="category", nullable=True, categories=codes)
        return Contract(tuple(numbers))


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


def histogram(kind: type, **params: Any) -> Callable[[Shape], Any]:
    return lambda shape: kind(
        max_iter=shape.trees,
        max_leaf_nodes=shape.leaves,
        min_samples_leaf=1,
        categorical_features=[shape.columns - 1] if shape.categories else None,
        early_stopping=False,
        **params,
    )


def grown(kind: type, **params: Any) -> Callable[[Shape], Any]:
    return lambda shape: kind(n_estimators=shape.trees, max_depth=shape.depth, random_state=shape.seed, **params)


def single(kind: type) -> Callable[[Shape], Any]:
    return lambda shape: kind(max_depth=shape.depth, random_state=shape.seed)


def boosted(kind: type, **params: Any) -> Callable[[Shape], Any]:
    return lambda shape: grown(kind, **params)(replace(shape, depth=min(shape.depth, 8)))


def isolation(**params: Any) -> Callable[[Shape], Any]:
    return lambda shape: ensemble.IsolationForest(n_estimators=shape.trees, random_state=shape.seed, **params)


def light(kind: type = lightgbm.LGBMRegressor, **params: Any) -> Callable[[Shape], Any]:
    return lambda shape: kind(
        n_estimators=shape.trees,
        num_leaves=shape.leaves,
        max_depth=-1,
        min_child_samples=1,
        min_data_per_group=1,
        cat_smooth=0,
        n_jobs=1,
        verbose=-1,
        **params,
    )


def extreme(kind: type = xgboost.XGBRegressor, **params: Any) -> Callable[[Shape], Any]:
    return lambda shape: kind(
        n_estimators=shape.trees,
        max_leaves=shape.leaves,
        max_depth=min(shape.depth, 8),
        min_child_weight=0,
        n_jobs=1,
        enable_categorical=bool(shape.categories),
        feature_types=["q"] * (shape.columns - 1) + ["c"] if shape.categories else None,
        **params,
    )


def behind(step: Any, make: Callable[[Shape], Any]) -> Callable[[Shape], Any]:
    return lambda shape: make_pipeline(step, make(shape))


BOOSTERS: dict[str, Callable[[Shape], Any]] = {
    "lightgbm, classes": light(lightgbm.LGBMClassifier),
    "lightgbm, classes of a forest": light(
        lightgbm.LGBMClassifier, boosting_type="rf", bagging_freq=1, bagging_fraction=0.7
    ),
    "lightgbm, classes of dropped trees": light(lightgbm.LGBMClassifier, boosting_type="dart", drop_rate=0.5),
    "lightgbm, classes of a flat link": light(lightgbm.LGBMClassifier, sigmoid=0.5),
    "lightgbm, values": light(),
    "lightgbm, counts": light(objective="poisson"),
    "lightgbm, missing values unknown": light(use_missing=False),
    "lightgbm, shares": light(objective="cross_entropy"),
    "lightgbm, scaled": behind(StandardScaler(), light()),
    "xgboost, classes": extreme(xgboost.XGBClassifier),
    "xgboost, classes of a forest": extreme(xgboost.XGBRFClassifier),
    "xgboost, values": extreme(),
    "xgboost, counts": extreme(objective="count:poisson"),
    "xgboost, shares": extreme(objective="reg:logistic"),
    "xgboost, several trees a round": extreme(num_parallel_tree=3, subsample=0.5, base_score=0.3),
    "xgboost, one category against the rest": extreme(max_cat_to_onehot=1000),
    "xgboost, scaled": behind(StandardScaler(), extreme()),
}
MODELS: dict[str, Callable[[Shape], Any]] = {
    "histogram, classes": histogram(ensemble.HistGradientBoostingClassifier),
    "random forest, classes": grown(ensemble.RandomForestClassifier),
    "extra trees, classes": grown(ensemble.ExtraTreesClassifier, max_features=1),
    "boosted, classes": boosted(ensemble.GradientBoostingClassifier),
    "boosted, classes from zero": boosted(ensemble.GradientBoostingClassifier, init="zero"),
    "decision tree, classes": single(tree.DecisionTreeClassifier),
    "extra tree, classes": single(tree.ExtraTreeClassifier),
    "imputed, classes": behind(SimpleImputer(keep_empty_features=True), grown(ensemble.RandomForestClassifier)),
    "scaled, classes": behind(StandardScaler(), histogram(ensemble.HistGradientBoostingClassifier)),
    "histogram, values": histogram(ensemble.HistGradientBoostingRegressor),
    "histogram, poisson": histogram(ensemble.HistGradientBoostingRegressor, loss="poisson"),
    "histogram, gamma": histogram(ensemble.HistGradientBoostingRegressor, loss="gamma"),
    "random forest, values": grown(ensemble.RandomForestRegressor),
    "extra trees, values": grown(ensemble.ExtraTreesRegressor),
    "boosted, values": boosted(ensemble.GradientBoostingRegressor),
    "decision tree, values": single(tree.DecisionTreeRegressor),
    "extra tree, values": single(tree.ExtraTreeRegressor),
    "isolation forest": isolation(),
    "isolation forest of some columns": isolation(max_features=0.5),
    **BOOSTERS,
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


def learned(name: str, shape: Shape) -> Any:
    """A model fitted to labels that follow every column; a booster as it comes back from disk."""
    if "scaled" in name:
        shape = replace(shape, categories=0)
    matrix = table(shape, shape.rows, missing=not name.startswith(("boosted", "isolation")))
    random = np.random.default_rng(shape.seed)
    signal = np.sin(3 * np.nan_to_num(matrix, nan=0.7)).sum(axis=1) + 0.1 * random.normal(size=shape.rows)
    task, truth = "regression", 1 / (1 + np.exp(-signal))
    if "classes" in name:
        task = "binary" if shape.classes == 2 else "multiclass"
        truth = np.digitize(signal, np.quantile(signal, np.arange(1, shape.classes) / shape.classes))
    model = MODELS[name](shape)
    if name in BOOSTERS:
        codes = {"categorical_feature": [shape.columns - 1]} if shape.categories and "lightgbm" in name else {}
        model.fit(matrix, truth, **codes)
        signature = Signature(task, np.unique(truth).tolist() if "classes" in name else [], shape.contract)
        return flavour_of(model).reloaded(model, signature)
    with one_thread():
        return SklearnPredictor(model.fit(matrix, truth), "outliers" if name.startswith("isolation") else task)


def odd_rows(shape: Shape, predictor: CompilablePredictor) -> list[np.ndarray]:
    """Fresh rows, some unlike any in training, some without a value, and those that a proof is made of."""
    fresh = table(shape, 300)
    strange = fresh.copy(order="F")
    strange[::3] *= 1.7
    strange[1::7, -1] = np.arange(-3.5, 300, 0.5)[: len(strange[1::7])]
    unseen = fresh.copy(order="F")
    unseen[::2, -1] = np.nan
    return [fresh, strange, unseen, fresh[:64], fresh[:1], *generated_rows(predictor.parts(), shape.seed)]


def assert_the_same_bits(shape: Shape, predictor: CompilablePredictor) -> TreePredictor:
    compiled = compile_predictor(predictor)
    for matrix in odd_rows(shape, predictor):
        assert same_outcome(predictor, compiled, matrix)
    return compiled
