"""Tables in Parquet files of the lake: partitions that are published without being copied into DuckDB.

Once a pipeline stores a partition so, its table becomes a view of the same name, columns and types. It unites a table in
DuckDB, which has the rows of all other partitions and defines the columns, with the files that a second table names. Both
tables and the view change in the transaction of the ledger row. A file is named after its content and never changed. It comes
into the lake while the warehouse is held, so whoever holds the warehouse next can tell what nothing names.

`TABLES_IN_FILES` lists the tables that can be stored so; what is done to all of them loops over it.

The view finds the files below the variable `batch_platform_home` of the connection that reads it, and without that variable
below the home as it was when the view was made. Every connection of this project sets the variable.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow.parquet as pq
from xxhash import xxh3_128

from batch_platform.declaration.errors import DamagedRowsError, WarehouseError, listed
from batch_platform.warehouse.descriptions import write_comments
from batch_platform.warehouse.files import sync
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import (
    ScoreRun,
    create_table,
    insert,
    journal,
    note_partitions,
    read_records,
    selected,
)
from batch_platform.warehouse.replacing import NO_TYPE, fit_columns, insert_rows, rows_of_files
from batch_platform.warehouse.sql import folded, has_table, in_memory, literal, quoted, table_columns, tables

HOME_VARIABLE = "batch_platform_home"  # name of a variable of DuckDB connections
_PATH = "path_of_file"  # column that only the view's own queries see
_NAME_OF_FILE = re.compile(r"[0-9a-f]{32}\.parquet|\.[0-9a-f]{32}")  # a complete file, or one that is being copied


@dataclass(frozen=True)
class TableInFiles:
    """A table of a pipeline that can be stored in files, and the tables behind it once it is."""

    view: str  # the name that readers use, and that of the folder with a pipeline's files
    files: str  # table that names the files
    rows: str  # table with the rows that are not in files
    by_challenger: bool = False  # rows are replaced by challenger, which a column of `files` names


PREDICTIONS = TableInFiles("predictions", "prediction_files", "predictions_in_duckdb")
CHALLENGER_SCORES = TableInFiles(
    "challenger_scores", "challenger_score_files", "challenger_scores_in_duckdb", by_challenger=True
)
TABLES_IN_FILES = (PREDICTIONS, CHALLENGER_SCORES)


@dataclass(frozen=True)
class PublishedFile:
    """A file with rows of a partition; a row of the table that names files."""

    partition_key: str
    part: int  # place among the files of the partition, or of its challenger, in the order of the rows
    file: str  # name of the file in the folder of the partition
    rows: int
    file_bytes: int
    xxh3: str  # hash of its bytes
    columns: str  # JSON: for each column of the table its name and type in the file
    run_id: str


@dataclass(frozen=True)
class StagedFile:
    """A file that is to be published, and where scoring left it."""

    path: Path
    row: PublishedFile
    challenger: str | None = None  # the challenger whose scores it holds


@dataclass(frozen=True)
class NewRows:
    """Staged rows that replace what a table holds of some partitions."""

    keys: Sequence[str]  # keys of the partitions
    staged: Sequence[Path]
    files: Sequence[StagedFile] | None  # files that are published as they are; None: their rows are copied
    # Partitions by challenger whose rows are replaced; None: all rows of the partitions.
    by_challenger: Mapping[str, Sequence[str]] | None = None
    # Partitions that may have rows, which are then looked for among those of all partitions; None: any partition.
    standing: Sequence[str] | None = None
    decided: Mapping[Path, str] = field(default_factory=dict[Path, str])  # SQL conditions, see `rows_of_files`

    @property
    def rows(self) -> tuple[str, dict[str, list[str]]]:
        """The staged rows as SQL after FROM, and the values that it binds."""
        return rows_of_files(self.staged, self.decided)

    def delete_replaced(self, con: duckdb.DuckDBPyConnection, schema: str, table: str) -> None:
        """Delete what these rows replace, in the caller's transaction."""
        where = f"{quoted(schema)}.{table} WHERE partition_key IN $keys"
        if self.by_challenger is None:
            if keys := list(self.keys if self.standing is None else self.standing):
                con.execute(f"DELETE FROM {where}", {"keys": keys})
            return
        for challenger, keys in self.by_challenger.items():
            values = {"keys": list(keys), "challenger": challenger}
            con.execute(f"DELETE FROM {where} AND challenger = $challenger", values)


