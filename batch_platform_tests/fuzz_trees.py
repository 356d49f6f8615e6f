"""Random tree models of every kind, until the time is over: `python -m batch_platform_tests.fuzz_trees --seed 0 --minutes 15`.

Each model has a kind, data, objectives, missing values, categories and parameters that follow from the seed and its number
alone. Its compiled form has to give the bits of its library, and raise its errors, on rows like those of training, on rows
unlike any, and on the rows that a proof is made of. The suite runs some of the same models: `test_fuzz_trees.py`.
"""

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic
from typing import Any

import lightgbm
import numpy as np
import xgboost
from sklearn import ensemble, tree

from batch_platform.models.contract import Signature
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.flavours.sklearn import SklearnPredictor
from batch_platform.models.forest.compiled import CompilablePredictor, compile_predictor, same_outcome
from batch_platform.models.forest.ensembles import NotCompilableError
from batch_platform.models.native_threads import one_thread
from batch_platform_tests.models.random_boosters import contract
from batch_platform_tests.models.random_trees import Shape, odd_rows, table

Draw = Callable[..., Any]  # one of some values


def shape_of(draw: Draw) -> Shape:
    """The training data of a model, and how large it grows."""
    return Shape(
        seed=draw(*range(10_000)),
        rows=draw(40, 90, 250, 900),
        columns=draw(1, 2, 3, 5, 9),
        classes=draw(2, 2, 3, 9),
        trees=draw(1, 2, 6, 20),
        leaves=draw(2, 3, 31, 32, 33, 64, 65, 200),
        depth=draw(1, 3, 5, 6, 7, 20),
        missing=draw(0.0, 0.05, 0.3, 0.9),
        categories=draw(0, 0, 2, 3, 63, 64, 65, 200),
    )


def histogram(draw: Draw, shape: Shape, task: str) -> Any:
    """Histogram trees of scikit-learn."""
    params: dict[str, Any] = {
        "max_iter": shape.trees,
        "max_leaf_nodes": shape.leaves,
        "max_depth": draw(None, shape.depth),
        "min_samples_leaf": draw(1, 5, 20),
        "learning_rate": draw(0.01, 0.1, 1.0, 3.0),
        "l2_regularization": draw(0.0, 1.0, 100.0),
        "max_bins": draw(2, 16, 255),
        "max_features": draw(1.0, 0.3),
        "early_stopping": draw(False, False, True) and shape.rows > 200,
        "categorical_features": [shape.columns - 1] if shape.categories else None,
        "random_state": shape.seed,
    }
    if task == "regression":
        loss = draw("squared_error", "absolute_error", "poisson", "gamma", "quantile")
        quantile = {"quantile": draw(0.05, 0.5, 0.9)} if loss == "quantile" else {}
        monotonic_cst = None if shape.categories else draw(None, [draw(-1, 0, 1)] * shape.columns)
        params |= {"loss": loss, "monotonic_cst": monotonic_cst} | quantile
        return ensemble.HistGradientBoostingRegressor(**params)
    return ensemble.HistGradientBoostingClassifier(**params, class_weight=draw(None, "balanced"))


def grown(draw: Draw, shape: Shape, task: str) -> Any:
    """Forests and single trees of scikit-learn."""
    of_classes = {
        "random forest": ensemble.RandomForestClassifier,
        "extra trees": ensemble.ExtraTreesClassifier,
        "decision tree": tree.DecisionTreeClassifier,
        "extra tree": tree.ExtraTreeClassifier,
    }
    of_values = {
        "random forest": ensemble.RandomForestRegressor,
        "extra trees": ensemble.ExtraTreesRegressor,
        "decision tree": tree.DecisionTreeRegressor,
        "extra tree": tree.ExtraTreeRegressor,
    }
    kind = draw(*of_classes)
    criteria = ("squared_error", "friedman_mse", "poisson") if task == "regression" else ("gini", "entropy", "log_loss")
    params: dict[str, Any] = {
        "max_depth": draw(None, shape.depth),
        "max_leaf_nodes": draw(None, shape.leaves),
        "min_samples_leaf": draw(1, 5),
        "max_features": draw(None, 1, 0.5, "sqrt"),
        "ccp_alpha": draw(0.0, 0.0, 0.01),
        "criterion": draw(*criteria),
        "random_state": shape.seed,
    }
    if kind in ("random forest", "extra trees"):
        bootstrap = draw(True, False)
        params |= {"n_estimators": shape.trees, "bootstrap": bootstrap, "max_samples": 0.5 if bootstrap else None}
    if task != "regression":
        params["class_weight"] = draw(None, "balanced")
    return (of_values if task == "regression" else of_classes)[kind](**params)


