"""Fitted tree ensembles of scikit-learn as plain trees, evaluated as scikit-learn 1.9 does.

Anything that is not known here is refused by name.
"""

from collections.abc import Callable, Sequence
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
    is_within,
    require,
    require_agreement,
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
