"""Users' own tables, written through a connection: a change and its record in the journal are one transaction."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from batch_platform.components import resources
from batch_platform.components.resources import WarehouseResource
from batch_platform.declaration.errors import WarehouseBusyError, WrongUseError
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.user_tables import TableName, open_table, stored_partitions, user_transaction
from batch_platform_tests.warehouse.commits import KEYS, commit, held, shown, staged


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home in which pipeline `small` has predictions, published twice so that the next copies are brought up to date."""
    home = Home(tmp_path / "home").create()
    warehouse = Warehouse(home)
    warehouse.record_features([FeatureBuild("small", KEYS[0], 2, "s", 1, "c", "{}", datetime.now(UTC), "run")])
    for key in KEYS[:2]:
        commit(warehouse, staged(tmp_path, key))
        publish(home)
    return home


def write(home: Home, *statements: str) -> None:
    with user_transaction(Warehouse(home)) as con:
        for statement in statements:
            con.execute(statement)


CREATED = "CREATE SCHEMA reports", "CREATE TABLE reports.totals AS SELECT i AS n, 'x' AS counted FROM range(3) AS t (i)"


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ("INSERT INTO reports.totals VALUES (3, 'y')", [(0, "x"), (1, "x"), (2, "x"), (3, "y")]),
        ("UPDATE reports.totals SET n = 7 WHERE n = 2", [(0, "x"), (1, "x"), (7, "x")]),
        ("DELETE FROM reports.totals WHERE n > 0", [(0, "x")]),
        ("CREATE OR REPLACE TABLE reports.totals AS SELECT 5 AS n, 'z' AS counted", [(5, "z")]),
        ("ALTER TABLE reports.totals ADD COLUMN more INTEGER", [(0, "x", None), (1, "x", None), (2, "x", None)]),
    ],
    ids=["insert", "update", "delete", "replace", "alter"],
)
def test_whatever_a_user_changes_in_a_table_is_readable_after_the_next_publish(home, tmp_path, change, rows):
    write(home, *CREATED)
    publish(home)
    commit(Warehouse(home), staged(tmp_path, KEYS[2]))
    publish(home)
    write(home, change)
    publish(home)
    assert sorted(open_table(home, TableName("reports", "totals")).fetchall()) == rows
    assert shown(home.published) == held(Warehouse(home))


def test_a_table_with_a_partition_key_is_read_by_partition_also_when_written_through_a_connection(home):
    write(home, "CREATE SCHEMA reports", "CREATE TABLE reports.days (partition_key VARCHAR, n INTEGER)")
    write(home, "INSERT INTO reports.days VALUES ('a', 1), ('b', 2), (NULL, 3)")
    publish(home)
    name = TableName("reports", "days")
    assert stored_partitions(home, name) == {"a", "b"}
    assert open_table(home, name, partitions=["b"]).fetchall() == [("b", 2)]
    assert shown(home.published) == held(Warehouse(home))


def test_a_table_that_a_user_drops_is_gone_after_the_next_publish(home):
    write(home, *CREATED)
    publish(home)
    write(home, "DROP TABLE reports.totals")
    publish(home)
    assert "reports.totals" not in shown(home.published)
    assert shown(home.published) == held(Warehouse(home))


def test_a_transaction_that_only_reads_is_not_journaled(home):
    write(home, *CREATED)
    before = held(Warehouse(home))
    published = publish(home)
    write(home, "FROM reports.totals", "FROM small.predictions")
    assert held(Warehouse(home)) == before
    assert publish(home) == published


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("DELETE FROM small.predictions", "small.predictions"),
        pytest.param("DROP TABLE small.rejected_rows", "small.rejected_rows", marks=pytest.mark.full),
        pytest.param(
            "ALTER TABLE small.predictions ADD COLUMN mine INTEGER", "small.predictions", marks=pytest.mark.full
        ),
        ("DELETE FROM batch_platform.score_runs", "batch_platform.score_runs"),
    ],
)
def test_a_change_of_a_table_of_the_project_is_refused_and_the_whole_transaction_undone(home, statement, table):
    before = held(Warehouse(home))
    with pytest.raises(WrongUseError, match=rf"{table}: only the project writes its own tables; nothing is changed"):
        write(home, *CREATED, statement)
    assert held(Warehouse(home)) == before


def test_an_error_undoes_what_a_user_wrote(home):
    before = held(Warehouse(home))
    with pytest.raises(duckdb.CatalogException):
        write(home, *CREATED, "FROM reports.missing")
    assert held(Warehouse(home)) == before


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT", "ROLLBACK"])
def test_a_transaction_begun_or_ended_by_hand_is_refused_with_the_reason(home, statement):
    with pytest.raises(WrongUseError, match=r"is one transaction, .* Hint: leave out BEGIN, COMMIT and ROLLBACK"):
        write(home, *CREATED, statement)
    publish(home)
    assert shown(home.published) == held(Warehouse(home))


def test_the_resource_publishes_what_is_written_and_warns_of_a_connection_held_for_long(home, monkeypatch, caplog):
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    warehouse = WarehouseResource()
    with caplog.at_level(logging.WARNING), warehouse.get_connection() as con:
        con.execute(CREATED[0])
    assert not caplog.messages
    monkeypatch.setattr(resources, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(logging.getLogger("dagster"), "propagate", True)
    with caplog.at_level(logging.WARNING), warehouse.get_connection() as con:
        con.execute(CREATED[1])
        with pytest.raises(WarehouseBusyError), Warehouse(home, timeout=0.01).open():
            pass
    assert "during which no run could commit" in caplog.text
    with warehouse.published() as con:
        assert con.execute("SELECT count(*) FROM reports.totals").fetchall() == [(3,)]
    with open_published(home) as con:
        assert con.execute("SELECT count(*) FROM reports.totals").fetchall() == [(3,)]
