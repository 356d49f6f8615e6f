"""The units of rows that intervals hold to be independent, from the declaration, the key and the partition."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from batch_platform.monitoring.outcomes import UnitRule
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import carry_out, small_pipeline, small_spec

ROWS = pl.DataFrame(
    {
        "customer": [1, 1, 2, 2],
        "month": [date(2026, 1, 1), date(2026, 2, 1)] * 2,
        "household": ["a", "a", "a", "b"],
        "partition_key": ["2026-01", "2026-02"] * 2,
    }
)
KEY = ["customer", "month"]


def alike(rule: UnitRule, key: list[str] = KEY, partition: str | None = "partition_key") -> dict[str, list[int]]:
    """The units, numbered in the order in which they appear."""
    numbers = rule.numbers(ROWS, key, partition)
    return {name: [of.tolist().index(value) for value in of.tolist()] for name, of in numbers.items()}


@pytest.mark.unit
def test_an_entity_is_the_key_without_its_times_and_beside_it_stands_the_partition():
    assert alike(UnitRule()) == {"entity": [0, 0, 2, 2], "partition": [0, 1, 0, 1]}
    assert alike(UnitRule(), ["month"]) == {"partition": [0, 1, 0, 1]}
    assert alike(UnitRule(), partition=None) == {"entity": [0, 0, 2, 2]}
    assert alike(UnitRule(), ["customer", "household"], None) == {}, "each row of a partition has a key of its own"


@pytest.mark.unit
@pytest.mark.parametrize("unit", ["row", "partition", "id", "shop"])
def test_a_unit_is_row_partition_or_a_column_that_is_stored(unit):
    assert small_spec(monitoring={"unit": unit}).monitoring.unit == unit
    with pytest.raises(ValueError, match=r"monitoring.unit: 'shops' is not in predictions.keep; did you mean 'shop'"):
        small_spec(monitoring={"unit": "shops"})


def widths(pipeline: Pipeline, *, by_day: bool) -> dict[str, float]:
    """The width of the widest interval of each metric, of days or of all rows together."""
    with open_published(pipeline.home) as con:
        table = con.sql("FROM small.performance").pl()
        table = table if by_day else pooled_performance(con, "small", by_version=False, unit=UnitRule.of(pipeline.spec))
    table = table.filter(pl.col("challenger").is_null()).drop_nulls("low")
    return dict(table.group_by("metric").agg((pl.col("high") - pl.col("low")).max()).iter_rows())


def test_a_declared_unit_counts_in_performance_months_and_the_gate(tmp_path: Path):
    found = {}
    for unit in ("row", "shop"):
        pipeline = small_pipeline(tmp_path / unit, monitoring={"unit": unit})
        carry_out(pipeline, datetime(2024, 2, 4, 12, tzinfo=UTC))
        registry = pipeline.state().registry
        evidence = json.loads(registry.last_decision(registry.versions[0].version).evidence)
        difference = evidence["baseline"]["verdict"]["difference"]
        found[unit] = (difference["resampled_by"], difference["groups"])
        found[f"{unit} width"] = np.array([widths(pipeline, by_day=by_day)["log_loss"] for by_day in (True, False)])
    assert found["shop"] == ("group", 6)
    assert found["row"][0] == "row"
    assert (found["shop width"] != found["row width"]).all()
