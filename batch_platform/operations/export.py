"""Export predictions to a file, wholly or not at all. Reads the published copy, so it never waits for a run."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import duckdb
import polars as pl

from batch_platform.declaration.errors import (
    BatchPlatformError,
    DataError,
    IntegrityError,
    WrongUseError,
    require_local,
)
from batch_platform.declaration.explaining import LOST_FILE
from batch_platform.declaration.spec import ADDED_COLUMNS
from batch_platform.delivery.files import CSV, FORMATS, flat
from batch_platform.features.lake import open_recorded
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.scored_rows import require_key
from batch_platform.sources.kind import unused_name
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun, read_latest
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import folded, literal, quoted
from batch_platform.warehouse.tables_in_files import PREDICTIONS, require_undamaged


@dataclass(frozen=True)
class Exported:
    """A written file."""

    pipeline: str
    file: str
    rows: int
    partitions: int
    first: str
    last: str
    features: bool  # the file holds the inputs too


def export(  # noqa: PLR0913 - what is exported, and how
    pipeline: Pipeline,
    path: Path,
    *,
    partition_keys: Collection[str] | None = None,
    features: bool = False,
    overwrite: bool = False,
    for_spreadsheet: bool = False,
) -> Exported:
    """Write predictions, of some partitions or of all, to a Parquet, CSV or JSON file, ordered by partition and key.

    With `features`, each row has the columns that it was scored from, too. `for_spreadsheet` is as for `write_query`.

    Raises:
        WrongUseError: The file cannot be written there, or is there already.
        DataError: None of the partitions is scored.
        IntegrityError: A file of predictions, or a feature file that was scored, is gone or changed.
    """
    name = pipeline.spec.name
    require_writable(path, overwrite=overwrite)
    with open_published(pipeline.home) as con:
        runs = {
            key: run
            for key, run in sorted(read_latest(con, ScoreRun, name).items())
            if partition_keys is None or key in partition_keys
        }
        if not runs:
            asked = "" if not partition_keys else f" of {min(partition_keys)} to {max(partition_keys)}"
            msg = f"{name}: there are no published predictions{asked}."
            raise DataError(msg, hint=f"score them first: batch-platform run {name}")
        require_undamaged(con, name, runs, PREDICTIONS.view)
        rows = write_query(con, _query(con, pipeline, runs, features=features), path, for_spreadsheet=for_spreadsheet)
    return Exported(name, str(path), rows, len(runs), min(runs), max(runs), features)


def write_query(con: duckdb.DuckDBPyConnection, query: str, path: Path, *, for_spreadsheet: bool = False) -> int:
    """Write the rows of a SELECT to a file of one of FORMATS, which is complete or absent; returns their number.

    Texts are written as they are. `for_spreadsheet` puts an apostrophe before those in a CSV file that spreadsheets would run.
    Raises BatchPlatformError if the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        con.execute(f"SET temp_directory = {literal(str(aside) + '.spill')}")
        if path.suffix.lower() == CSV:
            query = flat(con, _inert(con, query) if for_spreadsheet else query)
        copied = f"COPY ({query}) TO {literal(str(aside))} ({FORMATS[path.suffix.lower()]})"
        ((rows,),) = con.execute(copied).fetchall()
        aside.replace(path)
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        if LOST_FILE.search(str(error)):
            raise
        msg = f"{path} cannot be written: {error}"
        raise BatchPlatformError(msg, hint="make room on the disk, or choose another folder.") from error
    finally:
        aside.unlink(missing_ok=True)
    return int(rows)


def _inert(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """A query in whose texts nothing begins as a formula does."""
    rows = con.sql(query)
    texts = [
        quoted(name) for name, type_ in zip(rows.columns, rows.types, strict=True) if type_.id in ("varchar", "enum")
    ]
    replaced = ", ".join(f"regexp_replace({name}::VARCHAR, '^[=+@\\t\\r-]', '''\\0') AS {name}" for name in texts)
    return f"SELECT * REPLACE ({replaced}) FROM ({query})" if texts else query


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Raise WrongUseError if a file cannot be written there."""
    require_local(path, "write the file here; predictions.deliver writes to stores and databases.")
    if path.suffix.lower() not in FORMATS:
        msg = f"{path}: the name of the file must end with .parquet, .csv or .json."
        raise WrongUseError(msg, hint=f"--to {path.stem}.parquet")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        msg = f"{path}: {path.parent} is not a folder that can be written to."
        raise WrongUseError(msg, hint="create the folder, or choose another one.")
    if path.is_dir() or (path.exists() and not overwrite):
        msg = f"{path} exists already."
        raise WrongUseError(msg, hint="--overwrite replaces it, or choose another name.")


def _query(con: duckdb.DuckDBPyConnection, pipeline: Pipeline, runs: dict[str, ScoreRun], *, features: bool) -> str:
    """The SELECT of what is exported."""
    spec = pipeline.spec
    files = (
        {key: str(scored_file(pipeline.home, run)) for key, run in runs.items()}
        if features
        else dict.fromkeys(runs, "")
    )
    con.register("chosen", pl.DataFrame({"partition_key": [*files], "file": [*files.values()]}).to_arrow())
    table, key = f"{quoted(spec.name)}.{PREDICTIONS.view}", [quoted(column) for column in spec.features.key]
    require_key(con, spec, PREDICTIONS.view, list(runs))
    selected, joined = "scores.*", f"{table} AS scores JOIN chosen USING (partition_key)"
    if features:
        inputs = f"read_parquet([{', '.join(map(literal, files.values()))}], union_by_name = true, hive_partitioning = false, filename = '__file')"
        columns = con.sql(f"FROM {inputs}").columns
        present = set(map(folded, con.sql(f"FROM {table}").columns))
        kept = set(map(folded, spec.predictions.keep))
        for column in columns:
            name = folded(column)
            if name not in {*present, "__file"}:
                selected += f", inputs.{quoted(column)}"
            elif name not in kept and (name in ADDED_COLUMNS or name.startswith("score_")):
                # The column of that name in the predictions was added by scoring.
                selected += f", inputs.{quoted(column)} AS {quoted(unused_name(f'{column}_feature', columns))}"
        same = " AND ".join(f"scores.{column} = inputs.{column}" for column in key)
        joined += f" LEFT JOIN {inputs} AS inputs ON chosen.file = inputs.__file AND {same}"
    order = ", ".join(f"scores.{column}" for column in ("partition_key", *key))
    return f"SELECT {selected} FROM {joined} ORDER BY {order}"


def scored_file(home: Home, run: ScoreRun) -> Path:
    """The feature file that a partition was scored from, once every byte of it is checked; raises IntegrityError if it is gone or changed."""
    name, key = run.pipeline, run.partition_key
    path = home.feature_file(name, key, run.input_hash)
    if not path.is_file():
        msg = f"{name}, partition {key}: the features that it was scored from are gone ({path})."
        raise IntegrityError(msg, hint=f"score it again: batch-platform run {name} --partition {key} --force")
    with open_recorded(path, run.input_hash, pipeline=name, partition_key=key) as recorded:
        recorded.require_unchanged()
    return path
