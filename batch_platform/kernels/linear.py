"""A linear model as plain numbers: the preprocessing of each column, the weights, and the link after the sum.

A row is added up term by term, many rows at a time, with nothing but additions, subtractions, multiplications, divisions and
comparisons of whole columns. The IEEE standard fixes the result of each of them to the last bit, so that a row's score does not depend
on the rows beside it, the processor or the number of threads. Linear algebra libraries and NumPy's `exp` promise none of that.

The numbers are read from fitted estimators of scikit-learn 1.9, alone or behind preprocessing. Anything that is not known here is left
to scikit-learn, as is a model whose numbers do not give scikit-learn's scores.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.ensembles import NotCompilableError, Parts, as_decisions, require
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor, decisions

LINEAR_FILE = "linear.json"
BLOCK = 20_480  # rows whose sums stay in the cache from term to term
LinkName = Literal["value", "exponential", "probabilities", "shares", "softmax"]
StepName = Literal["finite", "fill", "subtract", "divide", "multiply", "add", "lowest", "highest"]
Column = NDArray[np.float64]  # [rows]
_ARITHMETIC = {
    "subtract": np.subtract,
    "divide": np.divide,
    "multiply": np.multiply,
    "add": np.add,
    "lowest": np.maximum,
    "highest": np.minimum,
}


class RefusedError(Exception):
    """A value that the model does not take."""


@dataclass(frozen=True)
class Step:
    """One operation on a column of numbers: `fill` replaces missing values, `finite` refuses infinities."""

    name: StepName
    number: float = 0.0

    def __call__(self, values: Column, out: Column) -> Column:
        """Apply it; the result is `out`, or the values themselves if nothing changes."""
        if self.name == "finite":
            if np.isinf(values).any():
                raise RefusedError
            return values
        if self.name == "fill":
            missing = np.isnan(values)
            if not missing.any():
                return values
            np.copyto(out, values)
            out[missing] = self.number
            return out
        return _ARITHMETIC[self.name](values, self.number, out=out)


@dataclass(frozen=True)
class Term:
    """One column of the matrix, and what it adds to each output."""

    column: int
    steps: tuple[Step, ...]
    # A number adds its product with the weights [outputs]. A column with known values adds the weights of the value
    # [known + 1, outputs]: these ascend, a missing one last; the last weights are those of any other value.
    weights: NDArray[np.float64]
    known: Column | None = None

    def values(self, block: NDArray[np.float64], out: Column) -> Column:
        """The column of some rows [rows, columns] after the steps; raises RefusedError."""
        return reduce(lambda values, step: step(values, out), self.steps, block[:, self.column])

    def amounts(self, block: NDArray[np.float64], out: Column) -> Iterator[Column]:
        """The amount for each output in turn; each uses the memory of the one before. Raises RefusedError."""
        values = self.values(block, out)
        if self.known is None:
            product = np.empty_like(out)
            yield from (np.multiply(values, weight, out=product) for weight in self.weights.tolist())
            return
        if np.isinf(values).any():
            raise RefusedError
        nearest = np.searchsorted(self.known, values).clip(max=len(self.known) - 1)
        beside = self.known[nearest]
        places = np.where((beside == values) | (np.isnan(beside) & np.isnan(values)), nearest, len(self.known))
        yield from (weights[places] for weights in self.weights.T)


@dataclass(frozen=True)
class Linear:
    """A linear model; its sums begin with the first term, and the intercepts are added last.

    Links: `value` is the sum [rows], `exponential` its exponential; `probabilities` are those of two classes by the logistic function
    of one sum, `shares` those of more classes, each by its own logistic function; `softmax`.
    """

    columns: int  # number of columns of the matrix
    terms: Sequence[Term]
    intercepts: Sequence[float]  # one for each output
    link: LinkName

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any] | None:
        """Return class probabilities [rows, classes] or values [rows]; None for a matrix that scikit-learn refuses."""
        scores = self._evaluated(matrix, self.link)
        return scores[:, 0] if scores is not None and self.link in ("value", "exponential") else scores

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the sums, [rows] of two classes or [rows, classes]; None for a matrix that scikit-learn refuses."""
        sums = self._evaluated(matrix, "value")
        return None if sums is None else as_decisions(sums)

    def _evaluated(self, matrix: NDArray[np.float64], link: LinkName) -> NDArray[np.float64] | None:
        if matrix.dtype != np.float64 or matrix.shape[1:] != (self.columns,):
            return None
        outputs = max(2, len(self.intercepts)) if link == "probabilities" else len(self.intercepts)
        scores = np.empty((len(matrix), outputs), order="F")
        try:
            with np.errstate(all="ignore"):  # a sum may overflow, and a row without a finite score is rejected later
                for start in range(0, len(matrix), BLOCK):
                    sums = self._sums(matrix[start : start + BLOCK])
                    for output, column in enumerate(_APPLIED_LINKS[link](sums)):
                        scores[start : start + BLOCK, output] = column
        except RefusedError:
            return None
        return scores

    def amounts(self, matrix: NDArray[np.float64], output: int) -> NDArray[np.float64]:
        """The contribution of each column to an output [rows, columns]; raises RefusedError for a matrix that scikit-learn refuses."""
        added = np.zeros(matrix.shape)
        for start in range(0, len(matrix), BLOCK):
            block, to = matrix[start : start + BLOCK], added[start : start + BLOCK]
            out = np.empty(len(block))
            for term in self.terms:
                to[:, term.column] += next(islice(term.amounts(block, out), output, None))
        return added

    def _sums(self, block: NDArray[np.float64]) -> list[Column]:
        sums = [np.zeros(len(block)) for _ in self.intercepts]
        out = np.empty(len(block))
        for term in self.terms:
            for total, amount in zip(sums, term.amounts(block, out), strict=True):
                np.add(total, amount, out=total)
        for total, intercept in zip(sums, self.intercepts, strict=True):
            np.add(total, intercept, out=total)
        # A value that is not finite leaves no finite sum, but finite values may overflow.
        if not all(np.isfinite(total).all() for total in sums):
            numbers = (term.values(block, out) for term in self.terms if term.known is None)
            if not all(np.isfinite(values).all() for values in numbers):
                raise RefusedError
        return sums


