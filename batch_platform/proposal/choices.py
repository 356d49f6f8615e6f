"""Choose a first pipeline for a table: its key, time, partitions, label and estimator.

Every choice is a guess from what the table holds, unless the user made it. Nothing is written here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import combinations
from math import ceil, prod
from shlex import quote
from typing import Any
from zoneinfo import ZoneInfo

from batch_platform.declaration.calendar import KEY_FORMATS, LONGEST, Calendar, Duration, Every
from batch_platform.declaration.errors import WrongUseError, counted, first_few, listed, shortened
from batch_platform.declaration.inputs import FILE, NUMBERED_KINDS, ROW_IN_FILE
from batch_platform.declaration.spec import ADDED_COLUMNS
from batch_platform.proposal.columns import (
    CLEARLY,
    ENOUGH,
    KEY_NAMES,
    Evidence,
    feature_reasons,
    is_called_like_an_identifier,
    is_part_of_time,
    label_evidence,
    last_word,
    names_things,
    require_repeating_texts,
    target_of,
)
from batch_platform.proposal.instants import words
from batch_platform.proposal.survey import NEARLY, Survey, TableColumn, TimeRange

ESTIMATORS = {
    "classes": "sklearn.ensemble.HistGradientBoostingClassifier",
    "numbers": "sklearn.ensemble.HistGradientBoostingRegressor",
    "none": "sklearn.cluster.KMeans",
}
_BOOSTED = {"max_iter": 100, "early_stopping": False}
PARAMS = {"classes": _BOOSTED, "numbers": _BOOSTED, "none": {"n_clusters": 5, "n_init": 1}}
# Shallow trees of few columns each are surer of less: better than large ones on small tables and on noisy series.
SMALL = {"max_leaf_nodes": 4, "max_features": 0.3, "min_samples_leaf": 10, "l2_regularization": 1.0}
# Trees tell apart sets of texts; of many texts with few rows each, they learn the sets by heart and not the order of the names.
MANY_TEXTS, ROWS_PER_TEXT = 32, 50
ROWS_PER_WINDOW = 5  # fewer rows are hardly worth a partition
# Enough rows for figures of each partition, if so many partitions remain.
MANY_PER_WINDOW: dict[Every, int] = {"hour": 40, "day": 40, "week": 20, "month": 20}
MANY_WINDOWS = 12
FEWEST_WINDOWS = 4  # windows with rows: to learn from two, evaluate on one and score one
BY_PLACE = "as long as rows keep their place in the file"
BY_CONTENT = "whatever the order of rows"
PARTITIONS_TO_JUDGE_BY = 5  # fewer tell little of how much partitions differ, by which the gate decides
ROWS_TO_JUDGE_BY = 100  # fewer evaluation rows say little, if the table has more
HELD_OUT = 0.2  # share of the rows of a snapshot with a label
MOST_LEARNED = 100_000  # rows that a model learns from: more of them make it slower and hardly better
MOST_MODELS = 6  # models of the past; earlier rows are learned from and not scored
_MOST_PAIRS = 60  # pairs of columns that are tried as a key
_FILLED_PANEL = 0.5  # share of all pairs of an entity and a time that have a row: a measure is not so even by chance
TAKEN_NAMES = frozenset({*ADDED_COLUMNS, "challenger"})  # columns that scoring adds, in lower case
MOST_LISTED = 5  # columns that are shown where it is not clear which to predict
_MOST_KEPT, _MOST_KEPT_VALUES = 3, 50
_TIME_NAMES = ("time", "timestamp", "datetime", "date", "ts", "at", "on", "day", "month", "when")
DAY_NUMBER = "julian"  # part of a time by which trees follow a trend
PART_NAMES = {
    "minute": "minute",
    "hour": "hour",
    "isodow": "weekday",
    "month": "month",
    DAY_NUMBER: "julian_day",
}  # parts of a time by DuckDB's names, and the names of their features
_PARTS_OF = {
    "minute": "minute_of_hour",
    "hour": "hour_of_day",
    "isodow": "day_of_week",
    "month": "month_of_year",
    DAY_NUMBER: "day_number",
}  # the names where a time of the table has the usual one
# How long a table must be for a part of its times to matter, and the windows at whose start that part tells nothing.
_PARTS: dict[str, tuple[timedelta, frozenset[str]]] = {
    "minute": (timedelta(hours=2), frozenset({"hour", "day"})),
    "hour": (timedelta(days=2), frozenset({"day"})),
    "isodow": (timedelta(days=14), frozenset({"week", "month"})),
    "month": (timedelta(days=2 * 365), frozenset({"year"})),
}
# Lengths of time before a partition over which the label is averaged, and how long before a row it is looked up.
_STEPS_BACK: dict[Every, tuple[tuple[Duration, ...], tuple[Duration, ...]]] = {
    "hour": ((Duration(hours=3), Duration(days=1)), (Duration(hours=1), Duration(days=1))),
    "day": ((Duration(days=7), Duration(days=28)), (Duration(days=1), Duration(days=7))),
    "week": ((Duration(days=28), Duration(days=84)), (Duration(days=7), Duration(days=364))),
    "month": ((Duration(days=92), Duration(days=365)), ()),
}
_MEANS_OF_YEARS = (
    Duration(days=366),
    Duration(days=1096),
)  # where each time is the start of a year: one of them and three
_MONDAY = datetime(1900, 1, 1)  # noqa: DTZ001 - on any clock; weeks start on Monday
_MANY_LACKING = (
    0.1  # share of the rows; a time that more of them lack tells of something that happens to some, such as a refund
)
_OF_AN_ENTITY = ("birth", "born", "dob", "last")  # times that tell an age or how long ago, not when a row came about


@dataclass(frozen=True)
class Asked:
    """The choices of the user, which replace the guesses."""

    now: datetime
    key: tuple[str, ...] = ()
    time: str | None = None
    label: str | None = None
    cluster: bool = False  # propose groups of similar rows, without a label
    snapshot: bool = False  # score the whole table every day, whatever its times
    timezone: str = "UTC"
    command: str = "batch-platform new NAME --from FILE"  # the call, to be repeated


@dataclass(frozen=True)
class PastFeatures:
    """The features of a series: earlier rows of the same entity, as far as they are known when a partition starts."""

    entity: tuple[TableColumn, ...]  # columns that name what the series is of; none for a single series
    means: tuple[Duration, ...]  # lengths of time before the partition over which the label is averaged
    lags: tuple[Duration, ...]  # how long before a row the label is looked up
    day: Duration | None = None  # length of time before the partition in which the usual course of a day is looked up


@dataclass(frozen=True)
class Windows:
    """The partitions of a table with a time."""

    time: TableColumn  # the time of a row's event
    timeless: int  # rows without a time, which belong to no partition
    span: TimeRange  # range of the times
    start: datetime  # start of the first partition, in local time
    end: datetime | None  # end of the last partition that has a row, in local time; None if more rows are expected
    evaluate: Duration  # the end of the training window, used for evaluation
    train_start: datetime | None  # local start of the first serving period; None for the first one with enough data
    delay: Duration  # time until labels are known: the length of the end of the table in which none are
    calendar: tuple[str, ...] = ()  # parts of the time that are features
    part_names: Mapping[str, str] = field(default_factory=lambda: PART_NAMES)  # names of these features, by part
    past: PastFeatures | None = None
    repeats: tuple[tuple[datetime, int], ...] = ()  # times of a series that several rows have, with the number of rows

    @property
    def repeated(self) -> str:
        """The times that several rows of a series have; empty if there are none."""
        if not self.repeats:
            return ""
        times = first_few([f"{counted(rows, 'row')} at {instant:%Y-%m-%d %H:%M} UTC" for instant, rows in self.repeats])
        return f"{shortened(self.time.name)} would be the key, but several rows have the same time ({times})"

    @property
    def without_time(self) -> str:
        """The rows that belong to no partition, and why."""
        far_off = f", or far from all others, such as {self.span.far_off:%Y-%m-%d}" if self.span.far_off else ""
        return f"{counted(self.timeless, 'row')} whose {shortened(self.time.name)} is not a time{far_off}"


@dataclass(frozen=True)
class Proposal:
    """A proposed pipeline."""

    key: tuple[TableColumn, ...]  # identifies a row within a partition; none for its position in the file
    key_holds: str  # range in which the key is unique: "everywhere", or "within a" partition
    every: Every  # length of a partition
    windows: Windows | None  # None for snapshots of the whole table
    today: datetime  # current local time
    timezone: str  # time zone of all local times
    label: TableColumn | None  # None for clustering
    evidence: tuple[str, ...]  # reasons for the label, if nobody named it
    target: str  # content of the label: "classes", "numbers" or "none"
    estimator: str
    positive: str | None  # the rarer of two texts, whose probability is the score
    features: tuple[TableColumn, ...]
    left_out: dict[str, str]  # columns that are no features, with the reason
    keep: tuple[TableColumn, ...]  # features to store with the predictions
    train_every: Every | None  # None for a single model
    params: dict[str, Any]  # parameters of the estimator
    max_rows: int | None  # number of rows that a model learns from; None for all
    others: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # other possible columns by role

    @property
    def time(self) -> TableColumn | None:
        """The column of the time of a row's event; None for snapshots."""
        return None if self.windows is None else self.windows.time


