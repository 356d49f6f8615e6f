"""Labels read for many partitions at once: the same rows as a query for each partition gives, or a query for each."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, SourceError
from batch_platform.features import build
from batch_platform.features.build import FeatureBuilder
from batch_platform.features.sources.opening import Sources
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import LABELS_SQL, small_events, small_spec, write_small_project

WITHIN = "ts >= $partition_start AND ts < $partition_end"
DAYS = 20


class Labels:
    """The labels of days, by one query for many of them and by one for each."""

    def __init__(self, folder, monkeypatch, labels_sql=LABELS_SQL, events=None, **spec):
        write_small_project(folder, events=events, labels_sql=labels_sql)
        self.spec = small_spec(**spec)
        self.builder = FeatureBuilder(self.spec, Sources(self.spec, folder, Home(folder)))
        calendar = self.spec.partitions.calendar
        self.partitions = calendar.within(calendar.first_start, calendar.first_start + timedelta(days=DAYS))
        self.queries, self.alone = 0, list[str]()
        monkeypatch.setattr(build, "labels_within", self._counted(build.labels_within))

    def _counted(self, read):
        def counted(*arguments):
            frames = read(*arguments)
            self.queries += frames is not None
            return frames

        return counted

    def together(self):
        """The labels of each partition, or the error, read together where that is possible."""

        def alone(partition):
            self.alone.append(partition.key)
            return session.labels(partition)

        with self.builder.session(labels=True) as session:
            return [_outcome(read) for read in session.labels_of(self.partitions, alone)]

    def one_by_one(self):
        """The same by a query for each."""
        with self.builder.session(labels=True) as session:
            return [_outcome(lambda day=day: session.labels(day)) for day in self.partitions]


def _outcome(read):
    try:
        return read()
    except (DataError, SourceError) as error:
        return str(error)


def same(left, right):
    return all(
        a == b if isinstance(a, str) or isinstance(b, str) else a.equals(b) and a.schema == b.schema
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture
def labels(tmp_path, monkeypatch):
    return lambda *args, **spec: Labels(tmp_path, monkeypatch, *args, **spec)


@pytest.mark.parametrize(
    "sql",
    [
        LABELS_SQL,
        f"SELECT *, FROM events WHERE {WITHIN} ORDER BY amount DESC;",
        f"SELECT id, amount > 80 AS returned FROM events WHERE returned IS NOT NULL AND ({WITHIN})",
        f"SELECT id, CASE WHEN items > 3 THEN amount ELSE 'nan'::DOUBLE END AS returned FROM events WHERE {WITHIN}",
        (
            "SELECT id, returned FROM events "
            "WHERE CAST(ts AS DATE) >= $partition_start AND CAST(ts AS DATE) < $partition_end"
        ),
        (
            "SELECT id, returned FROM events "
            "WHERE date_trunc('hour', ts) >= $partition_start AND date_trunc('hour', ts) < $partition_end"
        ),
        f"""WITH shops AS (SELECT shop, avg(amount) AS usual FROM events GROUP BY shop)
        SELECT id, amount > usual AS returned FROM events JOIN shops USING (shop)
        WHERE {WITHIN} AND id IN (SELECT max(id) FROM events GROUP BY amount, shop)""",
    ],
)
def test_one_query_gives_the_labels_of_many_partitions_as_a_query_for_each_does(labels, sql):
    read = labels(sql)
    assert same(read.together(), read.one_by_one())
    assert not read.alone
    assert read.queries == 4  # of 2, 4, 8 and 6 partitions


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT id, max(returned) AS returned FROM events WHERE {WITHIN} GROUP BY id",
        f"SELECT max(id) AS id, true AS returned FROM events WHERE {WITHIN}",
        f"SELECT id, row_number() OVER (ORDER BY id) AS returned FROM events WHERE {WITHIN}",
        f"SELECT id, returned FROM events WHERE {WITHIN} QUALIFY rank() OVER (ORDER BY amount) < 9",
        f"SELECT id, returned FROM events TABLESAMPLE reservoir(900 ROWS) REPEATABLE (1) WHERE {WITHIN}",
        f"SELECT DISTINCT id, returned FROM events WHERE {WITHIN}",
        f"SELECT id, returned FROM events WHERE {WITHIN} ORDER BY id LIMIT 3",
        f"SELECT id, returned FROM events WHERE {WITHIN} UNION ALL SELECT -1, true",
        f"SELECT unnest([id, -id]) AS id, returned FROM events WHERE {WITHIN}",
        f"SELECT id, ts < $partition_end - INTERVAL 2 HOUR AS returned FROM events WHERE {WITHIN}",
        "SELECT id, returned FROM events WHERE ts >= $partition_start - INTERVAL 2 HOUR AND ts < $partition_end",
        "SELECT id, returned FROM events WHERE ts BETWEEN $partition_start AND $partition_end",
        "SELECT id, returned FROM events WHERE ts >= $partition_start OR ts < $partition_end",
        "SELECT id, returned FROM events WHERE ts >= $partition_start AND ts + INTERVAL 1 HOUR < $partition_end",
        "SELECT id, returned FROM events WHERE CAST(ts AS DATE)::VARCHAR = $partition_key",
        f"SELECT id, (SELECT count(*) FROM events WHERE {WITHIN}) AS returned FROM events",
        f"SELECT id, returned, ts + INTERVAL 1 DAY AS ts FROM events WHERE {WITHIN}",
        "SELECT id, returned FROM events",
    ],
)
def test_where_the_sql_proves_nothing_each_partition_has_its_own_query(labels, sql):
    read = labels(sql)
    assert same(read.together(), read.one_by_one())
    assert read.alone == [partition.key for partition in read.partitions]
    assert not read.queries


def test_times_as_text_are_compared_as_the_sql_does(labels):
    events = small_events().with_columns(ts=pl.col("ts").dt.strftime("%Y-%m-%d %H:%M:%S+00"))
    read = labels(events=events)
    assert same(read.together(), read.one_by_one())
    assert not read.queries


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "UTC"])
@pytest.mark.parametrize("every", ["hour", "day"])
@pytest.mark.parametrize("local", [True, False])
def test_labels_read_together_lie_in_their_partition_where_clocks_change(labels, zone, every, local):
    start = datetime(2017, 10, 10, tzinfo=ZoneInfo(zone))  # Sao Paulo skips its midnight of 15 October
    times = pl.datetime_range(start, start + timedelta(days=30), "13m", time_zone=zone, eager=True)
    times = times.dt.replace_time_zone(None) if local else times
    events = pl.DataFrame({"ts": times}).with_row_index("id").with_columns(returned=pl.col("id") % 2 == 0)
    window = {"every": every, "start": "2017-10-10", "end": "2017-11-08", "timezone": zone}
    read = labels(events=events, partitions=window)
    assert same(read.together(), read.one_by_one())
    assert read.queries
    assert not read.alone


def test_rows_between_the_partitions_of_a_window_are_in_none(labels):
    read = labels()
    del read.partitions[3:9]
    assert same(read.together(), read.one_by_one())
    assert read.queries
    assert not read.alone


def test_an_error_in_the_labels_of_a_partition_names_it_and_leaves_the_others(labels):
    events = small_events()
    twice = pl.concat([events, events.filter(pl.col("id") == 130)])
    read = labels(events=twice)
    outcomes = read.together()
    assert same(outcomes, read.one_by_one())
    assert [at for at, outcome in enumerate(outcomes) if isinstance(outcome, str)] == [3]
    assert "partition 2024-01-04: keys occur more than once in the labels: id=130" in outcomes[3]


def test_a_query_that_fails_for_a_partition_is_told_of_that_partition(labels):
    read = labels(f"SELECT id, (CASE WHEN id = 130 THEN 'x' ELSE '1' END)::INT AS returned FROM events WHERE {WITHIN}")
    outcomes = read.together()
    assert same(outcomes, read.one_by_one())
    assert [at for at, outcome in enumerate(outcomes) if isinstance(outcome, str)] == [3]
    assert "small, partition 2024-01-04: the SQL of" in outcomes[3]


def test_memory_bounds_how_many_partitions_are_read_together(labels, monkeypatch):
    monkeypatch.setattr(build, "LABEL_BYTES", 40 * 8 * 5)  # less than five days take
    read = labels()
    assert same(read.together(), read.one_by_one())
    assert DAYS // 5 < read.queries < DAYS


def test_a_source_with_a_file_for_each_partition_is_read_partition_by_partition(labels, tmp_path):
    read = labels(sources={"events": {"parquet": "{partition_key}.parquet"}})
    for partition in read.partitions:
        within = pl.col("ts").is_between(partition.start, partition.end, closed="left")
        small_events().filter(within).write_parquet(tmp_path / f"{partition.key}.parquet")
    assert same(read.together(), read.one_by_one())
    assert not read.queries


def test_reading_the_labels_of_a_window_takes_hardly_more_queries_for_a_longer_history(labels):
    """The law: what is done grows with the rows of a window, not with the number of its partitions."""
    hourly = {"every": "hour", "start": "2024-01-01", "end": "2024-03-01", "timezone": "UTC"}
    read, asked = labels(partitions=hourly), list[int]()
    calendar = read.spec.partitions.calendar
    for hours in (100, 1_400):
        read.partitions, read.queries = calendar.within(calendar.first_start, calendar.last_end)[:hours], 0
        assert sum(frame.height for frame in read.together()) > 0
        asked.append(read.queries)
    assert asked == [6, 10]
    assert not read.alone


def test_partitions_out_of_order_are_read_one_by_one(labels):
    read = labels()
    read.partitions.reverse()
    assert same(read.together(), read.one_by_one())
    assert not read.queries
