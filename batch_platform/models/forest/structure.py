"""Checks for contradictions in the trees of an imported model, which its library walks without checking.

An index that leads out of a tree, or back, makes a library read memory that is not its own, or never end. Boosters of LightGBM are
checked as text, in `boosters`, before the library reads them; the libraries here build their trees without following them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAF = -1  # scikit-learn and XGBoost mark a missing child with it
_SET_SIZE = 256  # categories that a set of a histogram tree can hold
_NO_TREE = "has nodes that lie outside of it, or that several nodes lead to"


def forms_tree(left: NDArray[np.int64], right: NDArray[np.int64], inner: NDArray[np.bool_]) -> bool:
    """Return whether every path from the root, the first node, ends at a leaf: no cycle, no second parent, no child outside."""
    children = np.concatenate([left[inner], right[inner]])
    lies_inside = not len(children) or (children.min() > 0 and children.max() < len(left))
    return bool(lies_inside) and len(np.unique(children)) == len(children)


def malformed_estimator(estimator: object) -> str | None:
    """Find a contradiction in the trees that an estimator of scikit-learn holds, at any depth; None without one."""
    return next((problem for part in _parts(estimator) for problem in _problems(part)), None)


def malformed_xgboost(learner: Mapping[str, Any]) -> str | None:
    """Find a contradiction in the learner of a model in XGBoost's JSON format; None without one."""
    booster = learner["gradient_booster"]
    model = booster.get("model") or booster.get("gbtree", {}).get("model")
    if model is None:  # a linear booster
        return None
    sizes = learner["learner_model_param"]
    features = int(sizes["num_feature"])
    outputs = max(int(sizes.get("num_class", 0)), int(sizes.get("num_target", 1)), 1)
    if not all(0 <= output < outputs for output in model["tree_info"]):
        return f"its trees add to outputs beyond its {outputs}"
    problems = ((at, _malformed_booster_tree(tree, features)) for at, tree in enumerate(model["trees"]))
    return next((f"tree {at} {problem}" for at, problem in problems if problem), None)


def _malformed_booster_tree(tree: Mapping[str, Any], features: int) -> str | None:
    left, right, feature = (
        np.array(tree[name], np.int64) for name in ("left_children", "right_children", "split_indices")
    )
    inner = left != _LEAF
    if not len(left) == len(right) == len(feature) == len(tree["split_conditions"]) == len(tree["default_left"]):
        return "has lists of different lengths"
    if not forms_tree(left, right, inner):
        return _NO_TREE
    if not _within(feature[inner], features):
        return f"splits by a column beyond its {features}"
    held = len(tree["categories"])
    spans = zip(tree["categories_segments"], tree["categories_sizes"], strict=True)
    if not all(0 <= at <= at + size <= held for at, size in spans):
        return "splits by sets of categories that it does not hold"
    return None


def _parts(whole: object) -> Iterator[object]:
    """An object and all that it holds in attributes, lists, tuples, dicts and arrays of objects, each once."""
    waiting, seen = [whole], dict[int, object]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | bool | type(None)):
            continue
        seen[id(part)] = part
        yield part
        waiting += _held(part)


def _held(part: object) -> Iterable[object]:
    if isinstance(part, Mapping):
        return part.values()
    if isinstance(part, list | tuple | set):
        return part
    if isinstance(part, np.ndarray):
        return part.ravel().tolist() if part.dtype == object else ()
    return getattr(part, "__dict__", {}).values()


def _problems(part: Any) -> Iterator[str]:
    """Find a contradiction in an object, and in the trees that it walks itself."""
    from sklearn.tree._tree import Tree

    name = type(part).__name__
    if isinstance(part, Tree) and not 0 < part.node_count <= part.capacity:
        yield f"a tree counts {part.node_count} nodes and holds {part.capacity}"
        return
    if isinstance(part, Tree):
        left, right = (np.asarray(child, np.int64) for child in (part.children_left, part.children_right))
        inner = left != _LEAF
        if not forms_tree(left, right, inner):
            yield f"a tree {_NO_TREE}"
        if not _within(np.asarray(part.feature)[inner], part.n_features):
            yield f"a tree splits by a column beyond its {part.n_features}"
    if (tree := getattr(part, "tree_", None)) is not None:
        yield from _narrower(name, [tree], [getattr(part, "n_features_in_", None)])
    members = [getattr(member, "tree_", None) for member in _listed(getattr(part, "estimators_", None))]
    if any(member is not None for member in members):
        width = getattr(part, "n_features_in_", 0)
        subsets = getattr(
            part, "estimators_features_", None
        )  # the columns of each member of bagging and isolation forests
        widths = [width] * len(members) if subsets is None else [min(len(subset), width) for subset in subsets]
        yield from _narrower(name, members, widths)
    if (rounds := getattr(part, "_predictors", None)) is not None:
        yield from _histogram_problems(part, [tree for trees in _listed(rounds) for tree in _listed(trees)])


def _narrower(name: str, trees: list[Any], widths: list[Any]) -> Iterator[str]:
    """Return whether trees take other numbers of columns than they get; None is a member that is no tree."""
    paired = zip(trees, widths, strict=False)
    if len(trees) != len(widths) or any(tree is not None and tree.n_features != width for tree, width in paired):
        yield f"{name} holds trees of other numbers of columns than it is given"


def _histogram_problems(estimator: Any, trees: list[Any]) -> Iterator[str]:
    features = int(estimator.n_features_in_)
    known = estimator.is_categorical_
    categorical = 0 if known is None else int(np.count_nonzero(known))  # these columns come first
    binned = estimator._bin_mapper  # noqa: SLF001 - what its compiled code reads; `estimators` reads it too
    by_set = np.flatnonzero(binned.is_categorical_)
    if len(binned.bin_thresholds_) != features or not _within(by_set, categorical):
        yield "its histogram trees were made for other columns"
        return
    if not all(_within(np.asarray(binned.bin_thresholds_[at]), _SET_SIZE) for at in by_set):
        yield f"its histogram trees know categories beyond {_SET_SIZE}"
    for tree in trees:
        nodes = tree.nodes
        left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
        inner = nodes["is_leaf"] == 0
        sets = inner & (nodes["is_categorical"] != 0)
        if not len(nodes) or not forms_tree(left, right, inner):
            yield f"a tree {_NO_TREE}"
        elif not _within(nodes["feature_idx"][inner].astype(np.int64), features):
            yield f"a tree splits by a column beyond its {features}"
        elif not (
            np.isin(nodes["feature_idx"][sets], by_set).all()
            and _within(nodes["bitset_idx"][sets].astype(np.int64), len(tree.raw_left_cat_bitsets))
        ):
            yield "a tree splits by sets of categories that it does not hold"


def _listed(values: Any) -> list[Any]:
    """The members of a list, or of an array of objects; none of anything else."""
    if isinstance(values, np.ndarray):
        return values.ravel().tolist()
    return list(values) if isinstance(values, list | tuple) else []


def _within(indices: NDArray[Any], count: int) -> bool:
    return bool(((indices >= 0) & (indices < count)).all())
