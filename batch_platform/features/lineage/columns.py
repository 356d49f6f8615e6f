"""The source columns that each column of the user's SQL is made from, found in its text; nothing is run.

Follows values through WITH tables, subqueries, joins, stars, windows and unions by DuckDB's rules of scope: a name is
taken for a column of a table only if a valid query leaves no other choice. Tables whose columns are not known are open: a
name is found in an open table only if nothing else could hold it. Where the text does not tell (a name that two tables
could hold, a star over a table of unknown columns, recursion, syntax that the parser does not know), the result says so and
never guesses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial, reduce
from operator import or_

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from batch_platform.declaration.redaction import redact
from batch_platform.features.lineage.records import ROWS, ColumnLineage, Lineage, SourceColumn

OWN_SCHEMAS = ("", "main", "temp")
DUCKDB = "duckdb"  # dialect of SQL


@dataclass(frozen=True)
class Reads:
    """The source columns that a value is made from; `copy` is the column that the value repeats unchanged."""

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
    natural: bool = False  # True if tables are joined by unknown columns
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
        """Tell whether a name may stand for another expression of the SELECT.

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


def column_lineage(
    sql: str, sources: Mapping[str, Sequence[str]], columns: Sequence[str] | None = None, dialect: str = DUCKDB
) -> Lineage:
    """Follow the columns of one SELECT back to the sources, by the rules of DuckDB; of Spark's SQL, what both read alike.

    `sources` has the columns of each source by name, empty if they are not known; `columns` are the columns of the result
    as DuckDB names them, None if DuckDB was not asked.
    """
    try:
        tree = sqlglot.parse_one(sql, dialect=dialect)
        if dialect != DUCKDB and any(select.args.get("laterals") for select in tree.find_all(exp.Select)):
            return _unknown(sources, columns, "LATERAL VIEW adds columns that are not followed")
        follower = Follower(sources)
        table = follower.query(tree)
    except (SqlglotError, RecursionError) as error:
        reason = f"the parser of lineage does not understand the SQL: {redact(str(error)).splitlines()[0]}"
        return _unknown(sources, columns, reason)
    written = [_column(name, reads) for name, reads in table.outputs]
    outputs = written if columns is None else _as_named(table, columns)
    named = columns is not None or (table.rest is None and all(output.column for output in outputs))
    return Lineage(
        columns=tuple(output for output in outputs if output.column),
        complete=named and all(output.known for output in outputs),
        deciders=tuple(sorted(follower.deciders)),
        sources=tuple(name for name in sources if name in follower.sources),
    )


def lines_of(sql: str, column: str, dialect: str = DUCKDB) -> list[int]:
    """The lines, from 1, of the expressions that a query gives this name; empty if the text does not tell."""
    try:
        tree = sqlglot.parse_one(sql, dialect=dialect)
    except (SqlglotError, RecursionError):
        return []
    values = (value for select in tree.find_all(exp.Select) for value in select.expressions)
    making = (value for value in values if value.alias_or_name.lower() == column.lower())
    return sorted({node.meta["line"] for value in making for node in value.walk() if "line" in node.meta})


def _unknown(sources: Iterable[str], columns: Sequence[str] | None, reason: str) -> Lineage:
    unknown = tuple(ColumnLineage(name, (), known=False) for name in columns or ())
    return Lineage(columns=unknown, sources=tuple(sources), reason=reason)


def _as_named(table: Table, columns: Sequence[str]) -> list[ColumnLineage]:
    """Match the columns that DuckDB names with those that were followed: by position, else by name."""
    if table.rest is not None:
        return [_column(name, table.output(name) or UNKNOWN) for name in columns]
    if len(table.outputs) != len(columns):
        return [_column(name, UNKNOWN) for name in columns]
    pairs = zip(columns, table.outputs, strict=True)
    return [_column(name, reads if text.lower() in ("", name.lower()) else UNKNOWN) for name, (text, reads) in pairs]


def _column(name: str, reads: Reads) -> ColumnLineage:
    return ColumnLineage(name, tuple(sorted(reads.columns)), known=reads.known, copy_of=reads.copy)


