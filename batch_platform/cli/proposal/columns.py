"""What the columns of a table are good for: which of them is worth predicting, and which can be features.

Evidence comes from names, positions, types, values and nulls. Nothing is written here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from batch_platform.cli.proposal.survey import LEAST_ROWS, Holds, Survey, TableColumn
from batch_platform.declaration.errors import WrongUseError, counted, shortened
from batch_platform.models.contract import infer_contract
from batch_platform.monitoring.leakage import MAX_ROWS, suspected_leaks
from batch_platform.monitoring.metrics import as_truth

MOST_CLASSES = 20  # of an integer label; more distinct values are a quantity
ROWS_PER_CLASS = 5  # of an integer label; fewer rows per value are a quantity too
MOST_VALUES = 255  # of a text feature, unless rows share the values anyway
NEARLY = 0.8  # an estimated number of distinct values may be this much too low
ENOUGH = 3  # points of evidence for a label that nobody named
_MOST_ADDENDS = 20  # columns of which each pair is added up
_NO_FEATURE: dict[Holds, str] = {
    "nothing": "has no values",
    "row number": "is the number that pandas gave the row",
    "time": "is a time, from which a number could be computed as a feature, such as an age in days",
}
_LABEL_NAME = re.compile(
    "label|target|y|outcome|class|churn(ed)?|(is_)?fraud|default(ed)?|converted|clicked|survived|returned|late|cancell?ed"
    "|attrition|response|responder|passed|failed|failure|diagnosis|approved|price|sales|demand|salary|charges|cost|score|rating"
)
KEY_NAMES = ("id", "key", "uuid", "guid", "number", "nr", "no", "code")
PARTS_OF_TIME = frozenset({"year", "quarter", "month", "week", "weekday", "day", "hour", "minute", "second"})
_ID_NAMES = frozenset({*KEY_NAMES, "index", "row"})


@dataclass(frozen=True)
class Evidence:
    """How much speaks for a column as the label, and what does."""

    column: TableColumn
    points: int
    reasons: tuple[str, ...]


def label_evidence(survey: Survey) -> list[Evidence]:
    """The columns that could be the label, the likeliest first."""
    able = [column for column in survey.columns if _can_be_label(survey, column)]
    with_nulls = [column for column in survey.columns if column.nulls]
    weighed = [_weighed(survey, column, with_nulls) for column in able]
    return sorted(weighed, key=lambda evidence: -evidence.points)


def _can_be_label(survey: Survey, column: TableColumn) -> bool:
    """Whether values repeat or are numbers; a constant, an identifier and a free text cannot be predicted."""
    if column.holds not in ("boolean", "integer", "number", "text") or column.distinct <= 1:
        return False
    if words(column.name)[-1:] and words(column.name)[-1] in _ID_NAMES:
        return False
    if column.holds == "integer":
        return not survey.counts_rows(column.name)
    return not column.is_text or column.distinct <= _most_classes(survey, column)


def _most_classes(survey: Survey, label: TableColumn) -> float:
    """The largest number of distinct texts in a label; more of them name rows, not classes."""
    return (survey.rows - label.nulls) / 2


def labels_of_one_value(survey: Survey) -> list[TableColumn]:
    """The columns that are called like a label, and have the same value in every row that has one."""
    return [column for column in survey.columns if column.distinct == 1 and _is_called_label(column)]


def _is_called_label(column: TableColumn) -> bool:
    return _LABEL_NAME.fullmatch("_".join(words(column.name))) is not None


def _weighed(survey: Survey, column: TableColumn, with_nulls: Sequence[TableColumn]) -> Evidence:
    two_valued = column.distinct == 2  # noqa: PLR2004 - yes and no
    facts = {
        "its name": 2 * _is_called_label(column),
        "it is the last column": column.position == len(survey.columns),
        "it has two values": two_valued,
        "it is the only column with nulls": with_nulls == [column],
        "its nulls are the last rows": bool(column.nulls) and survey.nulls_are_last(column.name),
    }
    points = {reason: int(weight) for reason, weight in facts.items() if weight}
    return Evidence(column, sum(points.values()), tuple(points))


def target_of(survey: Survey, label: TableColumn) -> str:
    """Whether the label holds "classes" or "numbers"; raises WrongUseError if it holds neither."""
    if label.holds in ("boolean", "text"):
        return "classes"
    if label.holds == "integer":
        values = survey.values(label.name)
        return "classes" if values <= MOST_CLASSES and values * ROWS_PER_CLASS <= survey.rows else "numbers"
    if label.holds == "number":
        return "classes" if survey.values(label.name) == 2 else "numbers"  # noqa: PLR2004 - two numbers are yes and no
    msg = f"{label.name!r} of {survey.origin.path} has type {label.dtype}, which cannot be predicted."
    raise WrongUseError(msg, hint="name a column of numbers, truth values or class names with --label.")


def require_values_to_learn(survey: Survey, label: TableColumn) -> None:
    """Refuse a label with the same value in every row that has one, and a label of texts that hardly repeat."""
    known, values = survey.rows - label.nulls, survey.values(label.name)
    if values == 1:
        msg = (
            f"Every {label.name!r} of {survey.origin.path} is {survey.example(label.name)} ({counted(known, 'row')}), "
            "so there is nothing to learn."
        )
        raise WrongUseError(msg, hint="add rows with other values, or name another --label.")
    if label.is_text and values > _most_classes(survey, label):
        msg = (
            f"{label.name!r} of {survey.origin.path} holds {values:,} distinct texts in {known:,} rows; "
            "texts can be predicted only if each is in two rows on average."
        )
        hint = "a column whose values hardly repeat is an identifier, not something to predict; name another --label."
        raise WrongUseError(msg, hint=hint)


def feature_reasons(
    survey: Survey, label: TableColumn | None, taken: Sequence[TableColumn | None], series: TableColumn | None
) -> Mapping[TableColumn, str | None]:
    """Every column that has no other role, with why it cannot be a feature; None for those that can.

    Of a `series`, the time of each row is unique: a counter of its rows tells no more.
    """
    reasons = {column: _no_feature(survey, column, series) for column in survey.columns if column not in taken}
    if label is not None:
        able = [column for column, reason in reasons.items() if reason is None]
        reasons |= _known_too_late(survey, label, able)
        able = [column for column in able if reasons[column] is None]
        reasons |= dict(_parts_of_the_label(survey, label, able))
        able = [column for column in able if reasons[column] is None]
        reasons |= dict(_suspected_leaks(survey, label, able))
    return reasons


def _no_feature(survey: Survey, column: TableColumn, series: TableColumn | None) -> str | None:
    """Why a column cannot be a feature as it is; None if it can."""
    rows = survey.rows
    if column.holds in _NO_FEATURE:
        return _NO_FEATURE[column.holds]
    if column.holds == "other":
        return f"has type {column.dtype}, from which a number or a text could be computed as a feature"
    if column.distinct <= 1 and not column.nulls:
        return "has the same value in every row"
    if column.some_times:
        return "holds texts that look like times, though not all in one notation: try_strptime in features.sql reads several"
    if column.is_text and column.distinct > MOST_VALUES and column.distinct > rows / 2:
        return f"is a text with about {min(column.distinct, rows):,} distinct values in {rows:,} rows"
    return _identifies(survey, column, series)


def _counts(survey: Survey, column: TableColumn, series: TableColumn) -> bool:
    """Return whether a column counts the rows of a series. A part of the time, such as the year of yearly rows, does not."""
    could = column.holds == "integer" and not column.nulls and column.distinct > survey.rows * NEARLY
    is_part = not PARTS_OF_TIME.isdisjoint(words(column.name)[-1:])
    return could and not is_part and column != series and survey.is_counter(column.name, series.name)


def _identifies(survey: Survey, column: TableColumn, series: TableColumn | None) -> str | None:
    """That a column counts the rows of a series, or is called and looks like an identifier; None if it does neither."""
    if series is not None and _counts(survey, column, series):
        return f"counts the rows, which {shortened(series.name)} already identifies"
    last_word = words(column.name)[-1:]
    if not last_word or last_word[0] not in _ID_NAMES or column.distinct <= survey.rows * NEARLY:
        return None
    if survey.unique([column.name]):
        return "is an identifier, with another value in every row"
    values = survey.values(column.name)
    return f"is called like an identifier, and has {values:,} values in {survey.rows:,} rows: some occur more than once"


def _known_too_late(survey: Survey, label: TableColumn, able: Sequence[TableColumn]) -> dict[TableColumn, str]:
    """The columns that may be known only with the label, with the reason."""
    name = shortened(label.name)
    said = {
        "nulls": f"is null exactly where {name} is null, so it may be known only with the label",
        "value": f"tells the value of {name}, so it may be known only with the label",
    }
    return {column: said[tie] for column, tie in zip(able, survey.ties(label, able), strict=True) if tie is not None}


def _parts_of_the_label(
    survey: Survey, label: TableColumn, able: Sequence[TableColumn]
) -> Iterator[tuple[TableColumn, str]]:
    """The pairs of numeric columns that add up to a numeric label."""
    numeric = [column for column in able if column.is_number][:_MOST_ADDENDS]
    if not label.is_number or survey.rows < LEAST_ROWS:
        return
    for left, right in survey.adding_up_to(label, list(combinations(numeric, 2))):
        for part, other in ((left, right), (right, left)):
            yield (
                part,
                f"adds up to {shortened(label.name)} with {shortened(other.name)}, so it may be known only with the label",
            )


def _suspected_leaks(
    survey: Survey, label: TableColumn, able: Sequence[TableColumn]
) -> Iterator[tuple[TableColumn, str]]:
    """The columns from which training would suspect a leak."""
    plain = [column for column in able if column.is_number or column.is_text or column.holds == "boolean"]
    if label.groups_digits or not plain:
        return
    rows = survey.sample(plain, label, MAX_ROWS)
    contract, classes = infer_contract(rows.drop(label.name), {}), target_of(survey, label) == "classes"
    kept = contract.split(rows).kept
    categorical = [column.type == "category" for column in contract.columns]
    matrix, truth = contract.encode(kept), as_truth(kept[label.name])
    named = {column.name: column for column in plain}
    for leak in suspected_leaks(matrix, contract.names, categorical, truth, classes=classes):
        for name in leak.columns:
            others = "".join(f"and {shortened(other)} " for other in leak.columns if other != name)
            yield named[name], f"{others}{leak.reason}, so it may be known only with the label"


def words(name: str) -> list[str]:
    """The words of a name in lower case: `orderDate`, `Order-Date` and `ORDER DATE` have the same words."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower().split()
