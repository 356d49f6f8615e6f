"""The user's SQL for DuckDB or Spark: one SELECT, checked once. Errors name the file, or the key that holds the SQL, and the line."""

import json
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from batch_platform.declaration.calendar import Duration, Partition
from batch_platform.declaration.errors import (
    INTERRUPTED_QUERY,
    BatchPlatformError,
    SharedSourceError,
    SourceError,
    did_you_mean,
    is_interruption,
    listed,
    nearest_names,
    sentence_of,
)
from batch_platform.declaration.notation import is_select
from batch_platform.sources.interruption import TimeLimit
from batch_platform.sources.kind import failure_in
from batch_platform.sources.objects import hint_for, store_failure_in
from batch_platform.sources.opening import SourceConnection
from batch_platform.warehouse.sql import in_memory, quoted

if TYPE_CHECKING:
    from batch_platform.features.lineage import SparkStatement

PARAMETERS = frozenset({"partition_start", "partition_end", "partition_key"})
TABLE_FUNCTIONS = frozenset(  # table functions that read neither files nor databases
    {"range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree"}
)
ONE_SELECT = "write helper tables as WITH … AS (…) in front of the SELECT."  # hints
SQL_FAILS = "correct the SQL or its source; batch-platform check tries the SQL without reading a row."
_INTERRUPTED = (
    "INTERRUPT Error",
    f"RuntimeError: {INTERRUPTED_QUERY}",
)  # texts of DuckDB, and of a stream that it reads
_CANDIDATES = re.compile(r" Candidate functions: .*?(?= LINE \d+:|$)")  # every signature of the name, up to 60 of them
_NO_COLUMN = re.compile(r'column (?:named )?"([^"]+)"')
_SPILLED = "max_temp_directory_size"
_EXHAUSTED = re.compile("Out of Memory Error|No space left on device")  # Arrow passes on only the text of an error


