"""Estimate of the time that due work will take, from the time that it took before."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime

from batch_platform.planning.state import State
from batch_platform.planning.steps import STEPS, Item, Step

MOST_TIMES = 10  # an estimate is made for at most so many times the items of the largest earlier run


def expected_seconds(state: State, items: Sequence[Item], began: Callable[[str], datetime | None]) -> float | None:
    """The seconds that due items will take, if each takes as long as in the run that did most of its step.

    A run of few items says little of one of many: most of its time went into what a run does once.

    A run does its steps one after the other. So a step took from the last record of the step before it, or else from when
    the run began, to its own last record.

    Args:
        state: What is recorded of the pipeline.
        items: What is due.
        began: When a run began, by its id; None if that is not known.

    Returns:
        The seconds; None if a step was never done for at least a tenth as many items, or nobody knows when its run began.
    """
    if not items:
        return 0.0
    recorded = _recorded(state)
    seconds = 0.0
    for step, count in Counter(item.step for item in items).items():
        runs = [(len(steps[step]), max(steps[step]), run_id) for run_id, steps in recorded.items() if step in steps]
        if not runs or max(runs)[0] * MOST_TIMES < count:
            return None
        number, end, run_id = max(runs)
        earlier = STEPS[: STEPS.index(step)]
        ends = [max(recorded[run_id][before]) for before in earlier if before in recorded[run_id]]
        begin = max(ends) if ends else began(run_id)
        if begin is None:
            return None
        seconds += count * max(0.0, (end - begin).total_seconds()) / number
    return seconds


def _recorded(state: State) -> dict[str, dict[Step, list[datetime]]]:
    """Times at which the items of each step were recorded, by the id of the run."""
    challengers = state.registry.challengers
    records: list[tuple[str, Step, datetime]] = [
        *((it.run_id, "features", it.built_at) for it in state.features.values()),
        *(
            (it.run_id, "challengers" if it.version in challengers else "model", it.created_at)
            for it in state.registry.versions
        ),
        *((it.run_id, "predictions", it.committed_at) for it in state.scores.values()),
        *((it.run_id, "performance", it.evaluated_at) for it in state.evaluations.values()),
        *((it.run_id, "deliveries", it.delivered_at) for it in state.deliveries.values()),
    ]
    by_run: defaultdict[str, dict[Step, list[datetime]]] = defaultdict(dict)
    for run_id, step, at in records:
        by_run[run_id].setdefault(step, []).append(at)
    return by_run
