"""Drift on real tables of a year: a clean partition alarms only where the world changed, and a fault is found in its first partition."""

from collections.abc import Callable, Iterator

import polars as pl
import pytest

from batch_platform.declaration.monitored import Drift
from batch_platform.features.history import PARTITION_START
from batch_platform.models.contract import infer_contract
from batch_platform.models.reference import _features, reference_of
from batch_platform.monitoring.divergence import divergences, has_moved
from batch_platform_tests.harness.faulty_days import KEY, Table, faulty_partitions, tables

BOUNDS = Drift().bounds("any")
# On Thanksgiving 7% of the flights are scheduled for 19 o'clock or later, on other days 16%; and a week of fog.
CHANGES = {
    "flights, by day": {("2013-11-28", "hour")},
    "weather, by week": {("2013-12-02", "visib")},
    "flights flown, by day": set[tuple[str, str]](),
}
IN_A_COLUMN = ("2% of a number times 100", "a number doubled", "30% of a number null", "a category grows by 30%")
Judge = Callable[[pl.DataFrame], Iterator[str]]


def judges(table: Table) -> dict[str, Judge]:
    """For each month of the served partitions, what tells the columns that alarm in rows, by the partitions before it; of large tables, before its quarter."""
    start, months = (
        pl.col(KEY).str.to_datetime(time_zone="UTC").alias(PARTITION_START),
        {key[:7] for key in table.served},
    )
    learned = {
        month: month if table.every == "week" else "2013-07" if month < "2013-10" else "2013-10" for month in months
    }
    made = {month: judge(table, start, month) for month in {*learned.values()}}
    return {month: made[learned[month]] for month in months}


def judge(table: Table, start: pl.Expr, month: str) -> Judge:
    learned = table.rows.filter(pl.col(KEY) < f"{month}-01").select(*table.features, start)
    contract = infer_contract(learned.select(table.features), {})
    reference = reference_of(contract, (learned, contract.encode(learned)), None)
    bins = {profile.name: profile.bins for profile in reference.features}
    usual, moves = reference.usual_by_column, reference.moves_by_column

    def alarms(rows: pl.DataFrame) -> Iterator[str]:
        kept = rows.select(table.features)
        own = _features(contract, (kept, contract.encode(kept)), bins, {})
        pairs = list(zip(own, reference.features, strict=True))
        for (profile, base), divergence in zip(pairs, divergences(pairs), strict=True):
            level = divergence.level(BOUNDS, usual["feature", base.name])
            if level != "none" or has_moved(profile, base, moves[base.name]):
                yield base.name

    return alarms


@pytest.mark.parametrize(
    "table",
    [pytest.param(table, id=table.name, marks=[pytest.mark.full] * (table.every == "day")) for table in tables()],
)
def test_a_clean_partition_alarms_only_where_the_world_changed_and_every_fault_is_found_at_once(table):
    judge_of, by_key = judges(table), table.rows.partition_by(KEY, as_dict=True)
    alarms = {(key, column) for key in table.served for column in judge_of[key[:7]](by_key[key,])}
    assert alarms == CHANGES[table.name]
    for fault in IN_A_COLUMN:
        column = table.category if fault.startswith("a category") else table.number
        missed = [
            key
            for key, (first, *_) in faulty_partitions(table, fault).items()
            if column not in judge_of[key[:7]](first)
        ]
        assert not missed, fault
