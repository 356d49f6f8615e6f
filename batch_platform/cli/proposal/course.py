"""Propose the usual course of a series, its mean by hour, by weekday, or by both, where its past says no more.

Trees that look at earlier values learn chance where there is nothing else to learn, and are then worse than the mean. So what the
mean leaves of each value is compared with what it left a day before: where these are unrelated, earlier values are of no use. A
decision tree without limits has a leaf for each combination of values: one that knows the hour predicts the mean by hour.
"""

from dataclasses import replace
from zoneinfo import ZoneInfo

from batch_platform.cli.proposal.choices import PART_NAMES, Proposal
from batch_platform.cli.proposal.survey import Survey

MEANS = "sklearn.tree.DecisionTreeRegressor"
COURSES = (("hour",), ("isodow",), ("hour", "isodow"))  # parts of a time by which a mean is taken
UNRELATED = 0.1  # correlation with the day before, below which the past is of no use
FEWEST_ROWS = 192  # fewer are correlated that much by chance


def with_usual_course(survey: Survey, proposal: Proposal) -> Proposal:
    """Propose the usual course of a single series of numbers without other columns, where what it leaves has no memory.

    The rows that the last model is evaluated on are not looked at. Any other proposal is returned as it is.
    """
    windows, label = proposal.windows, proposal.label
    if windows is None or windows.past is None or label is None or proposal.target != "numbers":
        return proposal
    courses = [parts for parts in COURSES if {*parts} <= {*windows.calendar}]
    if windows.past.entity or proposal.features or not courses:
        return proposal
    zone = ZoneInfo(proposal.timezone)
    until = windows.evaluate.before(windows.delay.before(windows.span.last, zone), zone)
    tried = {parts: survey.course(label.name, windows.time.name, parts, until) for parts in courses}
    usual = min(courses, key=lambda parts: tried[parts].error)
    if tried[usual].rows < FEWEST_ROWS or not abs(tried[usual].memory) < UNRELATED:
        return proposal
    mean = f"mean by {' and '.join(PART_NAMES[part] for part in usual)}"
    reason = f"what the {mean} leaves of them is not related to the day before (correlation {tried[usual].memory:.2f})"
    return replace(
        proposal,
        estimator=MEANS,
        params={},
        windows=replace(windows, calendar=usual, past=None),
        left_out={**proposal.left_out, f"earlier values of {label.name}": reason},
    )
