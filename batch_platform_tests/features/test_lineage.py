"""What a column of the user's SQL is made from: followed through every form of SELECT, held against DuckDB's answers."""

from pathlib import Path

import duckdb
import polars as pl
import pytest

from batch_platform.defs.flight_delays import sources as shipped
from batch_platform.features.lineage import column_lineage, lines_of
from batch_platform.features.origins import Lineage, SourceColumn

pytestmark = pytest.mark.unit

ORDERS = pl.DataFrame(
    {
        "id": [1, 2, 3, 4],
        "customer": ["a", "b", "a", "d"],  # of whom nobody else knows
        "amount": [5.0, 7.0, 11.0, 13.0],
        'Odd "name"': [1, 0, 1, 1],
        "items": [[1, 2], [3], [4, 5], [6]],
        "place": [{"city": "x", "zip": 1}, {"city": "y", "zip": 2}, {"city": "x", "zip": 3}, {"city": "z", "zip": 4}],
    }
)
CUSTOMERS = pl.DataFrame({"customer": ["a", "b", "c"], "age": [30, 40, 50], "id": [7, 8, 9]})
TABLES = {"orders": ORDERS, "customers": CUSTOMERS}
COLUMNS = {name: frame.columns for name, frame in TABLES.items()}
NOT_TOLD: dict[str, tuple[str, ...]] = {"orders": (), "customers": ()}

# SQL, then what each column reads: o. and c. for orders and customers, `*` for rows, `?` for unknown, `=` for a copy.
TOLD = [
    ("SELECT id, amount * 2 AS twice FROM orders", {"id": "= o.id", "twice": "o.amount"}),
    ("SELECT o.id, c.age FROM orders AS o JOIN customers AS c ON c.customer = o.customer", {"id": "= o.id", "age": "= c.age"}),
    ("WITH x AS (SELECT id AS n, amount FROM orders) SELECT n, amount + n AS s FROM x", {"n": "= o.id", "s": "o.amount o.id"}),
    ("WITH x(p, q) AS (SELECT id, amount FROM orders) SELECT q FROM x", {"q": "= o.amount"}),
    ("WITH orders AS (SELECT customer AS id FROM orders) SELECT id FROM orders", {"id": "= o.customer"}),
    ("SELECT s.m FROM (SELECT max(amount) AS m FROM orders) AS s", {"m": "o.amount"}),
    ("SELECT count(*) AS n, sum(amount) FILTER (WHERE id > 1) AS s FROM orders", {"n": "o.*", "s": "o.amount o.id"}),
    ("SELECT row_number() OVER (PARTITION BY customer ORDER BY amount) AS r FROM orders", {"r": "o.amount o.customer"}),
    ("SELECT sum(amount) OVER (w ROWS 1 PRECEDING) AS s FROM orders WINDOW w AS (PARTITION BY customer ORDER BY id)", {"s": "o.amount o.customer o.id"}),
    ("SELECT id FROM orders UNION ALL SELECT age FROM customers", {"id": "c.age o.id"}),
    ("SELECT customer FROM orders EXCEPT SELECT customer FROM customers", {"customer": "c.customer o.customer"}),
    ('SELECT "Odd ""name""" AS "a.b", "id" FROM orders', {"a.b": '= o.Odd "name"', "id": "= o.id"}),
    ("SELECT $partition_start AS at, id::DOUBLE AS d FROM orders", {"at": "", "d": "o.id"}),
    ("SELECT o.id, (SELECT count(*) FROM customers AS c WHERE c.customer = o.customer) AS n FROM orders o", {"n": "c.* c.customer o.customer"}),
    ("SELECT id, EXISTS (SELECT 1 FROM customers c WHERE c.age > o.amount) AS e FROM orders o", {"e": "c.age o.amount"}),
    ("SELECT list_transform(o.items, lambda x: x + o.id) AS l FROM orders o", {"l": "o.id o.items"}),
    ("SELECT [x * 2 FOR x IN items IF x > 1] AS l FROM orders", {"l": "o.items"}),
    ("SELECT list_reduce(o.items, lambda x, y: x + y) AS l, list_filter(items, lambda x: x > 1) AS f FROM orders o", {"l": "o.items", "f": "o.items"}),
    ("SELECT coalesce(c.age, 0) AS a FROM orders o LEFT JOIN customers c USING (customer)", {"a": "c.age"}),
    ("SELECT o.id FROM (orders o JOIN customers c ON c.customer = o.customer)", {"id": "= o.id"}),
    ("SELECT max_by(amount, id) AS amount, max_by(amount, id) FILTER (WHERE id < 3) AS early FROM orders", {"amount": "o.amount o.id", "early": "o.amount o.id"}),
    ("SELECT u.n FROM orders o, unnest(o.items) AS u(n)", {"n": "o.items"}),
    ("SELECT r.i FROM range(3) AS r(i)", {"i": ""}),
    ("SELECT o.id FROM orders o JOIN customers c USING (customer) WHERE c.age > 1", {"id": "= o.id"}),
    ("SELECT id FROM orders o JOIN (SELECT customer FROM customers) c USING (customer)", {"id": "= o.id"}),
    ("SELECT amount > 6 AS big FROM orders WHERE big IS NOT NULL", {"big": "o.amount"}),
]  # fmt: skip

