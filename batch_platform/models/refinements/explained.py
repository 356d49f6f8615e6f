"""The contributions of a model's columns to its raw score: exact for sums of trees and for linear models, no estimate for others.

Trees: path-dependent TreeSHAP. Linear models: coefficient times the encoded value, less its mean over the training rows. What
preprocessing makes of a column counts for that column. The contributions of a row and the base value of the output sum to its raw
score, which comes before the link, the correction for sampled classes and calibration.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.compiled import CompilablePredictor, TreePredictor, inputs_of
from batch_platform.kernels.forest.ensembles import Finish, NotCompilableError, Parts, require
from batch_platform.kernels.linear import Linear, LinearPredictor, sources_of
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import Signature

Matrix = NDArray[np.float64]
LOG_ODDS, LOG_SHARE, PROBABILITY, LABEL, LOG_LABEL = (
    "log-odds",
    "log-probability, up to a term that all classes share",
    "probability",
    "unit of the label",
    "logarithm of the label",
)
_PROBE = 0.25  # a sum by which a link is recognised


@dataclass(frozen=True)
class Explainer:
    """The contributions to each output that is explained; safe to use from several threads at once."""

    unit: str  # unit of the raw score
    bases: Sequence[float]  # base value of each output
    parts: Sequence[Callable[[Matrix], Matrix]]  # contributions [rows, columns] to each output, given encoded rows

    def of(self, matrix: Matrix, outputs: NDArray[np.int64]) -> Matrix:
        """The contributions [rows, columns] to one output for each row, whose position is given by row."""
        if len(self.parts) == 1 or not len(matrix):
            return self.parts[0](matrix)
        contributions = np.empty(matrix.shape)
        for output, part in enumerate(self.parts):
            rows = np.flatnonzero(outputs == output)
            if len(rows):
                contributions[rows] = part(matrix[rows])
        return contributions


def explainer_of(model: Predictor, signature: Signature, means: Sequence[Matrix] = ()) -> Explainer:
    """The contributions to the raw score of a model: of two classes to that of the second, of more to that of each.

    `means` are those that `linear_means` returned in training. What was made of a model is kept as long as the model.

    Raises:
        NotCompilableError: The model is neither a sum of trees nor linear, its preprocessing is not known, or there are no
            means of a linear model.
    """
    with _lock:
        if id(model) not in _kept:
            _kept[id(model)] = _made(model, signature, means)
            weakref.finalize(model, _kept.pop, id(model), None)
        return _kept[id(model)]


_lock, _kept = Lock(), dict[int, Explainer]()


def _made(model: Predictor, signature: Signature, means: Sequence[Matrix]) -> Explainer:
    require(
        signature.task in ("binary", "multiclass", "regression"),
        f"a model for {signature.task} has no raw score to add up to",
    )
    if isinstance(model, LinearPredictor):
        require(len(means) > 0, "it was trained without predictions.reasons, so the means of its columns are not known")
        return _of_linear(model.linear, means)
    if isinstance(model, TreePredictor):
        return _of_trees(model.parts, signature)
    if isinstance(model, CompilablePredictor):
        return _of_trees(model.parts(), signature)
    msg = "only its library knows how to evaluate it"
    raise NotCompilableError(msg)


def _of_trees(parts: Parts, signature: Signature) -> Explainer:
    from batch_platform.kernels.forest.contributions import contributions_to  # imports numba

    ensemble, columns = parts.ensemble, parts.columns
    owners = sources_of([getattr(step, "__self__", step) for step in parts.steps], columns)
    outputs = range(len(ensemble.start.row))
    explained = outputs if signature.task == "multiclass" else outputs[-1:]
    trees = [contributions_to(ensemble, output, owners, columns) for output in explained]
    return Explainer(
        unit=_unit(ensemble.finish, len(outputs), signature),
        bases=[of_output.base for of_output in trees],
        parts=[lambda matrix, of_output=of_output: of_output.of(inputs_of(parts, matrix)) for of_output in trees],
    )


def _unit(finish: Finish, outputs: int, signature: Signature) -> str:
    """The unit of what a link is given, or of its mean if the link divides it, by what it makes of it."""
    shares = np.arange(1.0, outputs + 1) / np.arange(1.0, outputs + 1).sum() if outputs > 1 else np.array([_PROBE])
    made = np.asarray(finish(shares[None] * getattr(finish, "divisor", 1)), np.float64).ravel()
    unchanged = len(made) >= outputs and np.allclose(made[-outputs:], shares, atol=1e-6)
    if signature.task == "regression":
        return LABEL if unchanged else LOG_LABEL if np.allclose(made, np.exp(shares), rtol=1e-5) else "raw score"
    if unchanged:
        return PROBABILITY
    return LOG_SHARE if outputs > 1 else LOG_ODDS


def _of_linear(linear: Linear, means: Sequence[Matrix]) -> Explainer:
    units = {"value": LABEL, "exponential": LOG_LABEL, "softmax": LOG_SHARE}
    return Explainer(
        unit=units.get(linear.link, LOG_ODDS),
        bases=[float(mean.sum()) + intercept for mean, intercept in zip(means, linear.intercepts, strict=True)],
        parts=[
            lambda matrix, output=output, mean=mean: linear.amounts(matrix, output) - mean
            for output, mean in enumerate(means)
        ],
    )


def linear_means(model: Predictor, matrix: Matrix) -> list[Any]:
    """The mean amount that each column adds to each output, over the rows that a linear model learned from; else empty."""
    if not isinstance(model, LinearPredictor):
        return []
    linear = model.linear
    return [linear.amounts(matrix, output).mean(axis=0) for output in range(len(linear.intercepts))]
