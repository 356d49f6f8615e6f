"""Boosters of LightGBM and XGBoost as plain trees, read from the libraries' own files.

LightGBM 4 adds doubles and tests whether a value is at most a threshold; XGBoost 3 rounds values and sums to 32 bits and tests whether
a value is below it. Both know a category by its code. Anything that is not known here is refused by name.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.ensembles import (
    MOST_CATEGORIES,
    Constant,
    Ensemble,
    Finish,
    Link,
    Tree,
    require,
    require_agreement,
)

_BY_SET, _DEFAULT_LEFT, _MISSING_SHIFT = 1, 2, 2  # bits of LightGBM's decision types
_ZERO_IS_MISSING, _NAN_IS_MISSING = 1, 2
_TAKEN_FOR_ZERO = float(np.float32(1e-35))  # LightGBM reads anything that is not larger as 0
_SAME = ("regression", "regression_l1", "huber", "fair", "quantile", "mape")
_EXPONENTIAL = ("poisson", "gamma", "tweedie")
_TOO_MANY = f"a column has more than {MOST_CATEGORIES} categories"


def read_lightgbm(text: str, categories: Mapping[int, int]) -> Ensemble:
    """Read a model in LightGBM's text format; raises NotCompilableError for one that is not known here.

    `categories` holds the number of codes of each categorical column, as far as it is known.
    """
    head, *blocks = text.partition("\nend of trees")[0].split("\nTree=")
    header = _fields(head)
    features, outputs = int(header["max_feature_idx"]) + 1, int(header["num_tree_per_iteration"])
    names, sizes = len(header["feature_names"].split()), len(header.get("tree_sizes", "").split())
    require_agreement(names == features, f"it names {names} of {features} columns")
    is_whole = "\nend of trees" in text and sizes == len(blocks)
    require_agreement(is_whole, f"it ends after {len(blocks)} of {sizes} trees")
    divides = outputs > 0 and int(header["num_class"]) in (1, outputs) and len(blocks) % outputs == 0
    require_agreement(divides, f"its {len(blocks)} trees do not divide into {header['num_class']} classes")
    trees = [_lightgbm_tree(_fields(block), at % outputs) for at, block in enumerate(blocks)]
    averaged = len(blocks) // outputs if "average_output" in head.splitlines() else 1
    return _ensemble(
        trees,
        features=features,
        categories=categories,
        start=np.zeros(outputs),
        finish=_lightgbm_link(header.get("objective", "none"), averaged),
        single=False,
    )


def read_xgboost(
    learner: Mapping[str, Any],
    *,
    rounds: int,
    categories: Mapping[int, int],
    start: NDArray[np.float32],
    finish: Finish,
) -> Ensemble:
    """Read the learner of a model in XGBoost's JSON format; raises NotCompilableError for one that is not known here.

    Only the first `rounds` of boosting count; 0: all. `start` holds the initial margins [outputs], which the library derives
    from the base score; `finish` returns the prediction for the margins.
    """
    model = learner["gradient_booster"]["model"]
    count = model["iteration_indptr"][rounds] if rounds else len(model["trees"])
    outputs = zip(model["trees"][:count], model["tree_info"][:count], strict=True)
    return _ensemble(
        [_xgboost_tree(tree, output) for tree, output in outputs],
        features=int(learner["learner_model_param"]["num_feature"]),
        categories=categories,
        start=start.astype(np.float64),
        finish=finish,
        single=True,
    )


def _ensemble(  # noqa: PLR0913 - each is one fact of the ensemble
    trees: Sequence[Tree],
    *,
    features: int,
    categories: Mapping[int, int],
    start: NDArray[np.float64],
    finish: Finish,
    single: bool,
) -> Ensemble:
    """The ensemble of either library. A code that training cannot have seen is left to the library, which has rules for it."""
    require(trees, "it has no trees")
    by_set = [np.unique(tree.feature[tree.left_set >= 0]) for tree in trees]
    columns = np.unique(np.concatenate(by_set)).tolist()
    known = {at: np.arange(float(categories.get(at, MOST_CATEGORIES))) for at in columns}
    require(all(len(codes) <= MOST_CATEGORIES for codes in known.values()), _TOO_MANY)
    by_size = [np.unique(tree.feature[(tree.left >= 0) & (tree.left_set < 0)]) for tree in trees]
    require(not np.isin(np.concatenate(by_size), columns).any(), "its trees compare categories by size")
    return Ensemble(
        features=features,
        trees=trees,
        start=Constant(start),
        finish=finish,
        single=single,
        single_sums=single,
        nan_refused=False,
        infinity_refused=np.isin(np.arange(features), columns),
        categories=known,
        unknown_refused=True,
    )


def _fields(block: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in block.splitlines())}


def _lightgbm_link(objective: str, averaged: int) -> Finish:
    """The link after the sum, which follows from the objective and the parameters behind it."""
    name, *rest = objective.split()
    params = {key: value for key, _, value in (word.partition(":") for word in rest)}
    steepness = float(params.get("sigmoid", "1"))
    if name in ("binary", "cross_entropy"):
        return Link("probability", averaged, steepness)
    if name == "multiclass":
        return Link("C softmax", averaged)
    if name in _EXPONENTIAL:
        return Link("C exponential", averaged)
    require(name in _SAME and "sqrt" not in rest, f"what its objective {objective!r} does to a sum is not known here")
    return Link("value", averaged)


def _lightgbm_tree(tree: Mapping[str, str], output: int) -> Tree:
    """Read a tree: inner nodes come first, then leaves, which a parent refers to by the complement of their number."""
    require(tree.get("is_linear", "0") == "0", "its leaves are linear models")
    leaves, held = int(tree["num_leaves"]), len(tree["leaf_value"].split())
    require_agreement(held == leaves, f"a tree has {held} values of leaves in place of {leaves}")
    inner = np.arange(2 * leaves - 1) < leaves - 1

    def numbers(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return np.array([*tree.get(name, "").split()[: leaves - 1], *["0"] * leaves], dtype)

    decision, threshold = numbers("decision_type", np.int64), numbers("threshold", np.float64)
    by_set, missing = decision & _BY_SET != 0, decision >> _MISSING_SHIFT & 3
    require(not (missing[inner & ~by_set] == _ZERO_IS_MISSING).any(), "it treats zeros as missing values")
    children = (numbers(name, np.int64) for name in ("left_child", "right_child"))
    left, right = (np.where(inner, np.where(child < 0, leaves - 1 + ~child, child), -1) for child in children)
    bounds = [int(bound) for bound in tree.get("cat_boundaries", "0").split()]
    words = np.array(tree.get("cat_threshold", "").split(), np.uint32)
    in_order = bounds == sorted(bounds) and (bounds[0], bounds[-1]) == (0, len(words))
    require_agreement(in_order and (threshold[by_set] >= 0).all(), "a tree splits by sets that it does not hold")
    value = np.zeros((len(inner), 1))
    value[~inner, 0] = tree["leaf_value"].split()
    cover = numbers("internal_count", np.float64)
    cover[~inner] = tree["leaf_count"].split() if "leaf_count" in tree else 0.0
    return Tree(
        feature=numbers("split_feature", np.int64),
        threshold=_beside_zero(threshold),
        left=left,
        right=right,
        missing_left=~by_set & np.where(missing == _NAN_IS_MISSING, decision & _DEFAULT_LEFT != 0, threshold >= 0),
        value=value,
        left_set=np.where(by_set, threshold, -1).astype(np.int64),
        left_sets=_stacked([_members(_bits(words[at:end])) for at, end in pairwise(bounds)]),
        cover=cover,
        output=output,
    )


def _beside_zero(threshold: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move thresholds so that they separate everything that LightGBM reads as zero from the rest."""
    to = np.where(threshold >= 0, _TAKEN_FOR_ZERO, np.nextafter(-_TAKEN_FOR_ZERO, -np.inf))
    return np.where(np.abs(threshold) <= _TAKEN_FOR_ZERO, to, threshold)


