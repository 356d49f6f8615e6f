"""From a score back to the rows of its sources, and from a source forward to predictions."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, WarehouseError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.trace import dependents, trace, with_source_rows
from batch_platform_tests.harness.small_pipeline import (
    BERLIN,
    LABELS_SQL,
    ROWS_PER_DAY,
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
)

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


def with_files_by_day(folder: Path) -> None:
    (folder / "days").mkdir()
    events = small_events().with_columns(pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.date().alias("day"))
    for (day,), rows in events.group_by("day"):
        rows.drop("day").write_parquet(folder / "days" / f"{day}.parquet")


@pytest.fixture
def joined(tmp_path: Path) -> Pipeline:
    """Features from two tables, one of them without the key; a third one is declared that nothing reads."""
    declared = {"sources": TWO_SOURCES, "features_sql": JOINED, "predictions": {"keep": []}}
    return finished_pipeline(tmp_path, NOW, before=with_two_more_tables, **declared)


@pytest.fixture
def by_day(tmp_path: Path) -> Pipeline:
    """Each day has a file of its own."""
    sources = {"events": {"parquet": "days/{partition_key}.parquet"}}
    return finished_pipeline(tmp_path, NOW, before=with_files_by_day, sources=sources)


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


def test_a_source_without_the_key_is_named_with_its_version_and_the_columns_read(joined):
    shops = sources_of(joined, id="1500")["shops"]
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


@pytest.mark.full
def test_a_source_that_cannot_be_read_is_named_for_every_partition_that_holds_the_key(tmp_path):
    events = small_events().with_columns(pl.col("id") % ROWS_PER_DAY)
    pipeline = small_pipeline(tmp_path, events=events)
    carry_out(pipeline, NOW)
    (pipeline.folder / "events.parquet").write_bytes(b"not a table at all" * 500)
    traces = with_source_rows(pipeline.builder, trace(pipeline.spec, pipeline.home, {"id": "7"}))
    assert len(traces) > 1
    for traced in traces:
        (events,) = traced.sources
        assert events.note.startswith("cannot be read now: Source 'events' of 'small' cannot be read: ")
        assert "allowed_paths" not in events.note


@pytest.mark.full
def test_the_key_is_found_under_the_name_that_the_source_has_for_it(tmp_path):
    made = small_pipeline(
        tmp_path,
        features={"key": ["order_number"]},
        features_sql="SELECT id AS order_number, ts, amount, shop FROM events WHERE ts >= $partition_start AND ts < $partition_end",
        labels_sql="SELECT id AS order_number, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end",
    )
    carry_out(made, NOW)
    events = sources_of(made, order_number="1500")["events"]
    assert events.rows_of_key == 1
    assert events.rows[0]["id"] == 1500


def test_each_trace_reads_its_own_partition_of_a_source(by_day):
    first = with_source_rows(by_day.builder, trace(by_day.spec, by_day.home, {"id": "1500"}))
    later = with_source_rows(by_day.builder, [*first, *trace(by_day.spec, by_day.home, {"id": "1300"})])
    assert [traced.sources[0].rows[0]["id"] for traced in later] == [1500, 1300]


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


def test_partitions_built_from_different_versions_are_distinguished(joined):
    first = dependents(joined.builder, joined.home, "events", None).versions
    small_events(rows_per_day=41).write_parquet(joined.folder / "events.parquet")
    again = type(joined)(joined.spec, joined.folder, joined.home)
    later = again.spec.partitions.calendar.within(NOW - timedelta(days=3), NOW)
    stamp = Stamp("again", NOW)
    list(again.build_features(later, stamp, force=True))
    list(again.score(later, stamp))
    again.publish()
    predictions = dependents(again.builder, again.home, "events", None)
    assert len(later) == 2
    assert sorted(predictions.versions.values()) == [2, 8]
    assert predictions.versions.keys() > first.keys()
    assert {partition.partition for partition in predictions.partitions if partition.source_version not in first} == {
        partition.key for partition in later
    }


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


@pytest.mark.parametrize("write", ["{:%Y-%m-%d %H:%M:%S}", "{:%Y-%m-%dT%H:%M:%S%z}"])
def test_a_time_of_the_key_without_a_zone_is_on_the_clocks_of_the_pipeline(tmp_path, write):
    pipeline = finished_pipeline(
        tmp_path, NOW, features={"key": ["id", "ts"]}, labels_sql=LABELS_SQL.replace("id,", "id, ts,")
    )
    (at,) = small_events().filter(id=1500)["ts"].dt.convert_time_zone("Europe/Berlin")
    (row,) = trace(pipeline.spec, pipeline.home, {"ts": write.format(at)})
    assert (row.row["id"], row.row["ts"]) == (1500, at)


def test_a_source_that_nothing_reads_has_no_dependents(joined):
    predictions = dependents(joined.builder, joined.home, "notes", None)
    assert (predictions.partitions, predictions.rows_scored) == ([], 0)
    assert predictions.note == "neither the features nor the labels read 'notes'."


def test_a_wrong_source_or_partition_is_refused_with_the_valid_names(joined, tmp_path):
    with pytest.raises(WrongUseError, match=r"'event'; it has events, notes, shops\. Hint: did you mean 'events'"):
        dependents(joined.builder, joined.home, "event", None)
    with pytest.raises(WrongUseError, match="'2024-13-01' is not the key"):
        dependents(joined.builder, joined.home, "events", "2024-13-01")
    empty = small_pipeline(tmp_path / "empty")
    with pytest.raises(WarehouseError, match="Nothing is published"):
        dependents(empty.builder, empty.home, "events", None)


@pytest.mark.full
def test_features_made_by_a_function_are_traced_by_the_name_of_the_key(tmp_path, monkeypatch):
    (tmp_path / "made_by_a_function.py").write_text(
        "import polars as pl\n\n\ndef features(events, partition):\n"
        "    inside = pl.col('ts').is_between(partition.start, partition.end, closed='left')\n"
        "    return events.filter(inside).drop('returned')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = small_pipeline(tmp_path, features={"sql": None, "python": "made_by_a_function.features"})
    carry_out(made, NOW)
    events = sources_of(made, id="1500")["events"]
    assert (events.columns, events.rows_of_key) == (None, 1)
    assert events.rows[0]["ts"].astimezone(BERLIN).date().isoformat() == "2024-02-07"
    assert len(dependents(made.builder, made.home, "events", None).partitions) == 10


def test_a_row_of_warm_up_is_said_to_be_no_score_and_a_row_that_is_nowhere_is_not_found(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    first = "It is warm-up, which models only learn from: the first model serves from 2024-02-01."
    with pytest.raises(DataError) as early:
        trace(pipeline.spec, pipeline.home, {"id": "41"})
    assert early.value.message == f"small, partition 2024-01-02: the row with id=41 is not scored. {first}"
    with pytest.raises(DataError, match="small: no scored or rejected row has id=999999"):
        trace(pipeline.spec, pipeline.home, {"id": "999999"})
