"""A query followed through its tree: from each of its columns down to the columns of the sources.

Reads the tree that the parser makes of the SQL; which table a name means is for `scopes.py` to say.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial, reduce
from operator import or_

from sqlglot import exp

from batch_platform.features.lineage.records import ROWS, SourceColumn
from batch_platform.features.lineage.scopes import NOTHING, UNKNOWN, Reads, Rest, Scope, Table, Tables, not_known

OWN_SCHEMAS = ("", "main", "temp")
_DEEPEST = 10


class Follower:
    """Follows one query; gathers what decides its rows and which sources it names on the way."""

    def __init__(self, sources: Mapping[str, Sequence[str]]) -> None:
        """Take the columns of each source, none where they are not known."""
        self._declared = {name.lower(): (name, columns) for name, columns in sources.items()}
        self._inside, self._of_ctes = NOTHING, NOTHING
        self.sources: set[str] = set()

    @property
    def deciders(self) -> frozenset[SourceColumn]:
        """What filters, joins and groups read."""
        return frozenset(one for one in (self._inside | self._of_ctes).columns if one.column != ROWS)

    def query(self, node: exp.Expr, ctes: Tables | None = None, outer: Scope | None = None) -> Table:
        """What a query gives."""
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
        for one in clause.expressions if clause else ():
            grows = bool(clause and clause.args.get("recursive"))
            known[one.alias.lower()] = cache(partial(self._cte, one, dict(known), outer, grows=grows))
        return known

    def _cte(self, node: exp.Expr, ctes: Tables, outer: Scope | None, *, grows: bool) -> Table:
        inside, self._inside = self._inside, NOTHING
        names, body = [name.name for name in node.args["alias"].columns], node.this
        own = node.alias.lower()
        recursive = grows and isinstance(body, exp.SetOperation) and _names_table(body.expression, own)
        table = self._grown(body, own, names, ctes, outer) if recursive else self.query(body, ctes, outer).named(names)
        self._of_ctes, self._inside = self._of_ctes | self._inside, inside
        return table

    def _grown(self, body: exp.Expr, own: str, names: Sequence[str], ctes: Tables, outer: Scope | None) -> Table:
        """A table that reads itself: followed until nothing new comes."""
        table = self.query(body.this, ctes, outer).named(names)
        for _ in range(_DEEPEST):
            before = table
            step = self.query(body.expression, {**ctes, own: lambda before=before: before}, outer)
            table = self._combined(body, before, step)
            if table.outputs == before.outputs:
                return table
        return Table(rest=not_known, rows=table.rows)

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
            return Table(tuple((name, reduce(or_, filter(None, found), NOTHING)) for name, found in sides), rows=rows)
        if len(left.outputs) != len(right.outputs):
            return Table(rest=not_known, rows=rows)
        pairs = zip(left.outputs, right.outputs, strict=True)
        return Table(
            tuple((name, one if one == other else one | other) for (name, one), (_, other) in pairs), rows=rows
        )

    def _select(self, node: exp.Expr, ctes: Tables, outer: Scope | None) -> Table:
        scope = Scope(ctes, outer)
        first = node.args.get("from_")
        if first is not None:
            self._add(first.this, scope)
        for join in node.args.get("joins") or ():
            self._join(join, scope)
        scope.windows = {one.name.lower(): one for one in node.args.get("windows") or ()}
        aliases = {one.alias.lower(): one.this for one in node.expressions if isinstance(one, exp.Alias)}
        scope.aliases = aliases
        deciding = [node.args.get(clause) for clause in ("where", "group", "having", "qualify", "distinct")]
        deciding += [node.args.get("order")] if node.args.get("limit") or node.args.get("distinct") else []
        self._inside |= self._all(deciding, scope)
        outputs: list[tuple[str, Reads]] = []
        opened: list[Rest] = []
        for projection in node.expressions:
            star = projection.this if isinstance(projection, exp.Column) else projection
            if isinstance(star, exp.Star):
                of = [projection.table.lower()] if isinstance(projection, exp.Column) else list(scope.tables)
                found, rest = self._star(star, of, scope)
                outputs += found
                opened += rest
            elif projection.find(exp.Columns):
                opened.append(not_known)
            else:
                named = isinstance(projection, exp.Alias | exp.Column)
                outputs.append((projection.alias_or_name if named else "", self.reads(projection, scope)))
        rest = None if not opened else opened[0] if len(opened) == 1 else not_known
        return Table(tuple(outputs), rest, scope.rows)

    def _add(self, node: exp.Expr, scope: Scope) -> None:
        """Add what a FROM names to a scope."""
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
            sides = [[name.lower() for name, _ in one.outputs] for one in scope.tables.values()]
            scope.natural = scope.natural or any(one.rest for one in scope.tables.values())
            using = {name for name in sides[-1] if any(name in side for side in sides[:-1])}
        for name in using:
            joined = [reads for one in scope.tables.values() if (reads := one.column(name)) is not None]
            self._inside = reduce(or_, joined, self._inside)
        self._inside |= self._all([node.args.get("on")], scope)
        if node.args.get("kind") in ("SEMI", "ANTI"):
            scope.tables = before
        else:
            scope.merged |= using

    def _table(self, node: exp.Expr, scope: Scope) -> Table:
        """One table of a FROM."""
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
        """A source by its name."""
        if name not in self._declared:
            return scope.ctes[name]() if name in scope.ctes else Table(rest=not_known)
        source, columns = self._declared[name]
        self.sources.add(source)

        def one(column: str) -> Reads:
            found = SourceColumn(source, column)
            return Reads(frozenset([found]), copy=found)

        return Table(tuple((column, one(column)) for column in columns), None if columns else one, frozenset([source]))

    def _star(self, star: exp.Expr, of: Iterable[str], scope: Scope) -> tuple[list[tuple[str, Reads]], list[Rest]]:
        """What a star stands for: columns, and what else may be among them."""
        left_out = {one.name.lower() for one in star.args.get("except_") or ()}
        replaced = {one.alias.lower(): self.reads(one.this, scope) for one in star.args.get("replace") or ()}
        renamed = {one.this.name.lower(): one.alias for one in star.args.get("rename") or ()}
        tables = [table for name in of if (table := scope.table(name)) is not None]
        outputs: list[tuple[str, Reads]] = []
        for name, reads in (output for table in tables for output in table.outputs):
            lower = name.lower()
            again = lower in scope.merged and any(lower == other.lower() for other, _ in outputs)
            if lower not in left_out and not again:
                found = scope.find(lower) or UNKNOWN if lower in scope.merged else reads
                outputs.append((renamed.get(lower, name), replaced.get(lower, found)))
        rest = [table.rest for table in tables if table.rest]
        if not tables or scope.natural:
            rest = [not_known]
        if rest:
            outputs += [(name, reads) for name, reads in replaced.items() if name not in dict(outputs)]
        return outputs, [not_known] if rest and (renamed or scope.merged) else rest

    def reads(  # noqa: PLR0911 - a case for each form of expression
        self, node: exp.Expr, scope: Scope, bound: frozenset[str] = frozenset()
    ) -> Reads:
        """What the value of an expression is made from; `bound` are the names of parameters around it."""
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
                names = {one.name.lower() for one in node.expressions}
                return self.reads(node.this, scope, bound | names)
            case exp.Comprehension():
                inside = bound | {node.expression.name.lower()}
                body = [one for one in (node.this, node.args.get("condition")) if one is not None]
                return reduce(
                    or_,
                    (self.reads(one, scope, inside) for one in body),
                    self.reads(node.args["iterator"], scope, bound),
                )
            case exp.PropertyEQ() | exp.Kwarg():
                return self.reads(node.expression, scope, bound)
            case exp.Window():
                name = node.args.get("alias")
                named = scope.windows.get(name.name.lower()) if name is not None else None
                return self._all([*_children(node), named], scope, bound)
            case _:
                return self._all(_children(node), scope, bound)

    def _all(self, nodes: Iterable[exp.Expr | None], scope: Scope, bound: frozenset[str] = frozenset()) -> Reads:
        found = (self.reads(one, scope, bound) for one in nodes if one is not None)
        return reduce(or_, found, NOTHING)

    def _value_of(self, node: exp.Expr, scope: Scope) -> Reads:
        """What a query in place of a value reads: its filters decide the value too."""
        inside, self._inside = self._inside, NOTHING
        table = self.query(node, scope.ctes, scope)
        found = reduce(or_, (reads for _, reads in table.outputs), self._inside)
        self._inside |= inside
        return found if table.rest is None else found | UNKNOWN

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
        if table is not None and (found := table.column(parts[1])) is not None:
            return _field(found, parts[2:])
        return _field(self._unqualified(parts[0], scope), parts[1:])

    def _unqualified(self, name: str, scope: Scope) -> Reads:
        """What a name reads that stands alone: a column, or else another expression of the SELECT."""
        found = scope.find(name)
        expression = scope.aliases.get(name.lower())
        if found is None and expression is not None:
            others = {alias: one for alias, one in scope.aliases.items() if alias != name.lower()}
            found = self.reads(expression, replace(scope, aliases=others))
        return UNKNOWN if found is None else found


def _field(found: Reads, path: Sequence[str]) -> Reads:
    """What a field of a column reads: the column, of which it is no copy."""
    return found | NOTHING if path else found


def _children(node: exp.Expr) -> Iterator[exp.Expr]:
    """The expressions right below one."""
    for value in node.args.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, exp.Expr):
                yield one


def _name_of(node: exp.Expr) -> str:
    """How the query names a table; a name that none can write where it has none."""
    return (node.alias_or_name or f" {id(node)}").lower()


def _column_names(node: exp.Expr) -> list[str]:
    alias = node.args.get("alias")
    return [one.name for one in alias.columns] if isinstance(alias, exp.TableAlias) else []


def _names_table(node: exp.Expr, name: str) -> bool:
    return any(table.name.lower() == name for table in node.find_all(exp.Table))
