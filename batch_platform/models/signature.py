"""What a model takes and returns: the types through which flavours and scoring talk to each other.

A flavour turns a file or an object into a predictor; it knows nothing of pipelines, registries or tables.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, did_you_mean, listed
from batch_platform.declaration.spec import Task
from batch_platform.models.contract import STORED_AS, Column, Contract
from batch_platform.warehouse.sql import folded

ClassLabel = bool | int | float | str
InputKind = Literal["number", "whole", "code", "text", "any"]  # whole: never null; code: stands for a category


class Predictor(Protocol):
    """A loaded model: plain numbers in, plain numbers out.

    It fits nothing and keeps nothing between calls. Several threads may call it at once; on each of them, its library uses one thread.
    """

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes], values [rows] of a regression, or segments [rows] of a clustering.

        For outliers, return how odd each row is [rows]: above 0 it is an outlier.
        """
        ...


@dataclass(frozen=True)
class Signature:
    """The columns that a model takes and the kind of result that it returns."""

    task: Task
    classes: Sequence[ClassLabel]  # in the order of the probabilities; empty unless it is a classification
    contract: Contract


def classes_of_one_name(classes: Sequence[ClassLabel]) -> list[ClassLabel]:
    """The classes whose columns `score_<class>` SQL cannot tell apart, since their names differ only by case."""
    names = Counter(folded(str(label)) for label in classes)
    return [label for label in classes if names[folded(str(label))] > 1]


@dataclass(frozen=True)
class Input:
    """One column that a model takes, as its file describes it.

    Args:
        name: Empty if the file has no names: then only the order counts.
        kind: What it holds: numbers, category codes, text, or anything.
        categories: The categories behind its codes, in the order of the codes; empty if the file does not state them.
    """

    name: str
    kind: InputKind
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForeignModel:
    """A model made elsewhere, as far as its file describes it.

    Args:
        model: What the flavour's `save` takes.
        inputs: The columns that it takes; None if it takes whatever it is given.
        task: None if the file does not state it.
        classes: None if the file does not state them.
        details: Further facts for the manifest, as JSON.
    """

    model: Any
    inputs: Sequence[Input] | None
    task: Task | None = None
    classes: Sequence[ClassLabel] | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])


def matched_contract(contract: Contract, inputs: Sequence[Input]) -> Contract:
    """The columns of a contract that a model takes, in its order and with its own categories.

    Raises:
        DataError: A column is missing or of another kind, or the number of columns differs.
    """
    names = [column.name for column in inputs if column.name]
    if not names and len(inputs) != len(contract.columns):
        msg = f"The model takes {len(inputs)} columns, but the features have {len(contract.columns)}: {listed(contract.names)}."
        raise DataError(msg, hint="select its columns in its order, or set features.columns.<name>.feature: false.")
    if missing := [name for name in names if name not in contract.names]:
        free = [name for name in contract.names if name not in names]
        guesses = [f"{name!r}: {guess}" for name in missing if (guess := did_you_mean(name, free))]
        msg = f"The model takes the columns {listed(missing)}; the features have {listed(contract.names)}."
        raise DataError(msg, hint=" ".join(guesses) or "give the features these names.")
    by_name = {column.name: column for column in contract.columns}
    columns = [by_name[name] for name in names] if names else contract.columns
    return Contract(tuple(_matched(column, asked) for column, asked in zip(columns, inputs, strict=True)))


def _matched(column: Column, asked: Input) -> Column:
    if asked.categories:
        return replace(
            column, type="category", min=None, max=None, lowest=None, highest=None, categories=asked.categories
        )
    if column.type == "category" and asked.kind in ("number", "whole", "code"):
        msg = f"Column {column.name!r} holds text, but the model takes numbers there."
        raise DataError(msg, hint="in the features, convert it to the number that the model was trained on.")
    if column.type != "category" and asked.kind == "text":
        msg = f"Column {column.name!r} is of type {column.type}, but the model takes text there."
        raise DataError(msg, hint=f"set features.columns.{column.name}.type: category.")
    return replace(column, nullable=False) if asked.kind == "whole" else column


def decoded(matrix: NDArray[np.float64], contract: Contract) -> pl.DataFrame:
    """Restore the columns that a matrix was encoded from, for models that read text; an unknown category is null."""
    columns: list[pl.Series] = []
    for at, column in enumerate(contract.columns):
        values = pl.Series(column.name, matrix[:, at]).fill_nan(None)
        if column.type == "category":
            names = pl.Series(column.categories, dtype=pl.String)
            values = names.gather(values.cast(pl.UInt32)).alias(column.name)
        columns.append(values.cast(STORED_AS[column.type]))
    return pl.DataFrame(columns)
