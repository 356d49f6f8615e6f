"""Deliveries to databases: what is created and refused there, secrets, and a server or a process that dies."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import format_exception

import polars as pl
import pytest

from batch_platform.declaration.errors import DeliveryError
from batch_platform.declaration.predictions import Delivery
from batch_platform_tests.delivery.conftest import QUOTED, SECRET
from batch_platform_tests.delivery.receivers import KEY, POSTGRESQL, deliver, delivered, execute, target_of
from batch_platform_tests.delivery.rows import NEW, ODD, OLD, holds, shown


def rows(folder: Path) -> list[tuple[object, ...]]:
    return shown(delivered(folder, "PostgreSQL"))


@pytest.mark.usefixtures("postgresql")
def test_the_table_is_created_with_types_comments_and_an_index_in_its_schema(tmp_path):
    execute('CREATE SCHEMA "Sales"')
    target = target_of(
        tmp_path,
        "PostgreSQL",
        sql={"uri": os.environ[POSTGRESQL], "table": "Sales.late risks"},
        columns={"score": "risk", "long": "long"},
    )
    deliver(target, ODD.select("long", "money", risk="number"))
    table = """'"Sales"."late risks"'::regclass"""
    columns = execute(
        "SELECT attname::text, format_type(atttypid, atttypmod), col_description(attrelid, attnum) FROM pg_attribute "
        f"WHERE attrelid = {table} AND attnum > 0 ORDER BY attname"
    )
    assert columns.rows() == [
        ("long", "numeric(20,0)", None),
        ("money", "numeric(10,2)", None),
        ("partition_key", "text", "key of the partition"),
        ("risk", "double precision", "probability of the positive class, or how unusual a row is"),
    ]
    comment = execute(f"SELECT obj_description({table})").item()
    assert comment == "a scored row, with its key, time and kept columns; delivered by small"
    index = execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'late risks'").item()
    assert index.endswith("USING btree (partition_key)")


@pytest.mark.usefixtures("postgresql")
@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("x integer, text text, partition_key text", r"x is integer there and double precision here"),
        ("x double precision, partition_key text", r"text \(text\) is not there"),
        ("x double precision, text text, partition_key date", r"partition_key is date there and text here"),
    ],
)
def test_a_table_with_other_columns_is_refused_in_one_sentence_and_holds_what_it_held(tmp_path, table, problem):
    execute(f"CREATE TABLE late ({table})", "INSERT INTO late (x) VALUES (5)")
    before = rows(tmp_path)
    with pytest.raises(
        DeliveryError, match=rf"the table late in .* has other columns: {problem}\. Hint: change the table"
    ):
        deliver(target_of(tmp_path, "PostgreSQL"), NEW)
    assert rows(tmp_path) == before


@pytest.mark.usefixtures("postgresql")
def test_f52_a_trigger_that_drops_rows_fails_the_delivery_and_the_table_holds_what_it_held(tmp_path):
    target = target_of(tmp_path, "PostgreSQL")
    deliver(target, NEW)
    execute(
        "CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN CASE WHEN NEW.x <> 2 THEN NEW END; END'",
        "CREATE TRIGGER drops BEFORE INSERT ON late FOR EACH ROW EXECUTE FUNCTION drops()",
    )
    with pytest.raises(DeliveryError, match=r"3 rows were sent and 2 arrived, so nothing was changed there\. Hint: "):
        deliver(target, OLD)
    assert rows(tmp_path) == holds(NEW)


@pytest.mark.usefixtures("postgresql")
def test_a_wrong_password_or_server_is_told_without_it(tmp_path, server):
    rules = Path(execute("SELECT current_setting('hba_file')").item())
    rules.write_text(f"host all reader 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    execute("SELECT pg_reload_conf()")
    place = server.address.partition("@")[2]
    for login, reason in ((f"reader:{QUOTED}x", "password authentication failed"), (f"reader:{QUOTED}", "")):
        uri = f"postgresql://{login}@{place if reason else place.replace(place.partition('/')[0], '127.0.0.1:1')}"
        with pytest.raises(DeliveryError, match=rf"cannot be opened: .*{reason}.* Hint: ") as failed:
            deliver(target_of(tmp_path, "PostgreSQL", sql={"uri": uri, "table": "late"}), NEW)
        for secret in (SECRET, QUOTED):
            assert secret not in "".join(format_exception(failed.value))
            assert secret not in repr(failed.value)


@pytest.mark.full
def test_a_server_that_is_killed_in_the_middle_holds_what_it_held_and_gets_the_rows_by_the_next_run(
    tmp_path, postgresql
):
    target = target_of(tmp_path, "PostgreSQL")
    deliver(target, OLD.select("x"))
    with paused(tmp_path) as process:
        postgresql.stop(signal.SIGKILL)
        message, _ = process.communicate()
    assert message.startswith(f"small, partition {KEY}: it is not delivered to 'late': late in postgresql://")
    assert "Hint: check the address" in message
    postgresql.start()
    assert rows(tmp_path) == holds(OLD.select("x"))
    deliver(target, NEW.select("x"))
    assert rows(tmp_path) == holds(NEW.select("x"))


@pytest.mark.full
@pytest.mark.usefixtures("postgresql")
def test_a_delivery_waits_for_an_earlier_one_of_the_partition_that_the_server_has_not_ended(tmp_path):
    deliver(target_of(tmp_path, "PostgreSQL"), OLD.select("x"))
    with paused(tmp_path) as process, ThreadPoolExecutor(1) as pool:
        later = pool.submit(deliver, target_of(tmp_path, "PostgreSQL"), NEW.select("x"))
        while not execute("SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'").height:
            assert not later.done()
        deliver(target_of(tmp_path, "PostgreSQL", "2026-01-02"), NEW.select("x"))  # another partition need not wait
        process.communicate()
        later.result()
    assert rows(tmp_path) == sorted([*holds(NEW.select("x")), *holds(NEW.select("x"), "2026-01-02")], key=str)


def paused(folder: Path) -> "subprocess.Popen[str]":
    """A process that has delivered half of its rows, and goes on once its input ends."""
    command = [sys.executable, "-m", "batch_platform_tests.delivery.receivers", str(folder), "PostgreSQL", "pause"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_the_password_is_no_part_of_the_declaration_that_is_compared():
    first, second = (
        Delivery.model_validate({"sql": {"uri": f"postgresql://u:{password}@h/d", "table": "late"}})
        for password in ("secret-1", "secret-2")
    )
    assert first.digest == second.digest
    assert "secret" not in f"{first!r} {first} {first.to} {first.model_dump_json()}"


@pytest.mark.usefixtures("postgresql")
def test_a_table_of_others_may_have_more_columns_another_order_and_bounded_text(tmp_path):
    execute("CREATE TABLE late (id serial, partition_key varchar(10), text varchar(40), x double precision)")
    deliver(target_of(tmp_path, "PostgreSQL"), OLD)
    assert execute("SELECT id, partition_key, x FROM late ORDER BY id").rows() == [
        (1, KEY, 1.0),
        (2, KEY, 2.0),
        (3, KEY, 3.0),
    ]
    with pytest.raises(DeliveryError, match=r"refuses it: value too long for type character varying\(40\)\. Hint"):
        deliver(target_of(tmp_path, "PostgreSQL"), pl.DataFrame({"x": [1.0], "text": ["x" * 50]}))
    assert execute("SELECT count(*) FROM late").item() == 3


@pytest.mark.usefixtures("postgresql")
def test_columns_of_uuid_and_json_take_text_and_refuse_another(tmp_path):
    execute("CREATE TABLE late (u uuid, b jsonb, j json, partition_key text)")
    target = target_of(tmp_path, "PostgreSQL")
    sent = pl.DataFrame(
        {"u": ["9f1b0a3c-0000-4000-8000-000000000001", None], "b": ['{"a":1}', None], "j": ["[1]", None]}
    )
    for _ in range(2):
        deliver(target, sent)
    assert execute("SELECT u::text, b ->> 'a' AS b, j ->> 0 AS j FROM late ORDER BY 1").rows() == [
        ("9f1b0a3c-0000-4000-8000-000000000001", "1", "1"),
        (None, None, None),
    ]
    with pytest.raises(DeliveryError, match='refuses it: invalid input syntax for type uuid: "x"'):
        deliver(target, sent.with_columns(u=pl.lit("x")))
    assert execute("SELECT count(*) FROM late").item() == 2
