"""The contract of the feature columns, and the encoding of rows to the matrix that a model reads.

Training infers a contract from its data and the declared overrides and saves it in the bundle. Scoring checks every row against
it: a row either satisfies the contract or is rejected with a reason. Training and scoring encode with the same code. Nothing here
knows of files, databases or estimators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, did_you_mean, listed
from batch_platform.declaration.inputs import ColumnRule, ColumnType

STORED_AS: dict[ColumnType, type[pl.DataType]] = {
    "float": pl.Float64,
    "integer": pl.Int64,
    "boolean": pl.Boolean,
    "category": pl.String,
}
REASON, OFFENDER = "__reason", "__column"
MAX_EXACT_INTEGER = 2**53 - 1  # larger ones share their float64 with a neighbour
MAX_CATEGORIES = 254  # scikit-learn's histogram trees take 255 bins, one of them for missing values


@dataclass(frozen=True)
class Column:
    """One feature column.

    Args:
        name: As in the features.
        type: Type of its values, however they are stored.
        nullable: Whether a null satisfies the contract.
        min: Declared lower bound.
        max: Declared upper bound.
        lowest: Smallest value in training; None for text and empty columns.
        highest: Largest value in training.
        categories: The values known to the model, sorted; any other value is scored as unknown.
    """

    name: str
    type: ColumnType
    nullable: bool
    min: float | None = None
    max: float | None = None
    lowest: float | None = None
    highest: float | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Rows checked against a contract; each row is in exactly one of the frames."""

    kept: pl.DataFrame  # all columns; those of the contract in the contract's types
    rejected: pl.DataFrame  # all columns unchanged, then REASON and OFFENDER


