"""A checkpoint that is killed anywhere leaves what was committed, whatever part of its writing was done."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_platform.declaration.errors import WarehouseError
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform_tests.faults.invariants import SCORED, held, prepared
from batch_platform_tests.faults.storage import committed_to_the_log, held_or_refused

KEY, PAGE, HEADERS = SCORED[4], 4096, 3 * 4096


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Pipeline:
    """Killed right before a checkpoint, when all that it may write over is saved."""
    pipeline = prepared(tmp_path_factory.mktemp("checkpoint") / "project")
    committed_to_the_log(pipeline, KEY)
    assert pipeline.home.warehouse_rollback.exists()
    return pipeline


@pytest.fixture(scope="module")
def completed(killed, tmp_path_factory) -> Home:
    """The same, opened again: the checkpoint came to its end."""
    home = copied(killed, tmp_path_factory.mktemp("completed")).home
    with Warehouse(home).open():
        pass
    assert not home.warehouse_log.exists()
    assert not home.warehouse_rollback.exists()
    return home


def copied(pipeline: Pipeline, folder: Path) -> Pipeline:
    """The warehouse of a pipeline in a home of its own, as it is."""
    home = Home(folder / "home").create()
    for name in ("warehouse", "warehouse_log", "warehouse_rollback"):
        shutil.copy(getattr(pipeline.home, name), getattr(home, name))
    return Pipeline(pipeline.spec, pipeline.folder, home)


def changed(old: bytes, new: bytes) -> list[int]:
    """Where the pages behind the headers begin that a checkpoint wrote."""
    places = range(HEADERS, len(new), PAGE)
    return [place for place in places if old[place : place + PAGE] != new[place : place + PAGE]]


def half_written(killed: Pipeline, completed: Home) -> Iterator[bytes]:
    """The file as a kill may leave it: of a block that the checkpoint writes over, one page is new; every third of these files."""
    old, new = killed.home.warehouse.read_bytes(), completed.warehouse.read_bytes()
    for place in changed(old, new[: len(old)])[::3]:
        yield old[:place] + new[place : place + PAGE] + old[place + PAGE :]


def test_a_half_written_block_is_restored_and_the_commit_remains(killed, completed, tmp_path):
    expected = held(Pipeline(killed.spec, killed.folder, completed))
    damaged = []
    for number, torn in enumerate(half_written(killed, completed)):
        safe, unsafe = (copied(killed, tmp_path / f"{number}-{name}") for name in ("safe", "unsafe"))
        for pipeline in (safe, unsafe):
            pipeline.home.warehouse.write_bytes(torn)
        unsafe.home.warehouse_rollback.unlink()
        state = held_or_refused(unsafe)
        assert state == expected or "is damaged" in str(state)
        damaged += [state] if state != expected else []
        assert held(safe) == expected
        assert not safe.home.warehouse_rollback.exists()
    assert damaged, "without what was saved such a file cannot be read"


def test_nothing_that_a_checkpoint_writes_before_its_header_is_needed(killed, completed, tmp_path):
    pipeline = copied(killed, tmp_path)
    old, new = killed.home.warehouse.read_bytes(), completed.warehouse.read_bytes()
    rubbish = bytearray(old.ljust(len(new), b"\0"))
    for place in changed(old, new):
        rubbish[place : place + PAGE] = os.urandom(PAGE)
    pipeline.home.warehouse.write_bytes(rubbish)
    assert held(pipeline) == held(Pipeline(killed.spec, killed.folder, completed))


def test_a_completed_checkpoint_is_not_undone(killed, completed, tmp_path):
    pipeline = copied(killed, tmp_path)
    shutil.copy(completed.warehouse, pipeline.home.warehouse)
    pipeline.home.warehouse_log.unlink()
    assert held(pipeline) == held(Pipeline(killed.spec, killed.folder, completed))
    assert pipeline.home.warehouse.read_bytes() == completed.warehouse.read_bytes()
    assert not pipeline.home.warehouse_rollback.exists()


@pytest.mark.parametrize("spot", [3, 70, -1], ids=["in the digest", "in the places", "in a block"])
def test_a_damaged_rollback_journal_is_refused_and_kept(killed, tmp_path, spot):
    pipeline = copied(killed, tmp_path)
    saved = pipeline.home.warehouse_rollback
    damaged = bytearray(saved.read_bytes())
    damaged[spot] ^= 1
    saved.write_bytes(damaged)
    with (
        pytest.raises(WarehouseError, match=r"is damaged: .*Hint: nothing was changed"),
        Warehouse(pipeline.home).open(),
    ):
        pass
    assert saved.read_bytes() == damaged
    assert pipeline.home.warehouse.read_bytes() == killed.home.warehouse.read_bytes()