def boosted(draw: Draw, shape: Shape, task: str) -> Any:
    """Gradient boosting of scikit-learn, which takes no missing values."""
    params: dict[str, Any] = {
        "n_estimators": shape.trees,
        "max_depth": min(shape.depth, 8),
        "learning_rate": draw(0.01, 0.1, 1.0),
        "subsample": draw(1.0, 0.5),
        "init": draw(None, "zero"),
        "random_state": shape.seed,
    }
    if task == "regression":
        loss = draw("squared_error", "absolute_error", "huber", "quantile")
        return ensemble.GradientBoostingRegressor(**params, loss=loss, alpha=draw(0.1, 0.9))
    loss = draw("log_loss", "exponential") if task == "binary" else "log_loss"
    return ensemble.GradientBoostingClassifier(**params, loss=loss)


def light(draw: Draw, shape: Shape, task: str) -> Any:
    """LightGBM."""
    boosting = draw("gbdt", "gbdt", "dart", "rf")
    params: dict[str, Any] = {
        "n_estimators": shape.trees,
        "num_leaves": shape.leaves,
        "max_depth": draw(-1, shape.depth),
        "learning_rate": draw(0.01, 0.1, 1.0),
        "min_child_samples": draw(1, 5, 20),
        "min_data_per_group": draw(1, 100),
        "cat_smooth": draw(0, 10),
        "max_cat_to_onehot": draw(1, 4, 1000),
        "reg_alpha": draw(0.0, 1.0),
        "reg_lambda": draw(0.0, 1.0),
        "max_bin": draw(3, 255),
        "extra_trees": draw(False, True),
        "path_smooth": draw(0.0, 1.0),
        "use_missing": draw(True, True, False),
        "zero_as_missing": draw(False, False, False, True),
        "linear_tree": draw(*[False] * 9, True),
        "boosting_type": boosting,
        "random_state": shape.seed,
        "n_jobs": 1,
        "verbose": -1,
    }
    if boosting == "rf":
        params |= {"subsample_freq": 1, "subsample": 0.7}
    if task == "regression":
        objectives = ("regression", "regression_l1", "huber", "fair", "poisson", "quantile", "mape", "gamma", "tweedie")
        return lightgbm.LGBMRegressor(
            **params, objective=draw(*objectives, "cross_entropy"), reg_sqrt=draw(False, False, True)
        )
    objective = "binary" if task == "binary" else draw("multiclass", "multiclassova")
    return lightgbm.LGBMClassifier(**params, objective=objective, sigmoid=draw(1.0, 0.5))


def extreme(draw: Draw, shape: Shape, task: str) -> Any:
    """XGBoost."""
    booster = draw("gbtree", "gbtree", "gbtree", "dart")
    grow = draw("depthwise", "lossguide")
    params: dict[str, Any] = {
        "n_estimators": shape.trees,
        "max_leaves": shape.leaves if grow == "lossguide" else 0,
        "max_depth": min(shape.depth, 8),
        "grow_policy": grow,
        "learning_rate": draw(0.01, 0.3, 1.0),
        "min_child_weight": draw(0, 1, 10),
        "gamma": draw(0.0, 1.0),
        "reg_alpha": draw(0.0, 1.0),
        "reg_lambda": draw(0.0, 1.0),
        "subsample": draw(1.0, 0.5),
        "colsample_bytree": draw(1.0, 0.5),
        "max_bin": draw(4, 256),
        "num_parallel_tree": draw(1, 1, 3),
        "base_score": draw(None, 0.3),
        "tree_method": "hist" if shape.categories or grow == "lossguide" else draw("hist", "exact", "approx"),
        "max_cat_to_onehot": draw(1, 4, 1000),
        "booster": booster,
        "enable_categorical": bool(shape.categories),
        "feature_types": ["q"] * (shape.columns - 1) + ["c"] if shape.categories else None,
        "random_state": shape.seed,
        "n_jobs": 1,
    }
    if task == "regression":
        objectives = (
            "reg:squarederror",
            "reg:squaredlogerror",
            "reg:logistic",
            "reg:pseudohubererror",
            "reg:absoluteerror",
            "reg:gamma",
            "reg:tweedie",
            "count:poisson",
        )
        return xgboost.XGBRegressor(**params, objective=draw(*objectives))
    return xgboost.XGBClassifier(**params)


