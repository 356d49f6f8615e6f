"""The scopes of a query: the table that a name means, and so the source columns that an expression reads.

A name is taken for a column of a table only if a valid query leaves no other choice. Tables whose columns are not known
are open: a name is found in one only if nothing else could hold it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

from sqlglot import exp

from batch_platform.features.lineage.records import SourceColumn


@dataclass(frozen=True)
class Reads:
    """The source columns that a value is made from; `copy` is the one that it repeats unchanged."""

    columns: frozenset[SourceColumn] = frozenset()
    known: bool = True
    copy: SourceColumn | None = None

    def __or__(self, other: "Reads") -> "Reads":
        """Combine the reads of a value that is made from both."""
        return Reads(self.columns | other.columns, self.known and other.known)


NOTHING, UNKNOWN = Reads(), Reads(known=False)
Rest = Callable[[str], Reads]


def not_known(_: str) -> Reads:
    """The reads of any column of an unknown table."""
    return UNKNOWN


@dataclass(frozen=True)
class Table:
    """The columns of a table: those with known names in order, and what any other reads (None: there is no other)."""

    outputs: tuple[tuple[str, Reads], ...] = ()
    rest: Rest | None = None
    rows: frozenset[str] = frozenset()  # the sources that its rows come from

    def output(self, name: str) -> Reads | None:
        """Look up a column of a final result, whose names are unique; None if there is none."""
        matches = [reads for column, reads in self.outputs if column.lower() == name.lower()]
        if len(matches) > 1:
            return UNKNOWN
        return matches[0] if matches else self.rest and self.rest(name)

    def column(self, name: str) -> Reads | None:
        """Look up a column as a query over the table names it; None if there is none."""
        starred = self.rest is not None and any(column.lower() == name.lower() for column, _ in self.outputs)
        return UNKNOWN if starred else self.output(name)  # a star in front may hold the name too

    def named(self, names: Sequence[str]) -> "Table":
        """Rename the first columns."""
        if not names:
            return self
        if self.rest is not None or len(names) > len(self.outputs):
            return Table(rest=not_known, rows=self.rows)
        renamed = zip(names, self.outputs, strict=False)
        return Table((*((name, reads) for name, (_, reads) in renamed), *self.outputs[len(names) :]), rows=self.rows)


Tables = Mapping[str, Callable[[], Table]]


@dataclass
class Scope:
    """The tables that a SELECT can name, including those of the queries around it."""

    ctes: Tables
    outer: "Scope | None" = None
    tables: dict[str, Table] = field(default_factory=dict[str, Table])
    merged: set[str] = field(default_factory=set[str])  # columns that USING merges
    natural: bool = False  # joined by unknown columns
    aliases: dict[str, exp.Expr] = field(default_factory=dict[str, exp.Expr])
    windows: dict[str, exp.Expr] = field(default_factory=dict[str, exp.Expr])

    def find(self, name: str) -> Reads | None:
        """Look up an unqualified name; None if no table of this scope or around it can hold it."""
        lower, tables = name.lower(), self.tables.values()
        closed = [reads for table in tables if not table.rest and (reads := table.column(name)) is not None]
        opened = [table for table in tables if table.rest]
        around = self.outer.find(name) if self.outer else None
        if self.natural:
            return UNKNOWN
        if lower in self.merged:
            both = [*closed, *(table.column(name) or UNKNOWN for table in opened)]
            return reduce(or_, both) if len(both) == len(closed) or len(self.tables) == 2 else UNKNOWN  # noqa: PLR2004 - a pair
        if closed:
            return closed[0] if len(closed) == 1 else UNKNOWN
        if not opened:
            return around
        alone = len(opened) == 1 and around is None and not self._may_be_alias(lower) and lower not in self.tables
        return opened[0].column(name) if alone else UNKNOWN

    def _may_be_alias(self, name: str) -> bool:
        """Whether a name may stand for another expression of the SELECT.

        An expression that reads a column of its own name shows that there is such a column, which takes precedence.
        """
        expression = self.aliases.get(name)
        if expression is None:
            return False
        columns = expression.find_all(exp.Column)
        return not any(column.name.lower() == name and not column.table for column in columns)

    def table(self, name: str) -> Table | None:
        """The table of a name, in this scope or around it."""
        if name in self.tables:
            return self.tables[name]
        return self.outer.table(name) if self.outer else None

    @property
    def rows(self) -> frozenset[str]:
        """The sources that the rows of the tables come from."""
        return frozenset().union(*(table.rows for table in self.tables.values()))
