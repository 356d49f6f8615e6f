"""Measure the detector of leaks on kinds of leaks and of honest strong columns; the guide shows the counts."""

import numpy as np
import pytest

from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.leakage import suspected_leaks
from batch_platform_tests.monitoring.leaky_columns import (
    INNOCENTS,
    LEAKS,
    OTHER_INNOCENTS,
    OTHER_LEAKS,
    Kind,
    made,
)

SEED = 4711  # not one of those by which the thresholds were chosen


def suspects(kind: Kind, rows: int, seed: int = SEED) -> tuple[set[str], set[str]]:
    """The columns that are suspected in a table of a kind, and those that the kind adds."""
    world, added = made(kind, rows, seed)
    matrix = np.column_stack([values.astype(np.float64) for values in world.columns.values()])
    categorical = [name in world.categorical for name in world.columns]
    with one_thread():
        leaks = suspected_leaks(
            matrix, [*world.columns], categorical, world.truth, classes=world.classes, entities=world.entities
        )
    return {name for leak in leaks for name in leak.columns}, {*added}


@pytest.mark.full
@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        (4000, set()),
        (600, {"the time until the event or the end of the study", "the number rounded"}),
    ],
)
def test_leaks_are_found_and_honest_strong_columns_are_not_accused(rows: int, missed: set[str]):
    told = {name: suspects(kind, rows) for name, kind in (LEAKS | OTHER_LEAKS).items()}
    assert {name for name, (found, added) in told.items() if not added <= found} == missed
    assert {name: found - added for name, (found, added) in told.items() if found - added} == {}
    honest = {name: suspects(kind, rows)[0] for name, kind in (INNOCENTS | OTHER_INNOCENTS).items()}
    assert {name: found for name, found in honest.items() if found} == {}


def test_a_few_leaks_are_found_beside_honest_columns():
    for name in (
        "a copy with 3% flipped",
        "a value for some of the positive rows",
        "the mean label of groups of 10 rows",
        "three parts of the number",
    ):
        found, added = suspects(LEAKS[name], 600)
        assert found == added, name
    for name in ("the last state of 40 machines", "petals of three species", "a strong amount of a rare fraud"):
        assert suspects(INNOCENTS[name], 600)[0] == set(), name