class Select:
    """One SELECT over the sources; the bounds and the key of a partition are its parameters."""

    sign = "$"  # before a parameter

    def __init__(  # noqa: PLR0913 - what a declaration says of its SQL
        self,
        pipeline: str,
        folder: Path,
        key: str,
        sql: str,
        sources: Collection[str],
        timeout: Duration | None = None,
    ) -> None:
        """Read the SQL declared under a key; raises SourceError unless it is one SELECT with known parameters over the sources.

        A file must lie in the folder.
        """
        self.pipeline, self.folder, self.timeout = pipeline, folder, timeout
        self.file = None if is_select(sql) else folder / sql
        self.place = f"the key {key}" if self.file is None else str(self.file)
        self.limit = TimeLimit(timeout.nominal if timeout else None)
        self.text = sql if self.file is None else self._read(self.file)
        self.parameters = self._parameters()
        if unknown := self.parameters - PARAMETERS:
            msg = f"{pipeline}: {self.place} uses the parameters {listed(self._signed(unknown))}."
            raise SourceError(msg, hint=f"use only {listed(self._signed(PARAMETERS))}.")
        if outside := self._outside({source.lower() for source in sources}):
            msg = f"{pipeline}: {self.place} reads {listed(outside)}; it can read only the sources {listed(sources)}."
            raise SourceError(msg, hint="declare under sources what it needs, and name the source in the SQL.")

    def _read(self, file: Path) -> str:
        try:
            if not file.resolve().is_relative_to(self.folder.resolve()):
                msg = f"{self.pipeline}: {file} is a link that leads out of its folder, to {file.resolve()}."
                raise SourceError(msg, hint="put the SQL file itself into the folder of the pipeline.")
            return file.read_bytes().decode()  # unchanged: a quoted name may hold a carriage return
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            msg = f"{self.pipeline}: {file} cannot be read ({reason})."
            raise SourceError(msg, hint="create the file or correct its name in the YAML.") from error

    def _parameters(self) -> frozenset[str]:
        """The names of the parameters of the one SELECT; raises SourceError for other SQL."""
        raise NotImplementedError

    def _outside(self, sources: Collection[str]) -> Collection[str]:
        """The tables, files and functions that the SELECT reads beside the sources, whose names are in lower case."""
        raise NotImplementedError

    def _signed(self, parameters: Iterable[str]) -> list[str]:
        return [f"{self.sign}{name}" if name else "?" for name in parameters]

    def bound(self, partition: Partition) -> dict[str, object]:
        """The values of the parameters for a partition."""
        values = {"partition_start": partition.start, "partition_end": partition.end, "partition_key": partition.key}
        return {name: values[name] for name in self.parameters}

    def require_columns(self, present: Sequence[str], wanted: Iterable[str]) -> None:
        """Raise SourceError if the columns that the SELECT gives are not unique, or lack one that is wanted."""
        counts = Counter(name.lower() for name in present)
        if twice := [name for name in present if counts[name.lower()] > 1]:
            msg = f"{self.pipeline}: {self.place} gives more than one column {listed(map(repr, twice))}."
            raise SourceError(msg, hint="name each column with AS; SQL ignores case in names.")
        if missing := [column for column in wanted if column not in present]:
            msg = f"{self.pipeline}: {self.place} gives no column {listed(map(repr, missing))}; it gives {listed(present)}."
            raise SourceError(msg, hint=nearest_names(missing, present) or "add it to the SELECT or correct the YAML.")

    def takes_too_long(self, where: str) -> SourceError:
        """The error for a query that takes longer than it may."""
        msg = f"{where}: the SQL of {self.place} takes longer than features.timeout ({self.timeout})."
        return SourceError(msg, hint="look for a join without a condition, or raise features.timeout.")

    @contextmanager
    def explained(self, partition: Partition | None = None) -> Generator[None]:
        """Turn what DuckDB and Arrow raise into an error that names pipeline, partition, file and line."""
        where = self.pipeline if partition is None else f"{self.pipeline}, partition {partition.key}"
        try:
            yield
        except (duckdb.Error, pa.ArrowException, OSError, RuntimeError) as error:
            # Arrow passes on the errors of DuckDB in classes of its own, and of Python.
            if (failure := store_failure_in(error)) is not None:
                msg = f"{where}: {failure}."
                raise SharedSourceError(msg, hint=hint_for(failure)) from error
            message = " ".join(str(error).split())
            if isinstance(error, RuntimeError) and not is_interruption(error):
                raise
            if is_interruption(error) or any(text in message for text in _INTERRUPTED):
                if not self.limit.passed:
                    raise KeyboardInterrupt from error
                raise self.takes_too_long(where) from error
            if (failure := failure_in(error)) is not None:
                raise failure from None
            if _SPILLED in message:
                msg = f"{where}: the SQL of {self.place} would write more than a quarter of the free disk space aside."
                hint = "look for a join without a condition; else make room, or declare shorter partitions."
                raise BatchPlatformError(msg, hint=hint) from error
            if _EXHAUSTED.search(message):
                msg = f"{where}: there is not enough memory or disk for the SQL of {self.place}: {message.rstrip('.')}."
                raise BatchPlatformError(msg, hint="give it more, or declare shorter partitions.") from error
            line = _line_of(message, self.text)
            place = f"{self.place}:{line}" if line else self.place
            msg = f"{where}: the SQL of {place} fails: {sentence_of(_CANDIDATES.sub('', message))}"
            raise SourceError(msg, hint=SQL_FAILS) from error


