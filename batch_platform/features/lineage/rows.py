"""The rows of a source that a query can read for a partition, found in its text: by which time, and how far back."""

from collections.abc import Iterator
from functools import lru_cache

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from batch_platform.features.lineage.columns import DUCKDB, OWN_SCHEMAS
from batch_platform.features.lineage.records import RowsRead

_START, _END = "partition_start", "partition_end"


@lru_cache(maxsize=256)
def rows_read(sql: str, source: str, dialect: str = DUCKDB) -> RowsRead:
    """The rows of a source that one SELECT can read, by a time in DuckDB's dialect; all that is not certain may matter."""
    try:
        tree = sqlglot.parse_one(sql, dialect=dialect)
    except (SqlglotError, RecursionError):
        return RowsRead()
    tables = [
        table
        for table in tree.find_all(exp.Table)
        if table.name.lower() == source.lower() and table.db.lower() in OWN_SCHEMAS
    ]
    times: dict[str, None] = {}
    inside = bool(tables)
    for table in tables:
        within = [time for select in _around(table) for time in _times(select, table)]
        starts = {time for time, starts in _times(table.find_ancestor(exp.Select), table) if starts}
        times |= dict.fromkeys(time for time, _ in sorted(within, key=lambda found: not found[1]))
        inside = inside and bool(starts)
    return RowsRead(next(iter(times), None), looks_back=not inside or len(times) > 1, names=_names(tree, tables))


def _around(table: exp.Table) -> Iterator[exp.Select]:
    """The SELECT that names a table, and those around it."""
    select = table.find_ancestor(exp.Select)
    while select is not None:
        yield select
        select = select.find_ancestor(exp.Select)


def _times(select: exp.Expr | None, table: exp.Table) -> Iterator[tuple[str, bool]]:
    """The expressions that a WHERE compares with the bounds of the partition, and whether nothing before it is let through."""
    where = select.args.get("where") if select is not None else None
    for term in _conjuncts(where.this) if where is not None else ():
        if isinstance(term, exp.Between):
            low, high = term.args["low"], term.args["high"]
            time, bound, least = (term.this, low, True) if _speaks_of_bounds(low) else (term.this, high, False)
        elif isinstance(term, exp.GTE | exp.GT | exp.LTE | exp.LT):
            least = isinstance(term, exp.GTE | exp.GT)
            time, bound = term.this, term.expression
            if _speaks_of_bounds(time):
                time, bound, least = bound, time, not least
        else:
            continue
        columns = list(time.find_all(exp.Column))
        if not columns or not _speaks_of_bounds(bound) or _speaks_of_bounds(time) or time.find(exp.Query):
            continue
        if all(column.table.lower() in ("", table.alias_or_name.lower()) for column in columns):
            yield _unqualified(time), least and isinstance(bound.unnest(), exp.Placeholder) and bound.name == _START


def _conjuncts(condition: exp.Expr) -> Iterator[exp.Expr]:
    condition = condition.unnest()
    if isinstance(condition, exp.And):
        for side in (condition.left, condition.right):
            yield from _conjuncts(side)
    else:
        yield condition


def _speaks_of_bounds(expression: exp.Expr) -> bool:
    return any(placeholder.name in (_START, _END) for placeholder in expression.find_all(exp.Placeholder))


def _unqualified(expression: exp.Expr) -> str:
    copied = expression.copy()
    for column in copied.find_all(exp.Column):
        column.set("table", None)
    return copied.sql(dialect=DUCKDB)


def _names(tree: exp.Expr, tables: list[exp.Table]) -> frozenset[str] | None:
    """Every name in a query, in lower case; None if it reads columns that it does not name."""
    rows = {name.lower() for table in tables for name in (table.name, table.alias_or_name)}
    stars = any(not isinstance(star.parent, exp.Count) for star in tree.find_all(exp.Star))
    unnamed = stars or tree.find(exp.Columns) or any(join.args.get("method") for join in tree.find_all(exp.Join))
    whole = any(not column.table and column.name.lower() in rows for column in tree.find_all(exp.Column))
    if unnamed or whole:
        return None
    return frozenset(identifier.name.lower() for identifier in tree.find_all(exp.Identifier))
