"""What a query can read of a source for a partition, and how the rows of all partitions are told apart in one pass."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from batch_platform.features.build import FeatureBuilder
from batch_platform.features.fingerprints import Fingerprint, Fingerprints
from batch_platform.features.lineage import rows_read
from batch_platform.sources.opening import Sources
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, small_spec

pytestmark = pytest.mark.unit

INSIDE = "ts >= $partition_start AND ts < $partition_end"


@pytest.mark.parametrize(
    ("sql", "time", "looks_back"),
    [
        (f"SELECT id FROM events WHERE {INSIDE}", "ts", False),
        (f"SELECT id FROM events WHERE ({INSIDE}) AND (id > 2 OR id < 1)", "ts", False),
        ("SELECT id FROM main.events WHERE $partition_start <= ts AND $partition_end > ts", "ts", False),
        ("SELECT id FROM events WHERE ts BETWEEN $partition_start AND $partition_end", "ts", False),
        ("SELECT e.id FROM events e JOIN shops s USING (shop) WHERE CAST(e.d AS TIMESTAMPTZ) >= $partition_start", "CAST(d AS TIMESTAMPTZ)", False),
        ("SELECT id FROM events WHERE strptime(d, '%d.%m.%Y') >= $partition_start", "STRPTIME(d, '%d.%m.%Y')", False),
        ("SELECT id FROM events WHERE ts >= $partition_start - INTERVAL 28 DAY", "ts", True),
        ("SELECT id FROM events WHERE ts < $partition_end", "ts", True),
        (f"SELECT id FROM events WHERE {INSIDE} OR id = 1", None, True),
        (f"SELECT id FROM events WHERE NOT ({INSIDE})", None, True),
        (f"SELECT row FROM (SELECT row_number() OVER () AS row, * FROM events) WHERE {INSIDE}", "ts", True),
        (f"SELECT id, (SELECT avg(x) FROM events AS past WHERE past.ts < $partition_start) FROM events WHERE {INSIDE}", "ts", True),
        (f"SELECT id FROM events WHERE {INSIDE} UNION ALL SELECT id FROM events WHERE at >= $partition_start", "ts", True),
        (f"SELECT id FROM shops WHERE {INSIDE}", None, True),
        ("SELECT id FROM events WHERE", None, True),
    ],
)  # fmt: skip
def test_the_time_of_the_rows_and_whether_earlier_ones_are_read_is_found_in_the_sql(sql, time, looks_back):
    read = rows_read(sql, "events")
    assert (read.time, read.looks_back) == (time, looks_back)


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ('upper("A b") AS x, count(*)', {"a b", "x", "events"}),
        ("*", None),
        ("events.* EXCLUDE (y)", None),
        ("COLUMNS('a.*')", None),
        ("events", None),
    ],
)
def test_the_columns_that_a_query_may_read_are_those_that_it_names(select, names):
    assert rows_read(f"SELECT {select} FROM events", "events").names == names


def fingerprints(
    folder, every: str, zone: str, rows: pl.DataFrame, sql: str = FEATURES_SQL
) -> tuple[Sources, Fingerprints]:
    """The fingerprints of the present rows of a source."""
    (folder / "features.sql").write_text(sql)
    rows.write_parquet(folder / "events.parquet")
    spec = small_spec(
        partitions={"every": every, "timezone": zone, "start": "2023-09-01", "end": None},
        model={"train": {"every": None, "evaluate": "31 days"}},
    )
    builder = FeatureBuilder(spec, Sources(spec, folder, Home(folder)))
    taken = builder.dated.taken("events", f"{folder}", {})
    assert taken is not None
    assert Fingerprints.from_json(taken.version, taken.as_json()) == taken
    return builder.sources, taken


@pytest.mark.parametrize("every", ["hour", "day", "week", "month"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo"])
def test_each_partition_is_given_the_rows_inside_it_and_no_others(tmp_path, every, zone):
    start, random = datetime(2023, 8, 1, tzinfo=UTC), np.random.default_rng(1)
    minutes = random.integers(0, 300 * 24 * 60, 2000)
    times = [start + timedelta(minutes=int(n)) for n in minutes]
    odd = [None, datetime(9999, 12, 31, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)]
    ts = pl.Series([*times, *odd], dtype=pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"ts": ts}).with_columns(id=pl.row_index(), amount=1.0, items=1, shop=pl.lit("a"), known=True)
    sources, taken = fingerprints(tmp_path, every, zone, rows)
    due = sources.spec.partitions.calendar.due(datetime(2024, 6, 1, tzinfo=UTC))
    instants = np.sort([time.timestamp() for time in times])
    bounds = np.searchsorted(instants, [one.start.timestamp() for one in due] + [due[-1].end.timestamp()])
    inside = np.diff(bounds).tolist()
    assert [taken.of(one).rows for one in due] == inside
    assert sum(inside) > 1500
    assert all(taken.of(one) == Fingerprint(0, "") for one, n in zip(due, inside, strict=True) if n == 0)


def test_what_a_partition_can_read_decides_about_its_fingerprint(tmp_path):
    days = [datetime(2023, 9, day, 12, tzinfo=UTC) for day in (4, 4, 5, 7)]
    rows = pl.DataFrame(
        {"ts": days, "id": [1, 1, 2, 3], "amount": 1.0, "items": 1, "shop": "a", "known": True, "other": 1}
    )
    back = FEATURES_SQL.replace("$partition_start", "$partition_start - INTERVAL 1 DAY")
    edits = {
        "another order": rows.reverse(),
        "an unread column": rows.with_columns(other=2),
        "a value": rows.with_columns(items=pl.when(pl.col("id") == 2).then(5).otherwise("items")),
        "one of two equal rows": rows.slice(1),
    }
    changed: dict[str, list[list[int]]] = {}
    for name, edited in edits.items():
        for sql in (FEATURES_SQL, back):
            folders = [tmp_path / f"{name} {len(sql)} {version}" for version in ("old", "new")]
            for folder in folders:
                folder.mkdir()
            sources, old = fingerprints(folders[0], "day", "UTC", rows, sql)
            _, new = fingerprints(folders[1], "day", "UTC", edited, sql)
            due = sources.spec.partitions.calendar.due(datetime(2023, 9, 9, tzinfo=UTC))
            days_changed = [one.start.day for one in due if old.of(one) != new.of(one)]
            changed.setdefault(name, []).append(days_changed)
    assert changed == {
        "another order": [[], []],
        "an unread column": [[], []],
        "a value": [[5], [5, 6, 7, 8]],
        "one of two equal rows": [[4], [4, 5, 6, 7, 8]],
    }
