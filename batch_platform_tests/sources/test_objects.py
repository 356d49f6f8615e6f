"""Sources in a store of objects: what is asked of the store, what nobody else may read, and a store that fails."""

import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from batch_platform.components.wiring import stamp_of
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError, WrongUseError
from batch_platform.declaration.inputs import STORES
from batch_platform.planning.artifacts import features_due
from batch_platform.sources.objects import ObjectPath, StoreError, _objects_for_reading, listed_once, opened_store
from batch_platform.sources.opening import Sources
from batch_platform_tests.harness.object_store import BUCKET, SECRET, bytes_of, silent_store
from batch_platform_tests.harness.small_pipeline import small_events, small_pipeline
from batch_platform_tests.sources.declared import CALENDAR, FIRST, SECOND, sources_in

EVENTS = small_events()
TABLE = pl.DataFrame({"x": [1, 2], "text": ["a", "ü"]})


PARQUET = bytes_of(TABLE.write_parquet)


def declared(source: dict[str, Any]) -> Sources:
    return sources_in(Path("/nowhere"), a=source)


def rows(source: dict[str, Any], sql: str = "FROM a") -> list[Any]:
    with declared(source).connect(FIRST) as con:
        return con.duckdb.execute(sql).fetchall()


def test_only_the_objects_of_the_source_can_be_read_and_none_be_written(store):
    store.files.pipe(
        {f"{BUCKET}/a.parquet": PARQUET, f"{BUCKET}/a.parquet.bak": PARQUET, f"{BUCKET}/b/c.parquet": PARQUET}
    )
    with declared({"parquet": "s3://lake/a.parquet"}).connect(FIRST) as con:
        for other in ("a.parquet.bak", "b/c.parquet", "*", "a.parquet/../a.parquet.bak", "**"):
            for address in (f"s3://lake/{other}", f"s3a://lake/{other}", f"lake/{other}"):
                with pytest.raises(duckdb.PermissionException):
                    con.duckdb.execute(f"SELECT count(*) FROM read_parquet('{address}')")
        with pytest.raises(duckdb.PermissionException):
            con.duckdb.execute("FROM glob('s3://lake/*')")
        for target in ("a.parquet", "new.parquet"):
            with pytest.raises(duckdb.Error, match=r"is only read|Permission Error"):
                con.duckdb.execute(f"COPY (SELECT 1 AS x) TO 's3://lake/{target}'")
    assert rows({"parquet": "s3://lake/a.parquet"}) == TABLE.rows()
    store.files.pipe({f"{BUCKET}/b/{FIRST.key}.parquet": PARQUET, f"{BUCKET}/b2/c.parquet": PARQUET})
    with declared({"parquet": "s3://lake/b/{partition_key}.parquet"}).connect(FIRST) as con:
        assert con.duckdb.execute("FROM a").fetchall() == TABLE.rows()
        for other in ("a.parquet", "b2/c.parquet", "b/../a.parquet"):
            with pytest.raises(duckdb.PermissionException):
                con.duckdb.execute(f"FROM 's3://lake/{other}'")


def test_a_name_may_hold_any_character(store):
    name = "deep/odd [1] #?% +ü*.parquet"
    store.files.pipe(f"{BUCKET}/{name}", PARQUET)
    store.files.pipe(f"{BUCKET}/another.csv", b"x")
    escaped = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
    assert rows({"parquet": f"s3://lake/{escaped}"}) == TABLE.rows()


def test_versions_of_many_partitions_are_read_from_one_listing_and_no_row_is(store):
    days = CALENDAR.within(CALENDAR.first_start, SECOND.end)
    store.files.pipe({f"{BUCKET}/days/{day.key}.parquet": PARQUET for day in days})
    sources = declared({"parquet": "s3://lake/days/{partition_key}.parquet"})
    alone = [sources.version("a", day) for day in days]
    assert len(set(alone)) == len(days)
    store.requests()
    with listed_once():
        assert [sources.version("a", day) for day in days] == alone
        store.files.rm(f"{BUCKET}/days/{FIRST.key}.parquet")
        assert sources.version("a", FIRST) == alone[0]
        with pytest.raises(SourceError, match="other partitions have a file"):
            sources.version("a", CALENDAR.named("2024-02-01"))
    asked = [(method, path) for method, path, _ in store.requests()]
    assert [path for method, path in asked if method == "GET"] == [f"/{BUCKET}"]
    with pytest.raises(SourceError, match=r"there is no file s3://lake/days/2024-01-01\.parquet"):
        sources.version("a", FIRST)


def test_a_table_of_many_row_groups_is_read_by_many_threads_as_it_is(store):
    table = pl.DataFrame({f"x{at}": np.random.default_rng(at).integers(0, 1 << 40, 100_000) for at in range(4)})
    store.files.pipe(f"{BUCKET}/a.parquet", bytes_of(lambda file: table.write_parquet(file, row_group_size=2000)))
    with declared({"parquet": "s3://lake/a.parquet"}).connect(FIRST) as con:
        for _ in range(3):
            assert con.duckdb.sql("FROM a").pl().equals(table)
        assert con.frames(FIRST, ["a"])["a"].collect().equals(table)


