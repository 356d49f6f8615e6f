"""Choose a first pipeline for a table: its key, time, partitions, label and estimator.

Every choice is a guess from what the table holds, unless the user made it. Nothing is written here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations
from math import ceil
from shlex import quote
from typing import Any, Literal
from zoneinfo import ZoneInfo

from batch_platform.cli.proposal.columns import (
    ENOUGH,
    KEY_NAMES,
    NEARLY,
    PARTS_OF_TIME,
    Evidence,
    feature_reasons,
    label_evidence,
    labels_of_one_value,
    require_values_to_learn,
    target_of,
    words,
)
from batch_platform.cli.proposal.survey import Span, Survey, TableColumn
from batch_platform.declaration.calendar import KEY_FORMATS, LONGEST, Calendar, Duration, Every
from batch_platform.declaration.errors import WrongUseError, first_few, listed
from batch_platform.declaration.inputs import FILE, NUMBERED_KINDS, ROW_IN_FILE
from batch_platform.declaration.spec import ADDED_COLUMNS
from batch_platform.models.fitting import LEAST_ROWS

ESTIMATORS = {
    "classes": "sklearn.ensemble.HistGradientBoostingClassifier",
    "numbers": "sklearn.ensemble.HistGradientBoostingRegressor",
    "none": "sklearn.cluster.KMeans",
}
_BOOSTED = {"max_iter": 100, "early_stopping": False}
PARAMS = {"classes": _BOOSTED, "numbers": _BOOSTED, "none": {"n_clusters": 5, "n_init": 1}}
# Measured on 15 small tables that packages ship: shallow trees of few columns each are surer of less than large ones.
FEW_ROWS, SHALLOW = 1_500, {"max_leaf_nodes": 4, "max_features": 0.3, "min_samples_leaf": 10, "l2_regularization": 1.0}
# Of a series, the past says most of what there is to know: small trees that stop once they learn no more were best on the weather
# of New York. They are still worse than a mean where nothing else can be learned; `course.py` looks for that.
SERIES = {"max_iter": 300, "max_leaf_nodes": 8, "early_stopping": True}
# Trees tell apart sets of texts; of many texts with few rows each, they learn the sets by heart and not the order of the names.
MANY_TEXTS, ROWS_PER_TEXT = 32, 50
ROWS_PER_WINDOW = 5  # fewer rows are hardly worth a partition
FEWEST_WINDOWS = 4  # with rows: to learn from two, evaluate on one and score one
BY_PLACE = "as long as rows keep their place in the file"
BY_CONTENT = "whatever the order of rows"
WITHIN_FILE = "within its file"  # where a key is unique that two files share
ROWS_TO_JUDGE_BY = 100  # fewer evaluation rows say little, if the table has more
HELD_OUT = 0.2  # of the rows of a snapshot that have a label
MOST_MODELS = 6  # of the past; earlier rows are learned from and not scored
_MOST_PAIRS = 60  # of columns that are tried as a key
_FILLED_PANEL = 0.5  # share of all pairs of an entity and a time that have a row: a measure is not so even by chance
TAKEN_NAMES = frozenset({*ADDED_COLUMNS, "challenger"})  # of the columns that scoring adds, in lower case
_MOST_KEPT, _MOST_KEPT_VALUES = 3, 50
_TIME_NAMES = ("time", "timestamp", "datetime", "date", "ts", "at", "on", "day", "month", "when")
PART_NAMES = {"hour": "hour", "isodow": "weekday", "month": "month"}  # of the parts of a time, by DuckDB's names
_BORN = ("birth", "born", "dob")  # times that tell an age, not when something happened


@dataclass(frozen=True)
class Asked:
    """What the user named, which replaces the guesses."""

    now: datetime
    key: tuple[str, ...] = ()
    time: str | None = None
    label: str | None = None
    cluster: bool = False  # propose groups of similar rows, without a label
    snapshot: bool = False  # score the whole table, whether it has a time or not
    timezone: str = "UTC"


@dataclass(frozen=True)
class Past:
    """What is known of earlier rows of the same entity when a partition starts, as features of a series."""

    entity: tuple[TableColumn, ...]  # columns that name what the series is of; none for a single series
    means: tuple[Duration, ...]  # lengths of time before the partition over which the label is averaged
    lags: tuple[Duration, ...]  # how long before a row the label is looked up
    day: Duration | None = None  # length of time before the partition in which the usual course of a day is looked up


@dataclass(frozen=True)
class Windows:
    """The partitions of a table with a time."""

    time: TableColumn  # when a row's event happens
    timeless: int  # rows without a time, which belong to no partition
    span: Span  # of the times
    start: datetime  # of the first partition, in local time
    end: datetime | None  # of the last partition that has a row, in local time; None if more rows are expected
    evaluate: Duration  # the end of the training window, used for evaluation
    train_start: datetime | None  # first serving period, in local time; None for the first one with enough data
    delay: Duration  # until labels are known: the length of the end of the table in which none are
    calendar: tuple[str, ...] = ()  # parts of the time that are features
    past: Past | None = None


@dataclass(frozen=True)
class Proposal:
    """A proposed pipeline."""

    key: tuple[TableColumn, ...]  # identifies a row within a partition; none for its position in the file
    key_holds: str  # where the key is unique: "everywhere", or "within a" partition
    every: Every  # length of a partition
    windows: Windows | None  # None for snapshots of the whole table
    today: datetime  # in local time
    timezone: str  # of all local times
    label: TableColumn | None  # None for clustering
    evidence: tuple[str, ...]  # what speaks for the label, if nobody named it
    target: str  # what the label holds: "classes", "numbers" or "none"
    estimator: str
    positive: str | None  # of two texts the rarer one, whose probability is the score
    features: tuple[TableColumn, ...]
    left_out: dict[str, str]  # what is not used as a feature, with the reason
    keep: tuple[TableColumn, ...]  # features to store with the predictions
    train_every: Every | None  # None for a single model
    params: dict[str, Any]  # of the estimator
    others: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # other possible columns by role


def propose(survey: Survey, asked: Asked) -> Proposal:
    """Choose a pipeline for a table.

    Raises:
        WrongUseError: A named column does not exist or cannot play its role, no column is clearly the label, or nothing
            identifies a row of several files.
    """
    zone = ZoneInfo(asked.timezone)
    time, span, other_times = _time(survey, asked)
    every: Every = "day" if span is None else _every(survey.rows, span)
    moment = time  # of a row, which may be part of its key also where no partition follows from it
    if time is not None and span is not None and asked.time is None:
        has_few = span.filled[every] < FEWEST_WINDOWS
        if has_few or asked.snapshot or survey.lies_on("year", time.name):  # no partition is as long as a year
            time, span, every = None, None, "day"
    label, evidence, other_labels = _label(survey, asked, moment)
    is_series = moment is not None and survey.unique([moment.name]) and survey.is_regular(moment.name)
    series = moment if is_series else None  # the column of times that name the rows of a series
    key, holds, other_keys = _key(
        survey, asked, moment, series, label, lambda names: _where(survey, names, time, every)
    )
    target = "none" if label is None else target_of(survey, label)
    if label is not None:
        require_values_to_learn(survey, label)
    reasons = feature_reasons(survey, label, [*key, time, label], series)
    if time is None and None not in reasons.values() and not asked.key and survey.origin.is_one_file:
        # the key is all there is to learn from
        key, holds, reasons = (), BY_PLACE, feature_reasons(survey, label, [label], series)
    features = tuple(column for column, reason in reasons.items() if reason is None)
    windows, train_every = None, "month"
    if time is None and label is not None:
        _require_rows(survey, label)
    if time is not None and span is not None:
        windows, train_every = _windows(survey, asked, time, span, every, key, label if target != "none" else None)
    if windows is not None and not key:  # rows that come later may stand above the others
        holds = BY_CONTENT
    if not features and (windows is None or windows.past is None):
        why = first_few(sorted(map(_named, reasons.items())), "; ") or "there are no others"
        msg = f"No column of {survey.origin.path} is left to learn from: {why}."
        raise WrongUseError(msg, hint="add columns, or name another --label, --key or --time.")
    return Proposal(
        key=key,
        key_holds=holds,
        every=every,
        windows=windows,
        today=asked.now.astimezone(zone).replace(tzinfo=None),
        timezone=asked.timezone,
        label=label,
        evidence=evidence,
        target=target,
        estimator=ESTIMATORS[target],
        positive=survey.rarer(label.name) if label and label.is_text and survey.values(label.name) == 2 else None,  # noqa: PLR2004 - two classes
        features=features,
        left_out={column.name: reason for column, reason in reasons.items() if reason is not None},
        keep=tuple(filter(_can_be_kept, features))[:_MOST_KEPT],
        train_every=train_every,
        params=_params(survey, target, label, features, windows),
        others={
            "key": [column.name for column in other_keys],
            "time": [column.name for column in other_times],
            "label": [other.column.name for other in other_labels],
        },
    )


def _can_be_kept(feature: TableColumn) -> bool:
    """Whether predictions can be grouped by a feature: a text of few values, with a name that scoring does not add."""
    return feature.is_text and feature.distinct <= _MOST_KEPT_VALUES and feature.name.lower() not in TAKEN_NAMES


def _params(
    survey: Survey, target: str, label: TableColumn | None, features: Sequence[TableColumn], windows: Windows | None
) -> dict[str, Any]:
    """The parameters of the estimator: those for any table, for few rows, for a series, and for texts with few rows each."""
    params: dict[str, Any] = {**PARAMS[target]}
    if label is None:
        return params
    rows = survey.rows - label.nulls
    if rows < FEW_ROWS:
        params |= SHALLOW
    elif target == "numbers" and windows is not None and windows.past is not None:
        params |= SERIES
    if any(column.is_text and MANY_TEXTS < column.distinct > rows / ROWS_PER_TEXT for column in features):
        params["categorical_features"] = None
    return params


def _require_rows(survey: Survey, label: TableColumn) -> None:
    """Refuse a table of which too few rows have a label to learn from."""
    known, least = survey.rows - label.nulls, ceil(LEAST_ROWS / (1 - HELD_OUT))
    if known < least:
        msg = f"{known} rows of {survey.origin.path} have a {label.name}; at least {least} are needed to learn from some and judge by others."
        raise WrongUseError(msg, hint="add rows, or name another --label.")


def _time(survey: Survey, asked: Asked) -> tuple[TableColumn | None, Span | None, list[TableColumn]]:
    """The time column, the range of its times, and other possible time columns; no column for a table without times."""
    ranked = likely_times(survey, asked)
    for column in ranked:
        if (span := survey.span(column.name)) is not None:
            return column, span, [unused for unused in ranked if unused is not column]
    if asked.time is not None:
        msg = f"{asked.time!r} of {survey.origin.path} has type {survey.column(asked.time).dtype} and cannot be read as times."
        raise WrongUseError(msg, hint="name another column with --time, or write times as 2026-01-31 12:00.")
    return None, None, []


def likely_times(survey: Survey, asked: Asked) -> list[TableColumn]:
    """The columns that can hold the time of a row, likeliest first; only the column that the user named, if any."""
    if asked.time is not None:
        return [survey.column(asked.time)]
    return sorted(
        (column for column in survey.columns if column.is_likely_time),
        key=lambda column: (
            column.holds != "time",  # numbers last
            column.nulls > 0,
            _is_birth(column),
            _rank(column.name, _TIME_NAMES),
        ),
    )


def _label(
    survey: Survey, asked: Asked, time: TableColumn | None
) -> tuple[TableColumn | None, tuple[str, ...], list[Evidence]]:
    """The column to predict, what speaks for it, and other possible ones.

    Raises:
        WrongUseError: Too little speaks for any column, and the user did not ask to group rows.
    """
    if asked.label is not None:
        return survey.column(asked.label), (), []
    if asked.cluster:
        return None, (), []
    able = [
        evidence for evidence in label_evidence(survey) if evidence.column not in (time, *map(survey.column, asked.key))
    ]
    if len(able) == 1:
        return able[0].column, ("no other column can be predicted",), []
    if able and able[0].points >= ENOUGH and able[1].points < able[0].points:
        return able[0].column, able[0].reasons, able[1:]
    likely = [evidence for evidence in able if evidence.points]
    msg = f"It is not clear which column of {survey.origin.path} to predict" + (
        f"; it could be {', '.join(evidence.column.name for evidence in likely[:5])}." if likely else "."
    )
    if constant := [column.name for column in labels_of_one_value(survey)]:
        msg += f" It cannot be {listed(constant)}: all values there are the same."
    example = likely[0].column.name if likely else "COLUMN"
    raise WrongUseError(msg, hint=f"name it, such as --label {quote(example)}; --cluster groups similar rows instead.")


def _key(  # noqa: PLR0913 - what may be or not be a key
    survey: Survey,
    asked: Asked,
    time: TableColumn | None,
    series: TableColumn | None,
    label: TableColumn | None,
    where: Callable[[Sequence[TableColumn]], str | None],
) -> tuple[tuple[TableColumn, ...], str, list[TableColumn]]:
    """The columns that identify a row, where they are unique, and other possible key columns.

    A single column comes before several, and the position of a row in its file last. Where a time is unique, it comes before
    counters, and where it steps by whole hours, before any identifier.
    """
    if asked.key:
        key = tuple(survey.column(name) for name in asked.key)
        if (holds := where(key)) is not None:
            return key, holds, []
        msg = f"The rows of {survey.origin.path} are not identified by {listed(asked.key)}: some have equal values or none."
        raise WrongUseError(msg, hint="name more columns with --key, or omit --key to see the proposal.")
    able = [
        column
        for column in survey.columns
        if not column.nulls and column not in (time, label) and _may_name_rows(survey, column)
    ]
    ranked = sorted(able, key=lambda column: _rank(column.name, KEY_NAMES))
    unique = [column for column in ranked if column.distinct > survey.rows * NEARLY and survey.unique([column.name])]
    if series is not None and unique:
        lasting = [] if survey.lies_on("hour", series.name) else unique
        lasting = [column for column in lasting if column.is_text or not survey.is_counter(column.name, series.name)]
        first = next(iter(lasting), series)
        return (first,), "everywhere", [column for column in unique if column is not first]
    if unique:
        return (unique[0],), "everywhere", unique[1:]
    named = [column for column in ranked if _rank(column.name, KEY_NAMES) < len(KEY_NAMES)]
    for key in _compound_keys(ranked, named, time, _entities(survey, able, time, label)):
        if holds := where(key):
            return key, holds, []
    if survey.origin.is_one_file:
        return (), BY_PLACE, []
    taken = {column.name.lower() for column in survey.columns} & {FILE, ROW_IN_FILE}
    if survey.origin.kind in NUMBERED_KINDS and not taken:
        return (), "as long as files keep their names and rows their place in them", []
    msg = f"No column of {survey.origin.path} identifies its rows, nor do two or three together."
    hint = (
        "name the columns that identify a row together, such as --key customer --key product, or write a single file."
    )
    raise WrongUseError(msg, hint=hint)


def _may_name_rows(survey: Survey, column: TableColumn) -> bool:
    """Whether a column holds names or numbers of things: texts, and integers that are called so or count the rows."""
    if column.holds != "integer":
        return column.is_text and not column.some_times
    return _rank(column.name, KEY_NAMES) < len(KEY_NAMES) or survey.counts_rows(column.name)


def _entities(
    survey: Survey, able: Sequence[TableColumn], time: TableColumn | None, label: TableColumn | None
) -> list[TableColumn]:
    """Integers that may number the entities of a panel: most of them have a row at most of the times.

    A part of the time is none: it has to stay a feature.
    """
    if time is None:
        return []
    times = survey.values(time.name)
    integers = (column for column in survey.columns if column.holds == "integer" and not column.nulls)
    return [
        column
        for column in integers
        if column not in (*able, time, label)
        and not PARTS_OF_TIME & {*words(column.name)[-1:]}
        and 1 < column.distinct * times * _FILLED_PANEL <= survey.rows
    ]


def _compound_keys(
    ranked: Sequence[TableColumn],
    named: Sequence[TableColumn],
    time: TableColumn | None,
    entities: Sequence[TableColumn],
) -> Iterator[tuple[TableColumn, ...]]:
    """Keys to try, the simplest first: names that say so, the time, and two columns or three with the time."""
    times = () if time is None or time.nulls else (time,)
    yield from ((column,) for column in named)
    if len(named) > 1:
        yield tuple(named)
    if times:
        yield times
    pairs = list(combinations(ranked, 2))[:_MOST_PAIRS]
    if times:
        yield from ((column, *times) for column in ranked)
        yield from ((*pair, *times) for pair in pairs)
        yield from ((column, *times) for column in entities)
    yield from pairs


def _where(survey: Survey, key: Sequence[TableColumn], time: TableColumn | None, every: Every) -> str | None:
    names = [column.name for column in key]
    if survey.unique(names):
        return "everywhere"
    if survey.in_parts and survey.unique(names, in_part=True):
        return WITHIN_FILE
    return f"within a {every}" if time is not None and survey.unique(names, within=every, time=time.name) else None


def _every(rows: int, span: Span) -> Every:
    """The shortest window length for which at least half of the windows have rows, and enough of them."""
    for every, longest in LONGEST.items():
        filled = span.filled[every]
        windows = span.length / longest.nominal + 1
        worth = filled * 2 >= windows and rows >= filled * ROWS_PER_WINDOW
        if worth and (every != "hour" or span.length < timedelta(days=3)):
            return every
    return "month" if span.length > timedelta(days=60) else "day"


def _windows(  # noqa: PLR0913 - what the partitions follow from
    survey: Survey,
    asked: Asked,
    time: TableColumn,
    span: Span,
    every: Every,
    key: Sequence[TableColumn],
    label: TableColumn | None,
) -> tuple[Windows, Every | None]:
    """The partitions of a table with a time, and how often a model is trained."""
    zone = ZoneInfo(asked.timezone)
    first, end = _bounds(span, every, zone)
    still_growing = asked.now - span.last < max(3 * LONGEST[every].nominal, timedelta(days=7))
    is_sparse = span.filled[every] * 2 < (end - first) / LONGEST[every].nominal  # the last days may hold no rows
    delay = _delay(survey, time, span, every, label)
    length = end - first - delay.nominal
    rows = max(1, int(span.rows * (length / (end - first))))
    evaluate, train_every = _training(every, length, rows, is_sparse=is_sparse)
    train_start = _first_serving(train_every, first, end, zone)
    # Length of what the first model learns from, at least
    learned = 2 * evaluate.nominal if train_start is None else train_start - first - delay.nominal
    calendar = _calendar_parts(survey, time, span)
    windows = Windows(
        time=time,
        timeless=survey.rows - span.rows,
        span=span,
        start=first,
        end=None if still_growing else end,
        evaluate=evaluate,
        train_start=train_start,
        delay=delay,
        calendar=calendar,
        past=None if label is None else _past(survey, time, every, key, label, learned, delay, calendar),
    )
    return windows, train_every


def _delay(survey: Survey, time: TableColumn, span: Span, every: Every, label: TableColumn | None) -> Duration:
    """Return the delay after which labels are known: the length of the end of the table that has none."""
    if label is None or not label.nulls:
        return Duration()
    if every != "hour":
        return Duration(days=survey.unlabelled_end(label.name, time.name, span, "day"))
    days, hours = divmod(survey.unlabelled_end(label.name, time.name, span, "hour"), 24)
    return Duration(days=days, hours=hours)


def _bounds(span: Span, every: Every, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Start of the window of the first row and end of the window of the last row, in local time."""
    before = (span.first.astimezone(zone) - 2 * LONGEST[every].nominal).replace(tzinfo=None, microsecond=0)
    calendar = Calendar(every, zone, before - timedelta(days=before.weekday()))  # weeks start on Monday
    first, last = calendar.holding(span.first), calendar.holding(span.last)
    if first is None or last is None:
        msg = "a calendar that begins before an instant holds it"
        raise RuntimeError(msg)
    return first.start.astimezone(zone).replace(tzinfo=None), last.end.astimezone(zone).replace(tzinfo=None)