def find_files(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Tell the views of a connection where the home lies now, and with it the files."""
    con.execute(f"SET VARIABLE {HOME_VARIABLE} = {literal(os.path.realpath(home.root))}")


def staged_files(
    run: ScoreRun,
    table: TableInFiles,
    paths: Sequence[Path],
    hashes: Sequence[str] = (),
    *,
    challenger: str | None = None,
) -> list[StagedFile]:
    """Describe the staged files of a partition, without those that have no rows, and wait until all are on the disk.

    Without the XXH3 (128 bits) of each file, the files are read and hashed here. Raises WarehouseError if the disk does not take them.
    """
    columns, staged = dict[str, str](), list[StagedFile]()  # the first by Arrow's schema
    with storage_explained(run.pipeline, table, [run.partition_key]):
        for path, xxh3 in zip(paths, hashes or map(file_xxh3, paths), strict=True):
            with pq.ParquetFile(path) as parquet:
                rows, schema = parquet.metadata.num_rows, parquet.schema_arrow.to_string(show_schema_metadata=False)
            if not rows:
                continue
            if schema not in columns:
                columns[schema] = _columns_of(path)
            sync(path)
            row = PublishedFile(
                partition_key=run.partition_key,
                part=len(staged),
                file=f"{xxh3}.parquet",
                rows=rows,
                file_bytes=path.stat().st_size,
                xxh3=xxh3,
                columns=columns[schema],
                run_id=run.run_id,
            )
            staged.append(StagedFile(path, row, challenger))
    return staged


def replace_partitions(
    con: duckdb.DuckDBPyConnection, home: Home, pipeline: str, table: TableInFiles, new: NewRows
) -> int:
    """Replace partitions of a pipeline's table by staged rows, in the caller's transaction; returns the number of rows.

    Without a staged file, rows are only deleted. Raises as `fit_columns` does, and WarehouseError if a file cannot be brought into
    the lake.
    """
    if new.files is not None and new.staged:
        _make_room(con, pipeline, table)
    in_files = has_table(con, pipeline, table.files)
    rows, count = table.rows if in_files else table.view, 0
    if new.staged:
        # Looked up in the catalog, which does not open the view's files.
        read_in = table.view if in_files and table_columns(con, pipeline, table.view) else None
        fit_columns(con, pipeline, rows, *new.rows, read_in=read_in)
    elif not has_table(con, pipeline, rows):
        return 0
    new.delete_replaced(con, pipeline, rows)
    if in_files:
        new.delete_replaced(con, pipeline, table.files)
    if new.files is None and new.staged:
        count = insert_rows(con, pipeline, rows, *new.rows)
    elif new.files:
        _bring_in(home, pipeline, table, new.files)
        count = sum(staged.row.rows for staged in new.files)
        insert(con, table.files, [_recorded(staged) for staged in new.files], schema=pipeline)
    if in_files:
        make_view(con, pipeline, table)
        for name in (table.rows, table.files):
            note_partitions(con, pipeline, name, new.keys)
    return count


def _recorded(staged: StagedFile) -> Mapping[str, object]:
    """The row of the table of files."""
    return vars(staged.row) | ({} if staged.challenger is None else {"challenger": staged.challenger})


def lost_challengers(
    con: duckdb.DuckDBPyConnection, home: Home, pipeline: str, keys: Collection[str]
) -> list[tuple[str, str]]:
    """The challengers with a file that is not as it was published, each with the partition, in order."""
    table = CHALLENGER_SCORES
    if not has_table(con, pipeline, table.files):
        return []
    query = f"SELECT challenger, {selected(PublishedFile)} FROM {quoted(pipeline)}.{table.files} WHERE partition_key IN $keys"
    lost = set[tuple[str, str]]()
    for challenger, *values in con.execute(query, {"keys": list(keys)}).fetchall():
        row = PublishedFile(*values)
        if not is_whole(home.table_file(pipeline, table.view, row.partition_key, row.file), row):
            lost.add((challenger, row.partition_key))
    return sorted(lost)


def make_view(con: duckdb.DuckDBPyConnection, pipeline: str, table: TableInFiles, database: str | None = None) -> None:
    """Make the view of a pipeline's table anew, in the caller's transaction; by default in the current database.

    To read a partition that lacks a file is an error that says so, also of a query of all partitions.
    """
    schema = f"{quoted(database)}.{quoted(pipeline)}" if database else quoted(pipeline)
    ((root,),) = con.execute(f"SELECT getvariable('{HOME_VARIABLE}')").fetchall()
    columns = [(str(name), str(dtype)) for name, dtype, *_ in con.execute(f"DESCRIBE {schema}.{table.rows}").fetchall()]
    selects = [f"SELECT {', '.join(quoted(name) for name, _ in columns)} FROM {quoted(pipeline)}.{table.rows}"]
    query = f"SELECT columns, partition_key, file FROM {schema}.{table.files} ORDER BY partition_key, part, file"
    below = f"/lake/{pipeline}/{table.view}/"
    by_columns, incomplete = dict[str, list[str]](), set[str]()
    for in_files, key, file in con.execute(query).fetchall():
        if Path(f"{root}{below}{key}/{file}").is_file():
            by_columns.setdefault(in_files, []).append(f"{key}/{file}")
        else:
            incomplete.add(key)
    for in_files, paths in by_columns.items():
        present = {folded(name): in_file for name, in_file in json.loads(in_files).items()}
        names = ", ".join(_selected(name, dtype, present.get(folded(name))) for name, dtype in columns)
        folder = f"coalesce(getvariable('{HOME_VARIABLE}'), {literal(root)}) || {literal(below)}"
        listing = f"list_transform([{', '.join(map(literal, paths))}], lambda path: {folder} || path)"
        selects.append(
            f"SELECT {names} FROM read_parquet({listing}, hive_partitioning := false, filename := '{_PATH}')"
        )
    for key in sorted(incomplete):
        names = ", ".join(_selected(name, dtype, None, key) for name, dtype in columns)
        msg = f"{pipeline}, partition {key}: a file of its {table.view} is gone. Hint: batch-platform run {pipeline} scores it again."
        selects.append(f"SELECT {names} WHERE error({literal(msg)})::BOOLEAN")
    con.execute(f"CREATE OR REPLACE VIEW {schema}.{table.view} AS {' UNION ALL '.join(selects)}")
    write_comments(con, pipeline, table.view, database, kind="VIEW")


def _selected(name: str, dtype: str, in_file: Sequence[str] | None, partition_key: str | None = None) -> str:
    """A column of the view as a file has it. The partition is read off the path, so that a query opens only files that it needs."""
    if name == "partition_key":
        key = literal(partition_key) if partition_key else f"split_part({_PATH}, '/', -2)"
        return f"{key} AS {quoted(name)}"
    if in_file is None or NO_TYPE in (dtype, in_file[1]):
        return f"NULL{'' if dtype == NO_TYPE else f'::{dtype}'} AS {quoted(name)}"
    return f"{quoted(in_file[0])}::{dtype} AS {quoted(name)}"


def forget_partitions(
    con: duckdb.DuckDBPyConnection, pipeline: str, table: TableInFiles, keys: Collection[str]
) -> None:
    """Delete partitions of a pipeline's table that is a view, in the caller's transaction."""
    for name in (table.rows, table.files):
        where = f"{quoted(pipeline)}.{name} WHERE partition_key IN $keys"
        con.execute(f"DELETE FROM {where}", {"keys": list(keys)})
        note_partitions(con, pipeline, name, keys)
    make_view(con, pipeline, table)


def file_in_place_of(old: PublishedFile, path: Path) -> PublishedFile | None:
    """Describe a file with some of the rows of another one; None if it has none."""
    with pq.ParquetFile(path) as parquet:
        rows = parquet.metadata.num_rows
    if not rows:
        return None
    sync(path)
    xxh3 = file_xxh3(path)
    described_file = {"file": f"{xxh3}.parquet", "file_bytes": path.stat().st_size, "xxh3": xxh3}
    return replace(old, rows=rows, columns=_columns_of(path), **described_file)


def replace_file(  # noqa: PLR0913 - a file, where it stands, and what takes its place
    con: duckdb.DuckDBPyConnection,
    home: Home,
    pipeline: str,
    table: TableInFiles,
    old: PublishedFile,
    new: PublishedFile | None,
    path: Path,
) -> None:
    """Put a file at a path in the place of another one of the same partition, or of none without rows, in the caller's transaction.

    The view must be made anew afterwards.
    """
    files, where = f"{quoted(pipeline)}.{table.files}", "WHERE partition_key = $key AND file = $file"
    values = {"key": old.partition_key, "file": old.file}
    if new is None:
        con.execute(f"DELETE FROM {files} {where}", values)
    else:
        _bring_in(home, pipeline, table, [StagedFile(path, new)])
        assigned = {name: getattr(new, name) for name in ("rows", "file_bytes", "xxh3", "columns")}
        setting = ", ".join(f"{name} = ${name}" for name in assigned)
        con.execute(f"UPDATE {files} SET file = $new, {setting} {where}", {**values, **assigned, "new": new.file})
    note_partitions(con, pipeline, table.files, [old.partition_key])


def tables_in_files(con: duckdb.DuckDBPyConnection, database: str | None = None) -> list[tuple[str, TableInFiles]]:
    """Each table that is a view, after the name of its pipeline; by default in the current database."""
    present = tables(con, database)
    return [
        (pipeline, table)
        for table in TABLES_IN_FILES
        for pipeline, name in present
        if name == table.files and (pipeline, table.rows) in present
    ]


def views(con: duckdb.DuckDBPyConnection, database: str | None = None) -> dict[tuple[str, TableInFiles], str]:
    """The SQL of each view, by pipeline and table; by default in the current database."""
    expected = tables_in_files(con, database)
    if not expected:
        return {}
    query = """
        SELECT schema_name, view_name, sql FROM duckdb_views()
        WHERE database_name = coalesce($database, current_database()) AND NOT internal
    """
    made = {(pipeline, view): sql for pipeline, view, sql in con.execute(query, {"database": database}).fetchall()}
    return {of: made[of[0], of[1].view] for of in expected if (of[0], of[1].view) in made}


def made_elsewhere(con: duckdb.DuckDBPyConnection, home: Home) -> list[tuple[str, TableInFiles]]:
    """The pipelines and tables whose view looks for files where the home no longer lies: it was moved or copied."""
    place = literal(os.path.realpath(home.root))
    return [table for table, sql in views(con).items() if HOME_VARIABLE in sql and place not in sql]


def make_views_here(con: duckdb.DuckDBPyConnection, moved: Sequence[tuple[str, TableInFiles]]) -> None:
    """Make the views of pipelines' tables anew for the place where the home lies now, in the caller's transaction."""
    for pipeline, table in moved:
        make_view(con, pipeline, table)
    journal(con, [(pipeline, table.files, None) for pipeline, table in moved])


def named_files(
    con: duckdb.DuckDBPyConnection,
    home: Home,
    database: str | None = None,
    *,
    pipeline: str | None = None,
    partition_keys: Collection[str] | None = None,
) -> dict[Path, PublishedFile]:
    """The files that a database names, by path; by default the current database, and all pipelines and partitions."""
    named: dict[Path, PublishedFile] = {}
    prefix = f"{quoted(database)}." if database else ""
    where, values = (
        ("", {}) if partition_keys is None else (" WHERE partition_key IN $keys", {"keys": [*partition_keys]})
    )
    for name, table in tables_in_files(con, database):
        if pipeline not in (None, name):
            continue
        folder = home.table_folder(name, table.view)
        for row in read_records(con, PublishedFile, f"{prefix}{quoted(name)}.{table.files}{where}", values):
            named[folder / row.partition_key / row.file] = row
    return named


def files_in_lake(home: Home) -> set[Path]:
    """All files in the folders of tables, those that were not completed too; files of other names are somebody else's."""
    paths = [path for table in TABLES_IN_FILES for path in home.lake.glob(f"*/{table.view}/*/*")]
    return {path for path in paths if _NAME_OF_FILE.fullmatch(path.name)}


def remove_files(home: Home, files: Collection[Path]) -> None:
    """Remove files of tables, and the folders that are empty then."""
    own = [file for file in files if home.owns(file)]
    for file in own:
        home.remove(file)
    for folder in sorted(
        {parent for file in own for parent in file.parents[:3] if home.lake in parent.parents}, reverse=True
    ):
        with suppress(OSError):
            folder.rmdir()


def is_whole(path: Path, row: PublishedFile) -> bool:
    """Return whether a file exists and has the size that it was published with."""
    try:
        return path.stat().st_size == row.file_bytes
    except FileNotFoundError:
        return False


def damage_of(path: Path, row: PublishedFile) -> str | None:
    """Read every byte of a file and say what is wrong with it; None if it is as it was published."""
    if not path.is_file():
        return "is gone"
    return None if file_xxh3(path) == row.xxh3 else "is damaged"


def require_undamaged(
    con: duckdb.DuckDBPyConnection,
    pipeline: str | None = None,
    partition_keys: Collection[str] | None = None,
    table: str | None = None,
) -> int:
    """Read every byte of the files with rows of some partitions, by default of all, and return how many rows they hold.

    Rows in DuckDB need no such look: DuckDB checks the sum of each block that it reads. Raises DamagedRowsError if a file is not
    as it was published.
    """
    ((root,),) = con.execute(f"SELECT getvariable('{HOME_VARIABLE}')").fetchall()
    every = named_files(con, Home(Path(root)), pipeline=pipeline, partition_keys=partition_keys)
    named = {path: row for path, row in every.items() if table in (None, path.parents[1].name)}
    if damaged := {path: state for path in sorted(named) if (state := damage_of(path, named[path])) is not None}:
        keys = {f"{path.parents[2].name}, partition {named[path].partition_key}" for path in damaged}
        first = next(iter(damaged))
        further = f" ({len(damaged)} files in all)" if len(damaged) > 1 else ""
        msg = f"{listed(keys)}: the file of {first.parents[1].name} {first} {damaged[first]}{further}."
        again = f"batch-platform run {first.parents[2].name} --partition {named[first].partition_key} --force"
        raise DamagedRowsError(msg, hint=f"score them again: {again}")
    return sum(row.rows for row in named.values())


def link_file(file: str, copy: str) -> None:
    """Give a file a second name, unless a file of that name is there, which is the same; copies it where links cannot be made."""
    try:
        os.link(file, copy)
    except FileExistsError:
        pass
    except OSError:  # the file system is another one, or has no links
        aside = Path(copy).with_name(f".{uuid4().hex}")
        shutil.copyfile(file, aside)
        sync(aside)
        aside.rename(copy)


def _make_room(con: duckdb.DuckDBPyConnection, pipeline: str, table: TableInFiles) -> None:
    """Make a table of a pipeline a view, if it is still a table."""
    if has_table(con, pipeline, table.files):
        return
    create_table(con, pipeline, table.files, PublishedFile, *(["challenger VARCHAR"] if table.by_challenger else []))
    if has_table(con, pipeline, table.view):
        con.execute(f"ALTER TABLE {quoted(pipeline)}.{table.view} RENAME TO {table.rows}")
        con.execute(f"COMMENT ON TABLE {quoted(pipeline)}.{table.rows} IS NULL")
        write_comments(con, pipeline, table.rows)
        make_view(con, pipeline, table)


def _bring_in(home: Home, pipeline: str, table: TableInFiles, files: Sequence[StagedFile]) -> None:
    """Link staged files into the lake. They also stay where they are, so that a commit can be tried again."""
    folders = set[Path]()
    with storage_explained(pipeline, table, {staged.row.partition_key for staged in files}):
        for staged in files:
            target = home.table_file(pipeline, table.view, staged.row.partition_key, staged.row.file)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_file(str(staged.path), str(target))
            folders |= {target.parent, target.parent.parent}
        for folder in folders:
            sync(folder)


@contextmanager
def storage_explained(pipeline: str, table: TableInFiles, keys: Collection[str]) -> Generator[None]:
    """Raise WarehouseError with the partitions named for an error of the disk."""
    try:
        yield
    except OSError as error:
        msg = f"{pipeline}, partition {listed(keys)}: the files of its {table.view} cannot be stored: {error}."
        hint = "make room on the disk and run again; committed partitions are skipped."
        raise WarehouseError(msg, hint=hint) from error


def _columns_of(path: Path) -> str:
    rows, values = rows_of_files([path])
    with in_memory() as con:
        described_columns = con.execute(f"DESCRIBE FROM {rows}", values).fetchall()
    return json.dumps({name: (name, dtype) for name, dtype, *_ in described_columns})


def file_xxh3(path: Path) -> str:
    """The XXH3 (128 bits) of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()  # pyright: ignore[reportArgumentType] - only its stub lacks parts
