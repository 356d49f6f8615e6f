"""What sqlglot finds in the text of the user's SQL, of DuckDB's or Spark's dialect; nothing is run.

`column_lineage` finds the source columns that each column is made from, `rows_read` the rows of a source that are read for a partition, and
`spark_statement` the names in SQL for Spark. Where the text does not tell (a name that two tables could hold, a star over a table of unknown columns, recursion, syntax that
the parser does not know), the result says so.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import Node, to_node
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, build_scope, find_all_in_scope, traverse_scope
from sqlglot.schema import MappingSchema

from batch_platform.declaration.redaction import redact
from batch_platform.features.origins import ROWS, ColumnLineage, Lineage, RowsRead, SourceColumn

OWN_SCHEMAS = ("", "main", "temp")
DUCKDB = "duckdb"  # dialect of SQL
_DECIDES = " decides"  # name of the column that is added to each SELECT; no user's column has it
_START, _END = "partition_start", "partition_end"
_TABLE_FUNCTIONS = frozenset(  # functions in the place of a table that read no table
    {
        "range",
        "stack",
        "json_tuple",
        *(f"{name}{end}" for name in ("explode", "posexplode", "inline") for end in ("", "_outer")),
    }
)
_CALLS_JAVA = frozenset({"reflect", "try_reflect", "java_method"})


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


@dataclass(frozen=True)
class SparkStatement:
    """A SELECT of Spark's dialect."""

    # Names in lower case, with a catalog or a schema in front, separated by dots; without those that WITH defines.
    tables: frozenset[str]
    parameters: frozenset[str]  # names after a colon; empty for a question mark
    escapes: frozenset[str]  # expressions that call methods of Java or other programs
    words: str  # the text without comments and with equal white space


def spark_statement(text: str) -> SparkStatement:
    """Parse a text that holds one SELECT; raises ValueError, with the reason, if it holds anything else."""
    try:
        words = _words(text)
        trees = [tree for tree in sqlglot.parse(text, read="spark") if tree is not None]
    except (SqlglotError, RecursionError) as error:
        first = re.sub(r"\x1b\[\d+m", "", str(error)).partition("\n")[0]
        msg = f"it cannot be parsed: {first.rstrip('. ')}"
        raise ValueError(msg) from error
    if len(trees) != 1 or not isinstance(trees[0], exp.Query):
        msg = f"it must be one SELECT; it holds {', '.join(tree.key.upper() for tree in trees) or 'nothing'}"
        raise ValueError(msg)
    (tree,) = trees
    return SparkStatement(
        tables=frozenset(_tables_read(tree)),
        parameters=frozenset(str(node.args.get("this") or "") for node in tree.find_all(exp.Placeholder)),
        escapes=frozenset(_escapes(tree)),
        words=words,
    )


def _words(text: str) -> str:
    """The tokens of a text, each in a line; a quote that is written as two, and so taken for two strings, stays in its line."""
    words, last = "", None
    for token in sqlglot.tokenize(text, read="spark"):
        in_string = last is not None and token.token_type == last.token_type == TokenType.STRING
        words += ("" if in_string and last and token.start == last.end + 1 else "\n") + text[
            token.start : token.end + 1
        ]
        last = token
    return words.strip("\n")


def _escapes(tree: exp.Expr) -> Iterator[str]:
    if tree.find(exp.QueryTransform):
        yield "transform … using"
    yield from (f"{name}()" for node in tree.find_all(exp.Anonymous) if (name := node.name.lower()) in _CALLS_JAVA)


def _tables_read(tree: exp.Expr) -> Iterator[str]:
    """The tables that are read, and functions in their place that may read something."""
    defined = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    for table in tree.find_all(exp.Table):
        if table.find_ancestor(exp.Hint):  # such as /*+ BROADCAST(t) */
            continue
        if isinstance(table.this, exp.Func):
            function = (table.this.name if isinstance(table.this, exp.Anonymous) else table.this.sql_name()).lower()
            if function not in _TABLE_FUNCTIONS:
                yield f"{function}()"
            continue
        name = ".".join(part.name for part in table.parts).lower()
        if name not in defined or _is_read_by_its_own_name(table, name):
            yield name


def _is_read_by_its_own_name(table: exp.Table, name: str) -> bool:
    """Tell whether a table stands in the WITH table that hides it: WITH t AS (SELECT … FROM t)."""
    cte = table.find_ancestor(exp.CTE)
    return cte is not None and cte.alias.lower() == name and not (cte.parent and cte.parent.args.get("recursive"))