@dataclass(frozen=True)
class _Times:
    """The times of a table, and what they are good for."""

    column: TableColumn
    span: TimeRange
    every: Every  # length of a partition
    are_partitioned: bool  # otherwise they may still be part of a key
    is_series: bool  # nearly every time has one row
    repeats: tuple[tuple[datetime, int], ...]  # times that several rows have, with the number of rows
    others: list[TableColumn]  # other columns of times


def propose(survey: Survey, asked: Asked) -> Proposal:
    """Choose a pipeline for a table.

    Raises:
        WrongUseError: A named column does not exist or cannot play its role, no column is clearly the label, or nothing
            identifies a row of several files.
    """
    times = _times(survey, asked)
    partitioned = times if times is not None and times.are_partitioned else None
    label, evidence, other_labels = _label(survey, asked, times)
    key, holds, other_keys = _key(survey, asked, times, label)
    target = "none"
    if label is not None:
        target = target_of(survey, label)
        require_repeating_texts(survey, label)
    time = None if partitioned is None else partitioned.column
    series = times.column if times is not None and times.is_series else None
    reasons = feature_reasons(survey, label, [*key, time, label], series)
    if time is None and None not in reasons.values() and not asked.key and survey.origin.is_one_file:
        # the key is all there is to learn from
        key, holds, reasons = (), BY_PLACE, feature_reasons(survey, label, [label], series)
    features = tuple(column for column, reason in reasons.items() if reason is None)
    windows, train_every = None, "month"
    if partitioned is not None:
        windows, train_every = _windows(survey, asked, partitioned, key, label)
        holds = holds if key else BY_CONTENT  # rows that come later may stand above the others
    if not features and (windows is None or windows.past is None):
        why = first_few(sorted(f"{column.name} {reason}" for column, reason in reasons.items()), "; ")
        msg = f"No column of {survey.origin.path} is left to learn from: {why or 'there are no others'}."
        if times is not None and times.repeats:
            instant, rows = times.repeats[0]
            several = f"{len(times.repeats):,} of its values" if len(times.repeats) > 1 else "a value"
            example = f"{instant:%Y-%m-%d %H:%M} UTC in {rows:,} rows"
            msg += f" {times.column.name} is not unique: several rows have {several}, such as {example}."
        raise WrongUseError(msg, hint="add columns, or name another --label, --key or --time.")
    return Proposal(
        key=key,
        key_holds=holds,
        every="day" if partitioned is None else partitioned.every,
        windows=windows,
        today=asked.now.astimezone(ZoneInfo(asked.timezone)).replace(tzinfo=None),
        timezone=asked.timezone,
        label=label,
        evidence=evidence,
        target=target,
        estimator=ESTIMATORS[target],
        positive=survey.rarer(label.name) if label and label.is_text and survey.values(label.name) == 2 else None,  # noqa: PLR2004 - two classes
        features=features,
        left_out={column.name: reason for column, reason in reasons.items() if reason is not None},
        keep=tuple(
            column
            for column in features
            if column.is_text and column.distinct <= _MOST_KEPT_VALUES and column.name.lower() not in TAKEN_NAMES
        )[:_MOST_KEPT],
        train_every=train_every,
        params=_params(survey, target, label, features),
        max_rows=MOST_LEARNED if survey.rows > MOST_LEARNED else None,
        others={
            "key": [column.name for column in other_keys],
            "time": [column.name for column in times.others if column is not time] if times else [],
            "label": [other.column.name for other in other_labels],
        },
    )


