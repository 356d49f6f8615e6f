"""The scopes of a query: which table a name means where, and so which source columns an expression reads.

A name is taken for a column of a table only where a valid query leaves no other choice. Tables whose columns are not
known are open: a name of theirs is found only if nothing else could hold it.
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
        """What a value made from both reads."""
        return Reads(self.columns | other.columns, self.known and other.known)


NOTHING, UNKNOWN = Reads(), Reads(known=False)
Rest = Callable[[str], Reads]


def not_known(_: str) -> Reads:
    """What a column reads of a table of which nothing is known."""
    return UNKNOWN


@dataclass(frozen=True)
class Table:
    """What a table offers: named columns in order, and what any column besides reads (None: there is none)."""

    outputs: tuple[tuple[str, Reads], ...] = ()
    rest: Rest | None = None
    rows: frozenset[str] = frozenset()  # the sources whose rows are its rows

    def output(self, name: str) -> Reads | None:
        """A column of a whole result, in which no two have one name; None where there is none."""
        found = [reads for column, reads in self.outputs if column.lower() == name.lower()]
        if len(found) > 1:
            return UNKNOWN
        return found[0] if found else self.rest and self.rest(name)

    def column(self, name: str) -> Reads | None:
        """A column as a query over the table names it; None where there is none."""
        starred = self.rest is not None and any(column.lower() == name.lower() for column, _ in self.outputs)
        return UNKNOWN if starred else self.output(name)  # a star before it may hold the name too

    def named(self, names: Sequence[str]) -> "Table":
        """The same with the first columns called otherwise."""
        if not names:
            return self
        if self.rest is not None or len(names) > len(self.outputs):
            return Table(rest=not_known, rows=self.rows)
        renamed = zip(names, self.outputs, strict=False)
        return Table((*((name, reads) for name, (_, reads) in renamed), *self.outputs[len(names) :]), rows=self.rows)


Tables = Mapping[str, Callable[[], Table]]


@dataclass
class Scope:
    """The tables that a SELECT can name, and those of the queries around it."""

    ctes: Tables
    outer: "Scope | None" = None
    tables: dict[str, Table] = field(default_factory=dict[str, Table])
    merged: set[str] = field(default_factory=set[str])  # columns that USING makes one
    natural: bool = False  # joined by columns that are not known
    aliases: dict[str, exp.Expr] = field(default_factory=dict[str, exp.Expr])
    windows: dict[str, exp.Expr] = field(default_factory=dict[str, exp.Expr])

    def find(self, name: str) -> Reads | None:
        """What an unqualified name reads; None where no table of this scope or around it can hold it."""
        lower = name.lower()
        closed = [reads for one in self.tables.values() if not one.rest and (reads := one.column(name)) is not None]
        opened = [one for one in self.tables.values() if one.rest]
        around = self.outer.find(name) if self.outer else None
        if self.natural:
            return UNKNOWN
        if lower in self.merged:
            both = [*closed, *(one.column(name) or UNKNOWN for one in opened)]
            return reduce(or_, both) if len(both) == len(closed) or len(self.tables) == 2 else UNKNOWN  # noqa: PLR2004 - a pair
        if closed:
            return closed[0] if len(closed) == 1 else UNKNOWN
        if not opened:
            return around
        alone = len(opened) == 1 and around is None and not self._may_be_alias(lower) and lower not in self.tables
        return opened[0].column(name) if alone else UNKNOWN

    def _may_be_alias(self, name: str) -> bool:
        """Whether a name may stand for another expression of the SELECT.

        One made from a column of its name shows that there is such a column, which then comes first.
        """
        expression = self.aliases.get(name)
        if expression is None:
            return False
        columns = expression.find_all(exp.Column)
        return not any(column.name.lower() == name and not column.table for column in columns)

    def table(self, name: str) -> Table | None:
        """The table of that name, here or around."""
        if name in self.tables:
            return self.tables[name]
        return self.outer.table(name) if self.outer else None

    @property
    def rows(self) -> frozenset[str]:
        """The sources whose rows the tables hold."""
        return frozenset().union(*(one.rows for one in self.tables.values()))
