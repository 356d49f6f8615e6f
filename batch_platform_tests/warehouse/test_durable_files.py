"""The order of writing, flushing and renaming. No kill shows a wrong one, since only a loss of power loses what was not flushed."""

import os
from pathlib import Path

import pytest

from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.files import write_whole
from batch_platform.warehouse.home import Home

pytestmark = pytest.mark.unit


def recorded(monkeypatch, watched: Path) -> list[str]:
    """What is flushed to the disk and renamed from now on, in order, and whether a file is there then."""
    calls, flush, rename = list[str](), os.fsync, os.replace

    def is_there() -> str:
        return f"{watched.name} is {'there' if watched.exists() else 'gone'}"

    def flushed(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append(f"flush {path.name}{'' if path.is_dir() or path.stat().st_size else ', empty'}: {is_there()}")
        flush(descriptor)

    def renamed(old: Path, new: Path) -> None:
        calls.append(f"rename {old.name} to {new.name}: {is_there()}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return calls


def test_a_file_gets_its_name_once_its_content_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "names.json"
    calls = recorded(monkeypatch, path)
    write_whole(path, b"content")
    assert calls == ["flush .names.json: names.json is gone", "rename .names.json to names.json: names.json is gone"]
    assert path.read_bytes() == b"content"


def test_a_checkpoint_begins_once_what_it_may_overwrite_is_on_the_disk_and_so_is_its_name(tmp_path, monkeypatch):
    home = Home(tmp_path / "home").create()
    saved, log = home.warehouse_rollback.name, home.warehouse_log.name
    with Warehouse(home).open() as con:
        con.execute("CREATE TABLE numbers AS FROM range(1000)")
        calls = recorded(monkeypatch, home.warehouse_log)
    assert calls == [
        f"flush .{saved}: {log} is there",
        f"rename .{saved} to {saved}: {log} is there",
        f"flush home: {log} is there",
    ], "a checkpoint removes the log"
    assert not home.warehouse_log.exists()
