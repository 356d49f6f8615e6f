"""The scores that the judged fit of a version gave its evaluation rows, by which any two versions are compared on the same rows.

They are kept in the bundle, with the true label of each row and a hash of its partition and key, so that a version can be
compared after it was fitted again on these rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.features.history import ENTITY, GROUP, PARTITION_START, ROW
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import BINARY, ClassLabel, Signature, Task
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.metrics import CLASSIFICATION, as_truth, known_to
from batch_platform.monitoring.outcomes import PARTITION, Outcomes, weights_of

SCORES_FILE = "evaluation.parquet"
UNIT = "unit_"  # begins the name of a column of numbers: rows with the same number are not independent
MOST_ROWS = 100_000  # rows in the file of a bundle: those with the lowest hashes, which two versions share
MOST_SCORES = 1_000_000  # scores in it: with more than ten classes, fewer rows


@dataclass(frozen=True, eq=False)
class JudgedScores:
    """The output of a model for rows, and their names."""

    outcomes: Outcomes
    rows: NDArray[np.uint64]  # hash of each row's partition and key [n]

    def to_parquet(self) -> bytes:
        """The content of the file of a bundle: columns row, truth, score_0 and so on, e.g. unit_partition, and weight."""
        most = min(MOST_ROWS, MOST_SCORES // max(1, len(self.outcomes.classes)))
        kept = np.sort(np.argsort(self.rows)[:most])
        outcomes = self.outcomes.at(kept)
        scores = outcomes.predicted.reshape(len(kept), -1)
        columns = {"row": self.rows[kept], "truth": outcomes.labels.tolist()}
        columns |= {} if outcomes.weights is None else {"weight": outcomes.weights}
        columns |= {f"{UNIT}{unit}": numbers for unit, numbers in outcomes.units.items()}
        file = BytesIO()
        pl.DataFrame(columns | {f"score_{at}": scores[:, at] for at in range(scores.shape[1])}).write_parquet(file)
        return file.getvalue()

    @classmethod
    def from_parquet(cls, content: bytes, task: Task, classes: list[ClassLabel]) -> "JudgedScores":
        """Read the file of a bundle."""
        frame = pl.read_parquet(content)
        scores = frame.select(r"^score_\d+$").to_numpy()
        predicted = scores if task in CLASSIFICATION else scores[:, 0]
        units = {name.removeprefix(UNIT): frame[name].to_numpy() for name in frame.columns if name.startswith(UNIT)}
        weights = frame["weight"].to_numpy() if "weight" in frame.columns else None
        outcomes = Outcomes(task, predicted, as_truth(frame["truth"]), classes, units=units, weights=weights)
        return cls(outcomes, frame["row"].to_numpy())


def outcomes_of(predictor: Predictor, signature: Signature, rows: pl.DataFrame, label: str | None) -> Outcomes:
    """Predictions of a model for rows that keep its contract, at least one, with their truth."""
    matrix = signature.contract.encode(rows)
    with one_thread():
        predicted = predictor.predict(matrix)
    truth = None if label is None else as_truth(rows[label])
    return Outcomes(signature.task, predicted, truth, signature.classes, matrix, _units(rows), weights=weights_of(rows))


def scores_of(predictor: Predictor, signature: Signature, rows: pl.DataFrame, label: str | None) -> JudgedScores | None:
    """The outcomes of a model for evaluation rows, which keep its contract, with the names of the rows; None without rows."""
    if not rows.height:
        return None
    named = rows[ROW].to_numpy() if ROW in rows.columns else np.arange(rows.height, dtype=np.uint64)
    return JudgedScores(outcomes_of(predictor, signature, rows, label), named)


def known_rows(signature: Signature, rows: pl.DataFrame, label: str | None) -> pl.DataFrame:
    """The rows of the classes that a model knows; all rows for a model without classes."""
    if label is None or signature.task not in CLASSIFICATION:
        return rows
    return rows.filter(known_to(signature.classes, rows[label]))


def _units(rows: pl.DataFrame) -> dict[str, NDArray[np.integer]]:
    """The number of each row's unit [n], by the name of the unit: the declared one, otherwise its entity and its partition."""
    columns = {"entity": ENTITY, PARTITION: PARTITION_START}
    if GROUP in rows.columns:  # a declared unit stands alone
        columns = {PARTITION if rows.schema[GROUP].is_temporal() else "group": GROUP}
    present = {name: column for name, column in columns.items() if column in rows.columns}
    return {name: rows[column].to_physical().to_numpy() for name, column in present.items()}


def verdict_on_shared_rows(metric: str, first: JudgedScores, second: JudgedScores) -> Verdict | str:
    """Hold a model against a second one on the rows that both have scored; or say why they cannot be compared."""
    outcomes = on_shared_rows(first, second)
    if isinstance(outcomes, str):
        return outcomes
    return Verdict.on(metric, *outcomes) or f"{metric} cannot be measured on the rows that both can score"


def on_shared_rows(first: JudgedScores, second: JudgedScores) -> tuple[Outcomes, Outcomes] | str:
    """The outcomes of two models on the rows that both have scored, among the classes that both know; or why there are none.

    Labels, weights and units are those of the first.
    """
    own, other = first.outcomes, second.outcomes
    if reason := not_comparable((own.task, own.classes), (other.task, other.classes)):
        return reason
    _, left, right = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    in_order = np.argsort(left)
    own, other = own.at(left[in_order]), other.at(right[in_order])
    other = replace(other, truth=own.truth, units=own.units, weights=own.weights, rule=own.rule)
    if own.task in CLASSIFICATION and own.classes != other.classes:
        own, other = (_among(_shared(own.classes, other.classes), outcomes) for outcomes in (own, other))
    known = own.of_known_class
    return (own.at(known), other.at(known)) if known.any() else "there is no evaluation row that both have scored"


def not_comparable(first: tuple[str, Sequence[ClassLabel]], second: tuple[str, Sequence[ClassLabel]]) -> str:
    """Reason why a second model, by its task and classes, cannot be compared with a first one; empty if it can."""
    if first[0] not in CLASSIFICATION or second[0] not in CLASSIFICATION:
        return "" if first[0] == second[0] else f"it is of another task, {second[0]}"
    return "" if len(_shared(first[1], second[1])) >= BINARY else "it knows other classes"


def _shared(first: Sequence[ClassLabel], second: Sequence[ClassLabel]) -> list[ClassLabel]:
    return [label for label in first if label in second]


def _among(classes: list[ClassLabel], outcomes: Outcomes) -> Outcomes:
    """A classifier that tells only some of its classes apart: their probabilities, scaled to a sum of 1."""
    chosen = outcomes.predicted[:, [outcomes.classes.index(label) for label in classes]]
    sums = chosen.sum(axis=1, keepdims=True)
    scaled = np.divide(chosen, sums, out=np.full_like(chosen, 1 / len(classes)), where=sums > 0)
    return replace(
        outcomes,
        task="binary" if len(classes) == BINARY else "multiclass",
        predicted=scaled,
        classes=classes,
        rule=None,  # it is one for other classes
    )