class Query(Select):
    """SQL that DuckDB runs, checked once and run for many partitions."""

    dialect = "duckdb"
    _columns: list[str] | None = None

    def _parameters(self) -> frozenset[str]:
        with self.explained(), in_memory() as con:
            statements = con.extract_statements(self.text)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            types = listed(statement.type.name for statement in statements) or "nothing"
            msg = f"{self.pipeline}: {self.place} must be one SELECT; it holds {types}."
            raise SourceError(msg, hint=ONE_SELECT)
        return frozenset(statements[0].named_parameters)

    def run(
        self, con: SourceConnection, partition: Partition, columns: list[str], *, sort: bool = True
    ) -> duckdb.DuckDBPyRelation:
        """Run the query for a partition, lazily, in the order of some columns; fetch the result within `explained`.

        Without `sort` the columns are only required; raises SourceError if they are not there.
        """
        self.require_once(con, partition, columns)
        with self.explained(partition):
            order = f" ORDER BY {', '.join(map(quoted, columns))}" if sort else ""
            return con.duckdb.sql(_statement(f"FROM ({self._select}\n){order}"), params=self.bound(partition))

    def require_once(self, con: SourceConnection, partition: Partition, wanted: Iterable[str]) -> None:
        """Raise SourceError as `require_columns` does, by the columns of the first partition that is read."""
        with self.explained(partition):
            if self._columns is None:
                self._columns = self._columns_given(con, partition, self.bound(partition))
            self.require_columns(self._columns, wanted)

    def _columns_given(self, con: SourceConnection, partition: Partition, bound: dict[str, object]) -> list[str]:
        """The columns that the query gives; where it reads one that no source has, the error names those that no SQL file reads."""
        try:
            with self.explained(partition):
                return con.duckdb.sql(self._select, params=bound).columns
        except SourceError as error:
            if (gone := _NO_COLUMN.search(error.message)) is None or self.file is None:
                raise
            texts = " ".join(file.read_text(encoding="utf-8") for file in self.file.parent.glob("*.sql"))
            read = {word.lower() for word in re.findall(r"\w+", texts)}
            has = [
                column for name in self.reads(con.names) for column in con.duckdb.sql(f"FROM {quoted(name)}").columns
            ]
            unread = [column for column in has if read.isdisjoint(re.findall(r"\w+", column.lower()))]
            if not unread or gone[1] in has:
                raise
            msg = f"{error.message.rstrip('.')}; no SQL file of the pipeline reads {listed(map(repr, unread))}."
            renamed = f"if the column was renamed, write in the SQL: {quoted(unread[0])} AS {quoted(gone[1])}."
            hint = did_you_mean(gone[1], has) or renamed
            raise SourceError(msg, hint=hint) from error

    def comes_in_order(self, con: SourceConnection, partition: Partition, column: str) -> bool:
        """Return whether the rows ascend in a column without being sorted; only what that column needs is read."""
        with self.limited(con), self.explained(partition):
            key = quoted(column)
            rows = self.run(con, partition, [column], sort=False).project(
                f"{key} AS here, lag({key}) OVER () AS before"
            )
            ((ascends,),) = rows.aggregate("count_if(here > before) = count(*) - 1").fetchall()
        return bool(ascends)

    @cached_property
    def keeps_order(self) -> bool:
        """True if the query computes each row from one row of one table, as far as its text tells."""
        node = self._tree["statements"][0]["node"] if isinstance(self._tree, dict) else {}
        if node.get("type") != "SELECT_NODE" or node["from_table"]["type"] != "BASE_TABLE" or node["cte_map"]["map"]:
            return False
        beyond = any(node[part] for part in ("modifiers", "group_expressions", "having", "qualify", "sample"))
        return not beyond and not any(child.get("class") in ("COLLATE", "SUBQUERY", "WINDOW") for child in nodes(node))

    @cached_property
    def statement(self) -> str:
        """The text without comments and with equal white space, so that equal ones state the same: see `statement_of`."""
        return statement_of(self.text)

    def reads(self, names: Iterable[str]) -> list[str]:
        """Select the tables that the query names, by DuckDB's own parser; all of them where it cannot parse the query."""
        if self._tree is None:
            return list(names)
        named = {str(table["table_name"]).lower() for table in _of_type(self._tree, "BASE_TABLE")}
        return [name for name in names if name in named]

    @cached_property
    def _tree(self) -> object:
        return parsed(self.text)

    @cached_property
    def _select(self) -> str:
        return _without_end(self.text)

    def _outside(self, sources: Collection[str]) -> Collection[str]:
        functions = {str(node["function"]["function_name"]).lower() for node in _of_type(self._tree, "TABLE_FUNCTION")}
        outside = {f"{name}()" for name in functions - TABLE_FUNCTIONS}
        for table in _of_type(self._tree, "BASE_TABLE"):
            path = [str(table[part]) for part in ("catalog_name", "schema_name", "table_name") if table[part]]
            if len(path) > 1 or ("." in path[0] and path[0].lower() not in sources):  # a name with a dot may be a file
                outside.add(".".join(path))
        return outside

    def limited(self, con: SourceConnection) -> AbstractContextManager[None]:
        """Interrupt the query if the block takes longer than it may; `explained` then says so."""
        return self.limit.over(con.interrupt)


def statement_of(text: str) -> str:
    """Write a SELECT token by token, without comments; the text itself where DuckDB does not parse both to the same tree.

    So two texts with the same result are the same statement, whatever the tokens are taken for.
    """
    code = _QUOTED_OR_COMMENT.sub(lambda found: found["quoted"] or " ", text)
    encoded = code.encode()
    starts = [start for start, _ in duckdb.tokenize(code)]
    words = [encoded[start:end].decode().strip() for start, end in pairwise([*starts, len(encoded)])]
    written = "\n".join(words).replace("\n$\n", "\n$")  # a parameter is two tokens
    tree = parsed(text)
    return written if tree is not None and tree == parsed(written) else text