@dataclass(frozen=True)
class Contract:
    """The feature columns of a model, in the order of the matrix."""

    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """The column names, in order."""
        return [column.name for column in self.columns]

    @property
    def categorical(self) -> list[int]:
        """The positions of the columns that hold categories."""
        return [at for at, column in enumerate(self.columns) if column.type == "category"]

    def under(self, rules: Mapping[str, ColumnRule]) -> "Contract":
        """This contract with the rules that are declared now instead of those that were declared in training.

        Bounds are always declared; whether nulls are allowed is learned unless it is declared. Types and categories stay as learned.
        """
        return Contract(tuple(_under(column, rules.get(column.name, ColumnRule())) for column in self.columns))

    def require_columns(self, present: Sequence[str]) -> None:
        """Check that every column exists, by name; order and further columns do not matter.

        Raises:
            DataError: A column is missing.
        """
        missing = [name for name in self.names if name not in present]
        if missing:
            free = [name for name in present if name not in self.names]
            guesses = [f"{name!r}: {guess}" for name in missing if (guess := did_you_mean(name, free))]
            msg = f"The features lack the columns {listed(missing)}; there are {listed(present)}."
            raise DataError(msg, hint=" ".join(guesses) or "train again if the features have changed.")

    def split(self, rows: pl.DataFrame) -> Split:
        """Separate the rows that satisfy the contract from those that do not, with the first rule that each of these breaks.

        Raises:
            DataError: A column is missing.
        """
        self.require_columns(rows.columns)
        dtypes = rows.schema
        read = {column.name: _read(column, dtypes[column.name]) for column in self.columns}
        rules = [rule for column in self.columns for rule in _rules(column, rows[column.name], read[column.name])]
        broken = rows.select(pl.any_horizontal(rule.broken for rule in rules)).to_series() if rules else None
        converted = [read[name].alias(name) for name in self.names if not _as_is(read[name], name)]
        if broken is None or not broken.any():
            kept, rejected = rows.with_columns(converted), rows.clear().with_columns(_no_reason())
        else:
            kept = rows.filter(~broken).with_columns(converted)
            rejected = rows.filter(broken).with_columns(
                pl.coalesce(pl.when(rule.broken).then(pl.lit(rule.reason)) for rule in rules).alias(REASON),
                pl.coalesce(pl.when(rule.broken).then(pl.lit(rule.column)) for rule in rules).alias(OFFENDER),
            )
        return Split(kept=kept, rejected=rejected)

    def encode(self, kept: pl.DataFrame) -> NDArray[np.float64]:
        """Encode rows that satisfy the contract as a matrix: float64 [rows, columns], Fortran order, null as NaN.

        A category becomes its position among the known ones; an unknown category becomes NaN. Integers beyond 2^53 are
        rounded, as scikit-learn rounds them.
        """
        matrix = np.empty((kept.height, len(self.columns)), dtype=np.float64, order="F")
        for at, column in enumerate(self.columns):
            values = kept[column.name]
            if column.type == "category":
                values = values.cast(pl.Enum(column.categories), strict=False).to_physical()
            numbers = values.cast(pl.Float64)
            matrix[:, at] = (numbers.fill_null(np.nan) if numbers.null_count() else numbers).to_numpy()
        return matrix

    def unseen(self, kept: pl.DataFrame, matrix: NDArray[np.float64]) -> dict[str, int]:
        """Count the rows with a category that training did not see, by column; columns without any are left out.

        Args:
            kept: Rows that satisfy the contract.
            matrix: The same rows, encoded.
        """
        counts = {
            column.name: int(np.isnan(matrix[:, at]).sum()) - kept[column.name].null_count()
            for at, column in enumerate(self.columns)
            if column.type == "category"
        }
        return {name: count for name, count in counts.items() if count}

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values for a manifest, equal to what comes back from JSON."""
        return [asdict(column) | {"categories": list(column.categories)} for column in self.columns]

    @classmethod
    def from_json(cls, columns: Sequence[Mapping[str, Any]]) -> "Contract":
        """Read what `to_json` returned."""
        return cls(tuple(replace(Column(**column), categories=tuple(column["categories"])) for column in columns))


def infer_contract(
    training: pl.DataFrame, declared: Mapping[str, Column], *, most_categories: int | None = MAX_CATEGORIES
) -> Contract:
    """Learn a contract from training data.

    Args:
        training: The feature columns only.
        declared: The columns for which something was declared.
        most_categories: Maximum number of categories per column, the most frequent first; None: all of them.

    Raises:
        DataError: A declared column does not exist, or a column's type cannot be a feature.
    """
    if absent := [name for name in declared if name not in training.columns]:
        guesses = [f"{name!r}: {guess}" for name in absent if (guess := did_you_mean(name, training.columns))]
        msg = f"features.columns names {listed(absent)}, but the features have {listed(training.columns)}."
        raise DataError(msg, hint=" ".join(guesses) or None)
    columns: list[Column] = []
    for name in training.columns:
        values = training[name]
        inferred = Column(name=name, type=_type_of(name, values.dtype), nullable=values.null_count() > 0)
        columns.append(_learn(declared.get(name, inferred), values, most_categories))
    return Contract(tuple(columns))


def declare_column(name: str, dtype: pl.DataType, *, nulls: bool, **declared: Any) -> Column:
    """A column with declared attributes; those that are None are inferred.

    Raises:
        DataError: The declaration does not fit the column.
    """
    known = {key: value for key, value in declared.items() if value is not None}
    column = replace(Column(name=name, type=known.get("type") or _type_of(name, dtype), nullable=nulls), **known)
    if not _readable(column.type, dtype):
        msg = f"features.columns.{name}.type is {column.type!r}, but the column holds {dtype}."
        raise DataError(msg, hint="convert it to a number or a text in the features.")
    if column.type in ("boolean", "category") and not column.min is column.max is None:
        msg = f"features.columns.{name} declares bounds, but the column is a {column.type}."
        raise DataError(msg, hint="leave out min and max, or convert it to a number in the features.")
    return column


def _under(column: Column, rule: ColumnRule) -> Column:
    nullable = column.nullable if rule.nullable is None else rule.nullable
    bounded = column.type in ("float", "integer")
    return replace(column, nullable=nullable, min=rule.min if bounded else None, max=rule.max if bounded else None)


def _learn(column: Column, values: pl.Series, most_categories: int | None) -> Column:
    read = values.to_frame().select(_read(column, values.dtype).alias("value"))["value"].drop_nulls()
    if column.type == "category":
        counts = read.value_counts().sort(["count", "value"], descending=[True, False])
        return replace(column, categories=tuple(counts["value"][:most_categories].sort()))
    numbers = read.cast(pl.Float64)
    numbers = numbers.filter(numbers.is_finite())
    low, high = cast("float | None", numbers.min()), cast("float | None", numbers.max())
    return replace(column, lowest=low, highest=high)


def _type_of(name: str, dtype: pl.DataType) -> ColumnType:
    if dtype.is_integer():
        return "integer"
    if dtype.is_numeric() or isinstance(dtype, pl.Null):
        return "float"
    if isinstance(dtype, pl.Boolean):
        return "boolean"
    if _is_text(dtype):
        return "category"
    msg = f"Column {name!r} is of type {dtype}, which cannot be a feature."
    hint = "convert it to a number or a text in the features, or set features.columns.<name>.feature: false."
    raise DataError(msg, hint=hint)


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def _readable(type_: ColumnType, dtype: pl.DataType) -> bool:
    """Whether values of this storage type can be read as a column type: a time is not a number, a list is not text."""
    plain = dtype.is_numeric() or _is_text(dtype) or isinstance(dtype, pl.Boolean | pl.Null)
    return plain or (type_ == "category" and isinstance(dtype, pl.Date))


@dataclass(frozen=True)
class _Rule:
    column: str
    reason: str
    broken: pl.Expr  # true where a row breaks the rule; never null


def _read(column: Column, dtype: pl.DataType) -> pl.Expr:
    """The column in the contract's type; null if a value cannot be read without loss."""
    value = pl.col(column.name)
    if dtype == STORED_AS[column.type]:
        return value
    if not _readable(column.type, dtype):
        return pl.lit(None, dtype=STORED_AS[column.type])
    if _is_text(dtype):
        value = value.cast(pl.String)
    match column.type:
        case "float":
            return _read_float(value, dtype)
        case "integer":
            return _read_integer(value, dtype)
        case "boolean":
            return _read_boolean(value, dtype)
        case "category":
            return value.cast(pl.String, strict=False)


