import re
import resource
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow.parquet as pq
import pytest

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, DataError, SourceError, WrongUseError
from batch_platform.declaration.threads import THREADS_VARIABLE
from batch_platform.features.build import FeatureBuilder, FeatureFile
from batch_platform.features.lake import BATCH_ROWS, file_digests, written_aside
from batch_platform.sources.opening import Sources
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.sql import quoted
from batch_platform_tests.harness.small_pipeline import (
    BERLIN,
    FEATURES_SQL,
    LABELS_SQL,
    ROWS_PER_DAY,
    small_events,
    small_spec,
    write_small_project,
)
from batch_platform_tests.harness.tiers import crossed

FIRST_KEY = "2024-01-01"
NOON = datetime(2024, 1, 1, 12, tzinfo=BERLIN)
REPEATED_HOURS = {"America/New_York": "2024-11-03 01:00", "America/Sao_Paulo": "2018-02-17 23:00"}
DUMMY_LABELS = "SELECT id, returned FROM events"
MANY_ROWS = f"SELECT i AS id, $partition_start AS ts, hash(i) / 3 AS x FROM range({3 * BATCH_ROWS + 5}) t(i)"


class Built:
    """A project in a folder, and the means to build one partition of it."""

    def __init__(self, folder: Path, events: pl.DataFrame | None, sql: str, labels_sql: str, spec: dict[str, Any]):
        write_small_project(folder, events=events, features_sql=sql, labels_sql=labels_sql)
        self.spec = small_spec(**spec)
        self.builder = FeatureBuilder(self.spec, Sources(self.spec, folder, Home(folder)))
        self.folder = folder / "lake"

    def partition(self, key: str = FIRST_KEY) -> Partition:
        return self.spec.partitions.calendar.named(key)

    def write(self, key: str = FIRST_KEY) -> FeatureFile:
        with self.builder.session() as session:
            return session.write(self.partition(key), self.folder)

    def labels(self, key: str = FIRST_KEY) -> pl.DataFrame:
        with self.builder.session(labels=True) as session:
            return session.labels(self.partition(key))

    def refusal(self, error: type[Exception] = DataError, key: str = FIRST_KEY) -> str:
        """The message of the failure of a write, which leaves nothing behind."""
        with pytest.raises(error) as refused:
            self.write(key)
        assert not self.folder.exists() or not [*self.folder.iterdir()]
        return str(refused.value)


Project = Callable[..., Built]


@pytest.fixture
def project(tmp_path) -> Project:
    def make(
        events: pl.DataFrame | None = None, *, sql: str = FEATURES_SQL, labels_sql: str = DUMMY_LABELS, **spec: Any
    ) -> Built:
        return Built(tmp_path, events, sql, labels_sql, spec)

    return make


@pytest.fixture
def function(tmp_path, monkeypatch):
    """Writes a module with a function `make` and gives its import path."""
    name = f"features_of_{abs(hash(tmp_path))}"
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> dict[str, Any]:
        (tmp_path / f"{name}.py").write_text(f"import polars as pl\n\n{code}\n")
        return {"sql": None, "python": f"{name}.make"}

    yield write
    sys.modules.pop(name, None)


def orders(*rows: dict[str, Any]) -> pl.DataFrame:
    """A few orders at noon of the first day; what a row does not say is as for any other."""
    usual = {"ts": NOON, "amount": 1.0, "items": 1, "shop": "a", "known": True, "returned": False}
    schema = {"id": pl.Int64, "ts": pl.Datetime("us", "UTC")}
    return pl.DataFrame([{"id": at} | usual | row for at, row in enumerate(rows)], schema_overrides=schema)


@pytest.mark.unit
def test_a_partition_becomes_one_file_of_its_rows_in_the_order_of_the_key(project):
    small = project()
    file = small.write("2024-01-02")
    rows = pl.read_parquet(file.path)
    start = small.partition("2024-01-02").start
    expected = small_events().filter(pl.col("ts").is_between(start, start + timedelta(days=1), closed="left"))
    assert rows.rows() == expected.sort("id").drop("returned").rows()
    assert file.rows == rows.height == ROWS_PER_DAY
    assert file.columns["ts"] == "timestamp[us, tz=Europe/Berlin]"
    assert [*file.columns] == rows.columns
    assert file.sha256 == file_digests(file.path)[0]
    assert [*small.folder.iterdir()] == [file.path]
    assert file.path.name == f"2024-01-02.{file.sha256[:12]}.parquet"


