"""The rows of many partitions by one query, where the SQL proves that it gives what one query for each partition gives.

It does where the SQL is one plain SELECT whose parameters only filter its rows by one time, `time >= $partition_start
AND time < $partition_end`: what it reads is then the same for every partition, each of its rows is made from one row that it
reads, and the time of that row says in which partition it is.
"""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Partition
from batch_platform.features.lake import BATCH_ROWS
from batch_platform.features.query import Query, nodes, parsed
from batch_platform.sources.opening import SourceConnection
from batch_platform.warehouse.sql import in_memory, quoted

WINDOW_BYTES = 64 << 20  # bytes of rows that are read together
_TIME = "__time_of_row"
_COMPARED = {"partition_start": "COMPARE_GREATERTHANOREQUALTO", "partition_end": "COMPARE_LESSTHAN"}
_OF_MANY_ROWS = ("group_expressions", "group_sets", "having", "qualify")  # parts of a SELECT
_INSTANTS = ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")  # types that DuckDB compares with an instant as instants


def rows_within(
    query: Query,
    con: SourceConnection,
    partitions: Sequence[Partition],
    order: Sequence[str],
    most_rows: int | None = None,
) -> list[pa.Table] | None:
    """Read a query's rows for partitions as `Query.run` gives them for each, in the order of some columns.

    With `most_rows` all columns are read, and the rows of so many of the first partitions as have no more: perhaps of none.
    Without it, only the columns of the order. None where nothing proves that one query gives the same, or the partitions are
    not in order of time. Raises what `Query.run` raises.
    """
    select = _with_time(query.text)
    tables = [(con.sources.kind(name), con.table(name, partitions[0])) for name in con.names]
    in_order = all(before.end <= after.start for before, after in pairwise(partitions))
    if select is None or not in_order or any(kind.takes_partition(table) for kind, table in tables):
        return None
    window = Partition(f"{partitions[0].key} to {partitions[-1].key}", partitions[0].start, partitions[-1].end)
    query.require_once(con, partitions[0], order)
    with query.limited(con), query.explained(window):
        rows = con.duckdb.sql(f"FROM ({select})", params=query.bound(window))
        if str(rows.types[-1]) not in _INSTANTS:
            return None
        if most_rows is None or _count(rows) <= most_rows:
            named = ", ".join(map(quoted, order if most_rows is None else rows.columns[:-1]))
            at = f"epoch_us(CAST({_TIME} AS TIMESTAMPTZ)) AS {_TIME}"
            table = rows.select(f"{named}, {at}").order(", ".join(map(quoted, order))).to_arrow_table()
            return _divided(table.drop_columns(_TIME), pl.Series(table[_TIME]).to_numpy(), partitions)
    half = partitions[: len(partitions) // 2]
    return rows_within(query, con, half, order, most_rows) if half else []


def how_many_next(several: int, tables: Sequence[pa.Table]) -> int:
    """The number of partitions to read together after these if the next ones resemble them: half of WINDOW_BYTES.

    At most eight times as many, since they may not.
    """
    return max(1, int(several * min(8, WINDOW_BYTES / 2 / max(1, sum(it.nbytes for it in tables)))))


def how_many_first(most_rows: int) -> int:
    """The number of partitions to read together at first, given the most rows of one: no more rows than a batch, or two partitions."""
    return max(2, BATCH_ROWS // max(1, most_rows))


class RowsAhead:
    """The partitions that will be built, oldest first, and the rows of those that were read together: at most WINDOW_BYTES.

    Rows from before a source changed are read again: a build never records a newer version than that of its rows.
    """

    def __init__(self, partitions: Sequence[Partition]) -> None:
        """Read nothing yet; one partition alone is never ahead."""
        self._partitions = partitions if len(partitions) > 1 else ()
        self._places = {partition.key: place for place, partition in enumerate(self._partitions)}
        self._several, self.most_rows = 2, BATCH_ROWS
        self._rows: dict[str, pa.Table] = {}
        self._read_from: object = None

    def __contains__(self, key: str) -> bool:
        """Return whether a partition is ahead."""
        return key in self._places

    def kept(self, partition: Partition, read_from: object) -> pa.Table | None:
        """The rows of a partition, once, if they were read from the same versions and by the same connection."""
        return self._rows.pop(partition.key, None) if read_from == self._read_from else None

    def next_from(self, partition: Partition) -> Sequence[Partition]:
        """The partitions to read together, from one on."""
        start = self._places[partition.key]
        return self._partitions[start : start + self._several]

    def keep(self, partitions: Sequence[Partition], tables: Sequence[pa.Table], read_from: object) -> pa.Table:
        """Keep the rows of the first partitions of some, as many as were read, and return those of the very first."""
        self._read_from, self._several = read_from, how_many_next(len(tables), tables)
        size, rows = (sum(sizes) for sizes in zip(*((it.nbytes, it.num_rows) for it in tables), strict=True))
        self.most_rows = max(BATCH_ROWS, WINDOW_BYTES * rows // max(1, size))
        self._rows = {partition.key: table for partition, table in zip(partitions, tables, strict=False)}
        return self._rows.pop(partitions[0].key)


def _count(rows: duckdb.DuckDBPyRelation) -> int:
    ((count,),) = rows.aggregate("count(*)").fetchall()
    return int(count)


def _divided(table: pa.Table, times: NDArray[np.int64], partitions: Sequence[Partition]) -> list[pa.Table]:
    """Divide rows by their times, in microseconds since 1970, among partitions; rows between these are in none."""
    bounds = [(partition.start.timestamp(), partition.end.timestamp()) for partition in partitions]
    starts, ends = (np.array([round(bound * 1e6) for bound in side]) for side in zip(*bounds, strict=True))
    at = np.searchsorted(starts, times, side="right") - 1
    at[times >= ends[at]] = len(partitions)
    table = table.take(pl.Series(np.argsort(at, kind="stable")).to_arrow())  # an array of NumPy's would import pandas
    counts = np.bincount(at, minlength=len(partitions) + 1)[:-1]
    return [table.slice(end - rows, rows) for end, rows in zip(np.cumsum(counts), counts, strict=True)]


@lru_cache(maxsize=64)
def _with_time(text: str) -> str | None:
    """A SELECT with the time of each row as a last column; None where the proof fails."""
    tree: Any = parsed(text) or {"statements": [{"node": {}}]}
    node = tree["statements"][0]["node"]
    if node.get("type") != "SELECT_NODE" or node["aggregate_handling"] != "STANDARD_HANDLING":
        return None
    times = [
        part["left"]
        for name, comparison in _COMPARED.items()
        for part in _conjuncts(node["where_clause"])
        if part["type"] == comparison and part["right"].get("identifier") == name
    ]
    parameters = [it for it in nodes(tree) if it.get("class") == "PARAMETER"]
    of_rows = [node["select_list"], node["where_clause"], node["modifiers"]]
    names = {it["column_names"][-1].lower() for it in nodes(times) if it.get("class") == "COLUMN_REF"}
    if (
        len(times) != len(_COMPARED)
        or len(parameters) != len(_COMPARED)
        or times[0] != times[1]
        or any(it.get("class") == "SUBQUERY" for it in nodes(times))
        or any(item["alias"].lower() in names for item in node["select_list"])  # WHERE may name a column of the result
        or any(modifier["type"] != "ORDER_MODIFIER" for modifier in node["modifiers"])
        or any(node[part] for part in _OF_MANY_ROWS)
        or any(it.get("sample") for it in nodes(tree))
        or not all(map(_is_of_one_row, nodes(of_rows, within_subqueries=False)))
    ):
        return None
    with_time = {**node, "select_list": [*node["select_list"], {**times[0], "alias": _TIME}]}
    wanted = {**tree, "statements": [{**tree["statements"][0], "node": with_time}]}
    with in_memory() as con:
        ((select,),) = con.execute("SELECT json_deserialize_sql($tree::JSON)", {"tree": json.dumps(wanted)}).fetchall()
    return select if parsed(select) == wanted else None


def _conjuncts(condition: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if condition is not None and condition["type"] == "CONJUNCTION_AND":
        for child in condition["children"]:
            yield from _conjuncts(child)
    elif condition is not None:
        yield condition


def _is_of_one_row(node: dict[str, Any]) -> bool:
    """Return whether a part of an expression looks at one row only, and gives the same each time."""
    if node.get("class") == "FUNCTION":
        return node["function_name"] in _functions_of_one_row()
    return node.get("class") != "WINDOW"


@lru_cache(maxsize=1)
def _functions_of_one_row() -> frozenset[str]:
    query = (
        "SELECT function_name FROM duckdb_functions() GROUP BY ALL "
        "HAVING bool_and(function_type = 'scalar' AND stability != 'VOLATILE')"
    )
    with in_memory() as con:
        return frozenset(name for (name,) in con.execute(query).fetchall())
