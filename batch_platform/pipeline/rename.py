"""Give a pipeline another name without scoring anything again: its tables, ledgers, features, bundles and declaration.

The order makes a kill harmless. First everything exists under both names; then the declaration changes, at one instant; then
the old name is removed. Whichever name is declared, all of the pipeline is there. The same call again removes what a killed
one left.
"""

import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from batch_platform.declaration.errors import WrongUseError
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import publish
from batch_platform.warehouse.renaming import HeldPipeline, copy_pipeline, drop_pipeline, held_pipelines, recorded_rows
from batch_platform.warehouse.sql import transaction
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES, link_file


def rename_pipeline(home: Home, old: str, new: str, declare: Callable[[], None] | None) -> HeldPipeline | None:
    """Rename a pipeline in a home; returns what was held of it, or None if nothing was.

    Args:
        home: Holds the pipeline.
        old: Its name until now.
        new: Its name from now on.
        declare: Changes the declaration at one instant; None if the new name is declared already.

    Raises:
        WrongUseError: Another pipeline has, or had, the new name; nothing is changed.
        WarehouseBusyError: Another process held the warehouse for too long; nothing is changed.
    """
    with Warehouse(home).open() as con:  # held to the end, so that no run commits under a name that is about to go
        before, after = recorded_rows(con, old), recorded_rows(con, new)
        held = held_pipelines(con).get(old)
        if after - before if declare is not None else after and before - after:
            msg = f"The warehouse holds another pipeline {new!r}, which is not the same as {old!r}."
            raise WrongUseError(msg, hint=f"choose another name, or remove it: batch-platform gc --drop {new}.")
        if declare is not None and after:
            with transaction(con):  # left by a killed call
                drop_pipeline(con, new)
        if before and (declare is not None or not after):
            for folder, copy in _folders(home, old, new):
                _link(folder, copy)
            for table in TABLES_IN_FILES:
                _link_files(home.table_folder(old, table.view), home.table_folder(new, table.view))
            with transaction(con):
                copy_pipeline(con, old, new)
        if declare is not None:
            declare()
        if before:
            with transaction(con):
                drop_pipeline(con, old)
    _remove_folders(home, old)
    if before:
        publish(home)
    return held


def find_orphans(declared: Collection[str], home: Home) -> dict[str, HeldPipeline]:
    """The pipelines in a home that are not declared, by name."""
    with Warehouse(home).open() as con:
        return {name: held for name, held in held_pipelines(con).items() if name not in declared}


def drop_pipelines(home: Home, names: Collection[str]) -> None:
    """Remove pipelines from a home for good: tables, ledgers, features and bundles."""
    if not names:
        return
    with Warehouse(home).transaction() as con:
        for name in names:
            drop_pipeline(con, name)
    for name in names:
        _remove_folders(home, name)
    publish(home)


def _folders(home: Home, old: str, new: str) -> list[tuple[Path, Path]]:
    """The folders of a pipeline that no published copy names, and the same under its new name."""
    return [(home.features(old), home.features(new)), (home.models / old, home.models / new)]


def _remove_folders(home: Home, name: str) -> None:
    """Remove the folders of a pipeline, except files of tables, which go with the last published copy that names them."""
    for folder, _ in _folders(home, name, name):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        home.features(name).parent.rmdir()


def _link_files(folder: Path, copy: Path) -> None:
    """Give the files of a table a second name, as `_link` does; nothing is removed that a published copy may name."""
    if folder.is_dir():
        shutil.copytree(folder, copy, copy_function=link_file, symlinks=True, dirs_exist_ok=True)


def _link(folder: Path, copy: Path) -> None:
    """Make a copy of a folder whose files are the same files; replaces what a killed call left."""
    shutil.rmtree(copy, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, copy, copy_function=os.link, symlinks=True)
