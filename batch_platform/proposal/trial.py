"""Try what can be proposed on the past of a table: models are trained as of several times in it and predict what came after.

The features are computed by the SQL that is written, in all windows at once. A table without times is cut into folds at random.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from batch_platform.declaration.calendar import LONGEST, Partition
from batch_platform.declaration.errors import WrongUseError, number
from batch_platform.declaration.spec import Model, PipelineSpec
from batch_platform.features.history import (
    ENTITY,
    PARTITION_START,
    ROW_TIME,
    TrainingData,
    entity_of,
    feature_columns,
    on_the_clock,
)
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.baseline import against_baseline
from batch_platform.models.contract import infer_contract
from batch_platform.models.declared_model import SEED, make_estimator
from batch_platform.models.fitting import LEAST_ROWS, fit
from batch_platform.monitoring.comparison import paired_difference
from batch_platform.monitoring.metrics import as_truth, measure
from batch_platform.monitoring.outcomes import PARTITION, Outcomes
from batch_platform.proposal.choices import DAY_NUMBER, SMALL, Proposal, Windows
from batch_platform.proposal.dated import Layout
from batch_platform.proposal.files import THIS, files_of, instant_of
from batch_platform.proposal.origin import Origin
from batch_platform.proposal.survey import Survey
from batch_platform.warehouse.sql import quoted

SECONDS = 30  # budget: no further fold is begun that would take longer
COLUMNS, EARLIER, COURSE, TREND = "columns", "earlier labels", "parts of the time", "trend"
PARTS = (  # sets of features, the richest first
    (COLUMNS, EARLIER, COURSE),
    (COLUMNS, COURSE),
    (COLUMNS, EARLIER),
    (EARLIER, COURSE),
    (COLUMNS,),
    (COURSE,),
    (EARLIER,),
)
WITH_TREND = 2  # so many of the sets that a table has are also tried with a trend, which is chosen only if nothing without is as good
MEANS, MEANS_BY = "sklearn.tree.DecisionTreeRegressor", (("hour", "isodow"), ("hour",), ("isodow",))
MOST_WORSE = 0.02  # share by which the richest may be worse than the best, as far as chance explains it
MOST_ROWS, MOST_CELLS = 50_000, 4_000_000  # rows of the table, and values in them: more are sampled
MOST_FITTED = 20_000  # newest rows to fit on
FOLDS, FEW_FOLDS, MANY_ROWS = 4, 2, 20_000  # fewer folds tell enough if there are so many rows
HELD_OUT = 5  # folds of a table without times, each as large as the part that its model holds out
_TABLE = "tried_rows"
_START, _END = "__tried_start", "__tried_end"  # columns with the bounds of a row's window


@dataclass(frozen=True)
class Past:
    """Rows of a table with their labels as a proposed pipeline sees them, in order of time."""

    reading: Layout
    rows: pl.DataFrame  # features, label, and the columns of `TrainingData` beside them
    label: str
    course: dict[str, str]  # names of the features of each kind: by part of the time,
    earlier: list[str]
    columns: dict[str, str]  # and by column of the table

    def names(self, proposal: Proposal) -> list[str]:
        """The names of the features that a proposal has of these."""
        windows = proposal.windows
        course = [self.course[part] for part in windows.calendar] if windows else []
        earlier = self.earlier if windows and windows.past else []
        return [*course, *earlier, *(self.columns[column.name] for column in proposal.features)]

    def spec_of(self, proposal: Proposal) -> PipelineSpec:
        """The pipeline that a proposal declares."""
        files = files_of("tried", proposal, self.reading)
        return PipelineSpec.model_validate(yaml.safe_load(files["defs.yaml"])["attributes"])

    def periods(self, spec: PipelineSpec, now: datetime) -> list[Partition]:
        """The serving periods whose models have a long enough window; of a single model, the partition that it serves first."""
        if spec.model.train.every is not None:
            return spec.periods.begun(now)
        return [spec.partitions.calendar.around(self.rows[PARTITION_START].sort()[-1])]

    def training_data(self, spec: PipelineSpec, names: Sequence[str], serving_start: datetime) -> TrainingData:
        """The rows that the model of a serving period will learn from, with some of their features."""
        rows, start = self.rows.select(*names, self.label, ROW_TIME, ENTITY, PARTITION_START), pl.col(PARTITION_START)
        window = spec.periods.window(serving_start)
        rows = rows.filter(start < window[-1].end) if window else rows.clear()
        boundary = spec.periods.evaluation_start(window) if window else serving_start
        late = pl.Series(
            [partition.start for partition in window if spec.periods.matures(partition) > boundary],
            dtype=pl.Datetime("us", "UTC"),
        )
        earlier = rows.filter((start < boundary) & ~start.is_in(late.implode()))
        return TrainingData(earlier, rows.filter(start >= boundary), self.label)


@dataclass(frozen=True)
class Tried:
    """Features and parameters that were tried, and how well they predicted."""

    features: tuple[str, ...]  # parts
    trees: str  # name of the parameters
    params: dict[str, Any]
    value: float
    above_best: float
    low: float | None  # bounds of the 95% interval; None for the best
    high: float | None


@dataclass(frozen=True)
class Trial:
    """The candidates that were tried, the richest features first."""

    metric: str  # an error
    folds: int
    rows: int  # rows that were predicted
    trivial: float | None  # the error of the strongest trivial model
    plain_trees: float | None  # error of the usual trees on the columns and the parts of the time
    candidates: list[Tried]
    chosen: Tried

    def as_table(self) -> tuple[list[str], list[list[object]]]:
        """The names of the columns, and a row for each candidate and for the trivial model."""
        lines = list[list[object]]()
        for tried in self.candidates:
            apart = (
                "the best"
                if tried.low is None
                else "{} ({} to {})".format(*(number(it, "+.4g") for it in (tried.above_best, tried.low, tried.high)))
            )
            notes = ["proposed"] if tried is self.chosen else []
            notes += ["plain trees"] if tried.value == self.plain_trees else []
            lines.append([", ".join(tried.features), tried.trees, number(tried.value), apart, ", ".join(notes)])
        if self.trivial is not None:
            lines.append(["none", "", number(self.trivial), "", "trivial model"])
        return ["features", "trees", self.metric, "above the best (95% interval)", ""], lines


def past_of(survey: Survey, proposal: Proposal) -> Past | None:
    """Compute the features of the rows with a label, or of a sample; None if no label is proposed.

    Raises WrongUseError if no row has both a label and a time.
    """
    if proposal.label is None:
        return None
    reading = Layout(Origin("parquet", Path(_TABLE)))
    windows = proposal.windows
    windows = windows and replace(windows, calendar=(*windows.calendar, *_trend(proposal)))
    files = files_of("tried", replace(proposal, windows=windows), reading)
    spec = PipelineSpec.model_validate(yaml.safe_load(files["defs.yaml"])["attributes"])
    con, every = survey.con, proposal.every
    most = min(MOST_ROWS, max(MOST_CELLS // (len(proposal.features) + 1), LEAST_ROWS))
    step = max(1, -(-(survey.rows - proposal.label.nulls) // most))
    sampled, bounds = f"hash(row_number() OVER ()) % {step} = 0", (_START, _END)
    if windows is None:
        table, span = f"FROM {survey.stored} QUALIFY {sampled}", {}
    else:
        at = f"CAST({instant_of(windows.time)} AS TIMESTAMPTZ)"
        window = f"CASE WHEN {sampled} THEN date_trunc('{every}', {at}) END AS {_START}, {_START} + INTERVAL 1 {every} AS {_END}"
        table = f"SELECT *, {window} FROM {survey.stored} WHERE {at} BETWEEN $first AND $last"
        table += "" if windows.past else f" QUALIFY {_START} IS NOT NULL"
        span = {"first": windows.span.first, "last": windows.span.last}
        bounds = bounds if windows.past is None else (f"{THIS}.{_START}", f"{THIS}.{_END}")
    con.execute(f"CREATE OR REPLACE TEMP TABLE {_TABLE} AS {table}", span)
    key, label = [*spec.features.key], spec.labels.column if spec.labels else ""
    features, labels = (
        files[file].replace("$partition_start", bounds[0]).replace("$partition_end", bounds[1])
        for file in ("features.sql", "labels.sql")
    )
    if windows is not None:  # a key may be unique within a window only
        key.append(_START)
        features, labels = (sql.replace("\nSELECT\n", f"\nSELECT {bounds[0]},\n", 1) for sql in (features, labels))
    joined = f"(\n{features}\n) JOIN (\n{labels}\n) USING ({', '.join(map(quoted, key))})"
    frame = con.sql(f"FROM {joined}").pl()
    if frame.is_empty():
        msg = f"No row of {survey.origin.path} has both a {label} and a time."
        raise WrongUseError(msg, hint="name another --label or --time.")
    frame = frame.with_columns(entity_of(frame.select(spec.features.key)))
    if spec.features.time is not None:
        times = on_the_clock(frame[spec.features.time], proposal.timezone).alias(ROW_TIME)
        starts = pl.col(_START).dt.convert_time_zone("UTC").alias(PARTITION_START)
        frame = frame.with_columns(times, starts).drop(_START).sort(ROW_TIME, ENTITY)
    names = feature_columns(spec.features, frame.drop(label).schema)
    calendar, own = windows.calendar if windows else (), len(names) - len(proposal.features)
    course = dict(zip(calendar, names, strict=False))
    columns = dict(zip((column.name for column in proposal.features), names[own:], strict=True))
    return Past(reading, frame.drop(spec.features.key_and_time), label, course, names[len(course) : own], columns)


def that_runs(proposal: Proposal, past: Past, now: datetime) -> Proposal:
    """The proposal from the first serving period on whose model has enough to learn from, without columns that are null until then.

    Where no model would know enough earlier labels, they are left out; where none has enough rows, a single model is proposed.
    """
    windows = proposal.windows
    if windows is None:
        return proposal
    without = replace(proposal, windows=replace(windows, past=None))
    for attempt in (proposal, without) if windows.past else (proposal,):
        spec, names = past.spec_of(attempt), past.names(attempt)
        earlier = [name for name in names if name in past.earlier]
        for period in past.periods(spec, now):
            data = past.training_data(spec, names, period.start)
            least = max(LEAST_ROWS, data.evaluate.height) if windows.delay.nominal else LEAST_ROWS
            enough = data.fit.height >= LEAST_ROWS and all(data.fit[name].count() >= least for name in earlier)
            if not enough or data.fit[past.label].n_unique() == 1 or data.evaluate.is_empty():
                continue
            known = pl.concat([data.fit, data.evaluate])
            empty = [column for column in attempt.features if not known[past.columns[column.name]].count()]
            why = f"has no value in the {known.height:,} rows that the first model learns from"
            start = period.start.astimezone(ZoneInfo(proposal.timezone)).replace(tzinfo=None)
            undeclared = replace(attempt, windows=replace(windows, train_start=None))
            if past.periods(past.spec_of(undeclared), now)[0] == period:
                start = None
            return replace(
                attempt,
                windows=attempt.windows and replace(attempt.windows, train_start=start),
                features=tuple(column for column in attempt.features if column not in empty),
                keep=tuple(column for column in attempt.keep if column not in empty),
                left_out=attempt.left_out | {column.name: why for column in empty},
            )
    return replace(without, train_every=None, windows=replace(windows, past=None, train_start=None))


def require_fits(proposal: Proposal, past: Past, now: datetime) -> None:
    """Fit the first and the last model that will be trained; raises what their training would raise."""
    spec, names = past.spec_of(proposal), past.names(proposal)
    if proposal.windows is None:
        data = [TrainingData(*next(_at_random(past.rows.select(*names, past.label, ENTITY))), past.label)]
    else:
        periods = past.periods(spec, now)
        ends = [periods[0]] if len(periods) == 1 else [periods[0], periods[-1]]
        data = [past.training_data(spec, names, period.start) for period in ends]
    for each in data:
        fit(spec.model, spec.features, replace(each, fit=each.fit.tail(MOST_FITTED)), spec.model.params)


def candidates(proposal: Proposal) -> list[tuple[tuple[str, ...], str, Proposal]]:
    """The proposals that can be tried: parts of the features alone and together, each with the usual and with small trees.

    Of numbers also the mean by hour, by weekday and by both: a decision tree without limits has a leaf for each of them.
    """
    windows = proposal.windows
    calendar, past = (windows.calendar, windows.past) if windows else ((), None)
    there = {COLUMNS: bool(proposal.features), EARLIER: past is not None, COURSE: bool(calendar)}
    sets = [parts for parts in PARTS if all(there[part] for part in parts)]
    sets += [(*parts, TREND) for parts in sets[:WITH_TREND] if _trend(proposal)]
    made = list[tuple[tuple[str, ...], str, Proposal]]()
    for parts in sets:
        of_parts = replace(
            proposal,
            windows=windows
            and replace(
                windows,
                calendar=(*(calendar if COURSE in parts else ()), *(_trend(proposal) if TREND in parts else ())),
                past=past if EARLIER in parts else None,
            ),
            features=proposal.features if COLUMNS in parts else (),
            keep=proposal.keep if COLUMNS in parts else (),
        )
        made.append((parts, "usual", of_parts))
        made.append((parts, "small", replace(of_parts, params=proposal.params | SMALL)))
    for course in MEANS_BY if proposal.target == "numbers" else ():
        if windows and {*course} <= {*calendar}:
            by = f"mean by {' and '.join(windows.part_names[part] for part in course)}"
            of_course = replace(windows, calendar=course, past=None)
            mean = replace(proposal, windows=of_course, features=(), keep=(), estimator=MEANS, params={})
            made.append(((COURSE,), by, mean))
    return made


def _trend(proposal: Proposal) -> tuple[str, ...]:
    """The part of the time that tells a trend; none of a table without times, or with a column of that name."""
    if proposal.windows is None:
        return ()
    name = proposal.windows.part_names[DAY_NUMBER]
    return () if name in {column.name.lower() for column in proposal.features} else (DAY_NUMBER,)


def tried(proposal: Proposal, past: Past, seconds: Callable[[], float]) -> tuple[Proposal, Trial] | None:
    """Try the candidates and choose; `seconds` tells how long it has been going on.

    None if the past is too short to learn from and to predict.
    """
    classes = np.unique(as_truth(past.rows[past.label])).tolist() if proposal.target == "classes" else []
    task, metric = {0: "regression", 2: "binary"}.get(len(classes), "multiclass"), "log_loss" if classes else "rmse"
    wanted, power = candidates(proposal), 1 if classes else 2
    folds, predicted, trivial = list[pl.DataFrame](), list[list[NDArray[np.float64]]](), list[float]()
    for fitted, later in _folds(proposal, past):
        if folds and seconds() * (1 + 1 / len(folds)) > SECONDS:
            break
        values = list[NDArray[np.float64]]()
        for _, _, candidate in wanted:
            if folds or not values or seconds() < SECONDS:
                values.append(_predicted(candidate, past, fitted, later, classes))
        wanted = wanted[: len(values)]
        beside = against_baseline(
            metric, Outcomes(task, values[0], as_truth(later[past.label]), classes), fitted, later, past.label
        )
        trivial.append(np.nan if beside is None else beside.baseline.metrics[metric])
        folds.append(later)
        predicted.append(values)
    if not folds:
        return None
    rows = pl.concat(folds)
    units = {} if proposal.windows is None else {PARTITION: rows[PARTITION_START].to_physical().to_numpy()}
    outcomes = Outcomes(task, predicted[0][0], as_truth(rows[past.label]), classes, units=units)
    outcomes = [replace(outcomes, predicted=np.concatenate(values)) for values in zip(*predicted, strict=True)]
    errors = [measure(outcome, only=[metric])[metric] for outcome in outcomes]
    best, results = int(np.argmin(errors)), list[Tried]()
    for at, (parts, trees, candidate) in enumerate(wanted):
        worse = None if at == best else paired_difference(metric, outcomes[at], outcomes[best])
        low, high = (None, None) if worse is None else (worse.low, worse.high)
        results.append(Tried(parts, trees, candidate.params, errors[at], errors[at] - errors[best], low, high))
    most = errors[best] * (1 + MOST_WORSE)
    good = [result for result in results if result.value <= most and not (result.low and result.low > 0)]
    chosen = min((result for result in good if result.features == good[0].features), key=lambda result: result.value)
    mean = float(np.average(np.array(trivial) ** power, weights=[fold.height for fold in folds])) ** (1 / power)
    plain = next((result.value for result in results if EARLIER not in result.features), None)
    trial = Trial(metric, len(folds), rows.height, None if np.isnan(mean) else mean, plain, results, chosen)
    return _explained(proposal, wanted[results.index(chosen)][2], trial), trial


def _explained(richest: Proposal, chosen: Proposal, trial: Trial) -> Proposal:
    """The choice with the reason for each part of the features that was left out."""
    of_part = {
        COLUMNS: [column.name for column in richest.features],
        EARLIER: [f"earlier values of {chosen.label.name if chosen.label else ''}"],
        COURSE: [COURSE],
    }
    left_out = {**chosen.left_out}
    for part in trial.candidates[0].features:
        if part not in trial.chosen.features:
            wider = [tried for tried in trial.candidates if {*tried.features} == {*trial.chosen.features, part}]
            value = min(tried.value for tried in wider or trial.candidates[:1])
            errors = f"{trial.metric} {number(value)} with {part}, {number(trial.chosen.value)} without"
            left_out |= dict.fromkeys(of_part[part], f"made predictions of the past worse: {errors}")
    return replace(chosen, left_out=left_out)


def _folds(proposal: Proposal, past: Past) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The rows to fit on and those to predict, as of several times, the newest first; without times, at random."""
    label, most = past.label, FOLDS if past.rows.height <= MANY_ROWS else FEW_FOLDS
    windows = proposal.windows
    folds = _at_random(past.rows) if windows is None else _by_time(proposal, windows, past.rows, most)
    trees = past.rows[label].n_unique() if proposal.target == "classes" else 1  # trees per iteration
    for before, rows in islice(folds, most):
        fitted = before.tail(MOST_FITTED // max(1, trees // 2))
        is_known = rows[label].is_in(fitted[label].unique().implode())
        later = rows.filter(is_known) if proposal.target == "classes" else rows
        if fitted.height >= LEAST_ROWS and later.height and fitted[label].n_unique() > 1:
            yield fitted, later


def _at_random(rows: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    fold = pl.Series(np.random.default_rng(SEED).permutation(rows.height) % HELD_OUT)
    for held_out in range(HELD_OUT):
        yield rows.filter(fold != held_out), rows.filter(fold == held_out)


def _by_time(
    proposal: Proposal, windows: Windows, rows: pl.DataFrame, most: int
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """As much as a model serves or is evaluated on, several times in the later half, and what was known by then."""
    length, delay, start = LONGEST[proposal.every].nominal, windows.delay.nominal, pl.col(PARTITION_START)
    starts = rows[PARTITION_START].unique().sort().to_list()
    first, end = starts[0], starts[-1] + length
    period = LONGEST[proposal.train_every].nominal if proposal.train_every else timedelta()
    later = max(min(max(windows.evaluate.nominal, period), (end - first) / 5), length)
    last = end - later
    earliest = min(last, max(first + 2 * later + delay, first + (end - first) / 2))
    count = min(most, 1 + int((last - earliest) / later))
    for step in range(count):
        about = last - step * ((last - earliest) / max(count - 1, 1))
        begin = next(begin for begin in starts if begin >= about)
        yield (
            rows.filter(start + length <= begin - delay if delay else start < begin),
            rows.filter(start >= begin, start < begin + later),
        )


def _predicted(
    candidate: Proposal, past: Past, fitted: pl.DataFrame, later: pl.DataFrame, classes: Sequence[Any]
) -> NDArray[np.float64]:
    """Fit a candidate and predict later rows: values [rows], or probabilities of all classes [rows, classes]."""
    contract = infer_contract(fitted.select(name for name in past.names(candidate) if fitted[name].count()), {})
    estimator = make_estimator(Model(estimator=candidate.estimator), candidate.params, contract)
    learned, matrix = (
        contract.encode(rows) if contract.columns else np.zeros((rows.height, 1)) for rows in (fitted, later)
    )
    with one_thread():
        estimator.fit(learned, as_truth(fitted[past.label]))
        if not classes:
            return estimator.predict(matrix)
        chances = np.zeros((later.height, len(classes)))
        chances[:, [classes.index(name) for name in estimator.classes_.tolist()]] = estimator.predict_proba(matrix)
    return chances