class Follower:
    """Follows a query; collects on the way what selects its rows and which sources it names."""

    def __init__(self, sources: Mapping[str, Sequence[str]]) -> None:
        """Start with the columns of each source, empty if they are not known."""
        self._declared = {name.lower(): (name, columns) for name, columns in sources.items()}
        self._inside, self._of_ctes = NOTHING, NOTHING
        self.sources: set[str] = set()

    @property
    def deciders(self) -> frozenset[SourceColumn]:
        """The source columns that filters, joins and groups read."""
        return frozenset(read for read in (self._inside | self._of_ctes).columns if read.column != ROWS)

    def query(self, node: exp.Expr, ctes: Tables | None = None, outer: Scope | None = None) -> Table:
        """The table that a query returns."""
        ctes = self._with(node, ctes or {}, outer)
        if isinstance(node, exp.Subquery) and not node.args.get("pivots"):
            return self.query(node.this, ctes, outer)
        if isinstance(node, exp.Select):
            return self._select(node, ctes, outer)
        if isinstance(node, exp.SetOperation):
            return self._combined(node, self.query(node.this, ctes, outer), self.query(node.expression, ctes, outer))
        for table in node.find_all(exp.Table):
            self._table(table, Scope(ctes, outer))
        return Table(rest=not_known)

    def _with(self, node: exp.Expr, ctes: Tables, outer: Scope | None) -> Tables:
        clause = node.args.get("with_")
        known = dict(ctes)
        for cte in clause.expressions if clause else ():
            grows = bool(clause and clause.args.get("recursive"))
            known[cte.alias.lower()] = cache(partial(self._cte, cte, dict(known), outer, grows=grows))
        return known

    def _cte(self, node: exp.Expr, ctes: Tables, outer: Scope | None, *, grows: bool) -> Table:
        inside, self._inside = self._inside, NOTHING
        name, body = node.alias.lower(), node.this
        if grows and any(table.name.lower() == name for table in body.find_all(exp.Table)):
            unknown = partial(Table, rest=not_known)
            table = unknown(rows=self.query(body, {**ctes, name: unknown}, outer).rows)
        else:
            table = self.query(body, ctes, outer).named([column.name for column in node.args["alias"].columns])
        self._of_ctes, self._inside = self._of_ctes | self._inside, inside
        return table

    def _combined(self, node: exp.Expr, left: Table, right: Table) -> Table:
        rows = left.rows | right.rows
        if isinstance(node, exp.Except | exp.Intersect):
            self._inside = reduce(or_, (reads for _, reads in right.outputs), self._inside)
            return left
        if left.rest or right.rest:
            return Table(rest=not_known, rows=rows)
        if node.args.get("by_name"):
            names = dict.fromkeys(name.lower() for name, _ in (*left.outputs, *right.outputs))
            sides = ((name, [side.output(name) for side in (left, right)]) for name in names)
            return Table(tuple((name, reduce(or_, filter(None, reads), NOTHING)) for name, reads in sides), rows=rows)
        if len(left.outputs) != len(right.outputs):
            return Table(rest=not_known, rows=rows)
        pairs = zip(left.outputs, right.outputs, strict=True)
        return Table(
            tuple((name, above if above == below else above | below) for (name, above), (_, below) in pairs), rows=rows
        )

    def _select(self, node: exp.Expr, ctes: Tables, outer: Scope | None) -> Table:
        scope = Scope(ctes, outer)
        first = node.args.get("from_")
        if first is not None:
            self._add(first.this, scope)
        for join in node.args.get("joins") or ():
            self._join(join, scope)
        scope.windows = {window.name.lower(): window for window in node.args.get("windows") or ()}
        scope.aliases = {alias.alias.lower(): alias.this for alias in node.expressions if isinstance(alias, exp.Alias)}
        deciding = [node.args.get(clause) for clause in ("where", "group", "having", "qualify", "distinct")]
        deciding += [node.args.get("order")] if node.args.get("limit") or node.args.get("distinct") else []
        self._inside |= self._all(deciding, scope)
        outputs: list[tuple[str, Reads]] = []
        opened: list[Rest] = []
        for projection in node.expressions:
            star = projection.this if isinstance(projection, exp.Column) else projection
            if isinstance(star, exp.Star):
                tables = [projection.table.lower()] if isinstance(projection, exp.Column) else list(scope.tables)
                columns, rest = self._star(star, tables, scope)
                outputs += columns
                opened += rest
            elif projection.find(exp.Columns):
                opened.append(not_known)
            else:
                named = isinstance(projection, exp.Alias | exp.Column)
                outputs.append((projection.alias_or_name if named else "", self.reads(projection, scope)))
        rest = None if not opened else opened[0] if len(opened) == 1 else not_known
        return Table(tuple(outputs), rest, scope.rows)

    def _add(self, node: exp.Expr, scope: Scope) -> None:
        """Add the tables of a FROM to a scope."""
        inner = node.this
        if isinstance(node, exp.Subquery) and isinstance(inner, exp.Table) and not node.alias:
            self._add(inner, scope)  # a join in brackets
        else:
            scope.tables[_name_of(node)] = self._table(node, scope).named(_column_names(node))
        for join in node.args.get("joins") or ():
            self._join(join, scope)

    def _join(self, node: exp.Expr, scope: Scope) -> None:
        before = dict(scope.tables)
        self._add(node.this, scope)
        using = {name.name.lower() for name in node.args.get("using") or ()}
        if node.args.get("method") == "NATURAL":
            sides = [[name.lower() for name, _ in table.outputs] for table in scope.tables.values()]
            scope.natural = scope.natural or any(table.rest for table in scope.tables.values())
            using = {name for name in sides[-1] if any(name in side for side in sides[:-1])}
        for name in using:
            joined = [reads for table in scope.tables.values() if (reads := table.column(name)) is not None]
            self._inside = reduce(or_, joined, self._inside)
        self._inside |= self._all([node.args.get("on")], scope)
        if node.args.get("kind") in ("SEMI", "ANTI"):
            scope.tables = before
        else:
            scope.merged |= using

    def _table(self, node: exp.Expr, scope: Scope) -> Table:
        """The columns of one table of a FROM."""
        if node.args.get("pivots"):
            for table in node.find_all(exp.Table):
                self._note(table.name.lower(), scope)
            return Table(rest=not_known)
        if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            name = node.name.lower()
            if node.db.lower() in OWN_SCHEMAS and node.catalog.lower() in OWN_SCHEMAS:
                return scope.ctes[name]() if name in scope.ctes and not node.db else self._note(name, scope)
            return Table(rest=not_known)
        if isinstance(node, exp.Lateral):
            node = node.this
        if isinstance(node, exp.Subquery | exp.Query):
            return self.query(node, scope.ctes, scope)
        inner = node.this if isinstance(node, exp.Table) else node
        if isinstance(inner, exp.Unnest | exp.GenerateSeries | exp.Values | exp.Explode):
            reads = self._all(_children(inner), scope)
            names = _column_names(node)
            return Table(tuple((name, reads) for name in names)) if names else Table(rest=lambda _: reads)
        return Table(rest=not_known)

    def _note(self, name: str, scope: Scope) -> Table:
        """Look up a source by name, and note that the query names it."""
        if name not in self._declared:
            return scope.ctes[name]() if name in scope.ctes else Table(rest=not_known)
        source, columns = self._declared[name]
        self.sources.add(source)

        def copied(column: str) -> Reads:
            read = SourceColumn(source, column)
            return Reads(frozenset([read]), copy=read)

        outputs = tuple((column, copied(column)) for column in columns)
        return Table(outputs, None if columns else copied, frozenset([source]))

    def _star(self, star: exp.Expr, names: Iterable[str], scope: Scope) -> tuple[list[tuple[str, Reads]], list[Rest]]:
        """Expand a star over tables: the known columns, and what unknown columns among them read."""
        left_out = {column.name.lower() for column in star.args.get("except_") or ()}
        replaced = {alias.alias.lower(): self.reads(alias.this, scope) for alias in star.args.get("replace") or ()}
        renamed = {alias.this.name.lower(): alias.alias for alias in star.args.get("rename") or ()}
        tables = [table for name in names if (table := scope.table(name)) is not None]
        outputs: list[tuple[str, Reads]] = []
        for name, reads in (output for table in tables for output in table.outputs):
            lower = name.lower()
            again = lower in scope.merged and any(lower == present.lower() for present, _ in outputs)
            if lower not in left_out and not again:
                merged = scope.find(lower) or UNKNOWN if lower in scope.merged else reads
                outputs.append((renamed.get(lower, name), replaced.get(lower, merged)))
        rest = [table.rest for table in tables if table.rest]
        if not tables or scope.natural:
            rest = [not_known]
        if rest:
            outputs += [(name, reads) for name, reads in replaced.items() if name not in dict(outputs)]
        return outputs, [not_known] if rest and (renamed or scope.merged) else rest

    def reads(  # noqa: PLR0911 - a case for each form of expression
        self, node: exp.Expr, scope: Scope, bound: frozenset[str] = frozenset()
    ) -> Reads:
        """The reads of an expression; `bound` are the names of lambda parameters around it."""
        match node:
            case exp.Alias() | exp.Paren():
                return self.reads(node.this, scope, bound)
            case exp.Column():
                return self._column(node, scope, bound)
            case exp.Query() | exp.Subquery():
                return self._value_of(node, scope)
            case exp.Count() if node.this is None or isinstance(node.this, exp.Star):
                return Reads(frozenset(SourceColumn(source, ROWS) for source in scope.rows))
            case exp.Star():
                every = [reads for table in scope.tables.values() for _, reads in table.outputs]
                closed = not any(table.rest for table in scope.tables.values())
                return reduce(or_, every, NOTHING if closed else UNKNOWN)
            case exp.Lambda():
                names = {parameter.name.lower() for parameter in node.expressions}
                return self.reads(node.this, scope, bound | names)
            case exp.Comprehension():
                inside = bound | {node.expression.name.lower()}
                iterated = self.reads(node.args["iterator"], scope, bound)
                return iterated | self._all([node.this, node.args.get("condition")], scope, inside)
            case exp.PropertyEQ() | exp.Kwarg():
                return self.reads(node.expression, scope, bound)
            case exp.Window():
                name = node.args.get("alias")
                named = scope.windows.get(name.name.lower()) if name is not None else None
                return self._all([*_children(node), named], scope, bound)
            case _:
                return self._all(_children(node), scope, bound)

    def _all(self, nodes: Iterable[exp.Expr | None], scope: Scope, bound: frozenset[str] = frozenset()) -> Reads:
        reads = (self.reads(node, scope, bound) for node in nodes if node is not None)
        return reduce(or_, reads, NOTHING)

    def _value_of(self, node: exp.Expr, scope: Scope) -> Reads:
        """The reads of a query in place of a value, including those of its filters."""
        inside, self._inside = self._inside, NOTHING
        table = self.query(node, scope.ctes, scope)
        value = reduce(or_, (reads for _, reads in table.outputs), self._inside)
        self._inside |= inside
        return value if table.rest is None else value | UNKNOWN

    def _column(self, node: exp.Column, scope: Scope, bound: frozenset[str]) -> Reads:
        parts = [part.name for part in node.parts]
        while len(parts) > 1 and parts[0].lower() in OWN_SCHEMAS and parts[0].lower() not in scope.tables:
            parts = parts[1:]
        if parts[0].lower() in bound:
            return NOTHING
        table = scope.table(parts[0].lower()) if len(parts) > 1 else None
        if isinstance(node.this, exp.Star):
            every = [reads for _, reads in table.outputs] if table else []
            return reduce(or_, every, NOTHING if table and not table.rest else UNKNOWN)
        if table is not None and (column := table.column(parts[1])) is not None:
            return _field(column, parts[2:])
        return _field(self._unqualified(parts[0], scope), parts[1:])

    def _unqualified(self, name: str, scope: Scope) -> Reads:
        """The reads of an unqualified name: a column, or else another expression of the SELECT."""
        reads = scope.find(name)
        expression = scope.aliases.get(name.lower())
        if reads is None and expression is not None:
            others = {alias: other for alias, other in scope.aliases.items() if alias != name.lower()}
            reads = self.reads(expression, replace(scope, aliases=others))
        return UNKNOWN if reads is None else reads


def _field(column: Reads, path: Sequence[str]) -> Reads:
    """The reads of a field of a column, which is not a copy of the column."""
    return column | NOTHING if path else column


def _children(node: exp.Expr) -> Iterator[exp.Expr]:
    """The direct child expressions of a node."""
    for value in node.args.values():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, exp.Expr):
                yield child


def _name_of(node: exp.Expr) -> str:
    """The name of a table in the query; a nameless table gets a name that no query can write."""
    return (node.alias_or_name or f" {id(node)}").lower()


def _column_names(node: exp.Expr) -> list[str]:
    alias = node.args.get("alias")
    return [column.name for column in alias.columns] if isinstance(alias, exp.TableAlias) else []
