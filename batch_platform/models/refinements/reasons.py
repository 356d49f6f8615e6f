"""The refinement `reasons`: for each row the columns that moved its score most, under the user's names and with the user's values.

Contributions to the raw score are exact for sums of trees (path-dependent TreeSHAP) and for linear models (coefficient times the
encoded value, less its mean over the training rows), and no estimate for others. What preprocessing makes of a column counts for that
column. The contributions of a row and the base value of the output sum to its raw score, which comes before the link, the correction
for sampled classes and calibration: of two classes that of the positive one, of more that of the predicted one.

Only the means of a linear model are learned; the contributions are computed with the score, for the rows and in the number that the
pipeline declares now.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.kernels.forest.compiled import CompilablePredictor, TreePredictor, inputs_of
from batch_platform.kernels.forest.ensembles import Finish, NotCompilableError, Parts, require
from batch_platform.kernels.linear import Linear, LinearPredictor, sources_of
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import Contract, Signature
from batch_platform.models.refinements.refinement import Batch, Check, Learned, Refinement, Unseen, model_of

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


COLUMN = "reasons"
STRUCT = pl.Struct({"feature": pl.String, "value": pl.String, "contribution": pl.Float64})
BLOCK_ROWS = 16_384  # rows whose contributions are in memory together
IMPORTANCE_ROWS = 10_000  # rows over which contributions are averaged, the newest that the model learned from


def _learned(count: int, unseen: Unseen) -> Learned:
    names, model = unseen.signature.contract.names, model_of(unseen.predictor)
    if count > len(names):
        msg = f"predictions.reasons: {count} reasons are declared, but the model has only {len(names)} columns: {listed(names)}."
        raise TrainingRefusedError(msg, hint=f"set predictions.reasons to {len(names)} or less.")
    means = linear_means(model, unseen.learned_from)
    try:
        explainer = explainer_of(model, unseen.signature, means)
    except NotCompilableError as error:
        msg = f"predictions.reasons: this model has no reasons: {error}."
        hint = (
            "use trees (scikit-learn, LightGBM, XGBoost) or a linear model, behind nothing but imputers, scalers and one-hot "
            "encoders; or remove predictions.reasons."
        )
        raise TrainingRefusedError(msg, hint=hint) from error
    newest = unseen.learned_from[-IMPORTANCE_ROWS:]
    sizes = np.abs(explainer.of(newest, explained_outputs(model.predict(newest)))).mean(axis=0)
    return {
        "unit": explainer.unit,
        "base": list(explainer.bases),
        "means": means,
        "importance": dict(zip(names, sizes.tolist(), strict=True)),
    }


def explained_outputs(raw: NDArray[Any]) -> NDArray[np.int64]:
    """The position of the explained output of each row: that of the most probable class, if there are several."""
    return raw.argmax(axis=1) if raw.ndim > 1 else np.zeros(len(raw), np.int64)


def _columns(learned: Learned, batch: Batch) -> list[pl.Series]:
    if (declared := batch.reasons) is None:  # the pipeline asked for them when the model was trained
        return []
    explainer = explainer_of(batch.model, batch.signature, learned["means"])
    rows, matrix, raw = batch.rows, batch.matrix, batch.raw
    if declared.of == "decisions":
        wanted = np.zeros(len(matrix), dtype=np.bool_) if batch.selected is None else batch.selected
    elif declared.above is None:
        wanted = None
    else:  # the score of two classes is the probability of the second
        scores = raw if raw.ndim == 1 else raw[:, 1] if batch.signature.task == "binary" else raw.max(axis=1)
        wanted = scores > declared.above
    if wanted is not None:
        rows, matrix, raw = rows.filter(pl.Series(wanted)), matrix[wanted], raw[wanted]
    outputs, count = explained_outputs(raw), min(declared.count, matrix.shape[1])
    reasons = pl.concat(
        reasons_of(rows[some], explainer.of(matrix[some], outputs[some]), batch.signature.contract, count)
        for some in (slice(start, start + BLOCK_ROWS) for start in range(0, max(1, len(matrix)), BLOCK_ROWS))
    )
    if wanted is not None:
        places = np.where(wanted, np.cumsum(wanted) - 1, -1)
        reasons = reasons.gather(pl.Series(places).replace(-1, None))
    return [reasons]


def largest(contributions: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The columns [rows, count] with the largest contributions [rows, columns] by absolute value; the first of equal ones."""
    sizes, places = np.abs(contributions), np.empty((len(contributions), count), np.intp)
    for at in range(count):
        places[:, at] = sizes.argmax(axis=1)
        np.put_along_axis(sizes, places[:, at : at + 1], -1.0, axis=1)
    return places


def reasons_of(rows: pl.DataFrame, contributions: NDArray[np.float64], contract: Contract, count: int) -> pl.Series:
    """The largest contributions of each row [rows, columns], with the values of their columns as text."""
    places = largest(contributions, count)
    flat = places.ravel()
    order = np.argsort(flat.astype(np.uint16), kind="stable")
    starts = np.searchsorted(flat[order], np.arange(len(contract.columns) + 1))
    texts = [
        rows[name].gather(order[start:end] // count).cast(pl.String).alias("value")
        for name, start, end in zip(contract.names, starts[:-1], starts[1:], strict=True)
    ]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    reasons = pl.DataFrame(
        {
            "feature": pl.Series(contract.names, dtype=pl.String).gather(flat),
            "value": pl.concat(texts).gather(place),
            "contribution": np.take_along_axis(contributions, places, axis=1).ravel(),
        }
    )
    return reasons.to_struct(COLUMN).cast(STRUCT).reshape((len(rows), count)).arr.to_list()


REASONS = Refinement(
    COLUMN,
    fit=_learned,
    columns=_columns,
    check=lambda learned, _before, _after: Check({name: learned[name] for name in ("unit", "base", "importance")}),
    declared=lambda spec: spec.predictions.reasons and spec.predictions.reasons.count,
)
