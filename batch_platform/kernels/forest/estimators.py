"""Fitted tree ensembles of scikit-learn, LightGBM and XGBoost as plain trees; anything that is not known here is refused by name.

They are evaluated as scikit-learn 1.9 does. LightGBM 4 adds doubles and tests whether a value is at most a threshold; XGBoost 3 rounds
values and sums to 32 bits and tests whether a value is below it. Both are read from their own files, and know a category by its code.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    MalformedError,
    NotCompilableError,
    Tree,
    is_within,
    require,
    require_agreement,
    require_sound,
)


def read_estimator(estimator: Any) -> Ensemble:
    """Read a fitted estimator; raises NotCompilableError if the estimator, or something in it, is not known here."""
    kind, outputs = type(estimator), getattr(estimator, "n_outputs_", 1)
    name = f"{kind.__module__}.{kind.__qualname__}".removesuffix("Classifier").removesuffix("Regressor")
    require(name in _READERS, f"{kind.__name__} is not a tree ensemble that can be compiled")
    require(outputs == 1, f"{kind.__name__} predicts {outputs} columns at once")
    return _READERS[name](estimator)


def _histogram(estimator: Any) -> Ensemble:
    """Histogram gradient boosting: the class of each iteration in turn, on top of the baseline."""
    categorical: NDArray[np.int64] = np.empty(0, np.int64)
    column: NDArray[np.int64] = np.arange(estimator.n_features_in_)
    categories: dict[int, NDArray[np.float64]] = {}
    if estimator._preprocessor is not None:
        mask = np.asarray(estimator.is_categorical_)
        categorical = np.flatnonzero(mask)
        column = np.concatenate([categorical, np.flatnonzero(~mask)])  # trees see the categorical columns first
        encoder = estimator._preprocessor.named_transformers_["encoder"]
        for at, known in zip(categorical.tolist(), encoder.categories_, strict=True):
            require(np.issubdtype(known.dtype, np.number), "its categories are not numbers")
            categories[at] = np.asarray(known[~np.isnan(known)], np.float64)
    binned, features = estimator._bin_mapper, estimator.n_features_in_
    by_category = np.flatnonzero(binned.is_categorical_)
    made_for_it = len(binned.bin_thresholds_) == features and is_within(by_category, len(categorical))
    require_agreement(made_for_it, "its histogram trees were made for other columns")
    known_codes = all(is_within(np.asarray(binned.bin_thresholds_[at]), MOST_CATEGORIES + 1) for at in by_category)
    require_agreement(known_codes, f"its histogram trees know categories beyond {MOST_CATEGORIES + 1}")
    bitsets, place = binned.make_known_categories_bitsets()
    known_sets = _unpacked(bitsets)
    outputs = estimator.n_trees_per_iteration_
    trees: list[Tree] = []
    for iteration in estimator._predictors:
        for output, predictor in enumerate(iteration):
            nodes, sets = predictor.nodes, _unpacked(predictor.raw_left_cat_bitsets)
            inner = nodes["is_leaf"] == 0
            require_agreement(is_within(nodes["feature_idx"][inner], features), _BEYOND.format(features))
            by_set = inner & (nodes["is_categorical"] != 0)
            left_set = np.where(by_set, nodes["bitset_idx"].astype(np.int64), -1)
            for node in np.flatnonzero(by_set).tolist():
                known, at = known_sets[place[nodes["feature_idx"][node]]], left_set[node]
                sets[at] = np.where(known | sets[at], sets[at], bool(nodes["missing_go_to_left"][node]))
            tree = Tree(
                feature=np.where(inner, column[nodes["feature_idx"].astype(np.int64)], 0),
                threshold=nodes["num_threshold"].astype(np.float64),
                left=np.where(inner, nodes["left"].astype(np.int64), -1),
                right=np.where(inner, nodes["right"].astype(np.int64), -1),
                missing_left=nodes["missing_go_to_left"] != 0,
                value=nodes["value"].astype(np.float64)[:, None],
                left_set=left_set,
                left_sets=sets,
                cover=nodes["count"].astype(np.float64),
                output=output,
            )
            agree = (np.isin(tree.feature, categorical) == by_set)[inner].all()
            require_agreement(agree, "a tree splits by sets in other columns than those of categories")
            trees.append(tree)
    return Ensemble(
        features=features,
        trees=trees,
        start=Constant(np.zeros(outputs) + np.ravel(estimator._baseline_prediction), by_output=True),
        finish=_link(estimator),
        single=False,
        nan_refused=False,
        infinity_refused=np.isin(np.arange(features), categorical),
        categories=categories,
    )


def _link(estimator: Any) -> Link:
    """The link after the sum of a boosting estimator, which follows from its loss."""
    loss = type(estimator._loss).__name__
    require(loss in _LINKS, f"what the loss {loss} does to a sum is not known here")
    return _LINKS[loss]


def _averaged(estimator: Any) -> Ensemble:
    """Forests and single trees: the mean of the trees' class shares or values."""
    shares = hasattr(estimator, "predict_proba")
    outputs = estimator.n_classes_ if shares else 1
    forest = hasattr(estimator, "estimators_")
    members = estimator.estimators_ if forest else [estimator]
    return _compared_in_single(
        estimator,
        members=members,
        values=[member.tree_.value[:, 0, :outputs] for member in members],
        start=Constant(np.full(outputs, 0.0 if forest else -0.0)),  # only adding -0.0 changes no number, not even -0.0
        finish=Link("values" if shares else "value", divisor=len(members)),
        nan_refused=not members[0].__sklearn_tags__().input_tags.allow_nan,
    )