# What the text alone does not tell, and the columns of the sources do.
ASKED = [
    ("SELECT * FROM orders", {"id": "= o.id", "amount": "= o.amount", 'Odd "name"': '= o.Odd "name"'}),
    ("SELECT * EXCLUDE (id) REPLACE (amount + id AS amount) FROM orders", {"amount": "o.amount o.id", "customer": "= o.customer"}),
    ("SELECT * RENAME (id AS n) FROM orders", {"n": "= o.id"}),
    ("SELECT c.* FROM orders o JOIN customers c ON c.customer = o.customer", {"age": "= c.age", "id": "= c.id"}),
    ("SELECT amount, age FROM orders JOIN customers USING (customer)", {"amount": "= o.amount", "age": "= c.age"}),
    ("WITH x AS (SELECT *, amount * 2 AS twice FROM orders) SELECT twice, id FROM x", {"twice": "o.amount", "id": "= o.id"}),
    ("SELECT amount * id AS both_, both_ + 1 AS more FROM orders", {"more": "o.amount o.id"}),
    ("SELECT age AS amount, amount + 1 AS more FROM orders, customers", {"more": "o.amount"}),
    ("SELECT id, (SELECT max(age) FROM customers WHERE amount > age) AS m FROM orders", {"m": "c.age o.amount"}),
    ("SELECT place.city AS city, orders.place.zip AS zip FROM orders", {"city": "o.place", "zip": "o.place"}),
    ("SELECT id FROM orders o SEMI JOIN customers c ON c.customer = o.customer", {"id": "= o.id"}),
]  # fmt: skip

# What cannot be followed, whatever is known.
UNKNOWN = [
    ("WITH RECURSIVE up AS (SELECT id, amount AS v FROM orders UNION ALL SELECT id, v + id FROM up WHERE v < 20) SELECT v FROM up", {"v": "?"}),
    ("SELECT id, min(COLUMNS('am.*')) AS a FROM orders GROUP BY id", {"a": "?"}),
    ("SELECT * FROM (SELECT customer, id, amount FROM orders) PIVOT (sum(amount) FOR customer IN ('a', 'b'))", {"a": "?"}),
    ("SELECT x FROM query('SELECT 1 AS x')", {"x": "?"}),
    ("SELECT o AS whole FROM orders o", {"whole": "?"}),
    ("SELECT id, amount FROM orders UNION ALL BY NAME SELECT age AS amount, id FROM customers", {"amount": "?"}),
    ("SELECT customer FROM orders NATURAL JOIN (SELECT customer, age FROM customers)", {"customer": "?"}),
]  # fmt: skip


def written(lineage: Lineage) -> dict[str, str]:
    """As the tables above write it."""
    short = {"orders": "o", "customers": "c"}
    return {
        entry.column: ("= " if entry.copy_of else "") + " ".join(f"{short[r.source]}.{r.column}" for r in entry.reads)
        if entry.known
        else "?"
        for entry in lineage.columns
    }


def result_of(con: duckdb.DuckDBPyConnection, sql: str) -> pl.DataFrame:
    bound = {"partition_start": "2024-01-01"} if "$partition_start" in sql else {}
    return con.sql(sql, params=bound).pl()


@pytest.fixture
def con():
    with duckdb.connect() as con:
        for name, frame in TABLES.items():
            con.register(name, frame)
        yield con


