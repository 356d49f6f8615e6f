"""Predictions in Parquet files of the lake: partitions of `predictions` that are published without being copied into DuckDB.

Once a pipeline stores a partition so, its table `predictions` becomes a view of the same name, columns and types. It unites
the table `predictions_in_duckdb`, which has the rows of all other partitions and defines the columns, with the files that the
table `prediction_files` names. Both tables and the view change in the transaction of the ledger row. A file is named after its
content and never changed. It comes into the lake while the warehouse is held, so whoever holds the warehouse next can tell
what nothing names.

The view finds the files below the variable `batch_platform_home` of the connection that reads it, and without that variable
below the home as it was when the view was made. Every connection of this project sets the variable.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow.parquet as pq
from xxhash import xxh3_128

from batch_platform.declaration.errors import DataError, WarehouseError, listed
from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.descriptions import write_comments
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.instance import in_memory
from batch_platform.warehouse.ledger import Change, ScoreRun, create_table, insert, next_numbers, note, note_partitions
from batch_platform.warehouse.replacing import NO_TYPE, fit_columns, replace_rows, rows_of_files
from batch_platform.warehouse.sql import folded, has_table, literal, quoted, table_columns

PREDICTIONS, FILES, ROWS = "predictions", "prediction_files", "predictions_in_duckdb"
HOME_VARIABLE = "batch_platform_home"  # of a connection to DuckDB
_PATH = "path_of_file"  # column of the view's own queries


@dataclass(frozen=True)
class PredictionFile:
    """A file with rows of a partition; a row of the table `prediction_files`."""

    partition_key: str
    part: int  # place among the files of the partition, in the order of the rows
    file: str  # name in the folder of the partition
    rows: int
    file_bytes: int
    xxh3: str  # of its bytes
    columns: str  # JSON: for each column of the table its name and type in the file
    run_id: str


@dataclass(frozen=True)
class StagedFile:
    """A file that is to be published, and where scoring left it."""

    path: Path
    row: PredictionFile


def find_files(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Tell the views of a connection where the home lies now, and with it the files."""
    con.execute(f"SET VARIABLE {HOME_VARIABLE} = {literal(os.path.realpath(home.root))}")


def staged_files(run: ScoreRun, predictions: Sequence[Path], hashes: Sequence[str] = ()) -> list[StagedFile]:
    """What is recorded of the staged files of a partition, without those that have no rows; waits until all are on the disk.

    Args:
        run: The partition's row in the ledger.
        predictions: The files.
        hashes: The XXH3 (128 bits) of each, by whoever wrote them; none: they are read and hashed here.

    Raises:
        WarehouseError: The disk does not take the files.
    """
    columns, staged = dict[str, str](), list[StagedFile]()  # columns by Arrow's schema
    with _storage_explained(run.pipeline, [run.partition_key]):
        for path, xxh3 in zip(predictions, hashes or map(file_xxh3, predictions), strict=True):
            with pq.ParquetFile(path) as parquet:
                rows, schema = parquet.metadata.num_rows, parquet.schema_arrow.to_string(show_schema_metadata=False)
            if not rows:
                continue
            if schema not in columns:
                columns[schema] = _columns_of(path)
            sync(path)
            row = PredictionFile(
                partition_key=run.partition_key,
                part=len(staged),
                file=f"{xxh3}.parquet",
                rows=rows,
                file_bytes=path.stat().st_size,
                xxh3=xxh3,
                columns=columns[schema],
                run_id=run.run_id,
            )
            staged.append(StagedFile(path, row))
    return staged


def replace_predictions(  # noqa: PLR0913 - which partitions, by which rows, and where these are kept
    con: duckdb.DuckDBPyConnection,
    home: Home,
    pipeline: str,
    keys: Sequence[str],
    predictions: Sequence[Path],
    files: Sequence[StagedFile] | None,
) -> int:
    """Replace partitions by staged rows, in the caller's transaction; returns the number of rows.

    Args:
        con: A connection to the warehouse.
        home: Its home.
        pipeline: The schema of the tables.
        keys: The partitions.
        predictions: Their staged files.
        files: The same as `staged_files` describes them, to be published as they are; None: the rows are copied into DuckDB.

    Raises:
        DataError: Values do not fit the type of the table's column without loss.
        WarehouseError: A file cannot be brought into the lake.
    """
    if files is None and not has_table(con, pipeline, FILES):
        return replace_rows(con, pipeline, PREDICTIONS, keys, predictions)
    _make_room(con, pipeline)
    where, values = "WHERE partition_key IN $keys", {"keys": list(keys)}
    stored = table_columns(con, pipeline, PREDICTIONS)  # as the catalog knows them: the view's files are not opened
    read_in = PREDICTIONS if stored else None
    if files is None:
        rows = replace_rows(con, pipeline, ROWS, keys, predictions, read_in=read_in)
    else:
        fit_columns(con, pipeline, ROWS, *rows_of_files(predictions), read_in=read_in)
        con.execute(f"DELETE FROM {quoted(pipeline)}.{ROWS} {where}", values)
        _bring_in(home, pipeline, files)
        rows = sum(staged.row.rows for staged in files)
    con.execute(f"DELETE FROM {quoted(pipeline)}.{FILES} {where}", values)
    insert(con, FILES, [vars(staged.row) for staged in files or ()], schema=pipeline)
    make_view(con, pipeline)
    for table in (ROWS, FILES):
        note_partitions(con, pipeline, table, keys)
    return rows


