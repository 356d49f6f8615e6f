"""The key under which stored rows can be found: another one after a column of the key was renamed."""

from collections.abc import Sequence

import duckdb

from batch_platform.declaration.errors import DataError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.warehouse.sql import folded, quoted


def require_key(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, table: str, partition_keys: Sequence[str]) -> None:
    """Refuse rows of partitions that are stored under another key than the declared one.

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
        hint = f"score them again: batch-platform run {spec.name} --from {keys[0]} --to {keys[-1]}"
        raise DataError(msg, hint=hint)