def test_the_bytes_of_a_large_partition_do_not_depend_on_threads_and_are_those_that_were_hashed(project, monkeypatch):
    files = []
    for count in ("1", "2"):
        monkeypatch.setenv(THREADS_VARIABLE, count)
        files.append(project(sql=MANY_ROWS).write())
        assert file_digests(files[-1].path) == (files[-1].sha256, files[-1].xxh3)
        assert pq.read_metadata(files[-1].path).num_row_groups == 4
    assert files[0] == files[1]


def test_a_failed_write_leaves_the_old_file_unchanged_and_nothing_aside(project):
    path = project().write().path
    before = path.read_bytes()
    late = project(sql="SELECT *, error('row ' || id) AS e FROM events WHERE id > 2")
    for broken in (late, project(sql="SELECT id, ts FROM nothing"), project(orders({"id": 1}, {"id": 1}))):
        with pytest.raises((SourceError, DataError)):
            broken.write()
        assert path.read_bytes() == before
        assert [*broken.folder.iterdir()] == [path]


@pytest.mark.parametrize("sql", [FEATURES_SQL, MANY_ROWS])
def test_a_full_disk_is_reported_and_the_old_file_stays(project, sql):
    small = project(sql=sql)
    path = small.write().path
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(
            BatchPlatformError,
            match=r"small, partition 2024-01-02: its features cannot be written to .* \(File too large",
        ):
            small.write("2024-01-02")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [*small.folder.iterdir()] == [path]
    assert small.write("2024-01-02").rows == pl.scan_parquet(path).select(pl.len()).collect().item()


@pytest.mark.unit
def test_the_unfinished_file_of_a_killed_process_is_removed_and_that_of_a_live_process_stays(project):
    small = project()
    small.folder.mkdir()
    left = small.folder / ".0123456789abcdef0123456789abcdef.parquet"
    left.touch()
    with written_aside(small.folder) as being_written:
        file = small.write()
        assert sorted(small.folder.iterdir()) == sorted([being_written, file.path])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("ts", "key"),
    [
        ("2024-01-01T00:00+01:00", "2024-01-01"),
        ("2024-01-01T23:59:59.999999+01:00", "2024-01-01"),
        ("2024-01-02T00:00+01:00", "2024-01-02"),
    ],
)
def test_a_window_holds_its_start_and_not_its_end(project, ts, key):
    small = project(orders({"ts": datetime.fromisoformat(ts)}), sql="SELECT * EXCLUDE returned FROM events")
    assert small.write(key).rows == 1
    wrong_key = {"2024-01-01": "2024-01-02", "2024-01-02": "2024-01-01"}[key]
    with pytest.raises(DataError, match=f"small, partition {wrong_key}: 1 rows lie outside the partition .* by 'ts'"):
        small.write(wrong_key)


@pytest.mark.unit
@pytest.mark.parametrize("extra", [[], ["shop"]])
def test_keys_that_occur_twice_are_named(project, extra):
    events = orders({"id": 1}, {"id": 1}, {"id": 2}, {"id": 3}, {"id": 3}, {"id": 3})
    message = project(events, features={"key": ["id", *extra]}, predictions=None).refusal()
    named = [f"id={at} shop=a" if extra else f"id={at}" for at in (1, 3)]
    assert f"keys occur more than once in the features: {', '.join(named)}." in message


@pytest.mark.unit
def test_a_key_that_occurs_twice_where_clocks_are_set_forward_says_so(project):
    partitions = {"every": "day", "start": "2024-03-30", "end": "2024-04-02", "timezone": "Europe/Berlin"}
    sql = "SELECT ts, id FROM (VALUES (TIMESTAMPTZ '2024-03-31 01:00:00+00')) AS t(ts), (VALUES (1), (2)) AS r(id)"
    small = project(sql=sql, partitions=partitions, features={"key": ["ts"], "time": "ts"}, predictions=None)
    assert "clocks in Europe/Berlin change within the partition" in small.refusal(key="2024-03-31")