def _params(survey: Survey, target: str, label: TableColumn | None, features: Sequence[TableColumn]) -> dict[str, Any]:
    """The usual parameters of the estimator, and those for texts with few rows each."""
    params: dict[str, Any] = {**PARAMS[target]}
    if label is None:
        return params
    rows = survey.rows - label.nulls
    if any(column.is_text and MANY_TEXTS < column.distinct > rows / ROWS_PER_TEXT for column in features):
        params["categorical_features"] = None
    return params


def _times(survey: Survey, asked: Asked) -> _Times | None:
    """The likeliest time of a row and what follows from it; None for a table without times."""
    ranked = likely_times(survey, asked)
    for column in ranked:
        if (span := survey.span(column.name)) is not None:
            of_entity = _is_of_an_entity(column)
            repeats = survey.repeats(column.name)
            series = (asked.time is not None or not of_entity) and survey.is_series(column.name, span, repeats)
            every = _every(survey.rows, span, series=series)
            # No partition is as long as a year, and a birthday tells of no event.
            is_snapshot = span.filled[every] < FEWEST_WINDOWS or "year" in span.starts or of_entity
            return _Times(
                column,
                span,
                every,
                are_partitioned=not asked.snapshot and (asked.time is not None or not is_snapshot),
                is_series=series,
                repeats=tuple(repeats),
                others=[other for other in ranked if other.name not in column.made_of],
            )
    if asked.time is not None:
        msg = f"{asked.time!r} of {survey.origin.path} has type {survey.column(asked.time).dtype} and cannot be read as times."
        raise WrongUseError(
            msg, hint="name another --time, or write dates as 2026-01-31, neither with decimals nor before 1000."
        )
    return None


