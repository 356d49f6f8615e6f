"""The XGBoost flavour: boosters in their own binary JSON, evaluated by XGBoost on one thread a call, or compiled.

XGBoost holds every value, every threshold and every sum as float32.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError
from batch_platform.models.flavours.boosted import codes, parts_of
from batch_platform.models.flavours.extras import needed
from batch_platform.models.flavours.outputs import as_scores
from batch_platform.models.flavours.steps import Transform, last_of, load_steps, save_steps
from batch_platform.models.forest.boosters import read_xgboost
from batch_platform.models.forest.compiled import Parts
from batch_platform.models.forest.ensembles import NotCompilableError
from batch_platform.models.signature import Found, Input, Signature, Task

FLAVOUR = "xgboost"
MODEL_FILE = "model.ubj"
LIBRARIES = ("xgboost", "numpy")
UNPICKLES: tuple[str, ...] = ()
DETAILS: Mapping[str, Any] = {"precision": "float32"}
_TASKS: dict[str, Task] = {"binary:logistic": "binary", "multi:softprob": "multiclass"}
_NUMBERS = ("reg:", "count:", "survival:")


@dataclass(frozen=True)
class XgboostPredictor:
    """A booster, and the transformers in front of it."""

    booster: Any
    transform: Transform | None
    signature: Signature
    rounds: tuple[int, int]  # those that count; (0, 0) for all

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values [n]."""
        given = matrix if self.transform is None else self.transform(matrix)
        raw = self.booster.inplace_predict(given, iteration_range=self.rounds, validate_features=False)
        return as_scores(raw, len(matrix), self.signature)

    def parts(self) -> Parts:
        """What it does, where its trees are of a known kind."""
        described = json.loads(self.booster.save_raw(raw_format="json"))
        if (kind := described["learner"]["gradient_booster"]["name"]) != "gbtree":
            msg = f"the booster {kind} is more than a sum of trees"
            raise NotCompilableError(msg)
        link = _Link(_stump(described))
        ensemble = read_xgboost(
            described["learner"],
            rounds=self.rounds[1],
            categories=codes(self.transform, self.signature),
            start=link.start(),
            finish=link,
        )
        return parts_of(ensemble, self.transform, self.signature)


@dataclass(frozen=True)
class _Link:
    """What XGBoost does before the first tree and after the last, told by a booster that has but one leaf, of 0."""

    stump: Any

    def start(self) -> NDArray[np.float32]:
        """The margins that the base score stands for, [outputs]."""
        return self.stump.inplace_predict(np.zeros((1, 1)), predict_type="margin").ravel()

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[Any]:
        """Give the prediction for margins [n, outputs]."""
        margins = np.ascontiguousarray(sums, np.float32)
        return self.stump.inplace_predict(np.zeros((len(sums), 1)), base_margin=margins)


def _stump(described: dict[str, Any]) -> Any:
    """A booster of the same objective and base score, of one column and a leaf that adds nothing."""
    learner = described["learner"]
    column = {"feature_names": [], "feature_types": []}
    sizes = learner["learner_model_param"] | {"num_feature": "1"}
    model = learner["gradient_booster"]["model"]
    trees = {"trees": [_LEAF], "tree_info": [0], "iteration_indptr": [0, 1]}
    count = {"gbtree_model_param": model["gbtree_model_param"] | {"num_trees": "1", "num_parallel_tree": "1"}}
    booster = learner["gradient_booster"] | {"model": model | trees | count}
    changed = learner | column | {"learner_model_param": sizes, "gradient_booster": booster}
    return _booster(json.dumps(described | {"learner": changed}).encode())


_LEAF = {
    "base_weights": [0.0],
    "categories": [],
    "categories_nodes": [],
    "categories_segments": [],
    "categories_sizes": [],
    "default_left": [0],
    "id": 0,
    "left_children": [-1],
    "loss_changes": [0.0],
    "parents": [2147483647],
    "right_children": [-1],
    "split_conditions": [0.0],
    "split_indices": [0],
    "split_type": [0],
    "sum_hessian": [0.0],
    "tree_param": {"num_deleted": "0", "num_feature": "1", "num_nodes": "1", "size_leaf_vector": "1"},
}


def save(model: Any, folder: Path) -> list[str]:
    """Write a fitted estimator of XGBoost, or a booster; gives the names of the files."""
    last = last_of(model)
    booster = last.get_booster() if hasattr(last, "get_booster") else last
    (folder / MODEL_FILE).write_bytes(booster.save_raw(raw_format="ubj"))
    return [MODEL_FILE, *save_steps(model, folder)]


def load(files: Mapping[str, bytes], signature: Signature) -> XgboostPredictor:
    """Read a booster.

    Raises:
        WrongUseError: XGBoost is not installed.
    """
    booster = _booster(files[MODEL_FILE])
    best = booster.attr("best_iteration")
    rounds = (0, 0) if best is None else (0, int(best) + 1)
    return XgboostPredictor(booster, load_steps(files), signature, rounds)


def read(reference: str, params: Mapping[str, Any]) -> Found:  # noqa: ARG001 - a file has no parameters
    """Read a file that XGBoost wrote.

    Raises:
        DataError: It is none, or gives neither probabilities nor values.
        WrongUseError: XGBoost is not installed.
    """
    booster = _booster(Path(reference).read_bytes())
    learner = json.loads(booster.save_config())["learner"]
    objective = learner["objective"]["name"]
    if objective not in _TASKS and not objective.startswith(_NUMBERS):
        msg = f"{reference}: its objective is {objective!r}, which gives neither probabilities nor values."
        hint = "train it with multi:softprob, which gives probabilities." if objective == "multi:softmax" else None
        raise DataError(msg, hint=hint or "train it with one of XGBoost's objectives for classes or numbers.")
    task = _TASKS.get(objective, "regression")
    count = max(int(learner["learner_model_param"]["num_class"]), 2)
    classes = [] if task == "regression" else list(range(count))
    return Found(booster, _inputs(booster), task, classes, {"objective": objective})


def _booster(data: bytes) -> Any:
    with needed("xgboost", extra=FLAVOUR):
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
    """Codes of categories are numbers to us, unless the booster kept what they stand for."""
    count = booster.num_features()
    names = booster.feature_names or [""] * count
    types = booster.feature_types or ["float"] * count
    kept = booster.get_categories(export_to_arrow=True).to_arrow() if "c" in types else []
    known = {name: tuple(map(str, values.to_pylist())) for name, values in kept or [] if values is not None}
    return [
        Input(name, "code" if kind == "c" else "number", known.get(name, ()))
        for name, kind in zip(names, types, strict=True)
    ]
