"""Find out whether more can be learned from a single series than its usual course: its mean by hour, by weekday, or by both.

Trees that look at earlier values learn chance where there is nothing else to learn, and are then worse than the mean. So both
are tried on the last partitions, each time with what was known before, and what was better is proposed. A decision tree
without limits has a leaf for each combination of values, so one that knows the hour predicts the mean by hour.
"""

from dataclasses import replace
from itertools import accumulate, pairwise
from math import sqrt
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import polars.selectors as cs

from batch_platform.cli.proposal.choices import PART_NAMES, Proposal, Windows
from batch_platform.cli.proposal.dated import Layout
from batch_platform.cli.proposal.files import files_of
from batch_platform.cli.proposal.survey import Survey
from batch_platform.declaration.calendar import Calendar, Partition
from batch_platform.declaration.errors import counted
from batch_platform.declaration.functions import import_function
from batch_platform.models.native_threads import libraries_loaded, one_thread

MEANS = "sklearn.tree.DecisionTreeRegressor"
COURSES = (("hour",), ("isodow",), ("hour", "isodow"))  # parts of a time by which a mean is taken
STEPS = 4  # steps in which the later half of the partitions is predicted
FEWEST_PARTITIONS, MOST_PARTITIONS, MOST_ROWS = 2 * STEPS, 120, 50_000
_SERIES = "series"  # the table, in SQL


def with_usual_course(survey: Survey, proposal: Proposal) -> Proposal:
    """Propose the usual course of a series where trees that also know earlier values and other columns predict it no better.

    The rows that the last model is evaluated on are not looked at. A proposal for anything but a single series of numbers, or
    for one that is too short to tell, is returned as it is.
    """
    windows, label = proposal.windows, proposal.label
    if windows is None or windows.past is None or label is None or proposal.target != "numbers":
        return proposal
    courses = [parts for parts in COURSES if set(parts) <= set(windows.calendar)]
    if windows.past.entity or not courses:
        return proposal
    partitions = _partitions(proposal, windows)
    tried = _rows(survey, proposal, partitions) if len(partitions) >= FEWEST_PARTITIONS else []
    if len(tried) < FEWEST_PARTITIONS:
        return proposal
    trees = _error(proposal.estimator, proposal.params, tried)
    means = {parts: _error(MEANS, {}, tried, [windows.calendar.index(part) for part in parts]) for parts in courses}
    usual = min(courses, key=means.__getitem__)
    if trees < means[usual]:
        return proposal
    course = f"mean by {' and '.join(PART_NAMES[part] for part in usual)}"
    later = counted(len(tried) - len(tried) // 2, proposal.every)
    reason = f"they do not help: over {later} trees had an rmse of {trees:.4g}, the {course} one of {means[usual]:.4g}"
    others = {column.name: "does not help either" for column in proposal.features}
    return replace(
        proposal,
        estimator=MEANS,
        params={},
        windows=replace(windows, calendar=usual, past=None),
        features=(),
        keep=(),
        left_out={**proposal.left_out, f"earlier values of {label.name}": reason, **others},
    )


def _partitions(proposal: Proposal, windows: Windows) -> list[Partition]:
    """The last partitions with labels before the rows that the last model is evaluated on."""
    zone = ZoneInfo(proposal.timezone)
    calendar, span = Calendar(proposal.every, zone, windows.start), windows.span
    known = windows.delay.before(calendar.around(span.last).end, zone)
    partitions = calendar.within(calendar.around(span.first).start, windows.evaluate.before(known, zone))
    most = min(MOST_ROWS * span.filled[proposal.every] // span.rows, MOST_PARTITIONS)
    return partitions[max(len(partitions) - most, 0) :]


def _rows(survey: Survey, proposal: Proposal, partitions: list[Partition]) -> list[pl.DataFrame]:
    """The features that are proposed and, last, the label as numbers, for each partition that has rows with a label."""
    files = files_of(_SERIES, proposal, Layout(replace(survey.origin, path=Path(_SERIES), table=None)))
    built = survey.built(_SERIES, (files["features.sql"], files["labels.sql"]), partitions)
    key = len(proposal.key)  # columns, the first of each query
    joined = (features.join(labels, on=labels.columns[:key]).drop(labels.columns[:key]) for features, labels in built)
    known = [rows for rows in joined if rows.height]
    if not known:
        return []
    together = pl.concat(known).with_columns(cs.string().cast(pl.Categorical).to_physical()).cast(pl.Float64)
    ends = accumulate(rows.height for rows in known)
    return [together[end - rows.height : end] for end, rows in zip(ends, known, strict=True)]


def _error(
    estimator: str, params: dict[str, Any], partitions: list[pl.DataFrame], columns: list[int] | None = None
) -> float:
    """The root mean squared error of a model over the later half of the partitions, fitted on those before each step."""
    model = import_function(estimator, "estimator")(**params, random_state=0)
    libraries_loaded()
    squares, count = 0.0, 0
    for start, end in pairwise(np.linspace(len(partitions) // 2, len(partitions), STEPS + 1).astype(int)):
        learned, predicted = (pl.concat(some).to_numpy() for some in (partitions[:start], partitions[start:end]))
        wanted = columns or range(learned.shape[1] - 1)
        chosen = [at for at in wanted if not np.isnan(learned[:, at]).all()]  # trees refuse a column of nulls only
        with one_thread():
            model.fit(learned[:, chosen], learned[:, -1])
            wrong_by = model.predict(predicted[:, chosen]) - predicted[:, -1]
        squares += float(np.sum(wrong_by**2))
        count += len(predicted)
    return sqrt(squares / count)