def isolation(draw: Draw, shape: Shape, _task: str) -> Any:
    """Isolation forests of scikit-learn."""
    return ensemble.IsolationForest(
        n_estimators=shape.trees,
        max_samples=draw("auto", 0.5, 20),
        max_features=draw(1.0, 0.5),
        bootstrap=draw(False, True),
        contamination=draw("auto", 0.1),
        random_state=shape.seed,
    )


FAMILIES: dict[str, Callable[[Draw, Shape, str], Any]] = {
    "histogram": histogram,
    "forest or tree": grown,
    "boosted": boosted,
    "lightgbm": light,
    "xgboost": extreme,
    "isolation": isolation,
}


def _learned_from(shape: Shape, task: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A matrix, and labels that follow every column; none for outliers."""
    matrix = table(shape, shape.rows)
    noise = np.random.default_rng(shape.seed).normal(size=shape.rows)
    signal = np.sin(3 * np.nan_to_num(matrix, nan=0.7)).sum(axis=1) + 0.1 * noise
    if task == "outliers":
        return matrix, None
    if task == "regression":
        return matrix, 1 / (1 + np.exp(-signal))  # above 0 and below 1, as some objectives demand
    cuts = np.quantile(signal, np.arange(1, shape.classes) / shape.classes)
    return matrix, np.unique(np.digitize(signal, cuts), return_inverse=True)[1]


def fuzzed(seed: int, number: int) -> str:
    """Make one model, and compare its compiled form with its library. Returns what came of it; raises AssertionError for other bits."""
    random = np.random.default_rng([seed, number])

    def draw(*values: Any) -> Any:
        return values[int(random.integers(len(values)))]

    family = [*FAMILIES][number % len(FAMILIES)]
    shape = shape_of(draw)
    task = "outliers" if family == "isolation" else draw("regression", "classes")
    if task == "classes":
        task = "binary" if shape.classes == 2 else "multiclass"
    if family in ("forest or tree", "boosted", "isolation"):
        shape = replace(shape, categories=0)
    if family in ("boosted", "isolation"):
        shape = replace(shape, missing=0.0)
    model = FAMILIES[family](draw, shape, task)
    matrix, truth = _learned_from(shape, task)
    classes = [] if truth is None or task == "regression" else np.unique(truth).tolist()
    with one_thread(), np.errstate(all="ignore"):
        known = {"categorical_feature": [shape.columns - 1]} if shape.categories and family == "lightgbm" else {}
        try:
            model.fit(matrix, truth, **known)
        except (ValueError, lightgbm.basic.LightGBMError, xgboost.core.XGBoostError) as error:
            return f"{family}: refused by its library ({type(error).__name__})"
        if family in ("lightgbm", "xgboost"):
            predictor = flavour_of(model).reloaded(model, Signature(task, classes, contract(shape)))
        else:
            predictor = SklearnPredictor(model, task)
        assert isinstance(predictor, CompilablePredictor)
        try:
            compiled = compile_predictor(predictor)
        except NotCompilableError:
            return f"{family}: left to its library"
        for rows in odd_rows(shape, predictor):
            assert same_outcome(predictor, compiled, rows), f"{family} {number} of seed {seed}: {model} on {shape}"
    return f"{family}: compiled, the same bits"


def outcomes(seed: int, until: float) -> Iterator[str]:
    """Make models until a time of the monotonic clock; a model with other bits is printed, and counted."""
    number = 0
    while monotonic() < until:
        try:
            yield fuzzed(seed, number)
        except Exception:  # noqa: BLE001 - the next model is made all the same
            print(f"--seed {seed}, model {number}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            yield "FAILED"
        number += 1


def main() -> None:
    """Make models for some minutes and print what came of them; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0)
    options = parser.parse_args()
    counts = Counter(outcomes(options.seed, monotonic() + 60 * options.minutes))
    for outcome, count in sorted(counts.items()):
        print(f"{count:7,}  {outcome}")
    print(f"{counts.total():7,}  models, seed {options.seed}, {options.minutes:g} minutes")
    sys.exit(1 if counts["FAILED"] else 0)


if __name__ == "__main__":
    main()
