"""The signature of a model: the contract of its columns, the encoding of rows to a matrix, and the form of its results.

Training infers a contract from its data and the declared overrides and saves it in the bundle. Scoring checks every row against
it: a row either satisfies the contract or is rejected with a reason. Training and scoring encode with the same code. A flavour
turns a file or an object into a predictor. Nothing here knows of files, databases or estimators.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, TrainingRefusedError, listed, nearest_names
from batch_platform.declaration.inputs import ColumnRule, ColumnType
from batch_platform.declaration.model import Task
from batch_platform.monitoring.metrics import as_truth
from batch_platform.warehouse.sql import folded

ClassLabel = bool | int | float | str
BINARY = 2  # number of classes
InputKind = Literal["number", "whole", "code", "text", "any"]  # whole: never null; code: stands for a category
STORED_AS: dict[ColumnType, type[pl.DataType]] = {
    "float": pl.Float64,
    "integer": pl.Int64,
    "boolean": pl.Boolean,
    "category": pl.String,
}
REASON, OFFENDER = "__reason", "__column"
MAX_EXACT_INTEGER = 2**53 - 1  # larger ones share their float64 with a neighbour
UNSEEN_NULL = "no value where training always had one"  # why a row is rejected
MAX_CATEGORIES = 254  # scikit-learn's histogram trees take 255 bins, one of them for missing values


@dataclass(frozen=True)
class ContractColumn:
    """One feature column."""

    name: str
    type: ColumnType  # type of the values, however they are stored
    nullable: bool
    min: float | None = None  # declared bound
    max: float | None = None
    lowest: float | None = None  # lowest value in training; None for text and for a column without values
    highest: float | None = None
    categories: tuple[str, ...] = ()  # the values known to the model, sorted; any other value is scored as unknown


@dataclass(frozen=True)
class Split:
    """Rows checked against a contract; each row is in exactly one of the frames."""

    kept: pl.DataFrame  # all columns; those of the contract in the contract's types and under its names
    rejected: pl.DataFrame  # all columns unchanged, then REASON and OFFENDER


@dataclass(frozen=True)
class Contract:
    """The feature columns of a model, in the order of the matrix."""

    columns: tuple[ContractColumn, ...]

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

    def changes_since(self, former: "Contract") -> list[str]:
        """Say which columns are new or gone since a former model, and which turned from numbers into text or back."""
        before = {column.name: column.type for column in former.columns}
        now = {column.name: column.type for column in self.columns}
        new, gone = now.keys() - before.keys(), before.keys() - now.keys()
        turned = [
            f"{name} was {'text' if before[name] == 'category' else 'a number'} and is {'text' if kind == 'category' else 'a number'} now"
            for name, kind in now.items()
            if name in before and (kind == "category") != (before[name] == "category")
        ]
        added = f"{listed(new)} {'is a new feature' if len(new) == 1 else 'are new features'}"
        removed = f"{listed(gone)} {'is no longer a feature' if len(gone) == 1 else 'are no longer features'}"
        return [*turned, *([added] if new else []), *([removed] if gone else [])]

    def lacking(self, present: Collection[str]) -> list[str]:
        """The columns that are not among those present."""
        return [name for name in self.names if name not in present]

    def split(self, rows: pl.DataFrame) -> Split:
        """Separate the rows that satisfy the contract from those that do not, with the first rule that each of these breaks.

        Raises DataError if a column is missing; the order of the columns does not matter, nor do further ones.
        """
        present = rows.columns
        if missing := self.lacking(present):
            own = [name for name in present if not name.startswith("__")]  # the others are of the platform
            free = [name for name in own if name not in self.names]
            msg = f"The features lack the columns {listed(missing)}; there are {listed(own)}."
            hint = "if one was renamed, select it under its former name, or train the model again."
            raise DataError(msg, hint=nearest_names(missing, free) or hint)
        dtypes = rows.schema
        read = {column.name: _read(column, dtypes[column.name]) for column in self.columns}
        rules = [rule for column in self.columns for rule in _rules(column, rows[column.name], read[column.name])]
        broken = rows.select(pl.any_horizontal(rule.broken for rule in rules)).to_series() if rules else None
        converted = [read[name].alias(name) for name in self.names if not _as_is(read[name], name)]
        if broken is None or not broken.any():
            no_reason = (pl.lit(None, dtype=pl.String).alias(name) for name in (REASON, OFFENDER))
            kept, rejected = rows.with_columns(converted), rows.clear().with_columns(no_reason)
        else:
            kept = rows.filter(~broken).with_columns(converted)
            rejected = rows.filter(broken).with_columns(
                pl.coalesce(pl.when(rule.broken).then(pl.lit(rule.reason)) for rule in rules).alias(REASON),
                pl.coalesce(pl.when(rule.broken).then(pl.lit(rule.column)) for rule in rules).alias(OFFENDER),
            )
        return Split(kept=kept, rejected=rejected[[*present, REASON, OFFENDER]])

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

        `matrix` holds the same rows as `kept`, encoded.
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
        return cls(
            tuple(replace(ContractColumn(**column), categories=tuple(column["categories"])) for column in columns)
        )


def infer_contract(
    training: pl.DataFrame, rules: Mapping[str, ColumnRule], *, most_categories: int | None = MAX_CATEGORIES
) -> Contract:
    """Learn a contract from training data, which holds only the feature columns, and from the declared rules.

    A column keeps its `most_categories` most frequent categories; None: all of them.

    Raises DataError if a declared column does not exist, a rule does not fit its column, or a type cannot be a feature.
    """
    if absent := [name for name, rule in rules.items() if rule.feature and name not in training.columns]:
        msg = f"features.columns names {listed(absent)}, but the features have {listed(training.columns)}."
        raise DataError(msg, hint=nearest_names(absent, training.columns) or None)
    columns = [_declared(training[name], rules.get(name, ColumnRule())) for name in training.columns]
    return Contract(tuple(_learn(column, training[column.name], most_categories) for column in columns))


@dataclass(frozen=True)
class Signature:
    """The columns that a model takes and the kind of result that it returns."""

    task: Task
    # In the order of the probabilities: of two, the second is positive. Of outliers their label last, if there are labels;
    # empty for any other task.
    classes: list[ClassLabel]
    contract: Contract


def classes_of_one_name(classes: Sequence[ClassLabel]) -> list[ClassLabel]:
    """The classes whose columns `score_<class>` SQL cannot tell apart, since their names differ only by case."""
    names = Counter(folded(str(label)) for label in classes)
    return [label for label in classes if names[folded(str(label))] > 1]


@dataclass(frozen=True)
class Input:
    """One column that a model takes, as its file describes it."""

    name: str  # empty if the file has no names: then only the order counts
    kind: InputKind
    categories: tuple[str, ...] = ()  # behind its codes, in their order; empty if the file does not state them


@dataclass(frozen=True)
class ForeignModel:
    """A model made elsewhere, as far as its file describes it."""

    model: Any  # what the flavour's `save` takes
    inputs: Sequence[Input] | None  # the columns that it takes; None if it takes any columns
    task: Task | None = None  # None, like the classes, if the file does not state it
    classes: Sequence[ClassLabel] | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])  # further facts for the manifest, as JSON


def matched_contract(contract: Contract, inputs: Sequence[Input]) -> Contract:
    """The columns of a contract that a model takes, in its order and with its own categories.

    Raises DataError if a column is missing or of another kind, or the number of columns differs.
    """
    names = [column.name for column in inputs if column.name]
    if not names and len(inputs) != len(contract.columns):
        msg = f"The model takes {len(inputs)} columns, but the features have {len(contract.columns)}: {listed(contract.names)}."
        raise DataError(msg, hint="select its columns in its order, or set features.columns.<name>.feature: false.")
    if missing := [name for name in names if name not in contract.names]:
        free = [name for name in contract.names if name not in names]
        msg = f"The model takes the columns {listed(missing)}; the features have {listed(contract.names)}."
        raise DataError(msg, hint=nearest_names(missing, free) or "give the features these names.")
    by_name = {column.name: column for column in contract.columns}
    columns = [by_name[name] for name in names] if names else contract.columns
    return Contract(tuple(_matched(column, taken) for column, taken in zip(columns, inputs, strict=True)))


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


def _matched(column: ContractColumn, taken: Input) -> ContractColumn:
    if taken.categories:
        return ContractColumn(column.name, "category", column.nullable, categories=taken.categories)
    if column.type == "category" and taken.kind in ("number", "whole", "code"):
        msg = f"Column {column.name!r} holds text, but the model takes numbers there."
        raise DataError(msg, hint="in the features, convert it to the number that the model was trained on.")
    if column.type != "category" and taken.kind == "text":
        msg = f"Column {column.name!r} is of type {column.type}, but the model takes text there."
        raise DataError(msg, hint=f"set features.columns.{column.name}.type: category.")
    return replace(column, nullable=False) if taken.kind == "whole" else column


def _declared(values: pl.Series, rule: ColumnRule) -> ContractColumn:
    """A column as its rule declares it; what the rule leaves out is inferred from the values."""
    name, dtype = values.name, values.dtype
    type_ = rule.type or _type_of(name, dtype)
    if not _readable(type_, dtype):
        msg = f"features.columns.{name}.type is {type_!r}, but the column holds {dtype}."
        raise DataError(msg, hint="convert it to a number or a text in the features.")
    if type_ in ("boolean", "category") and not rule.min is rule.max is None:
        msg = f"features.columns.{name} declares bounds, but the column is a {type_}."
        raise DataError(msg, hint="leave out min and max, or convert it to a number in the features.")
    nullable = values.null_count() > 0 if rule.nullable is None else rule.nullable
    return ContractColumn(name, type_, nullable, rule.min, rule.max)


def _under(column: ContractColumn, rule: ColumnRule) -> ContractColumn:
    nullable = column.nullable if rule.nullable is None else rule.nullable
    bounded = column.type in ("float", "integer")
    return replace(column, nullable=nullable, min=rule.min if bounded else None, max=rule.max if bounded else None)


def _learn(column: ContractColumn, values: pl.Series, most_categories: int | None) -> ContractColumn:
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
    """Return whether values of this storage type can be read as a column type: a time is not a number, a list is not text."""
    plain = dtype.is_numeric() or _is_text(dtype) or isinstance(dtype, pl.Boolean | pl.Null)
    return plain or (type_ == "category" and isinstance(dtype, pl.Date))


@dataclass(frozen=True)
class _Rule:
    column: str
    reason: str
    broken: pl.Expr  # true where a row breaks the rule; never null


def _read(column: ContractColumn, dtype: pl.DataType) -> pl.Expr:
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


def _rules(column: ContractColumn, values: pl.Series, read: pl.Expr) -> list[_Rule]:
    """The rules that some row might break, the cheapest checks first: most columns of most batches need none."""
    name, rules = column.name, list[_Rule]()
    raw = pl.col(name)
    if not column.nullable and values.null_count():
        rules.append(_Rule(name, UNSEEN_NULL, raw.is_null()))
    if not _as_is(read, name):
        rules.append(_Rule(name, f"not a value of type {column.type}", raw.is_not_null() & read.is_null()))
    # The sum of values with a NaN or an infinity is a NaN or an infinity.
    if column.type == "float" and not (_as_is(read, name) and isfinite(values.sum())):
        number = read.cast(pl.Float64)
        rules.append(_Rule(name, "NaN or infinite", number.is_finite().not_().fill_null(value=False)))
    if column.min is not None:
        rules.append(_Rule(name, f"below the minimum {column.min:.15g}", (read < column.min).fill_null(value=False)))
    if column.max is not None:
        rules.append(_Rule(name, f"above the maximum {column.max:.15g}", (read > column.max).fill_null(value=False)))
    return rules


@dataclass(frozen=True)
class Positive:
    """The choice of the positive class of two; by default True or 1, else the last number or the rarer text."""

    declared: ClassLabel | None = None
    before: ClassLabel | None = None  # positive class of the version before: a score keeps its meaning

    def last(self, classes: list[ClassLabel], truth: NDArray[Any]) -> list[ClassLabel]:
        """The classes with the positive one last; raises TrainingRefusedError if the declared one is none of them."""
        rarer = min(reversed(classes), key=lambda label: int((truth == label).sum()))
        default = rarer if all(isinstance(label, str) for label in classes) else classes[-1]
        wanted = (label for name in (self.declared, self.before) for label in classes if label == name)
        chosen = next(wanted, default)
        if self.declared is not None and chosen != self.declared:
            msg = (
                f"labels.positive is {self.declared!r}, but the labels to learn from are {listed(map(repr, classes))}."
            )
            write = " or ".join(f"positive: {json.dumps(label)}" for label in classes)
            read = "; yes and no in a CSV file are read as truth values" if isinstance(chosen, bool) else ""
            raise TrainingRefusedError(msg, hint=f"write {write}{read}.")
        return [*(label for label in classes if label != chosen), chosen]

    def of_outliers(self, truth: NDArray[Any]) -> list[ClassLabel]:
        """The labels with that of the outliers last; none if there are not two, and none is declared."""
        labels: list[ClassLabel] = np.unique(truth).tolist()
        return self.last(labels, truth) if labels and (self.declared is not None or len(labels) == BINARY) else []

    def of_import(self, signature: Signature, labels: pl.Series | None) -> Signature:
        """The signature of an imported model, with the labels of outliers if any labels are known.

        Raises TrainingRefusedError if a score of two classes is for another class than declared.
        """
        if signature.task == "binary" and self.declared not in (None, signature.classes[-1]):
            msg = f"labels.positive is {self.declared!r}, but the imported model scores {signature.classes[-1]!r}."
            raise TrainingRefusedError(msg, hint="leave labels.positive out: model.classes says what an import scores.")
        if signature.task != "outliers" or labels is None:
            return signature
        return replace(signature, classes=self.of_outliers(as_truth(labels)))