def _training(every: Every, length: timedelta, rows: int, *, is_sparse: bool) -> tuple[Duration, Every | None]:
    """How much of the training window is used for evaluation, and how often a model is trained."""
    if every == "hour":
        hours = max(1, int(length / timedelta(hours=5)))
        return Duration(hours=hours), "day" if length > timedelta(days=1, hours=2 * hours) else None
    fifth = int(length / timedelta(days=5))
    enough = ceil(length / timedelta(days=1) * ROWS_TO_JUDGE_BY / rows)  # days
    days = max(LONGEST[every].days, fifth if is_sparse else min(max(14, enough), fifth))
    periods: tuple[tuple[Every, int], ...] = (("month", 1),) if every == "month" else (("month", 3), ("week", 1))
    for often, served in periods:  # by at least so many models
        if length >= served * LONGEST[often].nominal + 2 * timedelta(days=days):
            return Duration(days=days), often
    return Duration(days=days), None


def _first_serving(train_every: Every | None, first: datetime, end: datetime, zone: ZoneInfo) -> datetime | None:
    """The start of the serving period from which the past holds at most MOST_MODELS of them; None if it holds no more."""
    if train_every is None:
        return None
    calendar = Calendar(train_every, zone, first)
    periods = calendar.within(first.replace(tzinfo=zone).astimezone(UTC), end.replace(tzinfo=zone).astimezone(UTC))
    if len(periods) <= MOST_MODELS:
        return None
    return periods[-MOST_MODELS].start.astimezone(zone).replace(tzinfo=None)


