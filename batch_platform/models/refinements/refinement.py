"""The record that each refinement fills in, the rows that it learns from, and a model with its refinements.

A refinement stands between the raw output of a model and the row of predictions. It is learned once, when a model is trained, and
kept in the bundle as plain numbers and texts. Scoring applies it to one batch after another: it fits nothing, and a row's result does not
depend on the other rows. Every engine does so in the same place, so that champions, challengers and backtests get the same bits.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import IntegrityError
from batch_platform.declaration.predictions import DECISION, Decide, Reasons
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.history import TrainingData
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import BINARY, ClassLabel, Signature
from batch_platform.monitoring.decisions import rule_of
from batch_platform.monitoring.outcomes import CLASSIFICATION, Outcomes

# What a refinement has learned: numbers, texts, arrays of numbers, and lists and dicts of these. It is kept as JSON, from which a
# list of numbers comes back as an array of float64.
Learned = dict[str, Any]
REFINEMENTS_FILE = "refinements.json"


@dataclass(frozen=True)
class Unseen:
    """Rows that the judged fit has not learned from, and that neither the gate nor the metrics see.

    They are the first part of the evaluation window. A refinement that does not hold rows out gets none.
    """

    rows: pl.DataFrame  # rows that keep the contract, with the label and the columns beside the features
    matrix: NDArray[np.float64]  # the same rows encoded [n, columns]
    raw: NDArray[Any]  # output of the predictor: probabilities [n, classes], otherwise values [n]
    truth: NDArray[Any] | None  # labels [n], among them classes that the model may not know; None without labels
    signature: Signature
    predictor: Predictor  # the model with the refinements before this one
    data: TrainingData  # the rows that the model learned from, and how they were sampled
    learned_from: NDArray[np.float64]  # those of them that keep the contract, encoded [m, columns]
    single: bool = False  # whether the model's own library returns numbers of 32 bits


@dataclass(frozen=True)
class Batch:
    """Scored rows, to which a refinement adds columns."""

    rows: pl.DataFrame  # rows that keep the contract and have a finite score, with all feature columns
    matrix: NDArray[np.float64]  # the same rows encoded [n, columns]
    raw: NDArray[Any]  # refined output: probabilities [n, classes], otherwise values [n]
    signature: Signature
    model: Predictor  # the model without refinements: the library's own, compiled trees, or linear numbers
    # Mask of the rows that a declared rule selects, or may select once the partition is whole [n]; None if nothing asks for it.
    selected: NDArray[np.bool_] | None = None
    reasons: Reasons | None = None  # the declared number of reasons, and the rows that have some


@dataclass(frozen=True)
class Check:
    """The result of trying a refinement on the rows that the gate judges."""

    facts: dict[str, Any] = field(default_factory=dict[str, Any])  # recorded in the manifest
    objection: str = ""  # why it is not applied, as a clause that becomes a remark; empty if it is


class NotAppliedError(Exception):
    """The reason why a declared refinement is not applied to a version, as a clause that becomes a remark."""


@dataclass(frozen=True)
class Refinement:
    """One refinement.

    `fit` raises TrainingRefusedError, which names the key, where no model can be trained as declared; NotAppliedError where the
    version is trained without it; and returns None where there is nothing to apply.
    """

    name: str
    fit: Callable[[Any, Unseen], Learned | None] = lambda _settings, _unseen: {}
    # Changes the output: returns what takes the place of what the predictor returns for a matrix.
    refine: Callable[[Learned, Predictor, NDArray[np.float64]], NDArray[Any]] | None = None
    # Adds columns to the predictions of a batch, of the same names and types in every batch, also in one without rows.
    columns: Callable[[Learned, Batch], Sequence[pl.Series]] | None = None
    # Tries it on the rows that the gate judges, given the outcomes before and after it.
    check: Callable[[Learned, Outcomes, Outcomes], Check] | None = None
    # Says as a clause why what it learned on scores of the judged fit does not suit the model that is fitted again, given the
    # share of its rows that the judged fit learned from; empty if it does.
    unsuited: Callable[[Any, float], str] = lambda _settings, _share: ""
    # Says as a clause what whoever uses the version should know of what it learned; empty if nothing.
    remark: Callable[[Learned], str] = lambda _learned: ""
    # What a pipeline declares for it; None if it does not declare it. Only of the platform's own refinements.
    declared: Callable[[PipelineSpec], Any] = lambda _spec: None
    # Whether it learns from rows that the model has not seen, so that the evaluation window is divided. What it learned is kept
    # when the model is fitted again; any other refinement is learned again with the model.
    holds_out: bool = False
    retrains: bool = True  # whether a model is due for training when what is declared for it changes
    source: str = ""  # hash of the module's file, if it is a pipeline's own


@dataclass(frozen=True)
class Applied:
    """A refinement of a version."""

    refinement: Refinement
    learned: Learned


@dataclass(frozen=True)
class Refined:
    """A model with its refinements, at least one; as safe to call from several threads as the model."""

    model: Predictor
    applied: tuple[Applied, ...]

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return the refined output: probabilities [rows, classes], otherwise values [rows]."""
        *before, last = self.applied
        predictor, refine = refined(self.model, before), last.refinement.refine
        return predictor.predict(matrix) if refine is None else refine(last.learned, predictor, matrix)


