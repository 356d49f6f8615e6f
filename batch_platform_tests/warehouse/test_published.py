"""The readers' copy: complete at every moment, equal to the warehouse, never in anybody's way."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batch_platform.declaration.errors import NothingPublishedError, WarehouseError
from batch_platform.warehouse import published
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.deletion import leave_mark
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import MUCH_ROWS, SMALL_BYTES, open_published, publish
from batch_platform_tests.harness.nursery import Nursery
from batch_platform_tests.harness.tiers import examples
from batch_platform_tests.warehouse.commits import KEYS, held, shown, write


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def no_small_warehouse(monkeypatch) -> None:
    """A copy is brought up to date by what changed, however small the warehouse is."""
    monkeypatch.setattr(published, "SMALL_BYTES", 0)


def enlarge(home: Home) -> None:
    """Make the warehouse too large for its bytes to be copied with every publish."""
    with Warehouse(home).open() as con:
        con.execute(f"CREATE TABLE incompressible AS SELECT random() AS number FROM range({SMALL_BYTES // 4})")
    assert home.warehouse.stat().st_size > SMALL_BYTES


def test_a_publication_that_waited_for_another_one_finds_its_deleted_rows_removed(home, tmp_path, monkeypatch, caplog):
    write(home, tmp_path, KEYS[0], "one")
    leave_mark(home)
    waits, remove, copies = threading.Event(), published._wiped, list[Path]()

    def waiting(home: Home) -> Path | None:
        waits.set()
        return remove(home)

    monkeypatch.setattr(published, "_wiped", waiting)
    second = threading.Thread(target=lambda: copies.append(publish(home)))
    with Warehouse(home).open():
        second.start()
        assert waits.wait(60)
        home.wiping.unlink()  # as the publication does that holds the warehouse
    second.join()
    assert copies == [published.current_copy(home)]
    assert not caplog.records


def test_an_empty_warehouse_can_be_published(home):
    with pytest.raises(NothingPublishedError, match=r"Nothing is published in .*Hint: run a pipeline first"):
        open_published(home)
    publish(home)
    assert shown(home.published) == held(Warehouse(home))


def test_the_bytes_of_a_small_warehouse_are_copied_and_two_copies_remain(home, tmp_path):
    for n in range(4):
        write(home, tmp_path, KEYS[n % 3], f"r{n}")
        copied = publish(home)
        assert copied.read_bytes() == home.warehouse.read_bytes()
        state = copied.stat().st_ino, copied.stat().st_mtime_ns
        assert publish(home) == copied, "what is published already is not copied again"
        assert (copied.stat().st_ino, copied.stat().st_mtime_ns) == state
    assert len(list(home.root.glob("published-*"))) == 2


@pytest.mark.usefixtures("no_small_warehouse")
def test_two_copies_are_used_in_turn_and_bytes_are_copied_if_most_rows_changed(home, tmp_path):
    many = list(range(MUCH_ROWS + 1))
    write(home, tmp_path, KEYS[0], "r0")
    first = publish(home).stat().st_ino
    write(home, tmp_path, KEYS[0], "r1")
    second = publish(home).stat().st_ino
    write(home, tmp_path, KEYS[1], "many", id=many)
    copied = publish(home)
    assert copied.stat().st_ino not in (first, second)
    assert copied.stat().st_size == home.warehouse.stat().st_size
    assert shown(copied) == held(Warehouse(home))
    for run_id in ("r2", "r3", "r4"):
        write(home, tmp_path, KEYS[0], run_id)
        publish(home)
        assert shown(home.published) == held(Warehouse(home))
    assert len(list(home.root.glob("published-*"))) == 2
    assert not list(home.root.glob(".published-*"))


def test_a_copy_that_two_publishes_remove_between_resolving_the_link_and_connecting_is_not_missed(
    home, tmp_path, monkeypatch
):
    write(home, tmp_path, KEYS[0], "r0")
    resolved = publish(home)
    connect, publishes = duckdb.connect, iter(["r1", "r2"])

    def connect_late(database: str, **options) -> duckdb.DuckDBPyConnection:
        if database == str(resolved):
            for run_id in publishes:
                write(home, tmp_path, KEYS[0], run_id)
                publish(home)
            assert not resolved.exists()
        return connect(database, **options)

    monkeypatch.setattr(duckdb, "connect", connect_late)
    with open_published(home) as con:
        assert con.execute("SELECT DISTINCT run_id FROM small.predictions").fetchall() == [("r2",)]
        assert con.execute("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]


@pytest.mark.parametrize("damage", [Path.unlink, lambda copy: copy.write_bytes(b"half a file")])
def test_a_published_copy_that_cannot_be_opened_is_named_and_the_hint_restores_it(home, tmp_path, damage):
    write(home, tmp_path, KEYS[0], "r0")
    copy = publish(home)
    damage(copy)
    with pytest.raises(WarehouseError, match=rf"{copy} cannot be opened.*Hint: remove {copy} if it is there, and run"):
        open_published(home)
    copy.unlink(missing_ok=True)
    publish(home)
    with open_published(home) as con:
        assert con.execute("SELECT DISTINCT run_id FROM small.predictions").fetchall() == [("r0",)]


CHANGE = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(KEYS), st.integers(0, 3)),
    st.tuples(st.just("column"), st.sampled_from(KEYS), st.sampled_from(["a", "b"])),
    st.tuples(st.just("publish"), st.just(""), st.just(0)),
)


@examples(12)
@given(st.lists(CHANGE, max_size=8))
@example([("write", KEYS[0], 1), ("column", KEYS[0], "a"), ("write", KEYS[0], 0)])
def test_an_incremental_copy_equals_a_full_one_after_any_changes(changes):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "SMALL_BYTES", 0)
        home, folder = Home(Path(name) / "home").create(), Path(name)
        for n, (what, key, detail) in enumerate(changes):
            if what == "publish":
                publish(home)
            elif what == "write":
                write(home, folder, key, f"r{n}", id=list(range(detail)), n=[n] * detail)
            else:
                write(home, folder, key, f"r{n}", id=[n], **{detail: [n]})
        publish(home)
        assert shown(home.published) == held(Warehouse(home))


def test_a_backup_of_the_warehouse_is_published_only_after_the_newer_copies_and_their_marks_were_moved_away(
    home, tmp_path
):
    write(home, tmp_path, KEYS[0], "r0")
    backup = tmp_path / "backup.duckdb"
    shutil.copy(home.warehouse, backup)
    for run_id in ("lost1", "lost2"):
        write(home, tmp_path, KEYS[1], run_id)
        publish(home)
    shutil.copy(backup, home.warehouse)
    copies = set(home.root.glob("published-*.duckdb"))
    with pytest.raises(WarehouseError, match=rf"is an older one.*{home.published.resolve().name}; nothing was changed"):
        publish(home)
    assert set(home.root.glob("published-*.duckdb")) == copies
    for copy in copies:
        copy.rename(tmp_path / copy.name)
    with pytest.raises(WarehouseError, match=r"is an older one.*To go on with it, remove \S+/published\.json\."):
        publish(home)
    home.published_marks.unlink()
    publish(home)
    assert shown(home.published) == held(Warehouse(home))


@pytest.mark.parametrize("at", [0, 4104, 8300, 12288])  # bytes of each block, at the places within it
def test_a_damaged_copy_does_not_prevent_publishing(home, tmp_path, at):
    for n in range(3):
        write(home, tmp_path, KEYS[n % 2], f"r{n}", id=list(range(2_000)))
        publish(home)
    (spare,) = set(home.root.glob("published-*.duckdb")) - {home.published.resolve()}
    data = bytearray(spare.read_bytes())
    data[at] ^= 1
    spare.write_bytes(data)
    for n in range(3):
        write(home, tmp_path, KEYS[n % 2], f"again{n}")
        publish(home)
        assert shown(home.published) == held(Warehouse(home))


READ_AS_THE_GROUP = """
import os, sys
from pathlib import Path
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published
root, group = Path(sys.argv[1]), int(sys.argv[2])
open_published(Home(root)).close()  # everything is imported, which another user may not do where the interpreter lies
if not os.geteuid():
    os.setgroups([group])
    os.setgid(65534)
    os.setuid(65534)