_BLOCK = r"/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/"
_NESTED = rf"/\*(?:[^*/]|\*(?!/)|/(?!\*)|{_BLOCK})*\*/"  # of comments within comments within comments, the tree decides
_QUOTED_OR_COMMENT = re.compile(
    r"(?P<quoted>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?P<tag>\$\w*\$).*?(?P=tag))|--[^\n]*|"
    + _NESTED,
    re.DOTALL,
)


@lru_cache(maxsize=256)
def parsed(statement: str) -> object:
    """The tree that DuckDB parses a statement to, without positions in the text; None for what it cannot express as JSON."""
    with in_memory() as con:
        ((text,),) = con.execute("SELECT json_serialize_sql($sql)", {"sql": statement}).fetchall()
    try:
        tree = json.loads(text, object_pairs_hook=_without_position)
    except json.JSONDecodeError:  # DuckDB may write an empty bit string, b'', as other bytes
        return None
    return None if tree["error"] else tree


def _without_position(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {name: value for name, value in pairs if name not in ("query_location", "query_location_length")}


def nodes(tree: object, *, within_subqueries: bool = True) -> Iterator[dict[str, Any]]:
    """Every node of a tree that `parsed` gives."""
    if isinstance(tree, dict):
        yield tree
        tree = [child for name, child in tree.items() if within_subqueries or name != "subquery"]
    for child in tree if isinstance(tree, list) else ():
        yield from nodes(child, within_subqueries=within_subqueries)


def _of_type(tree: object, kind: str) -> Iterator[dict[str, Any]]:
    return (node for node in nodes(tree) if node.get("type") == kind)


@lru_cache(maxsize=256)
def _statement(text: str) -> duckdb.Statement:
    """A parsed SELECT, so that it is not parsed for each partition again."""
    with in_memory() as con:
        return con.extract_statements(text)[0]


def _without_end(text: str) -> str:
    """Cut a statement at its semicolon, so that it can stand in brackets."""
    encoded = text.encode()
    code = [at for at, kind in duckdb.tokenize(text) if kind != duckdb.token_type.comment]
    ends = [at for at in code if encoded[at : at + 1] == b";"]
    return encoded[: ends[0]].decode() if ends else text


def _line_of(message: str, text: str) -> str | None:
    """The line that DuckDB names in a message, else the first line with the identifier in question."""
    if named := re.search(r"LINE (\d+):", message):
        return named[1]
    identifier = re.search(r'"([^"]+)"|with name (\S+)', message)
    wanted = (identifier[1] or identifier[2]) if identifier else None
    lines = enumerate(text.splitlines(), start=1)
    return next((str(number) for number, line in lines if wanted and wanted in line), None)


class SparkQuery(Select):
    """SQL that Spark runs; its parameters are written with a colon, as `:partition_start`."""

    dialect, sign = "spark", ":"

    def _parameters(self) -> frozenset[str]:
        if in_duckdb := {name for name in PARAMETERS if re.search(rf"\$\s*{name}\b", self._parsed.words)}:
            msg = f"{self.pipeline}: {self.place} uses the parameters {listed('$' + name for name in in_duckdb)}."
            raise SourceError(msg, hint="Spark's SQL writes a parameter with a colon, such as :partition_start.")
        return self._parsed.parameters

    def _outside(self, sources: Collection[str]) -> Collection[str]:
        return (self._parsed.tables - {*sources}) | self._parsed.escapes

    @cached_property
    def _parsed(self) -> "SparkStatement":
        from batch_platform.features.lineage import spark_statement  # imports sqlglot, which takes its time

        try:
            return spark_statement(self.text)
        except ValueError as error:
            msg = f"{self.pipeline}: the SQL of {self.place}: {error}."
            raise SourceError(msg, hint=ONE_SELECT) from error

    @property
    def statement(self) -> str:
        """The text without comments and with equal white space, so that equal ones state the same."""
        return self._parsed.words

    def reads(self, names: Iterable[str]) -> list[str]:
        """Select the tables that the query names."""
        return [name for name in names if name.lower() in self._parsed.tables]

    def error(self, where: str, error: Exception) -> SourceError:
        """The error for SQL that Spark refuses, or that fails while it runs; the message names file and line."""
        text = str(error).strip()
        first = re.sub(r"\s*SQLSTATE: \w+.*|; line \d+ pos \d+.*", "", " ".join(text.partition("\n")[0].split()))
        line = re.search(r"\bline (\d+)[, ]", text)
        place = f"{self.place}:{line[1]}" if line else self.place
        return SourceError(f"{where}: the SQL of {place} fails: {first.rstrip('. ')}.", hint=SQL_FAILS)