def likely_times(survey: Survey, asked: Asked) -> list[TableColumn]:
    """The columns that can hold the time of a row, likeliest first; only the column that the user named, if any."""
    if asked.time is not None:
        return [survey.column(asked.time)]
    return sorted(
        (column for column in survey.columns if column.is_likely_time),
        key=lambda column: (
            _is_of_an_entity(column),
            column.nulls > survey.rows * _MANY_LACKING,
            not column.made_of,
            column.holds != "time",  # numbers last
            column.nulls > 0,
            _rank(column, _TIME_NAMES),
        ),
    )


def _is_of_an_entity(time: TableColumn) -> bool:
    """Return whether a time is called like a birthday or a last purchase: all rows are of today."""
    return any(word.startswith(_OF_AN_ENTITY) for word in words(time.name))


def _label(
    survey: Survey, asked: Asked, times: _Times | None
) -> tuple[TableColumn | None, tuple[str, ...], list[Evidence]]:
    """The column to predict, what speaks for it, and other possible ones.

    Raises:
        WrongUseError: Too little speaks for any column, and the user did not ask to group rows.
    """
    if asked.cluster:
        return None, (), []
    if asked.label is not None:
        return survey.column(asked.label), (), []
    able = likely_labels(survey, asked, times)
    if len(able) == 1:
        return able[0].column, ("no other column can be predicted",), []
    if able and able[0].points >= ENOUGH and able[1].points <= able[0].points - CLEARLY:
        return able[0].column, able[0].reasons, able[1 : MOST_LISTED + 1]
    likely = [evidence.column for evidence in able[:MOST_LISTED]]
    possible = "; ".join(f"{column.name} ({survey.shown(column)})" for column in likely)
    msg = f"It is not clear which column of {survey.origin.path} to predict. It could be {possible or 'none'}."
    repeat = f"{asked.command} --label {quote(likely[0].name if likely else 'COLUMN')}"
    raise WrongUseError(msg, hint=f"name it: {repeat}; --cluster groups similar rows instead.")


