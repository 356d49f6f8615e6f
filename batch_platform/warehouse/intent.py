"""The intent to rename a pipeline: a file of the home by which whoever opens the warehouse next completes a killed rename.

All rows get the new name in one transaction, which also notes a change with the intent's id. Without that change nothing was
renamed; with it, only folders are left that need the new name.
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

    def announce(self, home: Home) -> None:
        """Write the intent, at one instant."""
        aside = home.renaming.with_name(f".{home.renaming.name}")
        aside.write_text(json.dumps(asdict(self)))
        sync(aside)
        aside.replace(home.renaming)


def complete_renaming(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Move the folders of a pipeline whose rows have a new name, and forget the intent; may be repeated after any kill."""
    if not home.renaming.exists():
        return
    renaming = Renaming(**json.loads(home.renaming.read_text()))
    query = f"SELECT 1 FROM {LEDGERS_SCHEMA}.changes WHERE change_id = $id"
    if con.execute(query, {"id": renaming.change_id}).fetchall():
        for folder, target in renaming.folders(home):
            if folder.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(target)
        with suppress(OSError):  # files of tables stay until no published copy names them
            home.features(renaming.old).parent.rmdir()
    home.renaming.unlink()