def test_an_object_that_is_replaced_while_it_is_read_fails_and_says_so(store):
    store.files.pipe(f"{BUCKET}/a.bin", b"old" * 100)
    opened = _objects_for_reading("s3").open("s3://lake/a.bin", "rb")
    assert opened.read(3) == b"old"
    store.files.pipe(f"{BUCKET}/a.bin", b"new" * 100)
    with pytest.raises(StoreError, match=r"s3://lake/a\.bin cannot be read \(it was replaced while it was read\)"):
        opened.read(3)


SOURCES = {
    "one object": {"parquet": "s3://lake/a.parquet"},
    "a glob": {"csv": "s3://lake/*.csv"},
    "an object for each partition": {"parquet": "s3://lake/{partition_key}.parquet"},
    "a Delta table": {"delta": "s3://lake/orders"},
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def fails(source: dict[str, Any], reason: str) -> None:
    """A source fails for a reason, in one line that names the key and what to do, and never the secret."""
    (kind,) = source
    for work in (lambda: declared(source).version("a", FIRST), lambda: rows(source)):
        with pytest.raises(SourceError) as failed:
            work()
        message = str(failed.value)
        assert message.startswith(f"Source 'a' of 'small' (sources.a.{kind}): "), message
        assert reason in message
        assert " Hint: check the name of the bucket, the network, and the credentials" in message
        assert "\n" not in message
        assert SECRET not in message
        assert not failed.value.of_one_partition


@every_source
@pytest.mark.usefixtures("store")
def test_a_bucket_that_is_not_there_is_named(source):
    fails({kind: address.replace("lake", "lack") for kind, address in source.items()}, "there is no bucket s3://lack")


def test_a_store_that_refuses_or_does_not_answer_is_named(own_store):
    source = SOURCES["one object"]
    own_store.refuse()
    fails(source, "s3://lake")
    own_store.kill()
    fails(source, "Could not connect to the endpoint URL")
    own_store.start()


@pytest.mark.parametrize("source", [{"parquet": f"s3://{BUCKET}/a.parquet"}, {"delta": f"s3://{BUCKET}/a"}])
def test_f55_a_store_that_accepts_and_never_answers_is_named_in_time(source, monkeypatch):
    with silent_store(monkeypatch, 0.2) as store:
        fails(source, f'Read timeout on endpoint URL: "{store.url}/lake')


def test_a_silent_store_of_google_is_waited_for_as_long_as_any_other(monkeypatch):
    monkeypatch.setitem(_registry, "gs", MemoryFileSystem)  # shows the options that gcsfs is given
    monkeypatch.setenv("BATCH_PLATFORM_STORE_TIMEOUT", "60")
    with opened_store(ObjectPath("gs://lake/a.parquet")) as (system, _):
        limit = system.storage_options["requests_timeout"]
    assert (limit.sock_connect, limit.sock_read) == (10, 10)


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_without_its_library_the_extra_is_named(monkeypatch, scheme, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(
        WrongUseError, match=rf"{library} is needed here, .* Hint: pip install 'batch-platform\[{STORES[scheme]}\]'"
    ):
        declared({"parquet": f"{scheme}://lake/a.parquet"}).version("a", FIRST)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"parquet": "ftp://lake/a"}, r"begins with ftp://; give a path, or an address with abfs://, .* s3://"),
        ({"csv": "s3://key:opensesame@lake/a.csv"}, "must name a bucket and an object .* and no credentials"),
        ({"duckdb": "s3://lake/a.duckdb", "table": "t"}, "duckdb names a file of this machine; only arrow, csv, delta, json, parquet may"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_read_is_refused_when_it_is_declared(source, problem):
    with pytest.raises(ValueError, match=problem) as refused:
        declared(source)
    assert "secret" not in json.dumps([error["msg"] for error in refused.value.errors()])


def test_a_replaced_object_makes_its_partition_due_and_a_dead_store_makes_none_due_and_none_up_to_date(
    own_store, tmp_path
):
    pipeline = small_pipeline(
        tmp_path, sources={"events": {"parquet": "s3://lake/days/{partition_key}.parquet"}}, labels=None, events=TABLE
    )
    days = CALENDAR.within(FIRST.start, CALENDAR.named("2024-01-03").end)

    def put(day: Partition, factor: int = 1) -> None:
        rows = EVENTS.filter(pl.col("ts").is_between(day.start, day.end, closed="left"))
        changed = rows.with_columns(pl.col("amount") * factor)
        own_store.files.pipe(f"{BUCKET}/days/{day.key}.parquet", bytes_of(changed.write_parquet))

    def build() -> list[str]:
        return [built.partition.key for built in pipeline.build_features(days, stamp_of("run")) if not built.skipped]

    def due() -> dict[str, str | None]:
        state = pipeline.state()
        return {day.key: reason for day in days if (reason := features_due(state, day)) is not None}

    [put(day) for day in days]
    assert build() == [day.key for day in days]
    assert due() == {}
    put(SECOND, factor=2)
    assert due() == {SECOND.key: "a source file changed"}
    own_store.kill()
    state = pipeline.state()
    assert set(state.seen.gone.values()) == {"what it reads of source 'events' cannot be looked up now"}
    with pytest.raises(
        SourceError, match=r"\(sources\.events\.parquet\): s3://lake/.* cannot be read \(Could not connect"
    ):
        build()
    own_store.start()
    [put(day, factor=2 if day == SECOND else 1) for day in days]
    assert build() == [SECOND.key]
    assert due() == {}
