"""Deletion for good: down to the bytes, of subjects, partitions and whole pipelines, each with its proof.

DuckDB keeps the bytes of deleted rows in free blocks. So whoever deletes rows for good leaves a mark in the home, within the
transaction. The next publication, of this process or of another one, then writes the warehouse and its copy anew, removes all other
copies and takes the mark away. The cost is that of the whole warehouse.

A subject is a customer, say, named by the values of some columns. All that is kept of it is an HMAC-SHA-256 of them, made with a random
key that lies in the home and nowhere else: without the key nobody can try out which values it may have been.

A partition counts as dropped until it is made again, when the ledgers name it once more.
"""

import json
import os
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from batch_platform.declaration.errors import WarehouseError
from batch_platform.declaration.operating import RetentionKind
from batch_platform.declaration.stamp import Stamp
from batch_platform.warehouse.descriptions import OF_ALL, RECORD, Description, reserved_tables, tables_of_pipelines
from batch_platform.warehouse.failures import FAILURES, FINGERPRINTS, REFUSED_ROWS
from batch_platform.warehouse.files import sync
from batch_platform.warehouse.home import Home, feature_file_name
from batch_platform.warehouse.ledger import (
    LEDGERS,
    LEDGERS_SCHEMA,
    STATUS_TABLE,
    EvaluationRun,
    FeatureBuild,
    create_table,
    insert,
    journal,
    read_latest,
    read_records,
    statuses_of,
)
from batch_platform.warehouse.sql import READABLE_FROM, has_table, in_memory, literal, quoted, tables, transaction
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES, TableInFiles, forget_partitions


def leave_mark(home: Home, pipeline: str = "", files: Iterable[str] = ()) -> None:
    """Leave the mark, within the transaction that deletes rows: without the lock, a publication could take it away too early.

    With it go the names of feature files that hold deleted rows too.
    """
    with home.wiping.open("a", encoding="utf-8") as mark:
        mark.writelines(f"{pipeline}/{name}\n" for name in files)
        mark.flush()
        os.fsync(mark.fileno())
    sync(home.root)