@pytest.mark.parametrize("at", [BATCH_ROWS - 1, BATCH_ROWS])
def test_a_key_that_occurs_twice_is_found_across_the_border_of_two_batches(project, at):
    n = 2 * BATCH_ROWS + 10
    many = f"SELECT CASE WHEN i > {at} THEN i - 1 ELSE i END AS id, $partition_start AS ts FROM range({n}) t(i)"
    assert f"keys occur more than once in the features: id={at}." in project(sql=many).refusal()
    assert project(sql=f"SELECT i AS id, $partition_start AS ts FROM range({n}) t(i)").write().rows == n


@pytest.mark.unit
@pytest.mark.parametrize(
    ("time", "inside", "outside"),
    [
        ("TIMESTAMP '2024-01-01 00:00'", "2024-01-01", "2023-12-31"),
        ("TIMESTAMP '2024-01-01 23:59:59'", "2024-01-01", "2024-01-02"),
        ("TIMESTAMP_NS '2024-01-01 23:59:59.999999999'", "2024-01-01", "2024-01-02"),
        ("DATE '2024-03-31'", "2024-03-31", "2024-04-01"),
        ("TIMESTAMP '2024-03-31 02:30'", "2024-03-31", "2024-04-01"),  # clocks skip it
        ("TIMESTAMP '2024-10-27 02:30'", "2024-10-27", "2024-10-28"),  # clocks show it twice
    ],
)
def test_a_time_without_a_zone_and_a_date_are_local(project, time, inside, outside):
    calendar = {"start": "2023-12-01", "end": None}
    small = project(orders({}), sql=f"SELECT id, {time} AS ts FROM events", partitions=calendar)
    assert small.write(inside).rows == 1
    with pytest.raises(DataError, match="lie outside the partition"):
        small.write(outside)


@pytest.mark.parametrize(("zone", "read_as"), crossed(REPEATED_HOURS, ["parquet", "csv", "function"]))
def test_a_time_without_a_zone_in_an_hour_that_clocks_repeat_is_the_second_of_the_two(
    project, function, tmp_path, read_as, zone
):
    repeated = datetime.fromisoformat(REPEATED_HOURS[zone])
    times = [repeated + timedelta(minutes=minutes) for minutes in range(-60, 120, 20)]
    events = orders(*({"ts": None} for _ in times)).with_columns(ts=pl.Series(times, dtype=pl.Datetime("us")))
    declared = {"partitions": {"every": "hour", "start": str(repeated.date()), "end": None, "timezone": zone}}
    if read_as == "csv":
        declared["sources"] = {"events": {"parquet": None, "csv": "events.csv"}}
    if read_as == "function":
        at = f"pl.col('ts').dt.replace_time_zone('{zone}', ambiguous='latest').dt.convert_time_zone('UTC')"
        inside = f"{at}.is_between(partition.start, partition.end, closed='left')"
        declared["features"] = function(
            f"def make(events, partition):\n    return events.drop('returned').filter({inside})"
        )
    small = project(events, labels_sql=LABELS_SQL, **declared)
    events.write_csv(tmp_path / "events.csv")
    calendar, first = small.spec.partitions.calendar, repeated.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    keys = [calendar.holding(first + timedelta(hours=hours)).key for hours in range(-1, 3)]
    ids = [pl.read_parquet(small.write(key).path)["id"].to_list() for key in keys]
    assert ids == [[0, 1, 2], [], [3, 4, 5], [6, 7, 8]]
    assert [small.labels(key)["id"].to_list() for key in keys] == ids


@pytest.mark.unit
def test_a_time_in_nanoseconds_as_pandas_writes_it_is_compared_with_the_bounds_of_the_partition(project):
    events = orders({}, {}, {"ts": NOON + timedelta(days=1)}).with_columns(
        pl.col("ts").dt.convert_time_zone(BERLIN.key).dt.replace_time_zone(None).dt.cast_time_unit("ns")
    )
    every = "SELECT id, ts FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    driving = {"driving": {"source": "events", "time": "ts"}}
    assert "missing: id=0" in project(events, sql=f"{every} AND id > 0", features=driving).refusal()
    assert project(events, sql=every, features=driving).write().rows == 2


