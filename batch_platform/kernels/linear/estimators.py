"""Fitted linear estimators of scikit-learn, alone or behind preprocessing, as plain numbers; evaluated as scikit-learn 1.9 does.

Anything that is not known here is left to scikit-learn, as is a model whose numbers do not give scikit-learn's scores.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.ensembles import NotCompilableError, require
from batch_platform.kernels.linear.arrays import Linear, LinkName, Step, StepName, Term
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor

TOLERANCE = 1e-12  # largest difference, as a share of the largest score that is compared
_ROWS = 256  # generated for a comparison
_ODD_SHARE = 0.1  # share of missing or infinite values in the odd matrices


def as_linear(estimator: Any, native: Predictor) -> Linear | None:
    """The numbers of a fitted estimator; None if it is not known here, or scores differently than its native predictor."""
    try:
        linear = _read(estimator)
    except (NotCompilableError, AttributeError, LookupError, TypeError, ValueError):  # a damaged file may lack anything
        return None
    with one_thread(), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # categories that are not known are expected
        agrees = all(_agrees(linear.predict(matrix), native, matrix) for matrix in generated_rows(linear))
    return linear if agrees else None


def _agrees(scores: NDArray[Any] | None, native: Predictor, matrix: NDArray[np.float64]) -> bool:
    try:
        expected = native.predict(matrix)
    except ValueError:
        return scores is None
    if scores is None or scores.shape != expected.shape:
        return False
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return np.allclose(scores, expected, rtol=0, atol=TOLERANCE * largest)


def generated_rows(linear: Linear) -> Iterator[NDArray[np.float64]]:
    """Generate matrices of the values that the model knows, or that lie around the centre of a column.

    First numbers alone, then the same with missing values, and with infinities.
    """
    random = np.random.default_rng(0)
    plain = np.asfortranarray(random.standard_normal((_ROWS, linear.columns)))
    for term in linear.terms:
        by_name = {step.name: step.number for step in reversed(term.steps)}
        if term.known is not None:
            plain[:, term.column] = random.choice([*term.known[~np.isnan(term.known)], -1.0, 0.5], _ROWS)
            continue
        spread = by_name.get("divide") or 1 / (by_name.get("multiply") or 1.0)
        centre = by_name.get("subtract", by_name.get("fill", 0.0))
        plain[:, term.column] = centre + spread * random.standard_normal(_ROWS)
    yield plain
    for odd in (np.nan, np.inf):
        few = plain.copy(order="F")
        few[random.random(few.shape) < _ODD_SHARE] = odd
        yield few


@dataclass(frozen=True)
class _Made:
    """A column that preprocessing made of a column of the matrix: a number, or a mark of the rows that hold one value."""

    source: int
    before: tuple[Step, ...] = ()
    marked: float | None = None  # the value, NaN for a missing one; None for a number
    after: tuple[Step, ...] = ()  # steps of the mark, which is 1 or 0

    def then(self, *steps: Step) -> "_Made":
        if self.marked is None:
            return replace(self, before=(*self.before, *steps))
        return replace(self, after=(*self.after, *steps))

    def marks(self, value: float) -> "_Made":
        require(self.marked is None, "it encodes what is encoded already")
        return replace(self, marked=float(value))


def _read(estimator: Any) -> Linear:
    steps: list[Any] = [step for _, step in estimator.steps] if _name(estimator) == _PIPELINE else [estimator]
    *transformers, last = steps
    name = _name(last)
    require(name in _LINKS and isinstance(last.coef_, np.ndarray), f"{type(last).__name__} is not linear")
    link = _LINKS[name]
    columns = int(getattr(steps[0], "n_features_in_", last.n_features_in_))
    made = reduce(_after, transformers, [_Made(at) for at in range(columns)])
    weights = last.coef_.astype(np.float64)
    require(
        link not in ("value", "exponential") or weights.ndim == 1 or len(weights) == 1, "it predicts several columns"
    )
    weights = np.atleast_2d(weights)
    if link == "softmax" and len(weights) == 1:
        link = "probabilities"
    if name == _STOCHASTIC_CLASSIFIER:
        require(last.loss == "log_loss", "its probabilities are not logistic")
        link = "probabilities" if len(weights) == 1 else "shares"
    require(weights.shape[1] == len(made), "it has weights for other columns")
    intercepts = np.broadcast_to(np.ravel(last.intercept_).astype(np.float64), len(weights))
    require(np.isfinite(weights).all() and np.isfinite(intercepts).all(), "its numbers are not finite")
    return Linear(columns, list(_terms(made, weights.T)), intercepts.tolist(), link)


def sources_of(transformers: Sequence[Any], columns: int) -> list[int]:
    """The column of the matrix that each column after fitted transformers was made of; raises NotCompilableError if they are not known."""
    return [made.source for made in reduce(_after, transformers, [_Made(at) for at in range(columns)])]


def _terms(made: Sequence[_Made], weights: NDArray[np.float64]) -> Iterator[Term]:
    """The terms of columns with their weights [columns, outputs]; adjacent marks of one column become one term."""
    pairs = zip(made, weights, strict=True)
    for (source, before, marks), group in groupby(
        pairs, key=lambda pair: (pair[0].source, pair[0].before, pair[0].marked is not None)
    ):
        columns, own = zip(*group, strict=True)
        if not marks:
            yield from (Term(source, before, weight) for weight in own)
            continue
        marked = np.array([column.marked for column in columns])
        known = np.unique(marked)  # ascending, with one NaN at most, which is last
        hit = (marked == known[:, None]) | (np.isnan(marked) & np.isnan(known[:, None]))
        of_none, of_hit = ([_applied(column.after, mark) for column in columns] for mark in (0.0, 1.0))
        held = np.where(np.vstack([hit, np.zeros(len(marked), np.bool_)]), of_hit, of_none)  # [known + 1, columns]
        yield Term(source, before, reduce(np.add, (held[:, [at]] * weight for at, weight in enumerate(own))), known)


def _applied(steps: Sequence[Step], mark: float) -> float:
    return float(reduce(lambda values, step: step(values, np.empty(1)), steps, np.array([mark]))[0])


def _after(made: list[_Made], transformer: Any) -> list[_Made]:
    """The columns that a fitted transformer makes of others."""
    if isinstance(transformer, str) or transformer is None:
        return [] if transformer == "drop" else made
    name = _name(transformer)
    require(name in _READERS, f"{type(transformer).__name__} is not known")
    return _READERS[name](transformer, made)


def _scaled(transformer: Any, made: list[_Made], *steps: tuple[StepName, Any]) -> list[_Made]:
    """Columns after steps, each with the numbers of all columns; None stands for a step that is left out."""
    if getattr(transformer, "clip", False):
        low, high = getattr(transformer, "feature_range", (-1.0, 1.0))
        steps = (("finite", np.zeros(len(made))), *steps)
        steps = (*steps, ("lowest", np.full(len(made), low)), ("highest", np.full(len(made), high)))
    done: list[tuple[StepName, list[float]]] = [
        (name, np.asarray(numbers, np.float64).tolist()) for name, numbers in steps if numbers is not None
    ]
    return [column.then(*(Step(name, numbers[at]) for name, numbers in done)) for at, column in enumerate(made)]


def _standardised(transformer: Any, made: list[_Made]) -> list[_Made]:
    mean = transformer.mean_ if transformer.with_mean else None
    return _scaled(transformer, made, ("subtract", mean), ("divide", transformer.scale_))


def _imputed(transformer: Any, made: list[_Made]) -> list[_Made]:
    missing, statistics = transformer.missing_values, np.asarray(transformer.statistics_, np.float64)
    require(isinstance(missing, float) and np.isnan(missing), "it fills what is not missing")
    filled = [column.then(Step("fill", number)) for column, number in zip(made, statistics.tolist(), strict=True)]
    kept = [column for column, number in zip(filled, statistics, strict=True) if not np.isnan(number)]
    indicator = transformer.indicator_
    return kept if indicator is None else [*kept, *(made[at].marks(np.nan) for at in indicator.features_.tolist())]


def _one_hot(transformer: Any, made: list[_Made]) -> list[_Made]:
    frequent = not any(infrequent is not None for infrequent in getattr(transformer, "infrequent_categories_", ()))
    require(transformer.handle_unknown != "error" and frequent, "it refuses or joins categories")
    marks: list[_Made] = []
    for column, known, dropped in zip(made, transformer.categories_, _dropped(transformer, len(made)), strict=True):
        require(np.issubdtype(known.dtype, np.number), "its categories are not numbers")
        marks += [column.marks(value) for at, value in enumerate(known.tolist()) if at != dropped]
    return marks


def _dropped(transformer: Any, columns: int) -> Sequence[int | None]:
    return [None] * columns if transformer.drop_idx_ is None else list(transformer.drop_idx_)


def _by_columns(transformer: Any, made: list[_Made]) -> list[_Made]:
    places = transformer._transformer_to_input_indices  # noqa: SLF001 - nothing public says which columns each one takes
    return [
        column
        for name, own, _ in transformer.transformers_
        for column in _after([made[at] for at in places[name]], own)
    ]


def _unchanged(transformer: Any, made: list[_Made]) -> list[_Made]:
    require(transformer.func is None, "it calls a function")
    return made


def _name(estimator: object) -> str:
    kind = type(estimator)
    return f"{kind.__module__.removeprefix('sklearn.')}.{kind.__qualname__}"


_PIPELINE = "pipeline.Pipeline"
_STOCHASTIC_CLASSIFIER = "linear_model._stochastic_gradient.SGDClassifier"
_READERS: dict[str, Callable[[Any, list[_Made]], list[_Made]]] = {
    _PIPELINE: lambda pipeline, made: reduce(_after, [step for _, step in pipeline.steps], made),
    "compose._column_transformer.ColumnTransformer": _by_columns,
    "impute._base.SimpleImputer": _imputed,
    "preprocessing._data.StandardScaler": _standardised,
    "preprocessing._data.RobustScaler": lambda scaler, made: _scaled(
        scaler, made, ("subtract", scaler.center_), ("divide", scaler.scale_)
    ),
    "preprocessing._data.MinMaxScaler": lambda scaler, made: _scaled(
        scaler, made, ("multiply", scaler.scale_), ("add", scaler.min_)
    ),
    "preprocessing._data.MaxAbsScaler": lambda scaler, made: _scaled(scaler, made, ("divide", scaler.scale_)),
    "preprocessing._encoders.OneHotEncoder": _one_hot,
    "preprocessing._function_transformer.FunctionTransformer": _unchanged,
}
_LINKS: dict[str, LinkName] = {
    **dict.fromkeys(
        ("linear_model._logistic.LogisticRegression", "linear_model._logistic.LogisticRegressionCV"), "softmax"
    ),
    "discriminant_analysis.LinearDiscriminantAnalysis": "softmax",
    _STOCHASTIC_CLASSIFIER: "shares",
    **dict.fromkeys(("linear_model._glm.glm.PoissonRegressor", "linear_model._glm.glm.GammaRegressor"), "exponential"),
    **dict.fromkeys(
        (
            "linear_model._base.LinearRegression",
            "linear_model._ridge.Ridge",
            "linear_model._ridge.RidgeCV",
            *(
                f"linear_model._coordinate_descent.{name}"
                for name in ("Lasso", "LassoCV", "ElasticNet", "ElasticNetCV")
            ),
            "linear_model._stochastic_gradient.SGDRegressor",
            "linear_model._least_angle.Lars",
            "linear_model._least_angle.LassoLars",
            "linear_model._bayes.BayesianRidge",
            "linear_model._bayes.ARDRegression",
            "linear_model._huber.HuberRegressor",
            "linear_model._quantile.QuantileRegressor",
            "svm._classes.LinearSVR",
        ),
        "value",
    ),
}
