"""Columns that predictions hold and the pipeline no longer declares: their values stay readable, and can get a new name.

A key, time or kept column that was renamed in the SQL and the YAML is such a column until `rename_column` makes both one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from batch_platform.declaration.errors import DataError, NothingPublishedError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.spec import ADDED_COLUMNS, PipelineSpec
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.renaming import rename_column
from batch_platform.warehouse.sql import folded, quoted, table_columns
from batch_platform.warehouse.tables_in_files import PREDICTIONS

_SCORES = "score_"  # columns of a model of several classes begin so


@dataclass(frozen=True)
class FormerColumn:
    """A column that is no longer declared, and in how many partitions of predictions it has values."""

    pipeline: str
    name: str
    partitions: int

    def __str__(self) -> str:
        """Say what the column is, and what to do if it was renamed."""
        where = f"{self.partitions:,} partition{'s' if self.partitions > 1 else ''}"
        return (
            f"predictions of {where} hold {self.name}, which is no longer declared; "
            f"if it was renamed: batch-platform rename {self.pipeline} --column {self.name} NEW_NAME"
        )


def former_columns(home: Home, spec: PipelineSpec) -> list[FormerColumn]:
    """The columns with values in the published predictions that the pipeline no longer declares, by name."""
    declared = set(map(folded, [*spec.features.key_and_time, *spec.predictions.keep, *ADDED_COLUMNS]))
    try:
        con = open_published(home)
    except NothingPublishedError:
        return []
    with con:
        stored = [column for column, _ in table_columns(con, spec.name, PREDICTIONS.view)]
        former = sorted(name for name in stored if folded(name) not in declared and not name.startswith(_SCORES))
        if not former:
            return []
        counts = ", ".join(f"count(DISTINCT partition_key) FILTER ({quoted(name)} IS NOT NULL)" for name in former)
        (partitions,) = con.execute(f"SELECT {counts} FROM {quoted(spec.name)}.{PREDICTIONS.view}").fetchall()
    return [FormerColumn(spec.name, name, count) for name, count in zip(former, partitions, strict=True) if count]


def require_key(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, table: str, partition_keys: Sequence[str]) -> None:
    """Refuse rows of partitions that are stored under another key than the declared one, before it was renamed.

    Raises:
        DataError: A column of the key is missing, or holds nothing in these partitions.
    """
    of_table, where = f"{quoted(spec.name)}.{quoted(table)}", "partition_key IN $keys"
    stored = {folded(column) for column in con.table(of_table).columns}  # quicker than the catalog; asked per partition
    missing = [name for name in spec.features.key if folded(name) not in stored]
    if not missing:
        empty = " OR ".join(f"{quoted(name)} IS NULL" for name in spec.features.key)
        where += f" AND ({empty})"
    query = f"SELECT DISTINCT partition_key FROM {of_table} WHERE {where} ORDER BY ALL"
    if keys := [str(key) for (key,) in con.execute(query, {"keys": list(partition_keys)}).fetchall()]:
        msg = f"{spec.name}, partition {listed(keys)}: its rows in {table} are stored under another key than {listed(spec.features.key)}."
        hint = f"if a column was renamed: batch-platform rename {spec.name} --column OLD NEW; else score them again."
        raise DataError(msg, hint=hint)


def rename_stored_column(home: Home, spec: PipelineSpec, old: str, new: str) -> list[str]:
    """Store what predictions hold of a former column under its new name; returns the tables that changed.

    Nothing is scored again for it. All tables change in one transaction.

    Raises:
        WrongUseError: The new name is not declared, the old one still is, or no table holds it; nothing is changed.
        DataError: The columns have different types, or rows hold values under both names; nothing is changed.
        WarehouseBusyError: Another process held the warehouse for too long; nothing is changed.
    """
    declared = list(dict.fromkeys([*spec.features.key_and_time, *spec.predictions.keep]))
    if old in declared or old in ADDED_COLUMNS:
        what = "is still declared" if old in declared else "is made by scoring"
        msg = f"{spec.name}: the column {old!r} {what}; nothing is renamed."
        raise WrongUseError(msg, hint=f"first write {new} for it in the SQL and in the YAML of {spec.name}.")
    if new not in declared:
        msg = f"{spec.name} declares no column {new!r} in features.key, features.time or predictions.keep."
        hint = (
            f"write {new} for {old} in the SQL and in the YAML first; a feature that is not kept needs nothing else than "
            f"features.columns.{new}.formerly: {old}, so that models that were trained before read it."
        )
        raise WrongUseError(msg, hint=did_you_mean(new, declared) or hint)
    if folded(old) == folded(new):
        msg = f"{old!r} and {new!r} differ only by case, as which SQL does not tell names apart."
        raise WrongUseError(msg, hint="the next run writes the new spelling.")
    with Warehouse(home).transaction() as con:
        renamed = rename_column(con, spec.name, old, new)
        if not renamed:
            stored = [column for column, _ in table_columns(con, spec.name, PREDICTIONS.view)]
            msg = f"No table of {spec.name} has a column {old!r}; predictions hold {listed(stored) or 'nothing yet'}."
            raise WrongUseError(msg, hint=did_you_mean(old, stored) or "name the column as it was called before.")
    publish(home)
    return renamed