def make_view(con: duckdb.DuckDBPyConnection, pipeline: str, database: str | None = None) -> None:
    """Make the view of a pipeline anew, in the caller's transaction; by default in the current database.

    To read a partition that lacks a file is an error that says so, also of a query of all partitions.
    """
    schema = f"{quoted(database)}.{quoted(pipeline)}" if database else quoted(pipeline)
    ((root,),) = con.execute(f"SELECT getvariable('{HOME_VARIABLE}')").fetchall()
    columns = [(str(name), str(dtype)) for name, dtype, *_ in con.execute(f"DESCRIBE {schema}.{ROWS}").fetchall()]
    selects = [f"SELECT {', '.join(quoted(name) for name, _ in columns)} FROM {quoted(pipeline)}.{ROWS}"]
    query = f"SELECT columns, partition_key, file FROM {schema}.{FILES} ORDER BY partition_key, part"
    below = f"/lake/{pipeline}/{PREDICTIONS}/"
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
        msg = f"{pipeline}, partition {key}: a file of its predictions is gone. Hint: batch-platform run {pipeline} scores it again."
        selects.append(f"SELECT {names} WHERE error({literal(msg)})::BOOLEAN")
    con.execute(f"CREATE OR REPLACE VIEW {schema}.{PREDICTIONS} AS {' UNION ALL '.join(selects)}")
    write_comments(con, pipeline, PREDICTIONS, database, kind="VIEW")


def _selected(name: str, dtype: str, in_file: Sequence[str] | None, partition_key: str | None = None) -> str:
    """A column of the view as a file has it. The partition is read off the path, so that a query opens only files that it needs."""
    if name == "partition_key":
        key = literal(partition_key) if partition_key else f"split_part({_PATH}, '/', -2)"
        return f"{key} AS {quoted(name)}"
    if in_file is None or NO_TYPE in (dtype, in_file[1]):
        return f"NULL{'' if dtype == NO_TYPE else f'::{dtype}'} AS {quoted(name)}"
    return f"{quoted(in_file[0])}::{dtype} AS {quoted(name)}"


def forget_predictions(con: duckdb.DuckDBPyConnection, pipeline: str, keys: Collection[str]) -> None:
    """Delete partitions of a pipeline whose predictions are a view, in the caller's transaction."""
    for table in (ROWS, FILES):
        where = f"{quoted(pipeline)}.{table} WHERE partition_key IN $keys"
        con.execute(f"DELETE FROM {where}", {"keys": list(keys)})
        note_partitions(con, pipeline, table, keys)
    make_view(con, pipeline)


def rename_in_files(con: duckdb.DuckDBPyConnection, pipeline: str, old: str, new: str) -> None:
    """Read a column of all files under another name, in the caller's transaction; the view is to be made anew afterwards.

    Raises:
        DataError: A file has a column of both names.
    """
    table = f"{quoted(pipeline)}.{FILES}"
    for (written,) in con.execute(f"SELECT DISTINCT columns FROM {table}").fetchall():
        columns = json.loads(written)
        spellings = {folded(name): name for name in columns}
        if folded(old) not in spellings:
            continue
        values = {"written": written}
        if folded(new) in spellings:
            query = f"SELECT DISTINCT partition_key FROM {table} WHERE columns = $written"
            keys = listed(key for (key,) in con.execute(query, values).fetchall())
            msg = f"{pipeline}, partition {keys}: its files hold both {old} and {new}; nothing is renamed."
            raise DataError(msg, hint="a column takes the place of one that it has no row in common with.")
        renamed = {new if folded(name) == folded(old) else name: kept for name, kept in columns.items()}
        query = f"UPDATE {table} SET columns = $renamed WHERE columns = $written"
        con.execute(query, values | {"renamed": json.dumps(renamed)})


def pipelines_in_files(con: duckdb.DuckDBPyConnection, database: str | None = None) -> list[str]:
    """The pipelines whose predictions are a view; by default in the current database."""
    query = """
        SELECT schema_name FROM duckdb_tables()
        WHERE database_name = coalesce($database, current_database()) AND table_name IN ($files, $rows)
        GROUP BY ALL HAVING count(*) = 2 ORDER BY ALL
    """
    values = {"database": database, "files": FILES, "rows": ROWS}
    return [str(name) for (name,) in con.execute(query, values).fetchall()]