def _calendar_parts(survey: Survey, time: TableColumn, span: Span) -> tuple[str, ...]:
    """The parts of a time that may matter and of which the table holds every value more than once."""
    lengths = {"hour": timedelta(days=2), "isodow": timedelta(days=14), "month": timedelta(days=2 * 365)}
    starts: dict[str, tuple[Every | Literal["year"], ...]] = {  # at which a part tells nothing
        "hour": ("day",),
        "isodow": ("week", "month"),
        "month": ("year",),
    }
    return tuple(
        part
        for part, least in lengths.items()
        if span.length >= least and not any(survey.lies_on(every, time.name) for every in starts.get(part, ()))
    )


def _past(  # noqa: PLR0913 - what the past of a row follows from
    survey: Survey,
    time: TableColumn,
    every: Every,
    key: Sequence[TableColumn],
    label: TableColumn,
    learned: timedelta,
    delay: Duration,
    calendar: Sequence[str],
) -> Past | None:
    """Averages and earlier values of a label of numbers or truth values, where an entity has rows in many partitions.

    A value that lies further back than the first model learns from is left out: it would be null in every row. So is one that
    is not known yet when the partition starts.
    """
    is_series = time in key or (key and not survey.unique([column.name for column in key]))
    if label.holds not in ("number", "integer", "boolean") or not is_series:
        return None
    steps: dict[Every, tuple[tuple[Duration, ...], tuple[Duration, ...]]] = {
        "hour": ((Duration(hours=3), Duration(days=1)), (Duration(hours=1), Duration(days=1))),
        "day": ((Duration(days=7), Duration(days=28)), (Duration(days=1), Duration(days=7))),
        "week": ((Duration(days=28), Duration(days=84)), (Duration(days=7), Duration(days=364))),
        "month": ((Duration(days=92), Duration(days=365)), ()),
    }
    means, lags = steps[every]
    known = delay.nominal + LONGEST[every].nominal if delay.nominal else timedelta()  # before the end of the partition
    lags = tuple(lag for lag in lags if known <= lag.nominal < learned) if survey.lies_on("hour", time.name) else ()
    entity = tuple(column for column in key if column != time)
    return Past(entity, means, lags, means[-1] if every == "day" and "hour" in calendar else None)


def local_key(moment: datetime, every: Every) -> str:
    """A local time as the YAML writes it."""
    return moment.strftime(KEY_FORMATS[every])


def _named(reason: tuple[TableColumn, str | None]) -> str:
    return f"{reason[0].name} {reason[1]}"


def _rank(name: str, liked: Sequence[str]) -> int:
    """The position of the last word of a name in a list of typical words; the lower, the better."""
    last = words(name)[-1:]
    return liked.index(last[0]) if last and last[0] in liked else len(liked)


def _is_birth(column: TableColumn) -> bool:
    return any(word.startswith(_BORN) for word in words(column.name))
