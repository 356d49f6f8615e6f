"""The warehouse and its published copy, read as a whole."""

import duckdb
import pytest

from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.deletion import leave_mark
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import publish
from batch_platform.warehouse.recovery import cut_short, verify
from batch_platform_tests.warehouse.commits import KEYS, write


@pytest.fixture
def home(tmp_path) -> Home:
    home = Home(tmp_path / "home").create()
    write(home, tmp_path, KEYS[0], "one")
    return home


def test_both_hold_the_same_or_the_copy_is_older_or_there_is_none(home, tmp_path):
    reading = verify(home)
    assert (reading.copy, reading.is_newest, reading.differing) == (None, False, ())
    copy = publish(home)
    reading = verify(home)
    assert (reading.copy, reading.is_newest, reading.differing) == (copy, True, ())
    with duckdb.connect(str(copy), read_only=True) as con:
        ((tables,),) = con.execute("SELECT count(*) FROM duckdb_tables()").fetchall()
        counts = [row[0] for row in con.execute("SELECT estimated_size FROM duckdb_tables()").fetchall()]
    assert (reading.tables, reading.rows) == (tables, sum(counts))
    with duckdb.connect(str(copy)) as con:
        con.execute("UPDATE small.predictions SET run_id = 'other'")
    assert verify(home).differing == ("small.predictions",)
    write(home, tmp_path, KEYS[0], "two")
    reading = verify(home)
    assert (reading.copy, reading.is_newest, reading.differing) == (copy, False, ())


def test_a_copy_that_is_missing_or_rubbish_is_named(home):
    copy = publish(home)
    copy.chmod(0o644)
    copy.write_bytes(b"rubbish" * 10_000)
    with pytest.raises(
        WarehouseError, match=rf"The published copy {copy} (is damaged|cannot be read).*Hint: remove {copy}"
    ):
        verify(home)
    copy.unlink()
    with pytest.raises(WarehouseError, match=rf"The published copy {copy} cannot be read"):
        verify(home)


def test_f38_a_command_of_several_steps_that_was_cut_short_is_named_until_a_publication_completes_it(home):
    assert cut_short(home) == []
    with Warehouse(home).transaction():
        leave_mark(home)
    assert cut_short(home) == ["The removal of deleted rows from every file"]
    publish(home)
    assert cut_short(home) == []
