"""Erased subjects: the table `batch_platform.erasures` proves each erasure, and lets no later build bring the subject back.

A subject is a customer, say, named by the values of some columns. All that is kept of it is an HMAC-SHA-256 of them, made with
a random key that lies in the home and nowhere else: without the key nobody can try out which values it may have been.
"""

import json
import os
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import duckdb
import numpy as np
import pyarrow as pa

from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.descriptions import OF_ALL, RECORD, Description
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.instance import in_memory
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, create_table, insert, journal, read_records
from batch_platform.warehouse.sql import has_table, literal, quoted

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
