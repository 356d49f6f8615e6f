"""Backups of a home: consistent while runs go on, incremental, complete or absent, and restored elsewhere."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from batch_platform.declaration.errors import BatchPlatformError, IntegrityError, WarehouseError, WrongUseError
from batch_platform.operations import archive as archives
from batch_platform.operations.archive import Archive, Backup, place_of
from batch_platform.operations.backup import back_up, read_backup, restore_backup
from batch_platform.warehouse.database import Warehouse, require_not_lost
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published, publish
from batch_platform_tests.harness.command_line import published
from batch_platform_tests.harness.object_store import BUCKET, object_store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
EVERYTHING = "SELECT * FROM small.predictions ORDER BY ALL"


def home_of(project: Path) -> Home:
    return Home(project / ".batch_platform")


def without_home(project: Path, folder: Path) -> Path:
    """The same project elsewhere, where nothing has run."""
    return shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".batch_platform"))


def newest(archive: Archive) -> Backup:
    return archive.backup(archive.names()[-1])


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_backup_that_is_restored_elsewhere_leaves_nothing_to_do(project, cli, tmp_path):
    made = cli(project, "backup", str(tmp_path / "dest"), "--verify", "--json").json
    other = without_home(project, tmp_path / "other")
    restored = cli(other, "restore", str(tmp_path / "dest"), "--json").json
    assert (restored["backup"], restored["canceled_runs"]) == (made["made"]["backup"], 0)
    assert made["read"]["files"] == restored["files"] == made["made"]["files"]
    assert published(other, EVERYTHING) == published(project, EVERYTHING)
    (before,), (status,) = (cli(at, "status", "small", "--verify", "--json").json[:1] for at in (project, other))
    assert {**status, "at": ""} == {**before, "at": ""}
    assert (status["due"], status["only_in_dagster"], status["only_in_ledger"]) == ({}, [], [])
    assert cli(other, "run", "small").out.startswith("small: everything asked for is up to date.")
    assert cli(other, "trace", "small", "id=1450", "--json").code == 0, "no path of the former home is needed"


def test_earlier_backups_are_removed_with_all_that_only_they_need(project, tmp_path):
    home, archive = home_of(project), Archive.at(str(tmp_path / "dest"))
    (home.root / "reports").mkdir(exist_ok=True)
    only_there = home.root / "reports" / "first.html"
    only_there.write_text("of the first backup")
    first = back_up(home, archive, NOW)
    only_there.unlink()
    second = back_up(home, archive, LATER, keep=1)
    assert (second.removed, archive.names()) == ([first.backup], [second.backup])
    assert b"of the first backup" not in files_below(tmp_path / "dest" / "pieces").values()
    backup = newest(archive)
    needed = {piece for file in backup.files.values() for piece in file.pieces}
    assert archive.pieces().keys() == needed
    assert read_backup(archive, backup, made(tmp_path / "aside")).files == second.files


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_f53_a_restore_that_is_killed_after_any_number_of_files_is_completed_and_until_then_nothing_uses_the_home(
    project, cli, tmp_path, monkeypatch
):
    archive = Archive.at(str(tmp_path / "dest"))
    first = back_up(home_of(project), archive, NOW)
    back_up(home_of(project), archive, LATER)
    other = without_home(project, tmp_path / "other")
    home, replace = home_of(other), Path.replace

    def killed_after(files: int) -> None:
        left = iter(range(files))

        def replace_or_die(self: Path, target: Path) -> Path:
            if self.name.endswith(".restored") and next(left, None) is None:
                raise KeyboardInterrupt
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
            with pytest.raises(KeyboardInterrupt):
                restore_backup(archive, archive.backup(first.backup), home)

    for files in (0, 1, 3, first.files // 2, first.files - 1):
        killed_after(files)
        for opens in (Warehouse(home).open().__enter__, lambda: open_published(home), lambda: require_not_lost(home)):
            with pytest.raises(
                WarehouseError, match=r"restored into .* Hint: batch-platform restore DEST completes it"
            ):
                opens()
    refused = cli(other, "health"), cli(other, "run", "small", "--partition", "2024-02-29"), cli(other, "status")
    assert [answer.code for answer in refused] == [1, 1, 1]
    named = cli(other, "restore", str(tmp_path / "dest"), "--backup", archive.names()[-1])
    assert f"holds part of the backup {first.backup}, whose restore was interrupted" in named.error
    assert cli(other, "restore", str(tmp_path / "dest"), "--json").json["backup"] == first.backup, "not the newest"
    assert published(other, EVERYTHING) == published(project, EVERYTHING)
    assert [*home.root.rglob("*.restored"), *home.root.glob(".restoring")] == []


def test_a_place_belongs_to_one_home_and_to_what_is_restored_from_it(project, tmp_path):
    dest = Archive.at(str(tmp_path / "dest"))
    first = back_up(home_of(project), dest, NOW)
    home_of(project).identity.unlink()  # what a home that was made by itself has not
    with pytest.raises(WrongUseError, match="holds backups of another home than") as refused:
        back_up(home_of(project), dest, LATER, keep=1)
    assert refused.value.hint == "name another folder or address: each home needs a place of its own."
    assert dest.names() == [first.backup]
    restored = home_of(without_home(project, tmp_path / "other"))
    restore_backup(dest, newest(dest), restored)
    assert back_up(restored, dest, LATER, keep=1).removed == [first.backup]


def lose(piece: Path) -> None:
    piece.unlink()


def change(piece: Path) -> None:
    content = bytearray(piece.read_bytes())
    content[len(content) // 2] ^= 1
    piece.write_bytes(content)


@pytest.mark.parametrize("damage", [lose, change])
def test_a_damaged_backup_is_noticed_and_the_next_one_writes_lost_pieces_anew(
    project, tmp_path, damage: Callable[[Path], None]
):
    archive = Archive.at(str(tmp_path / "dest"))
    back_up(home_of(project), archive, NOW)
    backup = newest(archive)
    (piece, *_) = backup.files["warehouse.duckdb"].pieces
    damage(tmp_path / "dest" / place_of(piece))
    with pytest.raises(BatchPlatformError, match=piece):
        read_backup(archive, backup, made(tmp_path / "aside"))
    home = Home(tmp_path / "restored")
    with pytest.raises(BatchPlatformError, match=piece):
        restore_backup(archive, backup, home)
    assert not home.warehouse.exists()
    (tmp_path / "dest" / place_of(piece)).unlink(missing_ok=True)
    back_up(home_of(project), archive, LATER)
    assert read_backup(archive, newest(archive), tmp_path / "aside").rows > 0
    restore_backup(archive, backup, home)


def test_a_manifest_that_leads_out_of_the_home_restores_nothing_there(project, tmp_path):
    archive = Archive.at(str(tmp_path / "dest"))
    name = back_up(home_of(project), archive, NOW).backup
    manifest = tmp_path / "dest" / "backups" / f"{name}.json"
    content = json.loads(manifest.read_text())
    content["files"] = {"../outside": next(iter(content["files"].values()))} | content["files"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match=r"'\.\./outside', which would lie outside of the home"):
        restore_backup(archive, newest(archive), Home(tmp_path / "inner" / "restored"))
    assert not (tmp_path / "inner" / "outside").exists()


@pytest.mark.full
def test_a_backup_holds_what_is_committed_and_not_yet_published_and_no_reader_or_writer_waits_for_it(
    project, tmp_path, monkeypatch
):
    home, archive = home_of(project), Archive.at(str(tmp_path / "dest"))
    store, seen = archives.PieceWriter.store, list[int]()
    change = """
        INSERT INTO batch_platform.changes BY NAME
        SELECT max(seq) + 1 AS seq, $id AS change_id, 'small' AS schema_name, 'predictions' AS table_name
        FROM batch_platform.changes
    """

    def during(self: archives.PieceWriter, blocks: Any) -> Any:
        for _ in range(
            3 if len(seen) < 10 else 0
        ):  # as many as there are copies: the one that is read would be written over
            with Warehouse(home, timeout=0.0).transaction() as con:
                con.execute(change, {"id": uuid4().hex})
            publish(home)
        seen.append(len(published(project, EVERYTHING)))
        return store(self, blocks)

    monkeypatch.setattr(archives.PieceWriter, "store", during)
    with Warehouse(home).transaction() as con:
        con.execute("UPDATE batch_platform.meta SET created_at = '2020-01-01'")
    back_up(home, archive, NOW)
    assert set(seen) == {len(published(project, EVERYTHING))}
    restored = Home(tmp_path / "restored")
    restore_backup(archive, newest(archive), restored)
    with Warehouse(restored).open() as con:
        assert con.execute("SELECT year(created_at) FROM batch_platform.meta").fetchall() == [(2020,)]


def test_databases_of_dagster_are_backed_up_with_what_their_logs_hold(project, tmp_path):
    home, archive = home_of(project), Archive.at(str(tmp_path / "dest"))
    with closing(sqlite3.connect(home.dagster / "history" / "runs.db")) as con:
        con.execute("PRAGMA journal_mode=WAL")
        con.execute("PRAGMA wal_autocheckpoint=0")
        con.execute("UPDATE runs SET pipeline_name = 'known'")
        con.commit()
        con.execute("UPDATE runs SET pipeline_name = 'never committed'")
        back_up(home, archive, NOW)
        con.rollback()
    restored = Home(tmp_path / "restored")
    restore_backup(archive, newest(archive), restored)
    with closing(sqlite3.connect(restored.dagster / "history" / "runs.db")) as con:
        assert set(con.execute("SELECT pipeline_name FROM runs")) == {("known",)}


def test_links_are_not_followed_and_what_processes_leave_is_not_backed_up(project, tmp_path):
    home, archive = home_of(project), Archive.at(str(tmp_path / "dest"))
    (tmp_path / "secret").write_text("somebody else's")
    (home.lake / "small" / "link").symlink_to(tmp_path / "secret")
    (home.root / "link").symlink_to(made(tmp_path / "folder"))
    (tmp_path / "folder" / "secret").write_text("somebody else's")
    (home.lake / "small" / "features" / ".unfinished.parquet").write_text("half")
    (home.dagster / "workspace-1.yaml").write_text("an address")
    back_up(home, archive, NOW)
    paths = newest(archive).files
    assert not [
        path for path in paths if "link" in path or "unfinished" in path or "workspace" in path or ".lock" in path
    ]
    assert {path.partition("/")[0] for path in paths} == {"warehouse.duckdb", "identity", "lake", "models", "dagster"}


def test_a_link_in_an_empty_home_leads_no_restored_file_out_of_it(project, tmp_path):
    archive, home = Archive.at(str(tmp_path / "dest")), Home(tmp_path / "restored").create()
    back_up(home_of(project), archive, NOW)
    outside = made(tmp_path / "outside")
    (home.lake / "small").symlink_to(outside)
    with pytest.raises(IntegrityError, match="would lie outside of the home"):
        restore_backup(archive, newest(archive), home)
    assert files_below(outside) == {}


@pytest.mark.full
def test_a_store_of_objects_holds_backups_as_a_folder_does(project, cli, tmp_path, monkeypatch):
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        address = f"s3://{BUCKET}/backups of scores"
        first = cli(project, "backup", address, "--verify", "--json").json
        assert first["read"]["size"] == first["made"]["size"]
        other = without_home(project, tmp_path / "other")
        assert cli(other, "restore", address).code == 0
        assert published(other, EVERYTHING) == published(project, EVERYTHING)
        again = back_up(home_of(project), Archive.at(address), datetime.now(UTC) + timedelta(seconds=5), keep=1)
        assert (again.written, again.removed) == (0, [first["made"]["backup"]])
        missing = cli(project, "backup", "s3://nowhere/backups")
        assert missing.error.startswith("s3://nowhere/backups cannot be used (The specified bucket does not exist")
        store.kill()
        dead = cli(project, "backup", address)
        assert dead.error.startswith(f"{address} cannot be used (")
        assert "the network, and the credentials in the environment, the profile or the role." in dead.error


@pytest.mark.parametrize("half", ["", "2026"])
def test_f53_a_home_whose_mark_of_a_restore_is_half_written_is_refused_and_restored(project, tmp_path, half):
    archive, home = Archive.at(str(tmp_path / "dest")), Home(tmp_path / "restored").create()
    back_up(home_of(project), archive, NOW)
    home.restoring.write_text(half)
    with pytest.raises(WarehouseError, match="A backup is being restored"), Warehouse(home).open():
        pass
    restore_backup(archive, newest(archive), home)
    assert not home.restoring.exists()
