"""What a first pipeline on a table could be: its key, its time, its windows, its label and what learns.

Everything is a guess by names, types and what is unique; what somebody names is taken instead. Nothing is written here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from batch_platform.cli.proposal.survey import Column, Span, Survey
from batch_platform.declaration.calendar import LONGEST, Calendar, Duration, Every
from batch_platform.declaration.errors import WrongUseError, listed, shortened

ESTIMATORS = {
    "classes": "sklearn.ensemble.HistGradientBoostingClassifier",
    "numbers": "sklearn.ensemble.HistGradientBoostingRegressor",
    "none": "sklearn.cluster.KMeans",
}
PARAMS = {
    "classes": {"max_iter": 100, "early_stopping": False},
    "numbers": {"max_iter": 100, "early_stopping": False},
    "none": {"n_clusters": 5, "n_init": 1},
}
MOST_CLASSES = 20  # of an integer; more of them are a quantity
MOST_VALUES = 255  # of a text that tells rows apart in groups, unless rows share them all the same
NEARLY = 0.8  # an estimate of how many values there are may be so much too low
ROWS_PER_WINDOW = 5  # fewer of them are hardly worth a partition
_KEY_NAMES = ("id", "key", "uuid", "guid", "number", "nr", "no", "code")
_TIME_NAMES = ("time", "timestamp", "datetime", "date", "ts", "at", "on", "day", "month", "when")
_BORN = ("birth", "born", "dob")  # times that say how old somebody is, not when something happened
_LABEL_NAMES = frozenset(
    [
        "label",
        "target",
        "y",
        "outcome",
        "class",
        "churn",
        "churned",
        "fraud",
        "is_fraud",
        "default",
        "defaulted",
        "converted",
        "clicked",
        "survived",
        "returned",
        "late",
        "cancelled",
        "canceled",
    ]
)


@dataclass(frozen=True)
class Asked:
    """What somebody named, to be taken instead of a guess."""

    key: tuple[str, ...] = ()
    time: str | None = None
    label: str | None = None
    timezone: str = "UTC"


@dataclass(frozen=True)
class Proposal:
    """A pipeline that could be.

    Args:
        key: Names a row within a partition.
        key_holds: Where it does: everywhere, or within one partition only.
        time: When a row's thing happens.
        timeless: Rows without one, which belong to no partition.
        span: Where the times lie.
        every: Length of a partition.
        start: First partition, by local clocks.
        end: After the last one that holds a row, by local clocks.
        timezone: Of those clocks.
        label: What is to be predicted; None for a clustering.
        target: What the label holds: "classes", "numbers" or "none".
        features: What is known of a row, as far as its columns tell.
        left_out: Why other columns are not among them.
        evaluate: The end of the training window.
        train_every: How often a model is trained; None for one model.
        others: What else could have been key or time.
    """

    key: tuple[Column, ...]
    key_holds: str
    time: Column
    timeless: int
    span: Span
    every: Every
    start: datetime
    end: datetime
    timezone: str
    label: Column | None
    target: str
    features: tuple[Column, ...]
    left_out: dict[str, str]
    evaluate: Duration
    train_every: Every | None
    others: dict[str, list[str]]


def propose(survey: Survey, asked: Asked) -> Proposal:
    """Choose.

    Raises:
        WrongUseError: A column that was named is none, or no column can be the time or the key.
    """
    time, span, other_times = _time(survey, asked)
    every = _every(survey.rows, span)
    label = _label(survey, asked)
    key, holds, other_keys = _key(survey, asked, {time, label}, lambda names: _where(survey, names, time, every))
    target = "none" if label is None else _target(survey, label)
    reasons = {one: _no_feature(survey, one, label) for one in survey.columns if one not in {*key, time, label}}
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
        features=tuple(one for one, reason in reasons.items() if reason is None),
        left_out={one.name: reason for one, reason in reasons.items() if reason is not None},
        evaluate=evaluate,
        train_every=train_every,
        others={"key": [one.name for one in other_keys], "time": [one.name for one in other_times]},
    )


def _time(survey: Survey, asked: Asked) -> tuple[Column, Span, list[Column]]:
    """The column of times, where they lie, and which other ones there are."""
    able = [one for one in survey.columns if one.holds == "time"]
    if asked.time is not None:
        able = [one for one in able if one == survey.column(asked.time)]
    ranked = sorted(able, key=lambda one: (one.nulls > 0, _is_birth(one), _rank(one.name, _TIME_NAMES)))
    for column in ranked:
        if (span := survey.span(column.name)) is not None:
            return column, span, [one for one in ranked if one is not column]
    if asked.time is not None:
        msg = (
            f"{asked.time!r} of {survey.origin.path} is of type {survey.column(asked.time).dtype} and reads as no time."
        )
        raise WrongUseError(msg, hint="name another column with --time, or write times as 2026-01-31 12:00.")
    msg = f"No column of {survey.origin.path} holds times, so that its rows belong to no partition."
    raise WrongUseError(msg, hint="add the time at which each row's thing happens, as a timestamp or a date.")


def _label(survey: Survey, asked: Asked) -> Column | None:
    """The column to be predicted, if one was named or is called as such ones are."""
    if asked.label is not None:
        return survey.column(asked.label)
    return next((one for one in survey.columns if "_".join(_words(one.name)) in _LABEL_NAMES), None)


def _key(
    survey: Survey, asked: Asked, taken: set[Column | None], where: Callable[[Sequence[Column]], str | None]
) -> tuple[tuple[Column, ...], str, list[Column]]:
    """The columns that name a row, where they do, and which other columns could."""
    if asked.key:
        key = tuple(survey.column(name) for name in asked.key)
        if (holds := where(key)) is not None:
            return key, holds, []
        msg = f"{listed(asked.key)} do not name the rows of {survey.origin.path}: some have the same, or none."
        raise WrongUseError(msg, hint="name more columns with --key, or leave it out to see what is found.")
    able = [
        one for one in survey.columns if (one.holds == "integer" or one.is_text) and not one.nulls and one not in taken
    ]
    ranked = sorted(able, key=lambda one: _rank(one.name, _KEY_NAMES))
    unique = [one for one in ranked if one.distinct > survey.rows * NEARLY and survey.unique([one.name])]
    if unique:
        return (unique[0],), "everywhere", unique[1:]
    named = [one for one in ranked if _rank(one.name, _KEY_NAMES) < len(_KEY_NAMES)]
    for key in (*((one,) for one in named), tuple(named)):
        if key and (holds := where(key)):
            return key, holds, []
    msg = f"No column of {survey.origin.path} names its rows: none is without nulls and without repetition."
    raise WrongUseError(msg, hint="name those that do so together, such as --key customer --key product.")


def _where(survey: Survey, key: Sequence[Column], time: Column, every: Every) -> str | None:
    names = [one.name for one in key]
    if survey.unique(names):
        return "everywhere"
    return f"within a {every}" if survey.unique(names, within=every, time=time.name) else None


def _target(survey: Survey, label: Column) -> str:
    """Whether the label is one of some classes or a quantity.

    Raises:
        WrongUseError: It is neither.
    """
    if label.holds in ("boolean", "text"):
        return "classes"
    if label.holds == "integer":
        return "classes" if survey.values(label.name) <= MOST_CLASSES else "numbers"
    if label.holds == "number":
        return "classes" if survey.values(label.name) == 2 else "numbers"  # noqa: PLR2004 - two numbers are yes and no
    msg = f"{label.name!r} of {survey.origin.path} is of type {label.dtype}, which cannot be predicted."
    raise WrongUseError(msg, hint="--label names a column of numbers, of truth values or of names of classes.")


def _no_feature(survey: Survey, column: Column, label: Column | None) -> str | None:
    """Why a column is no feature as it stands; None if it is one."""
    rows = survey.rows
    if column.holds == "nothing":
        return "it holds nothing"
    if column.holds == "time":
        return "a time; a number made of it could be one, such as an age in days"
    if column.holds == "other":
        return f"of type {column.dtype}; a number or a text made of it could be one"
    if label is not None and survey.lack_together(column, label):
        return f"lacks a value exactly where {shortened(label.name)} does, so that it may be known only with it"
    if column.is_text and column.distinct > MOST_VALUES and column.distinct > rows / 2:
        return f"a text of some {min(column.distinct, rows):,} values in {rows:,} rows"
    return None


def _every(rows: int, span: Span) -> Every:
    """The shortest window of which half or more hold rows, and enough of them."""
    for every, longest in LONGEST.items():
        filled = span.filled[every]
        windows = span.length / longest.nominal + 1
        worth = filled * 2 >= windows and rows >= filled * ROWS_PER_WINDOW
        if worth and (every != "hour" or span.length < timedelta(days=3)):
            return every
    return "month" if span.length > timedelta(days=60) else "day"


def _bounds(span: Span, every: Every, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """From the start of the window that holds the first row to the end of that which holds the last, by local clocks."""
    before = (span.first.astimezone(zone) - 2 * LONGEST[every].nominal).replace(tzinfo=None, microsecond=0)
    calendar = Calendar(every, zone, before)
    first, last = calendar.holding(span.first), calendar.holding(span.last)
    if first is None or last is None:
        msg = "a calendar that begins before an instant holds it"
        raise RuntimeError(msg)
    return first.start.astimezone(zone).replace(tzinfo=None), last.end.astimezone(zone).replace(tzinfo=None)


def _training(every: Every, length: timedelta) -> tuple[Duration, Every | None]:
    """How much of the end is evaluated on, and how often a model is trained."""
    if every == "hour":
        return Duration(hours=max(1, int(length / timedelta(hours=5)))), None
    days = max(LONGEST[every].days, min(14, int(length / timedelta(days=5))))
    often = length >= timedelta(days=90) + 2 * timedelta(days=days)
    return Duration(days=days), "month" if often else None


def _rank(name: str, liked: Sequence[str]) -> int:
    """How well a name says what it is: by its last word, the earlier in the list the better."""
    last = _words(name)[-1:]
    return liked.index(last[0]) if last and last[0] in liked else len(liked)


def _is_birth(column: Column) -> bool:
    return any(word.startswith(_BORN) for word in _words(column.name))


def _words(name: str) -> list[str]:
    """The words of a name in small letters: those of `orderDate`, `Order-Date` and `ORDER DATE` are the same."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower().split()