def refined(model: Predictor, applied: Sequence[Applied]) -> Predictor:
    """A model with refinements; without any, the model as it is."""
    return Refined(model, tuple(applied)) if applied else model


def model_of(predictor: Predictor) -> Predictor:
    """The model behind its refinements."""
    return predictor.model if isinstance(predictor, Refined) else predictor


def added_columns(predictor: Predictor, batch: Batch) -> list[pl.Series]:
    """The columns that the refinements of a predictor add to a batch, in order."""
    applied = predictor.applied if isinstance(predictor, Refined) else ()
    adding = ((each.refinement.columns, each.learned) for each in applied if each.refinement.columns is not None)
    return [column for columns, learned in adding for column in columns(learned, batch)]


def empty_output(signature: Signature) -> NDArray[np.float64]:
    """The output of a model for no rows."""
    return np.empty((0, len(signature.classes)) if signature.task in CLASSIFICATION else 0)


def refinements_file(applied: Sequence[Applied]) -> bytes:
    """The file of a bundle in which every number is exact; empty if nothing is applied."""
    content = [
        {"name": each.refinement.name, "source": each.refinement.source, "learned": each.learned} for each in applied
    ]
    return json.dumps(content, default=lambda value: value.tolist(), indent=1).encode() if content else b""


def read_refinements(data: bytes, named: Callable[[str], Refinement]) -> tuple[Applied, ...]:
    """Read a file whose hash was checked; `named` finds the refinement of a name.

    Raises IntegrityError if the source code of a pipeline's own refinement has changed since.
    """
    content: list[dict[str, Any]] = json.loads(data) if data else []
    applied = tuple(Applied(named(each["name"]), _with_arrays(each["learned"])) for each in content)
    for each, of_file in zip(applied, content, strict=True):
        if each.refinement.source != of_file["source"]:
            msg = f"The source of {each.refinement.name} has changed since the model was trained; it is not used."
            raise IntegrityError(msg, hint="train the model again, or undo the change.")
    return applied


def _with_arrays(value: Any) -> Any:
    """Turn each list of numbers into an array."""
    if isinstance(value, dict):
        return {key: _with_arrays(inner) for key, inner in value.items()}
    if isinstance(value, list):
        numbers = bool(value) and all(type(inner) in (int, float) for inner in value)
        return np.array(value, dtype=np.float64) if numbers else [_with_arrays(inner) for inner in value]
    return value


def decision_column(
    declared: Decide, probabilities: NDArray[Any], task: str, classes: Sequence[ClassLabel]
) -> pl.Series:
    """The decision on each row: of two classes whether to act on it, of several the class; null under `top`.

    Raises:
        DataError: The rule does not fit the model.
    """
    decided = rule_of(declared, task, classes).decided(probabilities)
    if decided is None:
        return pl.repeat(None, len(probabilities), dtype=pl.Boolean, eager=True).alias(DECISION)
    if len(classes) == BINARY:
        return pl.Series(DECISION, decided == 1)
    return pl.Series(np.array(classes)).gather(decided.astype(np.uint32)).alias(DECISION)


def may_be_selected(
    declared: Decide, probabilities: NDArray[Any], task: str, classes: Sequence[ClassLabel]
) -> pl.Series:
    """Mask of the rows of a batch that are acted on or, under `top`, may be; of several classes, every row."""
    if declared.top is not None:
        # Of a share, the partition has more rows than the batch, and any of these may be among the highest.
        most = declared.top if isinstance(declared.top, int) else len(probabilities)
        scores = probabilities[:, 1].astype(np.float64)
        return pl.Series(scores >= np.sort(scores)[-min(most, len(scores))] if len(scores) else scores > 0)
    decided = decision_column(declared, probabilities, task, classes)
    return decided if decided.dtype == pl.Boolean else pl.repeat(value=True, n=len(decided), eager=True)