INSIDE = "ts >= $partition_start AND ts < $partition_end"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("sql", "error", "problem"),
    [
        ("SELECT id,\n  ts,\n  nope\nFROM events", SourceError, '/features.sql:3 fails: .*"nope" not found'),
        ("SELECT id, ts\nFROM evnts", SourceError, "/features.sql:2 fails: .*Table with name evnts does not exist"),
        ("-- größe\n\nSELECT id ts,\nFROM\n  (", SourceError, "/features.sql:5 fails: .*syntax error"),
        ("SELECT id,\n ts,\n ('x' || id)::INTEGER AS x\nFROM events", SourceError, ":3 fails: .*not convert string"),
        ("", SourceError, r"features\.sql must be one SELECT; it holds nothing\."),
        ("SELECT 1 AS id; DROP TABLE events; --", SourceError, r"must be one SELECT; it holds DROP, SELECT\."),
        ("COPY events TO 'stolen.csv'", SourceError, r"must be one SELECT; it holds COPY\."),
        ("SELECT id, ts, ? AS x FROM events", SourceError, r"uses the parameters \$1.*use only \$partition_end, "),
        ("SELECT id, ts, $now AS x FROM events", SourceError, r"uses the parameters \$now"),
        ("SELECT id AS ID, ts FROM events", SourceError, r"gives no column 'id'; it gives ID, ts\..*did you mean 'ID'"),
        (f"SELECT id, ts AS tss FROM events WHERE {INSIDE}", DataError, "the features lack 'ts'; there are id, tss"),
        (f"SELECT id, ts, returned FROM events WHERE {INSIDE}", DataError, "label 'returned' is among the features"),
        (f"SELECT id, ts, 1 AS Returned FROM events WHERE {INSIDE}", DataError, "label 'returned' is among the features"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["2024-01-01", "2024-01-05"], ids=["rows", "no rows"])
def test_sql_that_gives_no_features_is_refused_also_in_a_partition_without_rows(project, sql, error, problem, key):
    message = project(orders({}), sql=sql).refusal(error, key)
    assert re.search(problem, message)
    assert "\n" not in message


@pytest.mark.unit
@pytest.mark.parametrize("name", ["'; DROP TABLE events; --", 'größe "hi"', "SELECT", "a.b"])
def test_keys_and_columns_may_have_any_name(project, name):
    sql = f"SELECT id AS {quoted(name)}, ts, amount AS {quoted(name + '2')} FROM events"
    small = project(orders({"id": 2}, {"id": 1}), sql=sql, features={"key": [name]}, predictions=None, labels=None)
    file = small.write()
    assert pl.read_parquet(file.path)[name].to_list() == [1, 2]
    assert [*file.columns] == [name, "ts", f"{name}2"]


@pytest.mark.unit
def test_a_polars_function_makes_the_features(project, function):
    python = function(
        "def make(events, partition):\n"
        "    inside = pl.col('ts').is_between(partition.start, partition.end, closed='left')\n"
        "    return events.filter(inside).drop('returned').select(pl.all().shuffle(seed=1))"
    )
    small = project(small_events().sort("id", descending=True), features=python)
    file = small.write("2024-01-02")
    rows = pl.read_parquet(file.path)
    assert rows.height == ROWS_PER_DAY
    assert rows["id"].is_sorted()
    assert file.sha256 == small.write("2024-01-02").sha256
    assert small.builder.query is None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("code", "error", "problem"),
    [
        ("def make(events): return events.select('nope')", SourceError, "make failed with ColumnNotFoundError: .*nope"),
        ("def make(events): raise KeyError('x')", SourceError, "small, partition 2024-01-01: .*make failed with KeyError"),
        ("def make(evnets): return evnets", WrongUseError, "takes evnets; .*did you mean 'events'?"),
        ("def other(): pass", WrongUseError, "has no class or function 'make'"),
    ],
)  # fmt: skip
def test_a_function_that_returns_no_features_is_refused(project, function, code, error, problem):
    with pytest.raises(error, match=problem):
        project(features=function(code)).write()


