"""From a score back to the rows of its sources, and from a source forward to predictions."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from batch_platform.operations.trace import dependents, trace, with_source_rows
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import finished_pipeline, small_events, write_events_by_day

NOW = datetime(2024, 2, 11, 12, tzinfo=UTC)
TWO_SOURCES: dict[str, dict[str, str]] = {
    "events": {"parquet": "events.parquet"},
    "shops": {"csv": "shops.csv"},
    "notes": {"csv": "notes.csv"},
}
JOINED = """\
SELECT e.id, e.ts, e.amount, s.size,
    (SELECT count(*) FROM events AS o WHERE o.shop = e.shop AND o.ts < $partition_start) AS before
FROM events AS e LEFT JOIN shops AS s ON s.shop = e.shop
WHERE e.ts >= $partition_start AND e.ts < $partition_end
"""


def with_two_more_tables(folder: Path) -> None:
    (folder / "shops.csv").write_text("shop,size\nZürich,3\nO'Brien,5\n")
    (folder / "notes.csv").write_text("id,note\n1500,late\n")


@pytest.fixture
def joined(tmp_path: Path) -> Pipeline:
    """Features from two tables, one of them without the key; a third one is declared that nothing reads."""
    declared = {"sources": TWO_SOURCES, "features_sql": JOINED, "predictions": {"keep": []}}
    return finished_pipeline(tmp_path, NOW, before=with_two_more_tables, **declared)


@pytest.fixture
def by_day(tmp_path: Path) -> Pipeline:
    """Each day has a file of its own."""
    sources = {"events": {"parquet": "days/{partition_key}.parquet"}}
    return finished_pipeline(tmp_path, NOW, before=write_events_by_day, sources=sources)


def sources_of(pipeline: Pipeline, **key: str):
    (traced,) = with_source_rows(pipeline.builder, trace(pipeline.spec, pipeline.home, key))
    return {source.name: source for source in traced.sources}


def test_a_score_is_traced_to_the_rows_of_its_key_in_the_sources_that_have_the_key(joined):
    sources = sources_of(joined, id="1500")
    assert set(sources) == {"events", "shops"}  # not the source that nothing reads
    events = sources["events"]
    assert (events.kind, events.unchanged, events.rows_of_key, events.note) == ("parquet", True, 1, "")
    assert events.columns == ["amount", "id", "shop", "ts"]
    (row,) = events.rows
    true = small_events().filter(pl.col("id") == 1500).select("id", "ts", "amount", "shop").row(0, named=True)
    assert {**row, "ts": row["ts"].astimezone(UTC)} == {**true, "ts": true["ts"].astimezone(UTC)}
    shops = sources["shops"]
    assert (shops.columns, shops.rows_of_key, shops.rows) == (["shop", "size"], None, ())
    assert shops.version == joined.builder.sources.version("shops", joined.spec.partitions.calendar.named("2024-02-07"))
    assert shops.note == "lacks columns of the key: which of its rows were used is not known"


def test_a_source_that_changed_or_is_gone_is_reported(joined):
    small_events().filter(pl.col("id") != 1500).write_parquet(joined.folder / "events.parquet")
    (joined.folder / "shops.csv").unlink()
    sources = sources_of(joined, id="1500")
    events, shops = sources["events"], sources["shops"]
    assert (events.unchanged, events.rows_of_key) == (False, 0)
    assert events.note == "has changed since the features were built from it"
    assert (shops.unchanged, shops.rows_of_key) == (None, None)
    assert "cannot be read now: Source 'shops'" in shops.note


def test_every_partition_depends_on_a_common_table_with_the_version_it_was_built_from(joined):
    predictions = dependents(joined.builder, joined.home, "events", None)
    assert [partition.partition for partition in predictions.partitions] == [
        f"2024-02-{day:02}" for day in range(1, 11)
    ]
    assert {partition.through for partition in predictions.partitions} == {("features", "model")}
    version = joined.builder.sources.version("events", joined.spec.partitions.calendar.named("2024-02-07"))
    assert predictions.versions == {version: 10}
    assert predictions.rows_scored == 400
    assert predictions.models == [joined.state().registry.versions[0].version]
    assert "one table for all partitions" in predictions.note
    one_day = dependents(joined.builder, joined.home, "events", "2024-01-05")
    assert one_day.partitions == predictions.partitions
    assert "its rows of 2024-01-05 cannot be told apart" in one_day.note


def test_the_file_of_a_partition_goes_into_its_predictions_and_into_the_models_that_learned_from_it(by_day):
    learned = dependents(by_day.builder, by_day.home, "events", "2024-01-15")
    assert {partition.through for partition in learned.partitions} == {("model",)}
    assert len(learned.partitions) == 10
    assert learned.versions == {}
    served = dependents(by_day.builder, by_day.home, "events", "2024-02-05")
    assert [(partition.partition, partition.through) for partition in served.partitions] == [
        ("2024-02-05", ("features",))
    ]
    assert served.models == []
    assert sum(served.versions.values()) == 1