def likely_labels(survey: Survey, asked: Asked, times: "_Times | None" = None) -> list[Evidence]:
    """The columns that could be the label, the likeliest first; those with another role, such as `times`, are not among them."""
    times = times or _times(survey, asked)
    time = [] if times is None else [times.column.name, *times.column.made_of]
    return label_evidence(survey, [*asked.key, *time])


def _key(
    survey: Survey, asked: Asked, times: _Times | None, label: TableColumn | None
) -> tuple[tuple[TableColumn, ...], str, list[TableColumn]]:
    """The columns that identify a row, where they are unique, and other possible key columns.

    A single column comes before several, and the position of a row in its file last. The unique time of a series comes before
    counters, and where it steps by whole hours, before every column whose name does not say that it identifies something.
    """
    if asked.key:
        key = tuple(survey.column(name) for name in asked.key)
        if (holds := _where_unique(survey, times, key)) is not None:
            return key, holds, []
        msg = f"The rows of {survey.origin.path} are not identified by {listed(asked.key)}: some have equal values or none."
        raise WrongUseError(msg, hint="name more columns with --key, or omit --key to see the proposal.")
    time = None if times is None else times.column
    free = [column for column in survey.columns if not column.nulls and column not in (time, label)]
    ranked = [column for column in free if _may_name_rows(column)]
    ranked.sort(key=lambda column: _rank(column, KEY_NAMES))
    unique = [column for column in ranked if column.unique]
    likeliest = unique
    if times is not None and times.is_series and not times.repeats and unique:
        on_hours = "hour" in times.span.starts
        named = [column for column in unique if names_things(column)]
        lasting = [column for column in unique if not on_hours and not column.counts_rows]
        likeliest = [*named, *lasting, times.column]
    if likeliest:
        return (likeliest[0],), "everywhere", [column for column in unique if column is not likeliest[0]]
    for key in _compound_keys(survey, ranked, time, [column for column in free if column not in ranked]):
        if holds := _where_unique(survey, times, key):
            return key, holds, []
    if survey.origin.is_one_file:
        return (), BY_PLACE, []
    taken = {column.name.lower() for column in survey.columns} & {FILE, ROW_IN_FILE}
    if survey.origin.kind in NUMBERED_KINDS and not taken:
        return (), "as long as files keep their names and rows their place in them", []
    msg = f"No column of {survey.origin.path} identifies its rows, nor do two or three together."
    raise WrongUseError(msg, hint="name those that do together, such as --key shop --key day, or write a single file.")


