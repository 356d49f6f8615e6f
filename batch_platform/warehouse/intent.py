"""The intent to rename a pipeline: a file of the home by which whoever opens the warehouse next completes a killed rename.

All rows get the new name in one transaction, which also notes a change with the intent's id. Without that change nothing was
renamed; with it, only folders are left that need the new name, and a published copy, with which the intent is fulfilled.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

import duckdb

from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA


@dataclass(frozen=True)
class Renaming:
    """A pipeline that gets another name."""

    old: str
    new: str
    change_id: str = field(default_factory=lambda: uuid4().hex)

    def folders(self, home: Home) -> list[tuple[Path, Path]]:
        """The folders of the pipeline that no published copy names, each with its new place."""
        return [(of(self.old), of(self.new)) for of in (home.features, home.bundles)]

    @classmethod
    def announced(cls, home: Home) -> "Renaming | None":
        """Read the intent of a home, if there is one."""
        return cls(**json.loads(home.renaming.read_text())) if home.renaming.exists() else None

    def announce(self, home: Home) -> None:
        """Write the intent, at one instant."""
        aside = home.renaming.with_name(f".{home.renaming.name}")
        aside.write_text(json.dumps(asdict(self)))
        sync(aside)
        aside.replace(home.renaming)


def complete_renaming(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Move the folders of a pipeline to where its rows are; may be repeated after any kill.

    The folders go back where the warehouse was restored to a state before the rename.
    """
    renaming = Renaming.announced(home)
    if renaming is None:
        return
    query = f"SELECT 1 FROM {LEDGERS_SCHEMA}.changes WHERE change_id = $id"
    is_renamed = bool(con.execute(query, {"id": renaming.change_id}).fetchall())
    for folders in renaming.folders(home):
        folder, target = folders if is_renamed else reversed(folders)
        if folder.is_dir() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    with suppress(OSError):  # files of tables stay until no published copy names them
        home.features(renaming.old).parent.rmdir()
    if not is_renamed:
        home.renaming.unlink()