def _read_float(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    number = value.cast(pl.Float64, strict=False)
    if not dtype.is_integer():
        return number
    return pl.when(value.is_between(-MAX_EXACT_INTEGER, MAX_EXACT_INTEGER)).then(number)


def _read_integer(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_integer():
        return value.cast(pl.Int64, strict=False)
    number = value.cast(pl.Float64, strict=False)
    whole = (number == number.round()) & (number.abs() <= MAX_EXACT_INTEGER)
    return pl.when(whole).then(number.cast(pl.Int64, strict=False))


def _read_boolean(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_numeric():
        return pl.when(value == 1).then(statement=True).when(value == 0).then(statement=False)
    text = value.cast(pl.String, strict=False).str.to_lowercase()
    return pl.when(text == "true").then(statement=True).when(text == "false").then(statement=False)


def _as_is(read: pl.Expr, name: str) -> bool:
    return read.meta.eq(pl.col(name))


def _rules(column: Column, values: pl.Series, read: pl.Expr) -> list[_Rule]:
    """The rules that some row might break, the cheapest checks first: most columns of most batches need none."""
    name, rules = column.name, list[_Rule]()
    raw = pl.col(name)
    if not column.nullable and values.null_count():
        rules.append(_Rule(name, "null where training saw none", raw.is_null()))
    if not _as_is(read, name):
        rules.append(_Rule(name, f"not a value of type {column.type}", raw.is_not_null() & read.is_null()))
    if column.type == "float" and not (_as_is(read, name) and isfinite(values.sum())):  # of others, no sum is finite
        number = read.cast(pl.Float64)
        rules.append(_Rule(name, "NaN or infinite", number.is_finite().not_().fill_null(value=False)))
    if column.min is not None:
        rules.append(_Rule(name, f"below the minimum {column.min:.15g}", (read < column.min).fill_null(value=False)))
    if column.max is not None:
        rules.append(_Rule(name, f"above the maximum {column.max:.15g}", (read > column.max).fill_null(value=False)))
    return rules


def _no_reason() -> list[pl.Expr]:
    return [pl.lit(None, dtype=pl.String).alias(REASON), pl.lit(None, dtype=pl.String).alias(OFFENDER)]
