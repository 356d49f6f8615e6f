"""Judge the columns of a table: the one that is worth predicting, and those that can be features.

Evidence comes from names, positions, types, values and nulls. Nothing is written here.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from batch_platform.cli.proposal.instants import words
from batch_platform.cli.proposal.survey import LEAST_ROWS, NEARLY, Holds, Survey, TableColumn
from batch_platform.declaration.errors import WrongUseError, counted, shortened
from batch_platform.models.contract import MAX_CATEGORIES, infer_contract
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.leakage import MAX_ROWS, SuspectedLeak, suspected_leaks
from batch_platform.monitoring.metrics import as_truth

MOST_CLASSES = 20  # most distinct values of an integer label that holds classes; more are a quantity
ROWS_PER_CLASS = 5  # fewest rows per value of such a label; fewer are a quantity too
FEWEST_KNOWN = 0.5  # share of the rows whose text a model must know
ENOUGH = 3  # points of evidence for a label that nobody named
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
    """The case for a column as the label."""

    column: TableColumn
    points: int
    reasons: tuple[str, ...]


def label_evidence(survey: Survey) -> list[Evidence]:
    """The columns that could be the label, the likeliest first."""
    able = [column for column in survey.columns if _can_be_label(survey, column)]
    with_nulls = [column for column in survey.columns if column.nulls]
    nulls_last = survey.with_nulls_last(able)
    weighed = [_weighed(survey, column, with_nulls, nulls_last) for column in able]
    return sorted(weighed, key=lambda evidence: -evidence.points)


def _can_be_label(survey: Survey, column: TableColumn) -> bool:
    """Return whether values repeat or are numbers; a constant, an identifier and a free text cannot be predicted."""
    if column.holds not in ("boolean", "integer", "number", "text") or column.distinct <= 1:
        return False
    if last_word(column.name) in _ID_NAMES:
        return False
    if column.holds == "integer":
        return not column.counts_rows
    return not column.is_text or column.distinct <= _most_classes(survey, column)


def _most_classes(survey: Survey, label: TableColumn) -> float:
    """The largest number of distinct texts in a label; more of them name rows, not classes."""
    return (survey.rows - label.nulls) / 2


def _weighed(
    survey: Survey, column: TableColumn, with_nulls: Sequence[TableColumn], nulls_last: Collection[str]
) -> Evidence:
    facts = {
        "its name": 2 * (_LABEL_NAME.fullmatch("_".join(words(column.name))) is not None),
        "it is the last column": column.position == len(survey.columns),
        "it has two values": column.distinct == 2,  # noqa: PLR2004 - yes and no
        "it is the only column with nulls": with_nulls == [column],
        "its nulls are the last rows": column.name in nulls_last,
    }
    return Evidence(column, sum(facts.values()), tuple(reason for reason, weight in facts.items() if weight))


def target_of(survey: Survey, label: TableColumn) -> str:
    """The content of the label, "classes" or "numbers"; raises WrongUseError if it holds neither."""
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
    reasons |= _hardly_known(survey, [column for column, reason in reasons.items() if reason is None])
    if label is not None:
        able = [column for column, reason in reasons.items() if reason is None]
        known_too_late = _known_with_the_label(survey, label, able)
        reasons |= {column: f"{tie}, so it may be known only with the label" for column, tie in known_too_late.items()}
    return reasons


def _no_feature(survey: Survey, column: TableColumn, series: TableColumn | None) -> str | None:
    """The reason for which a column cannot be a feature as it is; None if it can."""
    rows = survey.rows
    if column.holds in _NO_FEATURE:
        return _NO_FEATURE[column.holds]
    if column.holds == "other":
        return f"has type {column.dtype}, from which a number or a text could be computed as a feature"
    if column.distinct <= 1 and not column.nulls:
        return "has the same value in every row"
    if column.some_times:
        return "holds texts that look like times, though not all in one notation: try_strptime in features.sql reads several"
    if column.is_text and column.distinct > max(MAX_CATEGORIES, rows / 2):
        return f"is a text with about {min(column.distinct, rows):,} distinct values in {rows:,} rows"
    return _names_rows(survey, column, series) if column.distinct > rows * NEARLY else None


def _names_rows(survey: Survey, column: TableColumn, series: TableColumn | None) -> str | None:
    """The way in which a column of many values names rows: it counts those of a series, or is called like an identifier; else None."""
    if series is not None and column.counts_rows and not is_part_of_time(column) and column != series:
        return f"counts the rows, which {shortened(series.name)} already identifies"
    if last_word(column.name) not in _ID_NAMES:
        return None
    if column.unique:
        return "is an identifier, with another value in every row"
    values = survey.values(column.name)
    return f"is called like an identifier, and has {values:,} values in {survey.rows:,} rows: some occur more than once"


def _hardly_known(survey: Survey, able: Sequence[TableColumn]) -> dict[TableColumn, str]:
    """The texts of which a model, which keeps the most frequent ones, would not know those of most rows, each with the reason."""
    texts = [column for column in able if column.is_text and column.distinct > MAX_CATEGORIES * NEARLY]
    if not texts:
        return {}
    rows, reasons = survey.sample(texts, MAX_ROWS), dict[TableColumn, str]()
    for column in texts:
        known = rows[column.name].drop_nulls()
        share = known.value_counts()["count"].top_k(MAX_CATEGORIES).sum() / max(known.len(), 1)
        if share < FEWEST_KNOWN:
            reasons[column] = (
                f"is a text with about {column.distinct:,} distinct values, and the {MAX_CATEGORIES} that a model keeps are in "
                f"{share:.1%} of the rows: features.sql could group them, or count how often each occurs"
            )
    return reasons


def _known_with_the_label(survey: Survey, label: TableColumn, able: Sequence[TableColumn]) -> dict[TableColumn, str]:
    """The columns that tell the label as if they were known only with it, and how: first the certain ones, then suspected leaks."""
    name = shortened(label.name)
    ties = dict.fromkeys(survey.null_with(label, able), f"is null exactly where {name} is null")
    plain = [column for column in able if column not in ties]
    if not plain or survey.rows < LEAST_ROWS:
        return ties
    rows = survey.sample([*plain, label], MAX_ROWS, label)
    ties |= {column: f"tells the value of {name}" for column in plain if _tells(rows, column, label)}
    suspected = {column.name: column for column in plain if column not in ties}
    if not suspected:
        return ties
    contract, classes = infer_contract(rows[[*suspected]], {}), target_of(survey, label) == "classes"
    kept = contract.split(rows[[*suspected, label.name]]).kept
    categorical = [column.type == "category" for column in contract.columns]
    matrix, truth = contract.encode(kept), as_truth(kept[label.name])
    with one_thread():
        leaks = suspected_leaks(matrix, contract.names, categorical, truth, classes=classes)
    return ties | {suspected[column]: _of_one(leak, column, name) for leak in leaks for column in leak.columns}


def _tells(rows: pl.DataFrame, column: TableColumn, label: TableColumn) -> bool:
    """Return whether the numbers of a column equal those of the label, or each value of one has a single value of the other."""
    known = rows[[column.name, label.name]].drop_nulls()  # names are no patterns there
    values, labels = known.get_columns()
    is_equal = column.is_number and label.is_number and (values.cast(pl.Float64) == labels.cast(pl.Float64)).all()
    if is_equal and known.height:
        return True
    return 1 < values.n_unique() == labels.n_unique() == known.n_unique() < known.height / 2


def _of_one(leak: SuspectedLeak, column: str, label: str) -> str:
    """Say of one column of a leak what is suspicious; several add up to the label, differ by it, or hold the same numbers."""
    others = " and ".join(shortened(other) for other in leak.columns if other != column)
    several = {
        "add up to the label": f"adds up to {label} with {others}",
        "differ by the label": f"differs by {label} from {others}",
    }
    return several.get(leak.reason, leak.reason.replace("tell too much", f"tells with {others} too much"))


def last_word(name: str) -> str:
    """The last word of a name, in lower case."""
    return (words(name) or [""])[-1]


def is_part_of_time(column: TableColumn) -> bool:
    """Return whether a column is called like a part of a time, such as the year of yearly rows."""
    return last_word(column.name) in PARTS_OF_TIME
