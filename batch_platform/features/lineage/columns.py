"""The source columns that each column of the user's SQL is made from, found in its text by sqlglot; nothing is run.

Where the text does not tell (a name that two tables could hold, a star over a table of unknown columns, recursion, syntax that
the parser does not know), the result says so.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import Node, to_node
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, build_scope, find_all_in_scope, traverse_scope
from sqlglot.schema import MappingSchema

from batch_platform.declaration.redaction import redact
from batch_platform.features.lineage.records import ROWS, ColumnLineage, Lineage, SourceColumn

OWN_SCHEMAS = ("", "main", "temp")
DUCKDB = "duckdb"  # dialect of SQL
_DECIDES = " decides"  # name of the column that is added to each SELECT; no user's column has it


def column_lineage(
    sql: str, sources: Mapping[str, Sequence[str]], columns: Sequence[str] | None = None, dialect: str = DUCKDB
) -> Lineage:
    """Follow the columns of one SELECT back to the sources.

    `sources` has the columns of each source by name, empty if they are not known; `columns` are the columns of the result
    as DuckDB names them, None if DuckDB was not asked.
    """
    try:
        tree = sqlglot.parse_one(sql, dialect=dialect)
        if (clause := _not_followed(tree, dialect)) is not None:
            return _unknown(sources, columns, f"{clause} is not followed")
        return _Query(tree, sources, dialect).lineage(columns)
    except (SqlglotError, RecursionError, ValueError) as error:
        reason = f"the parser of lineage does not understand the SQL: {redact(str(error)).splitlines()[0]}"
        return _unknown(sources, columns, reason)


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


def _not_followed(tree: exp.Expr, dialect: str) -> str | None:
    """The first clause whose columns sqlglot does not follow, or follows to other columns than DuckDB reads."""
    if dialect != DUCKDB and any(select.args.get("laterals") for select in tree.find_all(exp.Select)):
        return "LATERAL VIEW"
    if any(join.args.get("method") == "NATURAL" for join in tree.find_all(exp.Join)):
        return "NATURAL JOIN"
    if any(union.args.get("by_name") for union in tree.find_all(exp.SetOperation)):
        return "BY NAME"
    return "PIVOT" if tree.find(exp.Pivot) else "COLUMNS" if tree.find(exp.Columns) else None


class _Query:
    """A query with qualified names, each SELECT of which has a column more: the expressions that select its rows."""

    def __init__(self, tree: exp.Expr, sources: Mapping[str, Sequence[str]], dialect: str) -> None:
        self._dialect = dialect
        self._sources = {name.lower(): name for name in sources}
        # sqlglot writes all names in lower case.
        self._spelling = {identifier.name.lower(): identifier.name for identifier in tree.find_all(exp.Identifier)}
        self._columns = {
            name.lower(): {column.lower(): column for column in columns} for name, columns in sources.items()
        }
        self._written = [select.alias_or_name for select in tree.selects] if isinstance(tree, exp.Query) else []
        for select in tree.find_all(exp.Select):
            _name_windows(select)
        tree = normalize_identifiers(tree, dialect=dialect)
        asked = {name: [*columns] for name, columns in self._columns.items() if columns}
        known: dict[str, object] = {
            name: dict.fromkeys(columns, "UNKNOWN") for name, columns in (asked or _named(tree)).items()
        }
        self._schema = MappingSchema(known, dialect=dialect)
        qualified = qualify(tree, dialect=dialect, schema=self._schema, validate_qualify_columns=False, identify=False)
        for select in [*qualified.find_all(exp.Select)]:
            deciding = exp.Tuple(expressions=[condition.copy() for condition in _conditions(select)])
            select.append("expressions", exp.alias_(deciding, _DECIDES, quoted=True))
        scope = build_scope(qualified)
        if scope is None:
            msg = "it is no SELECT"
            raise ValueError(msg)
        self._root = scope
        scopes = [*scope.traverse()]
        for outer in reversed(scopes):
            for inner in outer.subquery_scopes:
                inner.sources.update({**outer.sources, **inner.sources})  # sqlglot does not look around a subquery
        self._scopes = {id(inner.expression): inner for inner in scopes}

    def lineage(self, columns: Sequence[str] | None) -> Lineage:
        """The lineage of the query whose columns DuckDB names so, None if it was not asked."""
        expression = self._root.expression
        selects = expression.selects[:-1] if isinstance(expression, exp.Query) else []
        closed = not any(select.is_star for select in selects)
        if columns is None:
            same = len(self._written) == len(selects) and "*" not in self._written
            names = self._written if same else [self._spelled(select.alias_or_name) for select in selects]
            named = closed and all(select.alias_or_name for select in selects)
            followed = [self._column(name, at) for at, name in enumerate(names) if name not in ("", "*")]
        else:
            named, fits = True, closed and len(selects) == len(columns)
            at_place = {select.alias_or_name: at for at, select in enumerate(selects)}
            places = [at if fits else at_place.get(name.lower()) for at, name in enumerate(columns)]
            followed = [self._column(name, at) for name, at in zip(columns, places, strict=True)]
        deciders = {
            read
            for scope in self._scopes.values()
            if isinstance(scope.expression, exp.Select)
            for read in self._column(_DECIDES, len(scope.expression.selects) - 1, scope).reads
        }
        tables = {
            self._sources.get(table.name.lower())
            for scope in self._scopes.values()
            for table in scope.tables
            if table.db
            or table.name not in scope.cte_sources
            or not isinstance(scope.sources.get(table.alias_or_name), Scope)
        }
        return Lineage(
            columns=tuple(followed),
            complete=named and all(column.known for column in followed),
            deciders=tuple(sorted(read for read in deciders if read.column != ROWS)),
            sources=tuple(name for name in self._sources.values() if name in tables),
        )

    def _column(self, name: str, place: int | None, scope: Scope | None = None) -> ColumnLineage:
        """The lineage of the column at a place, which is unknown if the place is."""
        if place is None:
            return ColumnLineage(name, (), known=False)
        top = to_node(place, scope or self._root, self._dialect, self._schema, trim_selects=False)
        reads, known, copied = set[SourceColumn](), True, True
        for node in top.walk():
            expression = node.expression.unalias()
            if not node.downstream and isinstance(node.source, exp.Table | exp.Placeholder):
                if isinstance(node.source.this, exp.GenerateSeries):
                    continue
                column = self._source_column(node)
                known = known and column is not None
                reads |= {column} if column else set()
                continue
            copied = copied and isinstance(expression, exp.Column) and len(node.downstream) == 1
            known = known and not isinstance(expression, exp.Star) and expression.find(exp.TableColumn) is None
            if any(_counts_rows(count) for count in find_all_in_scope(expression, exp.Count)):
                tables = _tables(self._scopes[id(node.source)])
                reads |= {SourceColumn(self._sources[key], ROWS) for t in tables if (key := t.name) in self._sources}
        copy_of = next(iter(reads)) if copied and len(reads) == 1 and known else None
        return ColumnLineage(name, tuple(sorted(reads)), known=known, copy_of=copy_of)

    def _source_column(self, leaf: Node) -> SourceColumn | None:
        """The column of a source that a leaf stands for; None if it is of another table or of none."""
        column, table = sqlglot.parse_one(leaf.name).name, leaf.source
        if not isinstance(table, exp.Table) or table.db not in OWN_SCHEMAS or table.catalog not in OWN_SCHEMAS:
            return None
        source = table.name.lower()
        columns = self._columns.get(source)
        if columns is None or (columns and column not in columns) or column in ("*", table.alias_or_name):
            return None
        return SourceColumn(self._sources[source], columns.get(column) or self._spelled(column))

    def _spelled(self, name: str) -> str:
        return self._spelling.get(name.lower(), name)


def _conditions(select: exp.Select) -> Iterator[exp.Expr]:
    """The expressions that select the rows of a SELECT: those of filters, joins and groups."""
    clauses = [select.args.get(clause) for clause in ("where", "group", "having", "qualify", "distinct")]
    if select.args.get("limit") or select.args.get("distinct"):
        clauses.append(select.args.get("order"))
    clauses += [join.args.get("on") for join in find_all_in_scope(select, exp.Join)]
    yield from (part for clause in clauses if clause is not None for part in clause.iter_expressions())


def _named(tree: exp.Expr) -> dict[str, set[str]]:
    """The columns that the text names of each table; empty if it does not tell of every name which table has it."""
    columns = dict[str, set[str]]()
    for scope in traverse_scope(tree):
        named = _named_in(scope)
        if named is None:
            return {}
        for table, name in named:
            columns.setdefault(table, set()).add(name)
    return columns


def _named_in(scope: Scope) -> list[tuple[str, str]] | None:
    """The tables and columns that a scope names; None if it does not tell of every name which table has it."""
    sources = {name: source for name, (_, source) in scope.selected_sources.items()}
    tables = {name: source.name for name, source in sources.items() if isinstance(source, exp.Table)}
    queries = [source.expression for source in sources.values() if isinstance(source, Scope)]
    elsewhere = {name for query in queries if isinstance(query, exp.Query) for name in query.named_selects}
    selects = scope.expression.selects if isinstance(scope.expression, exp.Select) else []
    # An expression that reads a column of its own name shows that there is such a column, which takes precedence.
    aliases = {
        select.alias
        for select in selects
        if select.alias and all(column.name != select.alias for column in select.find_all(exp.Column))
    }
    using = [name.name for join in scope.find_all(exp.Join) for name in join.args.get("using") or ()]
    unqualified = {column.name for column in scope.columns if not column.table} - elsewhere if tables else set[str]()
    in_values = {column.name for select in selects for column in select.find_all(exp.Column) if not column.table}
    several = len(tables) > 1 or "*" in elsewhere or scope.is_subquery or bool(unqualified & aliases & in_values)
    unqualified -= aliases  # in a filter, either a column or the value of that name, and no value depends on which
    if (unqualified and several) or (using and len(sources) > 2):  # noqa: PLR2004 - each table of a pair has the columns
        return None
    if tables and any(select.is_star for select in selects):
        return None
    pairs = [(tables[column.table], column.name) for column in scope.columns if column.table in tables]
    return pairs + [(table, name) for table in tables.values() for name in (*unqualified, *using)]


def _name_windows(select: exp.Select) -> None:
    """Write the columns of named windows where they are used, as sqlglot does not look them up."""
    named = {window.name.lower(): window for window in select.args.get("windows") or ()}
    for window in find_all_in_scope(select, exp.Window):
        if (definition := named.get(window.text("alias").lower())) is not None and definition is not window:
            columns = [column.copy() for column in definition.find_all(exp.Column)]
            window.set("partition_by", [*(window.args.get("partition_by") or ()), *columns])


def _counts_rows(count: exp.Expr) -> bool:
    return count.this is None or isinstance(count.this, exp.Star)


def _tables(scope: Scope) -> Iterator[exp.Table]:
    """The tables that the rows of a scope come from, through the queries in their place."""
    for _, source in scope.selected_sources.values():
        yield from [source] if isinstance(source, exp.Table) else _tables(source)
    for side in scope.set_operation_scopes:
        yield from _tables(side)