def remove_marked(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Remove the feature files that the mark names, except those that the newest build of a partition names, and the mark."""
    marked: dict[str, set[str]] = {}
    for line in home.wiping.read_text(encoding="utf-8").splitlines():
        if line.endswith(".parquet"):  # a killed process may have left part of a line
            pipeline, name = Path(line).parts
            marked.setdefault(pipeline, set()).add(name)
    for pipeline, names in marked.items():
        builds = read_latest(con, FeatureBuild, pipeline)
        for name in names - {feature_file_name(key, build.sha256) for key, build in builds.items()}:
            home.remove(home.features(pipeline) / name)
    home.wiping.unlink()


def require_wiped(home: Home) -> None:
    """Raise WarehouseError if the bytes of deleted rows could not be removed."""
    if home.wiping.exists():
        msg = f"The rows are deleted, but {home.warehouse} could not be written anew, so their bytes are still in it."
        hint = "make room on the disk for a second file of that size and repeat the command; the next run does it too."
        raise WarehouseError(msg, hint=hint)


def compact_file(con: duckdb.DuckDBPyConnection, to: Path) -> Path:
    """Write what the warehouse holds to a file that is not there yet, which is complete on the disk afterwards; returns its path.

    The journal notes it, so that a copy is published under a new name. After a duckdb.Error the warehouse is as before.
    """
    with transaction(con):
        journal(con, [(LEDGERS_SCHEMA, "meta", None)])
    ((name,),) = con.execute("SELECT current_database()").fetchall()
    con.execute(f"ATTACH {literal(str(to))} AS compacted (STORAGE_VERSION '{READABLE_FROM}')")
    try:
        con.execute(f"COPY FROM DATABASE {name} TO compacted")
        con.execute("CHECKPOINT compacted")
    finally:
        con.execute("DETACH compacted")
    sync(to)
    return to


ERASURES = "erasures"
OF_ALL[ERASURES] = Description(
    "an erased subject, such as a customer",
    {
        **RECORD,
        "columns": "columns by which it was named, as JSON",
        "subject": "HMAC-SHA-256 of these columns and their values, with the key in the file erasures.key of the home",
        "rows": "erased rows by table, as JSON; features are those of the feature files",
        "partitions": "erased rows of features by partition, as JSON",
        "versions": "versions trained on some of these partitions, as JSON",
        "receivers": "deliveries that held some of these partitions, as JSON",
        "actor": "who erased it",
        "erased_at": "when, in UTC",
        "run_id": "the erasure",
    },
)
_BLOCK = 64  # bytes of a block of SHA-256


@dataclass(frozen=True)
class Erasure:
    """The proof of an erasure; a row of the table `erasures`."""

    pipeline: str
    columns: str  # JSON
    subject: str
    rows: str  # JSON
    partitions: str  # JSON
    versions: str  # JSON
    receivers: str  # JSON
    actor: str
    erased_at: datetime
    run_id: str
    seq: int = 0


@dataclass(frozen=True)
class ErasedSubjects:
    """The erased subjects of a pipeline, as keyed hashes by the columns that named them, sorted."""

    home: Home
    subjects: Mapping[tuple[str, ...], Collection[str]]

    def without(self, batches: Iterator[pa.RecordBatch], left_out: list[int]) -> Iterator[pa.RecordBatch]:
        """Leave the rows of these subjects out of batches, which may be empty then; the number of each batch is added.

        Raises WarehouseError if the key is gone.
        """
        key = _read_key(self.home)
        for batch in batches:
            kept = np.ones(batch.num_rows, dtype=bool)
            for columns, hashes in self.subjects.items():
                if {*columns} <= {*batch.schema.names}:
                    with in_memory() as con:
                        rows = con.from_arrow(pa.Table.from_batches([batch.select(columns)]))
                        con.register("rows_of_batch", rows)
                        query = f"SELECT {_keyed_hash(columns)} IN $hashes AS gone FROM rows_of_batch"
                        gone = con.execute(query, {**_pads(key), "hashes": [*hashes]}).fetchnumpy()["gone"]
                        con.unregister("rows_of_batch")
                    kept &= ~np.asarray(gone, dtype=bool)
            left_out.append(int(batch.num_rows - kept.sum()))
            yield batch if kept.all() else batch.filter(pa.array(kept))


def read_erasures(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[Erasure]:
    """The erasures of a pipeline, oldest first."""
    if not has_table(con, LEDGERS_SCHEMA, ERASURES):
        return []
    return read_records(
        con, Erasure, f"{LEDGERS_SCHEMA}.{ERASURES} WHERE pipeline = $name ORDER BY seq", {"name": pipeline}
    )


def read_erased(con: duckdb.DuckDBPyConnection, home: Home, pipeline: str) -> ErasedSubjects | None:
    """The erased subjects of a pipeline; None if there are none."""
    hashes = defaultdict[tuple[str, ...], set[str]](set)
    for erasure in read_erasures(con, pipeline):
        hashes[tuple(json.loads(erasure.columns))].add(erasure.subject)
    return ErasedSubjects(home, hashes) if hashes else None


def record_erasure(con: duckdb.DuckDBPyConnection, erasure: Erasure) -> None:
    """Add a proof, in the caller's transaction."""
    create_table(con, LEDGERS_SCHEMA, ERASURES, Erasure, "seq BIGINT")
    (seq,) = journal(con, [(LEDGERS_SCHEMA, ERASURES, None)])
    insert(con, ERASURES, [{**vars(erasure), "seq": seq}])


def subject_hash(home: Home, values: Mapping[str, str]) -> str:
    """The keyed hash of a subject, given by column with the text that DuckDB gives the value; makes the key if there is none."""
    columns = tuple(sorted(values))
    selected = ", ".join(f"${at}::VARCHAR AS {quoted(name)}" for at, name in enumerate(columns, start=3))
    bound = [*_pads(_made_key(home)).values(), *(values[name] for name in columns)]
    query = _keyed_hash(columns).replace("$inner", "$1").replace("$outer", "$2")
    with in_memory() as con:
        ((hashed,),) = con.execute(f"SELECT {query} FROM (SELECT {selected})", bound).fetchall()
    return str(hashed)


def _keyed_hash(columns: tuple[str, ...]) -> str:
    """The HMAC of the names and the texts of some columns, as SQL that binds what `_pads` gives."""
    parts = ", ".join(f"{literal(name)}, CAST({quoted(name)} AS VARCHAR)" for name in columns)
    return f"sha256($outer::BLOB || unhex(sha256($inner::BLOB || encode(CAST(to_json([{parts}]) AS VARCHAR)))))"


def _pads(key: bytes) -> dict[str, bytes]:
    """The two blocks that HMAC puts before what it hashes."""
    block = key.ljust(_BLOCK, b"\0")
    return {"inner": bytes(byte ^ 0x36 for byte in block), "outer": bytes(byte ^ 0x5C for byte in block)}


def _read_key(home: Home) -> bytes:
    try:
        return bytes.fromhex(home.erasures_key.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        msg = f"The key {home.erasures_key} cannot be read ({error}), by which builds leave out the rows of erased subjects."
        raise WarehouseError(msg, hint="restore it from the backup of the home.") from error


def _made_key(home: Home) -> bytes:
    if not home.erasures_key.exists():
        aside = home.root / f".erasures.{secrets.token_hex(8)}"
        aside.touch(mode=0o600)
        aside.write_text(secrets.token_bytes(32).hex(), encoding="ascii")
        sync(aside)
        with suppress(FileExistsError):  # another process was quicker, and may have used its key
            os.link(aside, home.erasures_key)
        aside.unlink()
        sync(home.root)
    return _read_key(home)


DROPPED = "dropped_partitions"
_OF_FEATURES = (f"{LEDGERS_SCHEMA}.{LEDGERS[FeatureBuild]}", FINGERPRINTS, FAILURES, REFUSED_ROWS)


@dataclass(frozen=True)
class DroppedPartition:
    """A partition that was deleted for good; a row of the table `dropped_partitions`."""

    partition_key: str
    rows: int  # deleted rows of the pipeline's tables
    actor: str
    dropped_at: datetime
    run_id: str
    seq: int = 0

    def __str__(self) -> str:
        """Say when and by whom."""
        return f"on {self.dropped_at:%Y-%m-%d} by {self.actor}"


def read_dropped(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[str, DroppedPartition]:
    """The partitions that were dropped and not made again since, by key."""
    if not has_table(con, pipeline, DROPPED):
        return {}
    made = " UNION ".join(
        f"SELECT partition_key FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $pipeline" for table in LEDGERS.values()
    )
    entries = f"{quoted(pipeline)}.{DROPPED} WHERE partition_key NOT IN ({made}) ORDER BY seq"
    return {
        entry.partition_key: entry for entry in read_records(con, DroppedPartition, entries, {"pipeline": pipeline})
    }


def held_rows(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, dict[str, int]]:
    """Count the rows of some partitions in the tables of a pipeline, and in the ledgers, by table and partition key.

    A table of the ledgers has the name of its schema before its own.
    """
    held: dict[str, dict[str, int]] = {}
    for table, where in _tables(con, pipeline).items():
        query = f"SELECT partition_key, count(*) FROM {where} GROUP BY ALL ORDER BY ALL"
        if counts := dict(con.execute(query, {"keys": list(partition_keys)}).fetchall()):
            held[table] = counts
    return held


def old_rows(
    con: duckdb.DuckDBPyConnection, pipeline: str, kind: RetentionKind, partition_keys: Collection[str]
) -> dict[str, dict[str, int]]:
    """Count what retention removes of a kind of rows of some partitions, as `held_rows` does."""
    held, evaluations = held_rows(con, pipeline, partition_keys), f"{LEDGERS_SCHEMA}.{LEDGERS[EvaluationRun]}"
    if kind == "predictions":
        return {table: counts for table, counts in held.items() if table not in {*_OF_FEATURES, evaluations}}
    tables = _OF_FEATURES[:1] if kind == "features" else ("rejected_rows", REFUSED_ROWS)
    return {table: counts for table, counts in held.items() if table in tables}


def drop_rows(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str], actor: str, stamp: Stamp
) -> list[str]:
    """Delete the rows of some partitions, and record each drop, in the caller's transaction.

    Returns the keys of the partitions that had rows; the others get no entry.
    """
    held = held_rows(con, pipeline, partition_keys)
    keys = sorted({key for counts in held.values() for key in counts})
    if keys:
        delete_rows(con, pipeline, held)
        create_table(con, pipeline, DROPPED, DroppedPartition, "seq BIGINT")
        seqs = journal(con, [(pipeline, DROPPED, key) for key in keys])  # greater than those of the deleted rows
        own = [counts for table, counts in held.items() if "." not in table]
        drops = [
            DroppedPartition(key, sum(rows.get(key, 0) for rows in own), actor, stamp.now(), stamp.run_id, seq)
            for seq, key in zip(seqs, keys, strict=True)
        ]
        insert(con, DROPPED, [vars(drop) for drop in drops], schema=pipeline)
    return keys


def drop_scores(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str], *, but: Collection[str]
) -> None:
    """Delete what was scored and measured of some partitions, in the caller's transaction.

    Their features stay, as do the rows of further tables that the caller names.
    """
    held = held_rows(con, pipeline, partition_keys)
    delete_rows(con, pipeline, {table: counts for table, counts in held.items() if table not in {*_OF_FEATURES, *but}})


def delete_rows(con: duckdb.DuckDBPyConnection, pipeline: str, held: Mapping[str, Mapping[str, int]]) -> None:
    """Delete the rows of partitions in the caller's transaction, given by table as `held_rows` counts them, and note it in the journal."""
    in_files = {table.view: table for table in _in_files(con, pipeline)}
    changed: list[tuple[str, str, str | None]] = []
    wheres = _tables(con, pipeline)
    for table, counts in held.items():
        if table in in_files:
            forget_partitions(con, pipeline, in_files[table], [*counts])
        else:
            con.execute(f"DELETE FROM {wheres[table]}", {"keys": [*counts]})
        changed += [(pipeline, table, key) for key in counts if "." not in table]
    changed += [(LEDGERS_SCHEMA, ledger, None) for ledger in LEDGERS.values()]
    journal(con, [*changed, statuses_of(pipeline)])


def _tables(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[str, str]:
    """The tables with rows by partition, each with the condition on some partitions, as SQL after FROM.

    For a table that is in files, this is the view. The failure to train a model names a serving period in the place of a
    partition, so it stays.
    """
    query = """
        SELECT table_name FROM duckdb_columns() WHERE database_name = current_database() AND schema_name = $schema
        AND column_name = 'partition_key' AND table_name IN $tables ORDER BY ALL
    """
    behind_views = {name for table in TABLES_IN_FILES for name in (table.files, table.rows)}
    values = {"schema": pipeline, "tables": list(tables_of_pipelines().keys() - {DROPPED, *behind_views})}
    wheres = {
        table: f"{quoted(pipeline)}.{quoted(table)} WHERE partition_key IN $keys"
        + (" AND step <> 'model'" if table == FAILURES else "")
        for (table,) in con.execute(query, values).fetchall()
    }
    for name in (f"{LEDGERS_SCHEMA}.{ledger}" for ledger in (*LEDGERS.values(), STATUS_TABLE)):
        wheres[name] = f"{name} WHERE partition_key IN $keys AND pipeline = {literal(pipeline)}"
    return wheres


@dataclass(frozen=True)
class HeldPipeline:
    """Contents of the warehouse that belong to one pipeline."""

    name: str
    partitions: int  # partitions with predictions
    rows: int
    versions: int
    last_commit: datetime | None


def held_pipelines(con: duckdb.DuckDBPyConnection) -> dict[str, HeldPipeline]:
    """The pipelines that the ledgers name, whether anything declares them or not."""
    names = " UNION ".join(
        f"SELECT pipeline FROM {LEDGERS_SCHEMA}.{table}" for table in _ledgers(con) if table != ERASURES
    )
    query = f"""
        SELECT pipeline, coalesce(partitions, 0), coalesce(rows, 0), coalesce(versions, 0), committed_at
        FROM ({names}) LEFT JOIN (
            SELECT pipeline, count(DISTINCT partition_key) AS partitions, max(committed_at) AS committed_at
            FROM {LEDGERS_SCHEMA}.score_runs GROUP BY ALL
        ) USING (pipeline) LEFT JOIN (
            SELECT pipeline, sum(rows_scored) AS rows FROM (
                FROM {LEDGERS_SCHEMA}.score_runs
                QUALIFY row_number() OVER (PARTITION BY pipeline, partition_key ORDER BY seq DESC) = 1
            ) GROUP BY ALL
        ) USING (pipeline) LEFT JOIN (
            SELECT pipeline, count(*) AS versions FROM {LEDGERS_SCHEMA}.model_versions GROUP BY ALL
        ) USING (pipeline) ORDER BY pipeline
    """
    return {name: HeldPipeline(name, *facts) for name, *facts in con.execute(query).fetchall()}


def drop_pipeline(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Remove a pipeline's tables and all that the ledgers say of it, in the caller's transaction; users' tables stay.

    The journal of changes keeps its entries: published copies are named after them. So do the proofs of erasures, by which a
    later pipeline of the name leaves the same subjects out.
    """
    for table in _in_files(con, name):
        con.execute(f"DROP VIEW {quoted(name)}.{table.view}")
    reserved = reserved_tables()  # others are those of users that have its name as their schema
    for table in (table for schema, table in tables(con) if schema == name and table in reserved):
        con.execute(f"DROP TABLE {quoted(name)}.{quoted(table)}")
    for table in (table for table in _ledgers(con) if table != ERASURES):
        con.execute(f"DELETE FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $name", {"name": name})
    if all(schema != name for schema, _ in tables(con)):
        con.execute(f"DROP SCHEMA IF EXISTS {quoted(name)}")
    journal(con, [(LEDGERS_SCHEMA, table, None) for table in (*_ledgers(con), "changes")])  # copied as a whole


def _in_files(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[TableInFiles]:
    """The tables of a pipeline that are views."""
    return [table for table in TABLES_IN_FILES if has_table(con, pipeline, table.files)]


def _ledgers(con: duckdb.DuckDBPyConnection) -> list[str]:
    """The tables of the warehouse's own schema that name the pipeline of each row."""
    query = """
        SELECT table_name FROM duckdb_columns()
        WHERE database_name = current_database() AND schema_name = $schema AND column_name = 'pipeline' ORDER BY ALL
    """
    return [str(table) for (table,) in con.execute(query, {"schema": LEDGERS_SCHEMA}).fetchall()]
