"""What goes into a model and what comes out of it: the words in which flavours and scoring talk to each other.

A flavour turns a file or an object into a predictor of this form; it knows nothing of pipelines, registries or tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, did_you_mean, listed
from batch_platform.declaration.spec import Task
from batch_platform.models.contract import STORED_AS, Column, Contract

ClassLabel = bool | int | float | str
InputKind = Literal["number", "whole", "code", "text", "any"]  # whole: never null; code: stands for a category


class Predictor(Protocol):
    """A loaded model: plain numbers in, plain numbers out.

    It fits nothing, keeps nothing between calls, and may be called from several threads at once, on each of which it
    holds its library to one thread.
    """

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], values [n] of a regression, or segments [n] of a clustering.

        Of outliers, how odd each row is [n]: above 0 it is one.
        """
        ...


@dataclass(frozen=True)
class Signature:
    """The columns that a model reads and the kind of thing that it gives."""

    task: Task
    classes: Sequence[ClassLabel]  # in the order of the probabilities; empty but for a classification
    contract: Contract


@dataclass(frozen=True)
class Input:
    """One column that a model asks for, as its file tells.

    Args:
        name: Empty where the file names none: then only the order counts.
        kind: What it reads: numbers, codes of categories, text, or whatever comes.
        categories: What its codes stand for, in the order of the codes; empty where the file does not tell.
    """

    name: str
    kind: InputKind
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A model made elsewhere, as far as it tells about itself.

    Args:
        model: What the flavour's `save` takes.
        inputs: The columns that it asks for; None where it takes whatever it is given.
        task: None where the file does not tell.
        classes: None where the file does not tell.
        details: For the manifest, as JSON knows it.
    """

    model: Any
    inputs: Sequence[Input] | None
    task: Task | None = None
    classes: Sequence[ClassLabel] | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])


def held_against(contract: Contract, inputs: Sequence[Input]) -> Contract:
    """The columns of a contract that a model asks for, in its order and with its own categories.

    Raises:
        DataError: One is missing, there are more or fewer of them, or one is of another kind.
    """
    named = [one.name for one in inputs if one.name]
    if not named and len(inputs) != len(contract.columns):
        msg = f"The model takes {len(inputs)} columns, and the features have {len(contract.columns)}: {listed(contract.names)}."
        raise DataError(msg, hint="give just its columns in its order, or set features.columns.<name>.feature: false.")
    if missing := [name for name in named if name not in contract.names]:
        free = [name for name in contract.names if name not in named]
        guesses = [f"{name!r}: {guess}" for name in missing if (guess := did_you_mean(name, free))]
        msg = f"The model asks for the columns {listed(missing)}; the features have {listed(contract.names)}."
        raise DataError(msg, hint=" ".join(guesses) or "give them these names in the features.")
    by_name = {column.name: column for column in contract.columns}
    columns = [by_name[name] for name in named] if named else list(contract.columns)
    return Contract(tuple(_as_asked(column, asked) for column, asked in zip(columns, inputs, strict=True)))


def _as_asked(column: Column, asked: Input) -> Column:
    if asked.categories:
        return replace(
            column, type="category", min=None, max=None, lowest=None, highest=None, categories=asked.categories
        )
    if column.type == "category" and asked.kind in ("number", "whole", "code"):
        msg = f"Column {column.name!r} holds text, and the model takes numbers there."
        raise DataError(msg, hint="make of it, in the features, the number that the model was trained on.")
    if column.type != "category" and asked.kind == "text":
        msg = f"Column {column.name!r} is of type {column.type}, and the model takes text there."
        raise DataError(msg, hint=f"set features.columns.{column.name}.type: category.")
    return replace(column, nullable=False) if asked.kind == "whole" else column


def decoded(matrix: NDArray[np.float64], contract: Contract) -> pl.DataFrame:
    """The columns that a matrix was encoded from, for models that read text; an unknown category is null."""
    columns: list[pl.Series] = []
    for at, column in enumerate(contract.columns):
        values = pl.Series(column.name, matrix[:, at]).fill_nan(None)
        if column.type == "category":
            names = pl.Series(column.categories, dtype=pl.String)
            values = names.gather(values.cast(pl.UInt32)).alias(column.name)
        columns.append(values.cast(STORED_AS[column.type]))
    return pl.DataFrame(columns)