@pytest.mark.parametrize(("sql", "expected"), [*TOLD, *ASKED, *UNKNOWN])
def test_every_column_is_followed_or_marked_unknown_and_the_text_alone_guesses_nothing(con, sql, expected):
    columns = result_of(con, sql).columns
    lineage = column_lineage(sql, COLUMNS, columns)
    true = written(lineage)
    assert list(true) == columns
    assert {name: true[name] for name in expected} == expected
    told = column_lineage(sql, NOT_TOLD)
    from_text = written(told)
    assert all(from_text[name] in ("?", true[name]) for name in from_text)
    assert told.complete == (from_text == true and "?" not in true.values())
    if (sql, expected) in TOLD:
        assert (from_text, told.deciders, told.sources) == (true, lineage.deciders, lineage.sources)


@pytest.mark.parametrize("sql", [sql for sql, _ in [*TOLD, *ASKED]])
@pytest.mark.parametrize("known", [COLUMNS, pytest.param(NOT_TOLD, marks=pytest.mark.full)])
def test_a_column_that_changes_with_a_source_column_is_listed_as_reading_it(con, sql, known):
    """The other way round: change the values of a source column, and see which columns of the result change."""
    before = result_of(con, sql)
    lineage = column_lineage(sql, known, before.columns)
    changed: set[tuple[str, SourceColumn]] = set()
    for name, frame in TABLES.items():
        for column in frame.columns:
            source = SourceColumn(name, column)
            if source in lineage.deciders:
                continue
            con.register(name, frame.with_columns(frame[column].gather([*range(1, frame.height), 0])))
            after = result_of(con, sql)
            con.register(name, frame)
            assert after.height == before.height
            features = [it for it in before.columns if not sorted_rows(after[it]).equals(sorted_rows(before[it]))]
            changed |= {(feature, source) for feature in features}
    assert [(feature, source) for feature, source in changed if not reads(lineage, feature, source)] == []


def sorted_rows(values: pl.Series) -> pl.Series:
    return pl.Series(sorted(map(str, values.to_list())))


def reads(lineage: Lineage, column: str, source: SourceColumn) -> bool:
    entry = lineage.of(column)
    return not entry.known or source in entry.reads


def test_sql_that_the_parser_does_not_know_has_no_lineage_and_says_why():
    lineage = column_lineage("SELECT FROM WHERE ((", NOT_TOLD, ["a"])
    assert (lineage.of("a").known, lineage.complete, lineage.sources) == (False, False, ("orders", "customers"))
    assert "does not understand" in lineage.reason


@pytest.mark.parametrize("sources", [COLUMNS, NOT_TOLD], ids=["columns", "text"])
def test_what_decides_the_rows_is_named_apart_from_what_makes_the_values(sources):
    sql = "SELECT o.id FROM orders o JOIN customers c USING (customer) WHERE c.age > 20 QUALIFY row_number() OVER (ORDER BY o.amount) = 1"
    lineage = column_lineage(sql, sources)
    assert lineage.of("id").reads == (SourceColumn("orders", "id"),)
    assert {f"{entry.source}.{entry.column}" for entry in lineage.deciders} == {
        "customers.age",
        "customers.customer",
        "orders.amount",
        "orders.customer",
    }
    assert lineage.read_of("orders") == ["amount", "customer", "id"]


def test_every_feature_of_the_flights_is_followed_without_asking_for_columns():
    sql = Path(shipped.__file__).with_name("features.sql").read_text()
    lineage = column_lineage(sql, dict.fromkeys(("flights", "weather", "planes"), ()))
    assert lineage.complete
    assert lineage.sources == ("flights", "weather", "planes")
    read = {entry.column: {f"{r.source}.{r.column}" for r in entry.reads} for entry in lineage.columns}
    assert len(read) == 48
    assert read["origin_flights_so_far"] == {"flights.*", "flights.origin", "flights.scheduled_departure"}
    assert read["temp_change"] == {"weather.temp", "weather.time_hour"}
    assert lineage.of("plane_seats").copy_of == SourceColumn("planes", "seats")
    known_only_afterwards = {"flights.dep_time", "flights.arr_time", "flights.air_time"}
    assert not known_only_afterwards & {column for columns in read.values() for column in columns}


def test_the_lines_that_make_a_column_are_those_of_its_expressions():
    sql = """SELECT id,
  total / 2 AS half,
  CASE WHEN late THEN 1
       ELSE other END AS mark
FROM (SELECT id,
  a + b AS total FROM t)"""
    assert lines_of(sql, "half") == [2]
    assert lines_of(sql, "MARK") == [3, 4]
    assert lines_of(sql, "total") == [6]
    assert lines_of(sql, "absent") == lines_of("not SQL (", "half") == []