def _boosted(estimator: Any) -> Ensemble:
    """Gradient boosting: scaled trees of each class in turn, on top of the prediction of the first estimator."""
    stages = estimator.estimators_
    members = stages.ravel().tolist()
    outputs = stages.shape[1]
    same_for_all = isinstance(estimator.init_, str) or type(estimator.init_).__module__ == "sklearn.dummy"
    require(same_for_all, "it begins with the prediction of another model")
    return _compared_in_single(
        estimator,
        members=members,
        values=[estimator.learning_rate * member.tree_.value[:, 0, :1] for member in members],
        start=Constant(estimator._raw_predict_init(np.zeros((2, estimator.n_features_in_)))[0]),
        finish=_link(estimator),
        nan_refused=True,
        outputs=[at % outputs for at in range(len(members))],
    )


def _isolating(estimator: Any) -> Ensemble:
    """Isolation forests: summed depths; above 0 if a row is easier to isolate than the offset allows."""
    from sklearn.ensemble._iforest import _average_path_length

    lengths = zip(estimator._decision_path_lengths, estimator._average_path_length_per_tree, strict=True)
    denominator = len(estimator.estimators_) * _average_path_length([estimator._max_samples])

    def finish(sums: NDArray[np.float64]) -> NDArray[Any]:
        depths = sums[:, 0]
        shares = np.divide(depths, denominator, out=np.ones_like(depths), where=denominator != 0)
        decision = -(2**-shares) - estimator.offset_
        return -decision

    return _compared_in_single(
        estimator,
        members=estimator.estimators_,
        values=[(path + average - 1.0)[:, None] for path, average in lengths],
        start=Constant(np.zeros(1)),
        finish=finish,
        nan_refused=False,
        infinity_refused=False,
        columns=estimator.estimators_features_,
    )


def _compared_in_single(  # noqa: PLR0913 - each is one fact of the ensemble
    estimator: Any,
    *,
    members: Sequence[Any],
    values: Sequence[NDArray[np.float64]],
    start: Constant,
    finish: Finish,
    nan_refused: bool,
    infinity_refused: bool = True,
    outputs: Sequence[int] | None = None,
    columns: Sequence[NDArray[np.int64]] | None = None,
) -> Ensemble:
    """An ensemble of `sklearn.tree` trees, which round every value to 32 bits first."""
    features = estimator.n_features_in_
    every = np.arange(features)
    trees: list[Tree] = []
    for at, (member, value) in enumerate(zip(members, values, strict=True)):
        tree, column = member.tree_, every if columns is None else np.asarray(columns[at])
        require_agreement(
            0 < tree.node_count <= tree.capacity, f"a tree counts {tree.node_count} nodes, and holds others"
        )
        require_agreement(tree.n_features == len(column), "it holds trees of other numbers of columns than it is given")
        inner = tree.children_left >= 0
        require_agreement(is_within(tree.feature[inner], len(column)), _BEYOND.format(len(column)))
        trees.append(
            Tree(
                feature=np.where(inner, column[np.where(inner, tree.feature, 0)], 0),
                threshold=tree.threshold.astype(np.float64),
                left=tree.children_left.astype(np.int64),
                right=tree.children_right.astype(np.int64),
                missing_left=tree.missing_go_to_left != 0,
                value=np.array(value, dtype=np.float64),
                left_set=np.full(len(inner), -1),
                left_sets=np.empty((0, MOST_CATEGORIES + 1), np.bool_),
                cover=tree.weighted_n_node_samples.astype(np.float64),
                output=0 if outputs is None else outputs[at],
            )
        )
    return Ensemble(
        features=features,
        trees=trees,
        start=start,
        finish=finish,
        single=True,
        nan_refused=nan_refused,
        infinity_refused=np.full(features, infinity_refused),
    )


def _unpacked(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Unpack sets of eight words each to [sets, 256]."""
    bits = np.arange(32, dtype=np.uint32)
    return (np.asarray(words)[:, :, None] >> bits & 1).astype(np.bool_).reshape(-1, MOST_CATEGORIES + 1)


_BEYOND = "a tree splits by a column beyond its {}"
_LINKS = {
    "HalfBinomialLoss": Link("probabilities"),
    "ExponentialLoss": Link("probabilities", steepness=2.0),
    "HalfMultinomialLoss": Link("softmax"),
    **dict.fromkeys(("HalfPoissonLoss", "HalfGammaLoss"), Link("exponential")),
    **dict.fromkeys(("HalfSquaredError", "AbsoluteError", "PinballLoss", "HuberLoss"), Link("value")),
}
_READERS: dict[str, Callable[[Any], Ensemble]] = {  # key: name of the class without Classifier or Regressor
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoosting": _histogram,
    "sklearn.ensemble._forest.RandomForest": _averaged,
    "sklearn.ensemble._forest.ExtraTrees": _averaged,
    "sklearn.tree._classes.DecisionTree": _averaged,
    "sklearn.tree._classes.ExtraTree": _averaged,
    "sklearn.ensemble._gb.GradientBoosting": _boosted,
    "sklearn.ensemble._iforest.IsolationForest": _isolating,
}


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
