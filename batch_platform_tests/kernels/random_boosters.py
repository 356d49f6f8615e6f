"""Boosters of every kind, fitted to random tables."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import xgboost
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from batch_platform.kernels.forest.compiled import CompilablePredictor
from batch_platform.models.contract import Contract, ContractColumn, Signature
from batch_platform.models.flavours.known import flavour_of
from batch_platform_tests.kernels.random_trees import Shape, table


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


BOOSTERS: dict[str, Callable[[Shape], Any]] = {
    "lightgbm, classes": light(lightgbm.LGBMClassifier),
    "lightgbm, classes of a forest": light(
        lightgbm.LGBMClassifier, boosting_type="rf", bagging_freq=1, bagging_fraction=0.7
    ),
    "lightgbm, dropped trees": light(lightgbm.LGBMClassifier, boosting_type="dart", drop_rate=0.5),
    "lightgbm, classes of a flat link": light(lightgbm.LGBMClassifier, sigmoid=0.5),
    "lightgbm, values": light(),
    "lightgbm, counts": light(objective="poisson"),
    "lightgbm, missing values unknown": light(use_missing=False),
    "lightgbm, shares": light(objective="cross_entropy"),
    "lightgbm, behind a scaler": lambda shape: make_pipeline(StandardScaler(), light()(shape)),
    "xgboost, classes": extreme(xgboost.XGBClassifier),
    "xgboost, classes of a forest": extreme(xgboost.XGBRFClassifier),
    "xgboost, values": extreme(),
    "xgboost, counts": extreme(objective="count:poisson"),
    "xgboost, shares": extreme(objective="reg:logistic"),
    "xgboost, several trees a round": extreme(num_parallel_tree=3, subsample=0.5, base_score=0.3),
    "xgboost, one category against the rest": extreme(max_cat_to_onehot=1000),
    "xgboost, behind a scaler": lambda shape: make_pipeline(StandardScaler(), extreme()(shape)),
}


def learned(name: str, shape: Shape) -> CompilablePredictor:
    """A booster fitted to labels that follow every column, as it comes back from disk."""
    if "scaler" in name:
        shape = replace(shape, categories=0)
    matrix = table(shape, shape.rows)
    random = np.random.default_rng(shape.seed)
    signal = np.sin(3 * np.nan_to_num(matrix, nan=0.7)).sum(axis=1) + 0.1 * random.normal(size=shape.rows)
    if "classes" in name or "dropped" in name:
        task = "binary" if shape.classes == 2 else "multiclass"
        truth = np.digitize(signal, np.quantile(signal, np.arange(1, shape.classes) / shape.classes))
        classes = np.unique(truth).tolist()
    else:
        task, classes, truth = "regression", [], 1 / (1 + np.exp(-signal))
    model = BOOSTERS[name](shape)
    categorical = shape.categories and flavour_of(model).name == "lightgbm"
    model.fit(matrix, truth, **({"categorical_feature": [shape.columns - 1]} if categorical else {}))
    predictor = flavour_of(model).reloaded(model, Signature(task, classes, contract(shape)))
    assert isinstance(predictor, CompilablePredictor)
    return predictor


def contract(shape: Shape) -> Contract:
    numbers = [ContractColumn(name=f"x{at}", type="float", nullable=True) for at in range(shape.columns)]
    if shape.categories:
        codes = tuple(map(str, range(shape.categories)))
        numbers[-1] = ContractColumn(name="code", type="category", nullable=True, categories=codes)
    return Contract(tuple(numbers))
