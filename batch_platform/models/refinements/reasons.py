"""The refinement `reasons`: for each row the columns that moved its score most, under the user's names and with the user's values.

Only the means of a linear model are learned; the contributions are computed with the score, for the rows and in the number that the
pipeline declares now. They explain the raw score, before the link,
the correction for sampled classes and calibration: of two classes that of the positive one, of more that of the predicted one.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.kernels.forest.ensembles import NotCompilableError
from batch_platform.models.contract import Contract
from batch_platform.models.refinements.explained import explainer_of, linear_means
from batch_platform.models.refinements.refinement import Batch, Check, Learned, Refinement, Unseen, model_of

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