def _where_unique(survey: Survey, times: _Times | None, key: Sequence[TableColumn]) -> str | None:
    """The range in which some columns identify a row: everywhere, or a window; None if they do not.

    No query is made where the estimated numbers of distinct values, which may be too low, have fewer combinations than rows.
    """
    names, most = [column.name for column in key], prod(column.distinct / NEARLY for column in key)
    if most >= survey.rows and survey.unique(names):
        return "everywhere"
    if times is None or not times.are_partitioned:
        return None
    windows = 2 * times.span.filled[times.every]  # windows with a row, those of times far off included
    within = most * windows >= survey.rows and survey.unique(names, times.column.name, times.every)
    return f"within a {times.every}" if within else None


def _may_name_rows(column: TableColumn) -> bool:
    """Return whether a column holds names or numbers of things: texts, and integers that are called so or count the rows."""
    return column.is_text or (
        column.holds == "integer" and (is_called_like_an_identifier(column) or column.counts_rows)
    )


def _compound_keys(
    survey: Survey, ranked: Sequence[TableColumn], time: TableColumn | None, others: Sequence[TableColumn]
) -> Iterator[tuple[TableColumn, ...]]:
    """Keys to try, the simplest first: names that say so, the time, and two columns or three with the time.

    Last with the time come integers that may number the entities of a panel: most of them have a row at most of the times. A
    part of the time is none: it has to stay a feature.
    """
    named = [column for column in ranked if last_word(column.name) in KEY_NAMES]
    yield from ((column,) for column in named)
    if len(named) > 1:
        yield tuple(named)
    pairs = list(combinations(ranked, 2))[:_MOST_PAIRS]
    if time is not None and not time.nulls:
        yield (time,)
        yield from ((column, time) for column in ranked)
        yield from ((*pair, time) for pair in pairs)
        integers = [column for column in others if column.holds == "integer" and not is_part_of_time(column)]
        most = survey.rows / (survey.values(time.name) * _FILLED_PANEL)
        yield from ((column, time) for column in integers if 1 < column.distinct <= most)
    yield from pairs


def _every(rows: int, span: TimeRange, *, series: bool) -> Every:
    """The shortest window length for which at least half of the windows have rows, and enough of them.

    Rows that are no series, and few in each window, get longer ones as long as there are many windows.
    """
    for least, windows in ((MANY_PER_WINDOW, MANY_WINDOWS), (dict.fromkeys(LONGEST, ROWS_PER_WINDOW), 0))[series:]:
        for every, longest in LONGEST.items():
            filled = span.filled[every]
            worth = (
                filled * 2 >= span.length / longest.nominal + 1 and rows >= filled * least[every] and filled >= windows
            )
            if worth and (every != "hour" or span.length < timedelta(days=3)):
                return every
    return "month" if span.length > timedelta(days=60) else "day"


def _windows(
    survey: Survey, asked: Asked, times: _Times, key: Sequence[TableColumn], label: TableColumn | None
) -> tuple[Windows, Every | None]:
    """The partitions of a table with a time, and how often a model is trained."""
    span, every, zone = times.span, times.every, ZoneInfo(asked.timezone)
    calendar = Calendar(every, zone, _MONDAY)
    bounds = calendar.around(span.first).start, calendar.around(span.last).end
    first, end = (bound.astimezone(zone).replace(tzinfo=None) for bound in bounds)
    still_growing = asked.now - span.last < max(3 * LONGEST[every].nominal, timedelta(days=7))
    is_sparse = span.filled[every] * 2 < (end - first) / LONGEST[every].nominal  # the last days may hold no rows
    delay = Duration()
    if label is not None and label.nulls:
        delay = survey.unlabelled_end(label.name, times.column.name, span, every)
    length = end - first - delay.nominal
    rows = max(1, int(span.rows * (length / (end - first))))
    evaluate, train_every = _training(every, length, rows, is_sparse=is_sparse)
    names = {column.name.lower() for column in survey.columns}
    clocks = {column.name.lower() for column in survey.columns if column in (times.column, *times.others)}
    part_names = {part: _PARTS_OF[part] if name in clocks else name for part, name in PART_NAMES.items()}
    windows = Windows(
        time=times.column,
        timeless=survey.rows - span.rows,
        span=span,
        start=first,
        end=None if still_growing else end,
        evaluate=evaluate,
        train_start=None,
        delay=delay,
        calendar=tuple(
            part
            for part, (least, starts) in _PARTS.items()
            if span.length >= least
            and not starts & span.starts
            and part_names[part] not in names
            and (part != "minute" or times.is_series)  # events come at any minute
        ),
        part_names=part_names,
        repeats=times.repeats if times.is_series and not key else (),
    )
    periods = [] if train_every is None else Calendar(train_every, zone, first).within(*bounds)
    if len(periods) > MOST_MODELS:
        windows = replace(windows, train_start=periods[-MOST_MODELS].start.astimezone(zone).replace(tzinfo=None))
    return replace(windows, past=_past(survey, windows, every, key, label, is_series=times.is_series)), train_every


