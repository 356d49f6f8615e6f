"""Rows read for many partitions at once: the same as a query for each partition gives, or a query for each."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, SourceError
from batch_platform.features import build, windows
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, LABELS_SQL, small_events, small_pipeline

WITHIN = "ts >= $partition_start AND ts < $partition_end"
DAYS = 20


class Project:
    """A project of days, whose rows are read by one query for many of them."""

    def __init__(self, folder, monkeypatch, files, events=None, **spec):
        pipeline = small_pipeline(folder, **files, **({} if events is None else {"events": events}), **spec)
        self.spec, self.folder, self.builder = pipeline.spec, pipeline.folder, pipeline.builder
        calendar = self.spec.partitions.calendar
        self.partitions = calendar.within(calendar.first_start, calendar.first_start + timedelta(days=DAYS))
        self.queries, self.alone = 0, list[str]()
        monkeypatch.setattr(build, "rows_within", self._counted(build.rows_within))

    def _counted(self, read):
        def counted(*arguments):
            rows = read(*arguments)
            self.queries += bool(rows)
            return rows

        return counted


class Labels(Project):
    """The labels of days, by one query for many of them and by one for each."""

    def together(self):
        """The labels of each partition, or the error, read together where that is possible."""

        def alone(partition):
            self.alone.append(partition.key)
            return session.labels(partition)

        with self.builder.session(labels=True) as session:
            return [_outcome(read) for read in session.labels_of(self.partitions, windows.BATCH_ROWS, alone)]

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
    return lambda sql=LABELS_SQL, **spec: Labels(tmp_path, monkeypatch, {"labels_sql": sql}, **spec)


@pytest.mark.parametrize(
    "sql",
    [
        LABELS_SQL,
        f"SELECT id, amount > 80 AS returned FROM events WHERE returned IS NOT NULL AND ({WITHIN})",
        f"SELECT id, CASE WHEN items > 3 THEN amount ELSE 'nan'::DOUBLE END AS returned FROM events WHERE {WITHIN}",
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
    assert read.queries == 3  # of 2, 16 and 2 partitions


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT id, max(returned) AS returned FROM events WHERE {WITHIN} GROUP BY id",
        f"SELECT id, returned FROM events WHERE {WITHIN} QUALIFY rank() OVER (ORDER BY amount) < 9",
        f"SELECT id, returned FROM events TABLESAMPLE reservoir(900 ROWS) REPEATABLE (1) WHERE {WITHIN}",
        f"SELECT id, returned FROM events WHERE {WITHIN} ORDER BY id LIMIT 3",
        f"SELECT id, returned FROM events WHERE {WITHIN} UNION ALL SELECT -1, true",
        f"SELECT unnest([id, -id]) AS id, returned FROM events WHERE {WITHIN}",
        f"SELECT id, ts < $partition_end - INTERVAL 2 HOUR AS returned FROM events WHERE {WITHIN}",
        "SELECT id, returned FROM events WHERE ts >= $partition_start - INTERVAL 2 HOUR AND ts < $partition_end",
        "SELECT id, returned FROM events WHERE ts >= $partition_start OR ts < $partition_end",
        "SELECT id, returned FROM events WHERE ts >= $partition_start AND ts + INTERVAL 1 HOUR < $partition_end",
        f"SELECT id, (SELECT count(*) FROM events WHERE {WITHIN}) AS returned FROM events",
        "SELECT id, returned FROM events",
    ],
)
def test_where_the_sql_proves_nothing_each_partition_has_its_own_query(labels, sql):
    read = labels(sql)
    assert same(read.together(), read.one_by_one())
    assert read.alone == [partition.key for partition in read.partitions]
    assert not read.queries


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo"])
@pytest.mark.parametrize("local", [True, False])
def test_labels_read_together_lie_in_their_partition_where_clocks_change(labels, zone, local):
    start = datetime(2017, 10, 10, tzinfo=ZoneInfo(zone))  # Sao Paulo skips its midnight of 15 October
    times = pl.datetime_range(start, start + timedelta(days=30), "13m", time_zone=zone, eager=True)
    times = times.dt.replace_time_zone(None) if local else times
    events = pl.DataFrame({"ts": times}).with_row_index("id").with_columns(returned=pl.col("id") % 2 == 0)
    window = {"every": "day", "start": "2017-10-10", "end": "2017-11-08", "timezone": zone}
    read = labels(events=events, partitions=window)
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


def test_memory_bounds_how_many_partitions_are_read_together(labels, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_BYTES", 40 * 8 * 5)  # less than five days take
    read = labels()
    assert same(read.together(), read.one_by_one())
    assert DAYS // 5 < read.queries < DAYS


def test_reading_the_labels_of_a_window_takes_hardly_more_queries_for_a_longer_history(labels):
    """The law: what is done grows with the rows of a window, not with the number of its partitions."""
    hourly = {"every": "hour", "start": "2024-01-01", "end": "2024-03-01", "timezone": "UTC"}
    read, asked = labels(partitions=hourly), list[int]()
    calendar = read.spec.partitions.calendar
    for hours in (100, 1_400):
        read.partitions, read.queries = calendar.within(calendar.first_start, calendar.last_end)[:hours], 0
        assert sum(frame.height for frame in read.together()) > 0
        asked.append(read.queries)
    assert asked == [3, 5]
    assert not read.alone


class Features(Project):
    """The feature files of days, by one query for many of them and by one for each."""

    def together(self, before=lambda _: None):
        """The bytes of the file of each partition, or the error; `before` is called with each partition ahead of it."""
        with self.builder.session(ahead=self.partitions) as session:
            return [self._written(session, day, before) for day in self.partitions]

    def one_by_one(self):
        """The same by a query for each."""
        with self.builder.session() as session:
            return [self._written(session, day, lambda _: None) for day in self.partitions]

    def _written(self, session, partition, before):
        before(partition)
        written = _outcome(lambda: session.write(partition, self.folder / "lake"))
        return written if isinstance(written, str) else (written.sha256, written.columns)


@pytest.fixture
def features(tmp_path, monkeypatch):
    return lambda sql=FEATURES_SQL, **spec: Features(tmp_path, monkeypatch, {"features_sql": sql}, **spec)


@pytest.mark.parametrize(
    "sql",
    [
        FEATURES_SQL,
        f"""SELECT id, ts, extract(hour FROM ts) AS hour, amount::DECIMAL(9, 2) AS amount, [items, 1] AS list, NULL AS nothing,
        {{'shop': shop, 'items': items}} AS place, encode(shop) AS bytes
        FROM events WHERE {WITHIN}""",
        f"SELECT id, ts, amount FROM events WHERE {WITHIN} AND extract(day FROM ts) % 3 > 0",
    ],
)
def test_one_query_writes_the_features_of_many_partitions_byte_for_byte_as_a_query_for_each_does(features, sql):
    read = features(sql)
    written = read.together()
    assert written == read.one_by_one()
    assert not any(isinstance(outcome, str) for outcome in written)
    assert read.queries == 3  # of 2, 16 and 2 partitions


def test_features_read_ahead_of_a_change_of_their_source_are_read_again(features):
    read, changed = features(), small_events().with_columns(pl.col("amount") * 2)

    def before(partition):
        if partition == read.partitions[9]:
            changed.write_parquet(read.folder / "events.parquet")

    outcomes, as_changed = read.together(before), read.one_by_one()
    assert outcomes[9:] == as_changed[9:]
    assert all(outcome != other for outcome, other in zip(outcomes[:9], as_changed[:9], strict=True))
