"""Checks for contradictions in the trees of a model, which its library and the compiled code walk without checking.

An index that leads out of a tree, or back, makes a library read memory that is not its own, or never end. All models are read
into one form, so there is one set of checks. What only a library's own form can say is checked where it is read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.ensembles import LEAF, Ensemble, MalformedError, NotCompilableError, Tree, is_within
from batch_platform.kernels.forest.estimators import read_estimator


def require_sound(ensemble: Ensemble) -> None:
    """Raise MalformedError if an index leads out of a tree, or a tree out of the columns and outputs of its ensemble."""
    outputs = len(ensemble.start.row)
    for at, tree in enumerate(ensemble.trees):
        if (problem := _problem(tree, ensemble.features, outputs)) is not None:
            msg = f"tree {at} {problem}"
            raise MalformedError(msg)


def malformed(read: Callable[[], Ensemble]) -> str | None:
    """Find a contradiction in the trees that `read` returns; None without one, and for what is not a known tree ensemble."""
    try:
        require_sound(read())
    except MalformedError as error:
        return str(error)
    except (NotCompilableError, AttributeError):  # an estimator without attributes is not fitted
        return None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return f"a field is missing or no number ({error})"
    return None


def malformed_estimator(estimator: object) -> str | None:
    """Find a contradiction in the trees that an estimator of scikit-learn holds, at any depth; None without one."""
    problems = (malformed(lambda part=part: read_estimator(part)) for part in _parts(estimator))
    return next((problem for problem in problems if problem), None)


def _problem(tree: Tree, features: int, outputs: int) -> str | None:
    inner = tree.left >= 0
    by_node = (tree.feature, tree.threshold, tree.right, tree.missing_left, tree.value, tree.left_set, tree.cover)
    if any(len(values) != len(tree.left) for values in by_node):
        return "has lists of different lengths"
    if (tree.left < LEAF).any() or not _forms_tree(tree.left, tree.right, inner):
        return "has nodes that lie outside of it, or that several nodes lead to"
    if not is_within(tree.feature[inner], features):
        return f"splits by a column beyond its {features}"
    if (tree.left_set >= len(tree.left_sets)).any():
        return "splits by sets of categories that it does not hold"
    if not 0 <= tree.output <= outputs - tree.value.shape[1]:
        return f"adds to outputs beyond its {outputs}"
    return None


def _forms_tree(left: NDArray[np.int64], right: NDArray[np.int64], inner: NDArray[np.bool_]) -> bool:
    """Return whether every path from the root, the first node, ends at a leaf: no cycle, no second parent, no child outside."""
    children = np.concatenate([left[inner], right[inner]])
    lies_inside = is_within(children - 1, len(left) - 1)
    return len(left) > 0 and lies_inside and len(np.unique(children)) == len(children)


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