def _xgboost_tree(tree: Mapping[str, Any], output: int) -> Tree:
    """Read a tree: a row goes left if its value is below the threshold, or its code is not in the set."""
    require(tree["tree_param"]["size_leaf_vector"] in ("0", "1"), "its leaves hold a value for each output")
    names = ("left_children", "right_children", "split_indices")
    left, right, feature = (np.array(tree[name], np.int64) for name in names)
    condition, missing_left = np.array(tree["split_conditions"], np.float32), np.array(tree["default_left"]) != 0
    left_set = np.full(len(left), -1)
    sets, held = list[NDArray[np.bool_]](), np.array(tree["categories"], np.int64)
    spans = zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
    for node, at, size in spans:
        goes_left = ~_members(held[np.arange(at, at + size)])
        goes_left[MOST_CATEGORIES] = missing_left[node]
        left_set[node] = len(sets)
        sets.append(goes_left)
    return Tree(
        feature=np.where(left >= 0, feature, 0),
        threshold=np.nextafter(condition, np.float32(-np.inf)).astype(np.float64),
        left=left,
        right=right,
        missing_left=missing_left,
        value=condition.astype(np.float64)[:, None],  # a leaf has its value there
        left_set=left_set,
        left_sets=_stacked(sets),
        cover=np.array(tree["sum_hessian"], np.float64),
        output=output,
    )


def _bits(words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The positions of the bits that are set, in words of 32."""
    return np.flatnonzero(words[:, None] >> np.arange(32, dtype=np.uint32) & 1)


def _members(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Membership of each code in a set [256]; missing values, at the last position, are in none."""
    require(codes.max(initial=0) < MOST_CATEGORIES, _TOO_MANY)
    inside = np.zeros(MOST_CATEGORIES + 1, np.bool_)
    inside[codes] = True
    return inside


def _stacked(sets: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return np.array(sets, np.bool_).reshape(-1, MOST_CATEGORIES + 1)