@pytest.mark.unit
def test_labels_are_the_keys_and_the_label_without_nulls(project):
    events = orders({"returned": True}, {"returned": None}, {"returned": False})
    labels = project(events, labels_sql="SELECT amount, returned, id FROM events ORDER BY id DESC").labels()
    assert labels.columns == ["id", "returned"]
    assert labels.rows() == [(0, True), (2, False)]


def code_version(project: Project, **spec: Any) -> str:
    return project(**spec).builder.code_version


@pytest.mark.unit
def test_sql_in_the_declaration_gives_what_it_gives_in_a_file(project):
    def made(**declared: Any) -> tuple[str, list[tuple[Any, ...]], str]:
        built = project(**declared)
        return built.write().sha256, sorted(built.labels().rows()), built.builder.code_version

    in_keys = {"features": {"sql": f"-- orders\n{FEATURES_SQL}"}, "labels": {"sql": LABELS_SQL}}
    assert made(**in_keys) == made(labels_sql=LABELS_SQL)


@pytest.mark.unit
def test_an_error_of_sql_in_the_declaration_names_the_key_and_the_line(project):
    refused = project(features={"sql": "SELECT id, ts,\n amout\nFROM events"}).refusal(SourceError)
    assert "the SQL of the key features.sql:2 fails" in refused
    with pytest.raises(SourceError, match=r"small: the key labels\.sql must be one SELECT"):
        _ = project(labels={"sql": "SELECT 1; SELECT 2"}).builder.labels_query


@pytest.mark.unit
def test_the_code_version_does_not_change_with_what_cannot(project):
    version = code_version(project)
    assert code_version(project, features={"max_rejected": "10%", "columns": {"amount": {"min": 0}}}) == version
    assert code_version(project, partitions={"end": None}, model={"params": {"max_iter": 9}}) == version
    assert (
        code_version(project, sources={"events": {"asset": "shop/events", "time": "ts", "late": "3 days"}}) == version
    )
    assert code_version(project, description="Another one.", labels_sql="SELECT 1 AS id, 2 AS returned") == version


@pytest.mark.unit
def test_rows_of_a_source_that_share_a_key_are_counted_with_an_example(project):
    told = "holds 2 keys more than once there, in 5 rows: id=1, for example, in 2 different rows."
    yesterday = {"id": 7, "ts": NOON - timedelta(days=1)}  # concerns another partition
    events = orders({"id": 1}, {"id": 1, "items": 99}, {"id": 2}, {"id": 3}, {"id": 3}, {"id": 3}, yesterday, yesterday)
    assert f"keys occur more than once in the features: id=1, id=3. Source 'events' {told}" in project(events).refusal()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("path", "days_earlier", "told"),
    [
        ("{partition_key}", 1, "3 rows in the file of source 'events' lie outside the partition, such as one at 2024-01-0"),
        ("{partition_month}", 2, "1 row in the file of source 'events' lies outside 2024-01, without a time"),
        ("{partition_month}", 9, "3 rows in the file of source 'events' lie outside 2024-01"),
    ],
)  # fmt: skip
def test_rows_dated_outside_their_own_file_are_counted_with_those_that_have_no_time(project, path, days_earlier, told):
    own = {"events": {"parquet": f"events-{path}.parquet"}}
    small = project(orders(), sources=own, partitions={"start": "2024-01-01"})
    day = datetime(2024, 1, 5, 12, tzinfo=BERLIN)
    elsewhere = day - timedelta(days=days_earlier)
    rows = orders({"ts": day}, {"ts": elsewhere}, {"ts": elsewhere - timedelta(minutes=5)}, {"ts": None})
    for name in ("2024-01-05", "20240105", "2024-01"):
        rows.write_parquet(small.folder.parent / f"events-{name}.parquet")
    with small.builder.session() as session:
        found = session.rows_outside(small.partition("2024-01-05"))
    assert [sentence[: len(told)] for sentence in found] == [told]
