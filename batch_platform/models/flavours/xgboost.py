"""The XGBoost flavour: boosters in their own binary JSON, evaluated by XGBoost on one thread per call, or compiled.

XGBoost holds every value, threshold and sum as float32.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, WrongUseError
from batch_platform.declaration.importing import needed
from batch_platform.kernels.forest.ensembles import Ensemble, require
from batch_platform.kernels.forest.estimators import malformed, read_xgboost
from batch_platform.models.contract import Contract, ForeignModel, Input, Signature, Task
from batch_platform.models.flavours.flavour import BoosterPredictor, Flavour, fit_booster
from batch_platform.models.flavours.sklearn import last_of, load_steps, saved_steps

MODEL_FILE = "model.ubj"
_TASKS: dict[str, Task] = {"binary:logistic": "binary", "multi:softprob": "multiclass"}
_NUMBERS = ("reg:", "count:", "survival:")
_PARAMETERS = frozenset(  # parameters of the library that its estimators pass on but do not name
    [
        "quantile_alpha",
        "expectile_alpha",
        "tweedie_variance_power",
        "huber_slope",
        "aft_loss_distribution",
        "aft_loss_distribution_scale",
        "rate_drop",
        "skip_drop",
        "one_drop",
        "sample_type",
        "normalize_type",
        "max_cached_hist_node",
        "refresh_leaf",
        "process_type",
        "updater",
        "feature_selector",
        "top_k",
        "seed_per_iteration",
    ]
)


def _watching(matrix: Any, labels: Any, weights: Any) -> dict[str, Any]:
    of_rows = None if weights is None else [weights]
    return {"eval_set": [(matrix, labels)], "sample_weight_eval_set": of_rows, "verbose": False}


def _trees(booster: Any, rounds: int, categories: Mapping[int, int]) -> Ensemble:
    description = json.loads(booster.save_raw(raw_format="json"))
    kind = description["learner"]["gradient_booster"]["name"]
    require(kind == "gbtree", f"the booster {kind} is more than a sum of trees")
    link = _Link(_stump(description))
    return read_xgboost(description["learner"], rounds=rounds, categories=categories, start=link.start(), finish=link)


@dataclass(frozen=True)
class _Link:
    """The steps of XGBoost before the first tree and after the last, asked of a booster with a single leaf of value 0."""

    stump: Any

    def start(self) -> NDArray[np.float32]:
        """Return the margins that stand for the base score, [outputs]."""
        return self.stump.inplace_predict(np.zeros((1, 1)), predict_type="margin").ravel()

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[Any]:
        """Return the prediction for margins [rows, outputs]."""
        margins = np.ascontiguousarray(sums, np.float32)
        return self.stump.inplace_predict(np.zeros((len(sums), 1)), base_margin=margins)


def _stump(described: dict[str, Any]) -> Any:
    """A booster of the same objective and base score, with one column and one leaf that adds nothing."""
    learner = described["learner"]
    column = {"feature_names": [], "feature_types": []}
    sizes = learner["learner_model_param"] | {"num_feature": "1"}
    model = learner["gradient_booster"]["model"]
    trees = {"trees": [_LEAF], "tree_info": [0], "iteration_indptr": [0, 1]}
    count = {"gbtree_model_param": model["gbtree_model_param"] | {"num_trees": "1", "num_parallel_tree": "1"}}
    booster = learner["gradient_booster"] | {"model": model | trees | count}
    changed = learner | column | {"learner_model_param": sizes, "gradient_booster": booster}
    return _booster(json.dumps(described | {"learner": changed}).encode())


_LEAF = {  # a tree of one leaf of value 0
    **{name: [0.0] for name in ("base_weights", "loss_changes", "split_conditions", "sum_hessian")},
    **{name: [0] for name in ("default_left", "split_indices", "split_type")},
    **{name: [-1] for name in ("left_children", "right_children")},
    **{name: [] for name in ("categories", "categories_nodes", "categories_segments", "categories_sizes")},
    "id": 0,
    "parents": [2147483647],
    "tree_param": {"num_deleted": "0", "num_feature": "1", "num_nodes": "1", "size_leaf_vector": "1"},
}


def _booster(data: bytes) -> Any:
    with needed("xgboost", extra="xgboost"):
        import xgboost
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(data))
    except xgboost.core.XGBoostError as error:
        msg = f"XGBoost cannot read the model: {str(error).strip().splitlines()[0].rpartition('] ')[2]}."
        raise DataError(msg, hint="give a file that Booster.save_model wrote, in JSON or UBJ.") from error
    booster.set_param({"nthread": 1})
    return booster


def _inputs(booster: Any) -> list[Input]:
    """The columns; category codes count as numbers unless the booster kept the names of the categories."""
    count = booster.num_features()
    names = booster.feature_names or [""] * count
    types = booster.feature_types or ["float"] * count
    stored = booster.get_categories(export_to_arrow=True).to_arrow() if "c" in types else []
    categories = {name: tuple(map(str, values.to_pylist())) for name, values in stored or [] if values is not None}
    return [
        Input(name, "code" if kind == "c" else "number", categories.get(name, ()))
        for name, kind in zip(names, types, strict=True)
    ]


class _XGBoost(Flavour):
    name = "xgboost"
    libraries = ("xgboost", "numpy")
    details: ClassVar[Mapping[str, Any]] = {"precision": "float32"}
    endings = (".ubj", ".json", ".xgb")
    package = "xgboost"

    def save(self, model: Any) -> dict[str, bytes]:
        last = last_of(model)
        booster = last.get_booster() if hasattr(last, "get_booster") else last
        return {MODEL_FILE: bytes(booster.save_raw(raw_format="ubj")), **saved_steps(model)}

    def load(self, files: Mapping[str, bytes], signature: Signature) -> BoosterPredictor:
        booster = _booster(files[MODEL_FILE])
        best = booster.attr("best_iteration")
        rounds = 0 if best is None else int(best) + 1  # number of boosting rounds that count; 0 for all
        run = partial(booster.inplace_predict, iteration_range=(0, rounds), validate_features=False)
        return BoosterPredictor(run, partial(_trees, booster, rounds), load_steps(files), signature)

    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        del params
        booster = _booster(Path(reference).read_bytes())
        if (problem := malformed(partial(_trees, booster, 0, {}))) is not None:
            msg = f"{reference} is damaged: {problem}."
            raise DataError(msg, hint="save it again, and import only what you trust.")
        learner = json.loads(booster.save_config())["learner"]
        objective = learner["objective"]["name"]
        if objective not in _TASKS and not objective.startswith(_NUMBERS):
            msg = f"{reference}: its objective {objective!r} returns neither probabilities nor values."
            hint = (
                "train it with multi:softprob, which returns probabilities." if objective == "multi:softmax" else None
            )
            raise DataError(msg, hint=hint or "train it with one of XGBoost's objectives for classes or numbers.")
        task = _TASKS.get(objective, "regression")
        classes = [] if task == "regression" else list(range(max(int(learner["learner_model_param"]["num_class"]), 2)))
        return ForeignModel(booster, _inputs(booster), task, classes, {"objective": objective})

    def fit(self, estimator: Any, matrix: Any, labels: Any, contract: Contract, weights: Any) -> None:
        """Fit an estimator; XGBoost takes classes only by their position.

        Raises:
            WrongUseError: A value other than NaN stands for a missing value: the saved booster would not know.
        """
        del contract
        from sklearn.base import is_classifier

        booster = last_of(estimator)
        missing = booster.missing
        if missing is not None and not np.isnan(missing):
            msg = f"model.params.missing: XGBoost does not save that {missing:g} stands for a missing value."
            raise WrongUseError(msg, hint=f"leave it out, and write NULLIF(column, {missing:g}) in the features' SQL.")
        if labels is not None and is_classifier(estimator):
            labels = np.unique(labels, return_inverse=True)[1]
        stops_early = bool(booster.early_stopping_rounds)
        fit_booster(estimator, matrix, labels, {}, _watching if stops_early else None, weights)

    def accept_codes(self, estimator: Any, contract: Contract) -> bool:
        if contract.categorical:
            kinds = ["c" if column.type == "category" else "q" for column in contract.columns]
            estimator.set_params(enable_categorical=True, feature_types=kinds)
        return True

    def parameters(self) -> set[str]:
        return {*_PARAMETERS}


FLAVOUR = _XGBoost()