@dataclass(frozen=True)
class LinearPredictor:
    """Evaluates a linear model; safe to call from several threads at once."""

    linear: Linear
    native: Callable[[], Predictor]  # loads scikit-learn's own form, which explains why it refuses a matrix

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes] or values [rows]."""
        scores = self.linear.predict(matrix)
        return self.native().predict(matrix) if scores is None else scores

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the decision function of a classifier, [rows] of two classes or [rows, classes]."""
        decided = self.linear.decide(matrix)
        return decisions(self.native(), matrix) if decided is None else decided

    def parts(self) -> Parts:
        """Raise NotCompilableError: it has no trees."""
        msg = f"it is linear, and evaluated from the numbers in {LINEAR_FILE}"
        raise NotCompilableError(msg)


def linear_file(linear: Linear) -> bytes:
    """Return the file of a linear model, in which every number is exact."""
    terms = [asdict(term) | {"weights": term.weights.tolist(), "known": _listed(term.known)} for term in linear.terms]
    return json.dumps(asdict(linear) | {"terms": terms}, allow_nan=False).encode()


def _listed(known: Column | None) -> list[float | None] | None:
    """Known values for JSON, which has null for a missing one."""
    return None if known is None else [None if np.isnan(value) else value for value in known.tolist()]


def read_linear(data: bytes) -> Linear:
    """Read a file whose hash was checked."""
    content = json.loads(data)
    terms = [
        Term(
            column=term["column"],
            steps=tuple(Step(**step) for step in term["steps"]),
            weights=np.array(term["weights"], dtype=np.float64),
            known=None if term["known"] is None else np.array(term["known"], dtype=np.float64),
        )
        for term in content.pop("terms")
    ]
    return Linear(**content, terms=terms)


def exponentials(values: Column) -> Column:
    """The exponential of each number, within one unit in the last place.

    Cody-Waite reduction by multiples of ln 2 in two parts, then the rational approximation of `e_exp.c` in Sun's fdlibm.
    """
    values = np.clip(values, _LEAST, _MOST)
    doublings = np.rint(values * _DOUBLINGS)
    high, low = values - doublings * _LN2_HIGH, doublings * _LN2_LOW
    rest = high - low
    square = rest * rest
    series = np.full_like(rest, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series *= square
        series += coefficient
    distance = rest - series * square
    fraction = 1.0 - ((low - (rest * distance) / (2.0 - distance)) - high)
    return np.ldexp(fraction, doublings.astype(np.int32))


_LEAST, _MOST = -746.0, 710.0  # beyond them the exponential is 0 or infinite
_DOUBLINGS = float.fromhex("0x1.71547652b82fep0")  # 1 / ln 2
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_SERIES = (  # coefficients of a power series in the square, the highest power first
    *(4.13813679705723846039e-08, -1.65339022054652515390e-06, 6.61375632143793436117e-05),
    *(-2.77777777770155933842e-03, 1.66666666666666019037e-01),
)


def _logistic(total: Column) -> Column:
    return 1.0 / (1.0 + exponentials(-total))


def _probabilities(sums: list[Column]) -> list[Column]:
    second = _logistic(sums[0])
    return [1.0 - second, second]


def _shares(sums: list[Column]) -> list[Column]:
    parts = [_logistic(total) for total in sums]
    whole = reduce(np.add, parts)
    return [np.where(whole == 0, 1 / len(parts), part / whole) for part in parts]


def _softmax(sums: list[Column]) -> list[Column]:
    largest = reduce(np.maximum, sums)
    parts = [exponentials(total - largest) for total in sums]
    whole = reduce(np.add, parts)
    return [part / whole for part in parts]


_APPLIED_LINKS: dict[LinkName, Callable[[list[Column]], list[Column]]] = {
    "value": lambda sums: sums,
    "exponential": lambda sums: [exponentials(sums[0])],
    "probabilities": _probabilities,
    "shares": _shares,
    "softmax": _softmax,
}


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