def _training(every: Every, length: timedelta, rows: int, *, is_sparse: bool) -> tuple[Duration, Every | None]:
    """The part of the training window for evaluation, and the length of a serving period (None for a single model)."""
    if every == "hour":
        hours = max(1, min(PARTITIONS_TO_JUDGE_BY, int(length / timedelta(hours=4))), int(length / timedelta(hours=5)))
        return Duration(hours=hours), "day" if length > timedelta(days=1, hours=2 * hours) else None
    fifth = int(length / timedelta(days=5))
    enough = ceil(length / timedelta(days=1) * ROWS_TO_JUDGE_BY / rows)  # days
    partition = LONGEST[every].days
    several = partition * min(PARTITIONS_TO_JUDGE_BY, int(length / timedelta(days=4 * partition)))
    days = max(partition, several, fifth if is_sparse else min(max(14, enough), fifth))
    periods: tuple[tuple[Every, int], ...] = (("month", 1),) if every == "month" else (("month", 3), ("week", 1))
    for often, served in periods:  # the fewest models of each length that are worth it
        if length >= served * LONGEST[often].nominal + 2 * timedelta(days=days):
            return Duration(days=days), often
    return Duration(days=days), None


def _past(  # noqa: PLR0913 - what decides whether the past of a label is known
    survey: Survey,
    windows: Windows,
    every: Every,
    key: Sequence[TableColumn],
    label: TableColumn | None,
    *,
    is_series: bool,
) -> PastFeatures | None:
    """Averages and earlier values of a label of numbers or truth values, where an entity has rows in many partitions.

    A value that lies further back than the first model learns from is left out: it would be null in every row. So is one that
    is not known yet when the partition starts.
    """
    if label is None or label.holds not in ("number", "integer", "boolean"):
        return None
    names_rows = windows.time not in key and (not key or survey.unique([column.name for column in key]))
    if names_rows and not is_series:
        return None
    means, lags = _STEPS_BACK[every]
    means = _MEANS_OF_YEARS if "year" in windows.span.starts else means
    delay, learned = windows.delay.nominal, 2 * windows.evaluate.nominal  # data that the first model needs at least
    if windows.train_start is not None:
        learned = windows.train_start - windows.start - delay
    known = delay + LONGEST[every].nominal if delay else timedelta()  # before the end of the partition
    lags = tuple(lag for lag in lags if known <= lag.nominal < learned) if "hour" in windows.span.starts else ()
    entity = () if names_rows else tuple(column for column in key if column != windows.time)
    return PastFeatures(entity, means, lags, means[-1] if every == "day" and "hour" in windows.calendar else None)


def local_key(moment: datetime, every: Every) -> str:
    """A local time as the YAML writes it."""
    return moment.strftime(KEY_FORMATS[every])


def _rank(column: TableColumn, liked: Sequence[str]) -> int:
    """The position of the last word of a name in a list of typical words; the lower, the better."""
    last = last_word(column.name)
    return liked.index(last) if last in liked else len(liked)