def views_by_pipeline(con: duckdb.DuckDBPyConnection, database: str | None = None) -> dict[str, str]:
    """The SQL of each view of predictions, by pipeline; by default in the current database."""
    pipelines = pipelines_in_files(con, database)
    query = """
        SELECT schema_name, sql FROM duckdb_views()
        WHERE database_name = coalesce($database, current_database()) AND view_name = $view AND NOT internal ORDER BY ALL
    """
    views = dict(con.execute(query, {"database": database, "view": PREDICTIONS}).fetchall()) if pipelines else {}
    return {name: views[name] for name in pipelines if name in views}


def made_elsewhere(con: duckdb.DuckDBPyConnection, home: Home) -> list[str]:
    """The pipelines whose view looks for files where the home no longer lies: it was moved or copied."""
    place = literal(os.path.realpath(home.root))
    return [pipeline for pipeline, sql in views_by_pipeline(con).items() if HOME_VARIABLE in sql and place not in sql]


def make_views_here(con: duckdb.DuckDBPyConnection, pipelines: Sequence[str]) -> None:
    """Make the views of pipelines anew for the place where the home lies now, in the caller's transaction."""
    for pipeline in pipelines:
        make_view(con, pipeline)
    seqs = next_numbers(con, len(pipelines))
    note(con, [Change(seq, pipeline, FILES, None) for seq, pipeline in zip(seqs, pipelines, strict=True)])


def named_files(
    con: duckdb.DuckDBPyConnection, home: Home, database: str | None = None, *, pipeline: str | None = None
) -> dict[Path, PredictionFile]:
    """The files that a database names, by path; by default the current database, and all pipelines."""
    named: dict[Path, PredictionFile] = {}
    prefix = f"{quoted(database)}." if database else ""
    columns = ", ".join(quoted(item) for item in PredictionFile.__dataclass_fields__)
    for name in pipelines_in_files(con, database):
        if pipeline not in (None, name):
            continue
        folder = home.predictions(name)
        for values in con.execute(f"SELECT {columns} FROM {prefix}{quoted(name)}.{FILES}").fetchall():
            row = PredictionFile(*values)
            named[folder / row.partition_key / row.file] = row
    return named


def files_in_lake(home: Home) -> set[Path]:
    """All files in the folders of predictions, those that were not completed too."""
    return set(home.lake.glob("*/predictions/*/*"))


def remove_files(home: Home, files: Collection[Path]) -> None:
    """Remove files of predictions, and the folders that are empty then."""
    for file in files:
        file.unlink(missing_ok=True)
    for folder in sorted(
        {parent for file in files for parent in file.parents[:3] if home.lake in parent.parents}, reverse=True
    ):
        with suppress(OSError):
            folder.rmdir()


def is_whole(path: Path, row: PredictionFile) -> bool:
    """Whether a file is there with the size that it was published with."""
    try:
        return path.stat().st_size == row.file_bytes
    except FileNotFoundError:
        return False


def damage_of(path: Path, row: PredictionFile) -> str | None:
    """What is wrong with a file, of which every byte is read; None if it is as it was published."""
    if not path.is_file():
        return "is gone"
    return None if file_xxh3(path) == row.xxh3 else "is damaged"


def link_file(file: str, copy: str) -> None:
    """Give a file a second name, unless a file of that name is there, which is the same; copies it where links cannot be made."""
    try:
        os.link(file, copy)
    except FileExistsError:
        pass
    except OSError:  # another file system, or one without links
        aside = Path(copy).with_name(f".{uuid4().hex}")
        shutil.copyfile(file, aside)
        sync(aside)
        aside.rename(copy)


def _make_room(con: duckdb.DuckDBPyConnection, pipeline: str) -> None:
    """Make the predictions of a pipeline a view, if they are still a table."""
    if has_table(con, pipeline, FILES):
        return
    create_table(con, pipeline, FILES, PredictionFile)
    if has_table(con, pipeline, PREDICTIONS):
        con.execute(f"ALTER TABLE {quoted(pipeline)}.{PREDICTIONS} RENAME TO {ROWS}")
        con.execute(f"COMMENT ON TABLE {quoted(pipeline)}.{ROWS} IS NULL")
        write_comments(con, pipeline, ROWS)
        make_view(con, pipeline)


def _bring_in(home: Home, pipeline: str, files: Sequence[StagedFile]) -> None:
    """Link staged files into the lake. They also stay where they are, so that a commit can be tried again."""
    folders = set[Path]()
    with _storage_explained(pipeline, {staged.row.partition_key for staged in files}):
        for staged in files:
            target = home.prediction_file(pipeline, staged.row.partition_key, staged.row.file)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_file(str(staged.path), str(target))
            folders |= {target.parent, target.parent.parent}
        for folder in folders:
            sync(folder)


@contextmanager
def _storage_explained(pipeline: str, keys: Collection[str]) -> Generator[None]:
    """Raise WarehouseError with the partitions named for an error of the disk."""
    try:
        yield
    except OSError as error:
        msg = f"{pipeline}, partition {listed(keys)}: the files of its predictions cannot be stored: {error}."
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
