"""A linear model as plain numbers: the preprocessing of each column, the weights, and the link after the sum.

A row is added up term by term, many rows at a time, with nothing but additions, subtractions, multiplications, divisions and
comparisons of whole columns. The IEEE standard fixes the result of each of them to the last bit, so that a row's score does not depend
on the rows beside it, the processor or the number of threads. Linear algebra libraries and NumPy's `exp` promise none of that.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.ensembles import NotCompilableError, Parts, as_decisions
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
                    for output, column in enumerate(_LINKS[link](sums)):
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


_LINKS: dict[LinkName, Callable[[list[Column]], list[Column]]] = {
    "value": lambda sums: sums,
    "exponential": lambda sums: [exponentials(sums[0])],
    "probabilities": _probabilities,
    "shares": _shares,
    "softmax": _softmax,
}