with open_published(Home(root)) as con:
    print(con.execute("SELECT run_id, count(*) FROM small.predictions GROUP BY ALL").fetchall())
print(os.access(root, os.W_OK) or os.access(Home(root).published, os.W_OK))
"""


def test_another_user_of_the_group_reads_what_is_published_and_may_write_nothing_and_anybody_else_is_told_why(tmp_path):
    """The rights that the guide gives to a group; who is not root has no other user to be."""
    group = 54321 if os.geteuid() == 0 else os.getegid()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the tests' own folder is closed to others
        Path(folder).chmod(0o755)
        home, former = Home(Path(folder) / "home").create(), os.umask(0o027)
        try:
            os.chown(home.root, -1, group)
            home.root.chmod(0o2750)
            for run_id in ("first", "second"):
                write(home, tmp_path, KEYS[0], run_id)
                publish(home)
        finally:
            os.umask(former)
        command = [sys.executable, "-c", READ_AS_THE_GROUP, str(home.root), str(group)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        home.root.chmod(0o2750 if os.geteuid() == 0 else 0)
        refused = subprocess.run([*command[:-1], str(group + 1)], capture_output=True, text=True, check=False).stderr
        home.root.chmod(0o2750)
    assert f"The home {home.root} cannot be read by this user (Permission denied). Hint: join the group" in refused
    assert answer == f"[('second', 2)]\n{os.geteuid() != 0}\n"


@pytest.mark.full
@pytest.mark.parametrize("step", ["^INSERT", "^rename published-"])
def test_a_copy_that_a_killed_publish_was_writing_is_not_blamed_on_another_program(home, tmp_path, caplog, step):
    enlarge(home)
    for number in range(2):
        write(home, tmp_path, KEYS[0], f"r{number}")
        publish(home)
    write(home, tmp_path, KEYS[0], "r2")
    with Nursery() as nursery:
        child = nursery.fork("publish", root=str(home.root), die_at=step)
        assert child.bury() == -signal.SIGKILL
    publish(home)
    assert not caplog.records
    assert shown(home.published) == held(Warehouse(home))


def test_nothing_is_written_through_a_link_in_the_place_of_a_copy(home, tmp_path, caplog):
    for number in range(2):
        write(home, tmp_path, KEYS[0], f"r{number}")
        publish(home)
    for copy in home.root.glob("published-*.duckdb"):
        copy.rename(tmp_path / copy.name)
        copy.symlink_to(tmp_path / copy.name)
    moved = {path: path.read_bytes() for path in tmp_path.glob("published-*.duckdb")}
    write(home, tmp_path, KEYS[0], "r2")
    publish(home)
    assert "was changed by another program" in caplog.text
    assert {path: path.read_bytes() for path in moved} == moved
    assert not any(path.is_symlink() for path in home.root.glob("published-*.duckdb"))
    assert shown(home.published) == held(Warehouse(home))


@pytest.mark.parametrize(
    "replace", [shutil.copy, lambda copy, link: link.symlink_to(copy)], ids=["a file", "a link elsewhere"]
)
def test_the_link_that_was_replaced_is_refused_and_made_anew_with_a_warning(home, tmp_path, caplog, replace):
    write(home, tmp_path, KEYS[0], "one")
    copy = publish(home)
    foreign = shutil.copy(copy, tmp_path / "foreign.duckdb")
    home.published.unlink()
    replace(foreign, home.published)
    with pytest.raises(WarehouseError, match=r"is missing, or leads elsewhere.*Hint: batch-platform run NAME"):
        open_published(home)
    assert publish(home) == copy
    assert "is no longer the link that was published; it is made anew" in caplog.text
    open_published(home).close()


def written_into(home: Home) -> None:
    """Delete rows through the link, as a program does that opens it as DuckDB opens files by default."""
    with duckdb.connect(str(home.published)) as con:
        con.execute("DELETE FROM small.predictions")


def left_with_a_log(home: Home) -> None:
    """The same by a program that is killed before it writes the file itself."""
    script = f"import duckdb, os; c = duckdb.connect({str(home.published)!r}); c.execute('DELETE FROM small.predictions'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert Path(f"{home.published.resolve()}.wal").exists()


@pytest.mark.parametrize(("change", "is_newest"), [(written_into, True), (left_with_a_log, False)])
def test_what_another_program_writes_into_a_copy_is_noticed_and_made_anew(home, tmp_path, caplog, change, is_newest):
    write(home, tmp_path, KEYS[0], "one")
    publish(home)
    write(home, tmp_path, KEYS[1], "two")
    copy = publish(home)
    change(home)
    if not is_newest:
        write(home, tmp_path, KEYS[0], "three")
    publish(home)
    assert f"{copy} was changed by another program at " in caplog.text
    assert "Hint: open it with read_only=True" in caplog.text
    assert shown(home.published) == held(Warehouse(home))
    caplog.clear()
    write(home, tmp_path, KEYS[0], "four")
    publish(home)
    assert not caplog.records
    assert shown(home.published) == held(Warehouse(home))


def test_a_copy_may_not_be_written_and_a_home_that_was_copied_publishes_without_a_word(home, tmp_path, caplog):
    write(home, tmp_path, KEYS[0], "one")
    assert publish(home).stat().st_mode & 0o222 == 0
    write(home, tmp_path, KEYS[0], "two")
    publish(home)
    elsewhere = Home(shutil.copytree(home.root, tmp_path / "elsewhere", symlinks=True, copy_function=shutil.copyfile))
    write(elsewhere, tmp_path, KEYS[1], "three")
    publish(elsewhere)
    assert not caplog.records
    assert shown(elsewhere.published) == held(Warehouse(elsewhere))
