"""Give a pipeline that was declared under another name what it made before, and remove pipelines that nothing declares.

Nothing is scored again. A rename that is killed before its one transaction has changed nothing; one that is killed later is
completed by the next process that opens the warehouse.
"""

from collections.abc import Collection
from contextlib import suppress

import batch_platform.monitoring.catalogue  # noqa: F401  # pyright: ignore[reportUnusedImport] - its measures' tables are renamed too
from batch_platform.declaration.errors import WrongUseError, named
from batch_platform.warehouse.compacting import leave_mark, require_wiped
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import publish, reading_ledgers
from batch_platform.warehouse.renaming import HeldPipeline, drop_pipeline, held_pipelines, rename_rows
from batch_platform.warehouse.tables_in_files import link_file, named_files


def rename_pipeline(home: Home, old: str, new: str) -> HeldPipeline:
    """Rename what a home holds of a pipeline, publish it and say what that is.

    Raises:
        WrongUseError: Nothing is held under the old name, or something under the new one; nothing is changed.
        WarehouseBusyError: Another process held the warehouse for too long; nothing is changed.
    """
    with Warehouse(home).open() as con:
        held = held_pipelines(con)
        named(old, held, f"The warehouse holds nothing of a pipeline {old!r}; it holds")
        folders = [
            folder for folder in (home.features(new), home.bundles(new)) if folder.is_dir() and any(folder.iterdir())
        ]
        if new in held or folders:
            where = "the warehouse" if new in held else folders[0]
            msg = f"Something was made already under the name {new!r}: see {where}; nothing is renamed."
            hint = f"declare another name; or take {new} out of the YAML; batch-platform gc --drop {new} removes it."
            raise WrongUseError(msg, hint=hint)
        # The views of both names look for the files, also those of older published copies.
        for file in named_files(con, home, pipeline=old):
            link = home.table_file(new, *file.parts[-3:])
            link.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file():
                link_file(str(file), str(link))
        rename_rows(con, home, old, new)
    publish(home)
    return held[old]


def find_orphans(declared: Collection[str], home: Home) -> dict[str, HeldPipeline]:
    """The pipelines in a home that are not declared, by name."""
    with reading_ledgers(home) as con:
        return {name: held for name, held in held_pipelines(con).items() if name not in declared}


def drop_pipelines(home: Home, names: Collection[str]) -> None:
    """Remove pipelines from a home for good: features, bundles, tables and ledgers; the same call completes a killed one."""
    if not names:
        return
    with Warehouse(home).transaction() as con:
        leave_mark(home)
        for name in names:
            for folder in (home.features(name), home.bundles(name)):
                home.clear(folder)
            with suppress(OSError):  # files of tables stay until no published copy names them
                home.features(name).parent.rmdir()
            drop_pipeline(con, name)
    publish(home)
    require_wiped(home)
