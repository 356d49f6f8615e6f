"""Choose a first pipeline for a table: its key, time, partitions, label and estimator.

Every choice is a guess from names, types and uniqueness, unless the user made it. Nothing is written here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from batch_platform.cli.proposal.survey import Holds, Span, Survey, TableColumn
from batch_platform.declaration.calendar import LONGEST, Calendar, Duration, Every
from batch_platform.declaration.errors import WrongUseError, listed, shortened

ESTIMATORS = {
    "classes": "sklearn.ensemble.HistGradientBoostingClassifier",
    "numbers": "sklearn.ensemble.HistGradientBoostingRegressor",
    "none": "sklearn.cluster.KMeans",
}
_BOOSTED = {"max_iter": 100, "early_stopping": False}
PARAMS = {"classes": _BOOSTED, "numbers": _BOOSTED, "none": {"n_clusters": 5, "n_init": 1}}
MOST_CLASSES = 20  # of an integer label; more distinct values are a quantity
MOST_VALUES = 255  # of a text feature, unless rows share the values anyway
NEARLY = 0.8  # an estimated number of distinct values may be this much too low
ROWS_PER_WINDOW = 5  # fewer rows are hardly worth a partition
_NO_FEATURE: dict[Holds, str] = {
    "nothing": "has no values",
    "row number": "the number that pandas gave the row",
    "time": "a time; a number computed from it could be a feature, such as an age in days",
}
_KEY_NAMES = ("id", "key", "uuid", "guid", "number", "nr", "no", "code")
_TIME_NAMES = ("time", "timestamp", "datetime", "date", "ts", "at", "on", "day", "month", "when")
_BORN = ("birth", "born", "dob")  # times that tell an age, not when something happened
_LABEL_NAME = re.compile(
    "label|target|y|outcome|class|churn(ed)?|(is_)?fraud|default(ed)?|converted|clicked|survived|returned|late|cancell?ed"
)


@dataclass(frozen=True)
class Asked:
    """What the user named, which replaces the guesses."""

    key: tuple[str, ...] = ()
    time: str | None = None
    label: str | None = None
    timezone: str = "UTC"


@dataclass(frozen=True)
class Proposal:
    """A proposed pipeline."""

    key: tuple[TableColumn, ...]  # identifies a row within a partition
    key_holds: str  # where the key is unique: "everywhere", or "within a" partition
    time: TableColumn  # when a row's event happens
    timeless: int  # rows without a time, which belong to no partition
    span: Span  # of the times
    every: Every  # length of a partition
    start: datetime  # of the first partition, in local time
    end: datetime  # of the last partition that has a row, in local time
    timezone: str  # of `start` and `end`
    label: TableColumn | None  # None for clustering
    target: str  # what the label holds: "classes", "numbers" or "none"
    features: tuple[TableColumn, ...]
    left_out: dict[str, str]  # columns not used as features, with the reason
    evaluate: Duration  # the end of the training window, used for evaluation
    train_every: Every | None  # None for a single model
    others: dict[str, list[str]]  # other possible columns for "key" and "time"


def propose(survey: Survey, asked: Asked) -> Proposal:
    """Choose a pipeline for a table.

    Raises:
        WrongUseError: A named column does not exist, or no column can be the time or the key.
    """
    time, span, other_times = _time(survey, asked)
    every = _every(survey.rows, span)
    label = _label(survey, asked)
    key, holds, other_keys = _key(survey, asked, {time, label}, lambda names: _where(survey, names, time, every))
    target = "none" if label is None else _target(survey, label)
    reasons = {
        column: _no_feature(survey, column, label) for column in survey.columns if column not in {*key, time, label}
    }
    start, end = _bounds(span, every, ZoneInfo(asked.timezone))
    evaluate, train_every = _training(every, end - start)
    return Proposal(
        key=key,
        key_holds=holds,
        time=time,
        timeless=survey.rows - span.rows,
        span=span,
        every=every,
        start=start,
        end=end,
        timezone=asked.timezone,
        label=label,
        target=target,
        features=tuple(column for column, reason in reasons.items() if reason is None),
        left_out={column.name: reason for column, reason in reasons.items() if reason is not None},
        evaluate=evaluate,
        train_every=train_every,
        others={"key": [column.name for column in other_keys], "time": [column.name for column in other_times]},
    )


def _time(survey: Survey, asked: Asked) -> tuple[TableColumn, Span, list[TableColumn]]:
    """The time column, the range of its times, and other possible time columns."""
    named = None if asked.time is None else survey.column(asked.time)
    able = [column for column in survey.columns if column.is_likely_time] if named is None else [named]
    ranked = sorted(
        able,
        key=lambda column: (
            column.holds != "time",  # numbers last
            column.nulls > 0,
            _is_birth(column),
            _rank(column.name, _TIME_NAMES),
        ),
    )
    for column in ranked:
        if (span := survey.span(column.name)) is not None:
            return column, span, [unused for unused in ranked if unused is not column]
    if asked.time is not None:
        msg = f"{asked.time!r} of {survey.origin.path} has type {survey.column(asked.time).dtype} and cannot be read as times."
        raise WrongUseError(msg, hint="name another column with --time, or write times as 2026-01-31 12:00.")
    msg = f"No column of {survey.origin.path} holds times, so its rows belong to no partition."
    raise WrongUseError(msg, hint="add a column with the time of each row's event, as a timestamp or a date.")


def _label(survey: Survey, asked: Asked) -> TableColumn | None:
    """The column to predict: the column the user named, or a column with a typical name."""
    if asked.label is not None:
        return survey.column(asked.label)
    return next((column for column in survey.columns if _LABEL_NAME.fullmatch("_".join(_words(column.name)))), None)


def _key(
    survey: Survey, asked: Asked, taken: set[TableColumn | None], where: Callable[[Sequence[TableColumn]], str | None]
) -> tuple[tuple[TableColumn, ...], str, list[TableColumn]]:
    """The columns that identify a row, where they are unique, and other possible key columns."""
    if asked.key:
        key = tuple(survey.column(name) for name in asked.key)
        if (holds := where(key)) is not None:
            return key, holds, []
        msg = f"{listed(asked.key)} do not identify the rows of {survey.origin.path}: some rows have equal values or none."
        raise WrongUseError(msg, hint="name more columns with --key, or omit --key to see the proposal.")
    able = [
        column
        for column in survey.columns
        if (column.holds == "integer" or column.is_text) and not column.nulls and column not in taken
    ]
    ranked = sorted(able, key=lambda column: _rank(column.name, _KEY_NAMES))
    unique = [column for column in ranked if column.distinct > survey.rows * NEARLY and survey.unique([column.name])]
    if unique:
        return (unique[0],), "everywhere", unique[1:]
    named = [column for column in ranked if _rank(column.name, _KEY_NAMES) < len(_KEY_NAMES)]
    for key in (*((column,) for column in named), tuple(named)):
        if key and (holds := where(key)):
            return key, holds, []
    msg = f"No column of {survey.origin.path} identifies its rows: every column has nulls or repeated values."
    hint = "name several columns that identify a row together, such as --key customer --key product."
    raise WrongUseError(msg, hint=hint)


def _where(survey: Survey, key: Sequence[TableColumn], time: TableColumn, every: Every) -> str | None:
    names = [column.name for column in key]
    if survey.unique(names):
        return "everywhere"
    return f"within a {every}" if survey.unique(names, within=every, time=time.name) else None


def _target(survey: Survey, label: TableColumn) -> str:
    """Whether the label holds classes or numbers."""
    if label.holds in ("boolean", "text"):
        return "classes"
    if label.holds == "integer":
        return "classes" if survey.values(label.name) <= MOST_CLASSES else "numbers"
    if label.holds == "number":
        return "classes" if survey.values(label.name) == 2 else "numbers"  # noqa: PLR2004 - two numbers are yes and no
    msg = f"{label.name!r} of {survey.origin.path} has type {label.dtype}, which cannot be predicted."
    raise WrongUseError(msg, hint="name a column of numbers, truth values or class names with --label.")


def _no_feature(survey: Survey, column: TableColumn, label: TableColumn | None) -> str | None:
    """Why a column cannot be a feature as it is; None if it can."""
    rows = survey.rows
    if column.holds in _NO_FEATURE:
        return _NO_FEATURE[column.holds]
    if column.holds == "other":
        return f"has type {column.dtype}; a number or a text computed from it could be a feature"
    if label is not None and survey.null_together(column, label):
        return f"is null exactly where {shortened(label.name)} is null, so it may be known only with the label"
    if column.is_text and column.distinct > MOST_VALUES and column.distinct > rows / 2:
        return f"a text with about {min(column.distinct, rows):,} distinct values in {rows:,} rows"
    return None


def _every(rows: int, span: Span) -> Every:
    """The shortest window length for which at least half of the windows have rows, and enough of them."""
    for every, longest in LONGEST.items():
        filled = span.filled[every]
        windows = span.length / longest.nominal + 1
        worth = filled * 2 >= windows and rows >= filled * ROWS_PER_WINDOW
        if worth and (every != "hour" or span.length < timedelta(days=3)):
            return every
    return "month" if span.length > timedelta(days=60) else "day"


def _bounds(span: Span, every: Every, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Start of the window of the first row and end of the window of the last row, in local time."""
    before = (span.first.astimezone(zone) - 2 * LONGEST[every].nominal).replace(tzinfo=None, microsecond=0)
    calendar = Calendar(every, zone, before)
    first, last = calendar.holding(span.first), calendar.holding(span.last)
    if first is None or last is None:
        msg = "a calendar that begins before an instant holds it"
        raise RuntimeError(msg)
    return first.start.astimezone(zone).replace(tzinfo=None), last.end.astimezone(zone).replace(tzinfo=None)


def _training(every: Every, length: timedelta) -> tuple[Duration, Every | None]:
    """How much of the training window is used for evaluation, and how often a model is trained."""
    if every == "hour":
        return Duration(hours=max(1, int(length / timedelta(hours=5)))), None
    days = max(LONGEST[every].days, min(14, int(length / timedelta(days=5))))
    often = length >= timedelta(days=90) + 2 * timedelta(days=days)
    return Duration(days=days), "month" if often else None


def _rank(name: str, liked: Sequence[str]) -> int:
    """The position of the last word of a name in a list of typical words; the lower, the better."""
    last = _words(name)[-1:]
    return liked.index(last[0]) if last and last[0] in liked else len(liked)


def _is_birth(column: TableColumn) -> bool:
    return any(word.startswith(_BORN) for word in _words(column.name))


def _words(name: str) -> list[str]:
    """The words of a name in lower case: `orderDate`, `Order-Date` and `ORDER DATE` have the same words."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower().split()
