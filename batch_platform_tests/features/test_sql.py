"""Sources in databases: a real PostgreSQL, and files of SQLite."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from traceback import format_exception
from typing import Any
from uuid import UUID

import adbc_driver_postgresql.dbapi as postgresql
import polars as pl
import pytest

from batch_platform.declaration.errors import SharedSourceError, SourceError
from batch_platform.declaration.notation import parse_duration
from batch_platform.features.query import Query
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.sources.opening import SourceConnection, Sources
from batch_platform_tests.harness.postgres_server import Server, postgres_server
from batch_platform_tests.harness.small_pipeline import (
    LAST_DAY,
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
)
from batch_platform_tests.sources.declared import FIRST, SECOND, sources_in

SECRET = "geh:ei@m/1"  # a URL writes it:
QUOTED = "geh%3Aei%40m%2F1"
BOUNDED = "SELECT id, at FROM orders -- $nothing; 'here\nWHERE at >= $partition_start AND at < $partition_end;\n"
NOW = datetime(2024, 3, 3, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that asks the user `reader`, who may only read, for a password."""
    with postgres_server() as running:
        ((access,),) = execute(running, "SELECT current_setting('hba_file')")
        rules = Path(access)
        rules.write_text(f"host all reader 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        execute(running, "SELECT pg_reload_conf()")
        execute(running, f"CREATE ROLE reader LOGIN PASSWORD '{SECRET}'", "GRANT pg_read_all_data TO reader")
        yield running


def execute(server: Server, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements as the owner, and commit; returns the rows of the last one."""
    with closing(postgresql.connect(server.address.replace("+psycopg2", ""))) as con, closing(con.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
        rows = cursor.fetchall() if statements[-1].startswith("SELECT") else []
        con.commit()
    return rows


@pytest.fixture
def uri(server) -> str:
    """The address for the reader, with a table of an order per hour from the first partition on."""
    execute(
        server,
        "DROP TABLE IF EXISTS orders",
        "CREATE TABLE orders AS SELECT n AS id, TIMESTAMPTZ '2024-01-01 00:00+01' + n * INTERVAL '1 hour' AS at "
        "FROM generate_series(0, 99) AS n",
    )
    return as_reader(server)


def as_reader(server: Server) -> str:
    return server.address.replace("+psycopg2://dagster@", f"://reader:{QUOTED}@")


@pytest.fixture
def sqlite_uri(tmp_path) -> str:
    """The same table in a file, with times on the clocks of Berlin."""
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as con:
        con.execute("PRAGMA journal_mode = wal")
        con.execute("CREATE TABLE orders (id INTEGER, at TEXT)")
        hours = [(n, f"2024-01-0{n // 24 + 1} {n % 24:02}:00:00") for n in range(100)]
        con.executemany("INSERT INTO orders VALUES (?, ?)", hours)
        con.commit()
    return "sqlite:///shop.sqlite"


@pytest.fixture(params=["PostgreSQL", "SQLite"])
def each(request) -> str:
    """The address in either database."""
    return request.getfixturevalue("uri" if request.param == "PostgreSQL" else "sqlite_uri")


def declared(folder: Path, uri: str, text: str | None = None, **block: str) -> Sources:
    if text is not None:
        (folder / "query.sql").write_text(text)
        block["query"] = "query.sql"
    return sources_in(folder, a={"sql": {"uri": uri, **block}})


def ids(con: SourceConnection) -> list[int]:
    return [row[0] for row in con.duckdb.execute("SELECT id FROM a ORDER BY id").fetchall()]


def test_a_query_that_reads_a_source_twice_at_once_gets_the_same_rows(tmp_path, each):
    with declared(tmp_path, each, table="orders").connect(FIRST) as con:
        twice = "SELECT count(*), sum(x.id - y.id) FROM a AS x JOIN a AS y USING (id) WHERE x.id + y.id >= 0"
        assert con.duckdb.execute(twice).fetchall() == [(100, 0)]
        assert con.duckdb.execute("SELECT id FROM a LIMIT 1").fetchall() == [(0,)]
        assert con.duckdb.execute(twice).fetchall() == [(100, 0)]


def test_all_partitions_of_a_connection_are_read_in_one_state(tmp_path, each, server):
    sources = declared(tmp_path, each, BOUNDED)
    with sources.connect(FIRST) as con:
        version = con.versions(FIRST, ["a"])
        if each.startswith("sqlite"):
            with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as other:
                other.execute("DELETE FROM orders WHERE id % 2 = 0")
                other.commit()
        else:
            execute(server, "DELETE FROM orders WHERE id % 2 = 0")
        assert ids(con) == [*range(24)]
        con.move(SECOND)
        assert ids(con) == [*range(24, 48)]
        assert con.versions(SECOND, ["a"]) == version != {"a": sources.version("a", SECOND)}
    with sources.connect(SECOND) as con:
        assert ids(con) == [*range(25, 48, 2)]


def test_rows_are_read_as_they_are_asked_for_and_not_before(tmp_path, uri):
    with declared(tmp_path, uri, "SELECT generate_series(1, 1000000000000) AS id").connect(FIRST) as con:
        assert len(con.duckdb.execute("SELECT id FROM a LIMIT 3").fetchall()) == 3


def test_the_types_of_postgresql_arrive_as_they_are(tmp_path, uri):
    columns = {
        "1::smallint": ("SMALLINT", 1),
        "9007199254740993::bigint": ("BIGINT", 9007199254740993),
        "1234567890123456.78::numeric(18, 2)": ("DECIMAL(18,2)", Decimal("1234567890123456.78")),
        "0.1::numeric": ("DOUBLE", 0.1),
        "'NaN'::numeric::text": ("VARCHAR", "NaN"),
        "ARRAY[0.5::numeric, NULL]": ("DOUBLE[]", [0.5, None]),
        "NULL::int": ("INTEGER", None),
        "DATE '2024-02-29'": ("DATE", date(2024, 2, 29)),
        "TIMESTAMP '2024-03-31 02:30'": ("TIMESTAMP", datetime.fromisoformat("2024-03-31T02:30")),
        "TIMESTAMPTZ '2024-03-31 02:30+00'": ("TIMESTAMP WITH TIME ZONE", datetime(2024, 3, 31, 2, 30, tzinfo=UTC)),
        "'\\x00ff'::bytea": ("BLOB", b"\x00\xff"),
        "'{\"a\": 1}'::jsonb": ("JSON", '{"a": 1}'),
        "'f5f5f5f5-0000-0000-0000-000000000001'::uuid": ("UUID", UUID("f5f5f5f5-0000-0000-0000-000000000001")),
        "ARRAY[1, NULL]": ("INTEGER[]", [1, None]),
    }
    text = "SELECT " + ", ".join(f"{value} AS c{at}" for at, value in enumerate(columns))
    with declared(tmp_path, uri, text).connect(FIRST) as con:
        (row,) = con.duckdb.execute("FROM a").fetchall()
        types = [str(dtype) for dtype in con.duckdb.sql("FROM a").types]
    assert dict(zip(columns, zip(types, row, strict=True), strict=True)) == columns


def test_b37_infinite_times_of_postgresql_arrive_as_such(tmp_path, uri):
    values = [
        "TIMESTAMPTZ 'infinity'",
        "TIMESTAMP '-infinity'",
        "DATE 'infinity'",
        "DATE '-infinity'",
        "ARRAY[DATE 'infinity', NULL]",
    ]
    text = "SELECT " + ", ".join(f"{value} AS c{at}" for at, value in enumerate(values))
    text += " UNION ALL SELECT '2024-01-01', '4713-01-01 BC', NULL, '5874897-12-31', NULL"
    asked = "c0 > now(), c1 < '0001-01-01', c2 > current_date, c3 < current_date, [x::VARCHAR FOR x IN c4]"
    with declared(tmp_path, uri, text).connect(FIRST) as con:
        rows = con.duckdb.execute(f"SELECT {asked} FROM a").fetchall()
    assert rows == [(True, True, True, True, ["infinity", None]), (False, True, None, False, None)]


@pytest.mark.parametrize(
    ("value", "problem", "instead"),
    [
        ("ARRAY[[1, 2], [3, 4]]", "holds arrays of arrays", r"to_json\(odd\) AS odd"),
        ("'NaN'::numeric(12, 2)", r"holds NaN, which a DECIMAL\(12, 2\) cannot", "CAST"),
    ],
)
def test_b37_values_of_postgresql_that_cannot_be_taken_over_are_named_by_column(tmp_path, uri, value, problem, instead):
    with declared(tmp_path, uri, f"SELECT {value} AS odd WHERE $partition_key <> ''").connect(FIRST) as con:
        message = rf"its column 'odd' {problem}\. Hint: write {instead}.* in sources\.a\.sql\.query\.$"
        with pytest.raises(SourceError, match=message), con.explained("a", FIRST):
            con.duckdb.execute("FROM a").fetchall()


@pytest.mark.parametrize("dtype", ["inet", "money"])
def test_a_type_that_duckdb_cannot_take_is_named_with_the_cast_to_write(tmp_path, uri, dtype):
    message = (
        rf"its column 'odd' has the type {dtype}.* Hint: write CAST\(odd AS text\) AS odd in sources\.a\.sql\.query"
    )
    sources = declared(tmp_path, uri, f"SELECT NULL::{dtype} AS odd")
    with pytest.raises(SharedSourceError, match=message), sources.connect(FIRST):
        pass


BAD_QUERIES = {
    "SELECT 1 AS id; SELECT 2": r"query\.sql must be one SELECT that writes nothing\. Hint: .* in sources\.a\.sql\.query",
    "DELETE FROM orders": r"query\.sql must be one SELECT that writes nothing",
    "SELECT $day": r"query\.sql uses the parameter \$day\. Hint: use only \$partition_end, .* in sources\.a\.sql\.query",
    "SELECT nope FROM orders": r"nope.* Hint: correct sources\.a\.sql\.query\.",
    "SELECT id FROM order_s": r"order_s.* Hint: correct sources\.a\.sql\.query: did you mean 'orders'\?",
    'SELECT id, id AS "ID" FROM orders': r"gives more than one column 'ID', 'id'\. Hint: name each column with AS in sources\.a\.sql\.query",
}


@pytest.mark.parametrize("text", BAD_QUERIES)
def test_a_bad_query_is_refused_with_its_key_and_never_the_password(tmp_path, each, text):
    with (
        pytest.raises(SharedSourceError, match=BAD_QUERIES[text]) as refused,
        declared(tmp_path, each, text).connect(FIRST),
    ):
        pass
    require_no_secret(refused.value)


@pytest.mark.usefixtures("uri")
def test_a_query_that_writes_is_refused_by_the_database(tmp_path, server):
    owner = server.address.replace("+psycopg2", "")
    text = "WITH gone AS (DELETE FROM orders RETURNING id) SELECT id FROM gone"
    message = r"it writes, and may only read .* Hint: correct sources\.a\.sql\.query"
    refused = pytest.raises(SourceError, match=message)
    with declared(tmp_path, owner, text).connect(FIRST) as con, refused, con.explained("a", FIRST):
        con.duckdb.execute("FROM a").fetchall()
    assert execute(server, "SELECT count(*) FROM orders") == [(100,)]


BAD_ADDRESSES = {
    "password": (lambda uri: uri.replace(QUOTED, "falsch"), "password authentication failed"),
    "database": (lambda uri: f"{uri}x", 'database "postgresx" does not exist'),
    "host": (lambda _: f"postgresql://reader:{QUOTED}@[::1/postgres", "IPv6"),
}


@pytest.mark.parametrize("case", BAD_ADDRESSES)
def test_a_bad_address_is_refused_with_its_key_and_never_the_password(tmp_path, uri, case):
    change, reason = BAD_ADDRESSES[case]
    sources = declared(tmp_path, change(uri), table="orders")
    with pytest.raises(SharedSourceError, match=r"cannot be opened: .* Hint: correct sources\.a\.sql\.uri") as refused:
        sources.version("a", FIRST)
    assert reason in str(refused.value)
    require_no_secret(refused.value)


def require_no_secret(error: BaseException) -> None:
    """Neither the error nor what is told of it by a log holds the password."""
    text = "".join(format_exception(error))
    assert not [form for form in (SECRET, QUOTED, "falsch") if form in text]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "give either `table` or `query`; found none"),
        ({"table": "orders", "query": "query.sql"}, "give either `table` or `query`; found both"),
        ({"uri": "mysql://me:geheim@host/shop", "table": "orders"}, "uri must begin with one of bigquery://, .*sqlite://"),
        ({"query": "/elsewhere/query.sql"}, "query"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_refused_with_its_key_and_never_the_password(tmp_path, block, message):
    with pytest.raises(ValueError, match=rf"sources\.a\.sql.*\n?.*{message}") as refused:
        declared(tmp_path, **{"uri": "sqlite:///shop.sqlite", **block})
    assert "geheim" not in str(refused.value)


def test_the_password_is_nowhere_and_changing_it_changes_nothing(tmp_path, uri):
    sources = declared(tmp_path, uri, table="orders")
    spec, state = sources.spec, sources.state("a", FIRST)
    kind, table = sources.kind("a"), sources.table("a", FIRST)
    shown = [repr(spec), str(spec), spec.model_dump_json(), kind.description(table.source), state.location]
    shown += [str(json.dumps(spec.model_dump(mode="json"))), repr(table), table.source.location]
    assert not [text for text in shown if SECRET in text or QUOTED in text]
    assert "127.0.0.1" in state.location
    other = declared(tmp_path, uri.replace(QUOTED, "an0ther-secret"), table="orders").spec
    assert other.model_dump_json() == spec.model_dump_json()


def test_a_query_may_stand_in_the_declaration(tmp_path, each):
    with declared(tmp_path, each, query="SELECT id FROM orders WHERE id < 3").connect(FIRST) as con:
        assert ids(con) == [0, 1, 2]


def test_a_time_limit_ends_what_the_database_executes(tmp_path, uri, server):
    (tmp_path / "slow.sql").write_text("SELECT id FROM a")
    sources = declared(tmp_path, uri, "SELECT 1 AS id FROM pg_sleep(1000)")
    query = Query("small", tmp_path, "features.sql", "slow.sql", ["a"], parse_duration("1 second"))
    too_long = pytest.raises(SourceError, match=r"takes longer than features\.timeout")
    with sources.connect(FIRST) as con, too_long, query.limited(con), query.explained(FIRST):
        query.run(con, FIRST, ["id"]).fetchall()
    assert execute(
        server,
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%sleep(1000)%' AND pid <> pg_backend_pid()",
    ) == [(0,)]


def in_database(server: Server, folder: Path, block: dict[str, str], **overrides: Any) -> Pipeline:
    """The small pipeline with its orders in PostgreSQL."""
    rows = small_events().to_arrow(compat_level=pl.CompatLevel.oldest())
    with closing(postgresql.connect(server.address.replace("+psycopg2", ""))) as con, closing(con.cursor()) as cursor:
        cursor.adbc_ingest("events", rows, mode="replace")
        con.commit()
    source = {"parquet": None, "sql": {"uri": as_reader(server), **block}}
    pipeline = small_pipeline(folder, sources={"events": source}, **overrides)
    (pipeline.folder / "events.sql").write_text(
        "SELECT * FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    )
    return pipeline


def due(pipeline: Pipeline, *, recheck: bool = False) -> dict[str, str]:
    plan = make_plan(pipeline.spec, pipeline.state(recheck=recheck), PlanRequest(NOW))
    return {item.partition.key: item.reason for item in plan.of("predictions")}


BLOCKS = {
    "a query": {"query": "events.sql"},
    "a table": {"table": "events"},
    "a query with a version of each partition": {"query": "events.sql", "version": "SELECT sum(amount) FROM events WHERE ts >= $partition_start AND ts < $partition_end"},
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_only_the_partition_whose_rows_changed_in_the_database_is_due(tmp_path, server, block):
    pipeline = in_database(server, tmp_path, block)
    carry_out(pipeline, NOW)
    assert due(pipeline) == {}
    same = finished_pipeline(tmp_path / "file", NOW)
    assert [run.input_hash for run in pipeline.state().scores.values()] == [
        run.input_hash for run in same.state().scores.values()
    ]
    key = f"{LAST_DAY}"
    execute(server, f"UPDATE events SET amount = amount + 1 WHERE (ts AT TIME ZONE 'Europe/Berlin')::date = '{key}'")
    ticking = Pipeline(pipeline.spec, pipeline.folder, pipeline.home)
    assert ticking.published_state(most_bytes=0).seen.changed == {}  # a tick has no time to read so much
    assert ticking.published_state(most_bytes=1 << 40).seen.changed.keys() == {key}
    assert due(pipeline) == {key: "rows of source 'events' changed"}
    carry_out(pipeline, NOW)
    assert due(pipeline, recheck=True) == {}
    execute(server, "DELETE FROM events WHERE ts < '2024-02-02'")
    assert due(pipeline) == {}  # long ago
    assert due(pipeline, recheck=True) == {}  # nothing is built from nothing
    assert "no longer holds its rows" in pipeline.state(recheck=True).seen.gone["2024-02-01"]
