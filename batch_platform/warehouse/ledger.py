"""The warehouse's own tables, one frozen record for each row, and how they are written, within the caller's transaction.

A ledger is append-only; the newest row of a partition counts. The status of partitions is computed from the ledgers and
the files and kept in `partition_status`, whose rows are replaced. Every change is noted in the journal
`batch_platform.changes` in the same transaction, from which the published copy is brought up to date.
"""

import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timedelta
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import duckdb

from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.descriptions import LEDGERS_SCHEMA, write_comments
from batch_platform.warehouse.sql import has_table, quoted, transaction


@dataclass(frozen=True)
class FeatureBuild:
    """One built partition of features."""

    pipeline: str
    partition_key: str
    rows: int
    sha256: str
    file_bytes: int
    code_version: str
    sources: str  # JSON: version of each source
    built_at: datetime
    run_id: str
    xxh3: str = ""  # second hash of the same bytes, quicker to check
    fingerprints: str = "{}"  # JSON: number and hash of the rows read of each source that has rows of many partitions


@dataclass(frozen=True)
class ScoreRun:
    """One committed partition of predictions."""

    pipeline: str
    partition_key: str
    partition_start: datetime
    partition_end: datetime
    model_version: str
    model_sha256: str
    input_hash: str
    code_version: str
    engine: str
    rows_in: int
    rows_scored: int
    rows_rejected: int
    in_sample: bool
    started_at: datetime
    committed_at: datetime  # set by the warehouse at the commit, as is `seq`
    run_id: str
    seq: int = 0
    decision_seq: int | None = None  # number of the promotion of the version; None: it was named for the run
    hindsight: bool = False  # whether the decision was made after the partition had ended, or there was none
    decision_rule: str | None = None  # JSON: `predictions.decide` as it decided the rows; None: no rule


@dataclass(frozen=True)
class EvaluationRun:
    """One evaluated partition."""

    pipeline: str
    partition_key: str
    score_seq: int  # number of the ledger row of the measured predictions
    rows_scored: int
    rows_labelled: int
    evaluated_at: datetime
    run_id: str
    label_sources: str = "{}"  # JSON: version of each label source, or number and hash of its rows of the partition


Action = Literal["approved", "refused", "waiting", "challenger", "withdrawn", "retired", "removed"]


@dataclass(frozen=True)
class Promotion:
    """A decision on a version."""

    pipeline: str
    version: str
    action: Action
    reason: str
    evidence: str  # JSON
    actor: str
    decided_at: datetime
    run_id: str
    seq: int = 0
    holds_from: datetime | None = None  # the first partition start for which it holds; None: every partition


@dataclass(frozen=True)
class Version:
    """A trained version as registered."""

    pipeline: str
    version: str
    serving_period: str
    serving_start: datetime
    sha256: str
    flavour: str
    task: str
    estimator: str
    params: str  # JSON
    trained_from: datetime
    trained_until: datetime
    rows_trained: int
    rows_evaluated: int
    metrics: str  # JSON
    features_code_version: str
    created_at: datetime
    run_id: str
    classes: str = "[]"  # JSON: classes, of two the positive one last; the manifest has them in the order of the model
    label_sources: str = ""  # hashes of the label files and of the labels that it learned; see `History`
    seq: int = 0

    @property
    def metric_values(self) -> dict[str, float]:
        """The parsed metrics of its evaluation."""
        return json.loads(self.metrics)

    @property
    def class_labels(self) -> list[Any]:
        """The parsed classes; empty for a regression or a clustering."""
        return json.loads(self.classes)

    @property
    def days_trained(self) -> float:
        """The length of the time it was trained on."""
        return (self.trained_until - self.trained_from) / timedelta(days=1)


@dataclass(frozen=True)
class ModelTraining:
    """The outcome of training the model of a serving period: a version, or a failure of a serving period that had one."""

    pipeline: str
    serving_period: str
    declared: str  # hash of the declaration, without the parameters that one training replaced
    version: str | None
    failure: str | None
    trained_at: datetime
    run_id: str
    seq: int = 0


@dataclass(frozen=True)
class ChallengerTraining:
    """The outcome of training a challenger for a serving period: a version or a failure."""

    pipeline: str
    challenger: str
    declared: str  # hash of its declaration
    serving_period: str
    version: str | None
    failure: str | None
    trained_at: datetime
    run_id: str
    seq: int = 0


@dataclass(frozen=True)
class StatusRow:
    """The status of one committed partition; the only rows of this schema that are replaced."""

    pipeline: str
    partition_key: str
    partition_start: datetime
    partition_end: datetime
    condition: Literal["scored", "stale"]
    reason: str | None
    model_version: str
    champion: str | None  # version that would score it now
    rows_in: int
    rows_scored: int
    rows_rejected: int
    committed_at: datetime
    run_id: str
    computed_at: datetime


@dataclass(frozen=True)
class Change:
    """One changed partition of one table, or a whole table without a partition key, as the journal records it."""

    seq: int
    schema_name: str
    table_name: str
    partition_key: str | None
    change_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # unique, also after a warehouse was restored


Row = TypeVar("Row", FeatureBuild, ScoreRun, EvaluationRun)
Record = TypeVar("Record")
LEDGERS: dict[type, str] = {  # tables with rows by partition, of which the newest counts
    FeatureBuild: "feature_builds",
    ScoreRun: "score_runs",
    EvaluationRun: "evaluations",
}
_TABLES: dict[type, str] = {
    **LEDGERS,
    Change: "changes",
    Version: "model_versions",
    Promotion: "promotions",
    ModelTraining: "model_trainings",
    ChallengerTraining: "challenger_trainings",
}


def _add_decision_rule(con: duckdb.DuckDBPyConnection) -> None:
    """Add the rule of decision to the ledger of scores; every partition was scored without one."""
    con.execute(f"ALTER TABLE {LEDGERS_SCHEMA}.score_runs ADD COLUMN decision_rule VARCHAR")
    write_comments(con, LEDGERS_SCHEMA, "score_runs")


FORMAT = 7  # greater than every number that a build has used: numbers only grow
# Upgrades of a warehouse to the next format, by the number of its own; each runs within a transaction.
UPGRADES: dict[int, Callable[[duckdb.DuckDBPyConnection], None]] = {6: _add_decision_rule}
STATUS_TABLE = "partition_status"


def create_ledgers(con: duckdb.DuckDBPyConnection) -> None:
    """Create the tables of an empty warehouse in one transaction."""
    with transaction(con):
        con.execute(f"CREATE SCHEMA {LEDGERS_SCHEMA}")
        con.execute(
            f"CREATE TABLE {LEDGERS_SCHEMA}.meta (format INTEGER NOT NULL, created_at TIMESTAMPTZ NOT NULL DEFAULT now())"
        )
        write_comments(con, LEDGERS_SCHEMA, "meta")
        for record, table in _TABLES.items():
            create_table(con, LEDGERS_SCHEMA, table, record, "seq BIGINT")
        create_table(con, LEDGERS_SCHEMA, STATUS_TABLE, StatusRow)
        insert(con, "meta", [{"format": FORMAT}])


def create_table(con: duckdb.DuckDBPyConnection, schema: str, table: str, record: type, *first: str) -> None:
    """Create a described table, unless it exists, with a column for each field of a record; `first` as for its columns."""
    if has_table(con, schema, table):
        return
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
    columns = ", ".join(column_definitions(record, *first))
    con.execute(f"CREATE TABLE {quoted(schema)}.{quoted(table)} ({columns})")
    write_comments(con, schema, table)


def selected(record: type) -> str:
    """The SELECT list of a record's fields, in order."""
    return ", ".join(quoted(item.name) for item in fields(record))


def column_definitions(record: type, *first: str) -> list[str]:
    """The SQL definitions of a table's columns: `first`, then one for each field of a record that `first` does not define."""
    return list(dict.fromkeys([*first, *(f"{item.name} {_sql_type(item.type)}" for item in fields(record))]))


def _sql_type(annotation: object) -> str:
    options = [option for option in get_args(annotation) if option is not NoneType]
    if get_origin(annotation) is Literal:
        return _sql_type(type(options[0]))
    return _sql_type(options[0]) if options else _TYPES[annotation]


_TYPES: dict[object, str] = {
    str: "VARCHAR",
    int: "BIGINT",
    float: "DOUBLE",
    bool: "BOOLEAN",
    date: "DATE",
    datetime: "TIMESTAMPTZ",
}


def require_format(con: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Raise WarehouseError if a database file has another format than this version of the project writes."""
    number = _format(con)
    if number == FORMAT:
        return
    hint = "use the version that wrote it, or set BATCH_PLATFORM_HOME to another folder."
    if _upgrades_from(number):
        hint = "batch-platform run NAME brings the home to the new format."
    msg = f"The database {file} has format {number}; this version of batch-platform reads {FORMAT}."
    raise WarehouseError(msg, hint=hint)


def bring_to_format(con: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Upgrade a warehouse of an earlier format in one transaction; raises WarehouseError if there is no way to this format."""
    number = _format(con)
    if number == FORMAT:
        return
    upgrades = _upgrades_from(number)
    if not upgrades:
        require_format(con, file)
        return
    with transaction(con):
        for upgrade in upgrades:
            upgrade(con)
        con.execute(f"UPDATE {LEDGERS_SCHEMA}.meta SET format = {FORMAT}")
        journal(con, [(LEDGERS_SCHEMA, "meta", None)])  # so that it is published


def _upgrades_from(number: int) -> list[Callable[[duckdb.DuckDBPyConnection], None]]:
    """The upgrades from a format to today's, in order; none if one of them is missing."""
    steps = range(number, FORMAT)
    return [UPGRADES[step] for step in steps] if all(step in UPGRADES for step in steps) else []


def _format(con: duckdb.DuckDBPyConnection) -> int:
    ((number,),) = con.execute(f"SELECT format FROM {LEDGERS_SCHEMA}.meta").fetchall()
    return int(number)


def created_at(con: duckdb.DuckDBPyConnection) -> datetime:
    """The time at which the ledgers began."""
    ((began,),) = con.execute(f"SELECT created_at FROM {LEDGERS_SCHEMA}.meta").fetchall()
    return began


def newest_change(con: duckdb.DuckDBPyConnection) -> int:
    """The number of the newest entry of the journal; 0 if it has none."""
    ((newest,),) = con.execute(f"SELECT coalesce(max(seq), 0) FROM {LEDGERS_SCHEMA}.changes").fetchall()
    return int(newest)


def read_records(
    con: duckdb.DuckDBPyConnection, record: type[Record], rows: str, values: Mapping[str, Any]
) -> list[Record]:
    """Read rows, given as SQL after FROM that binds values, as records."""
    make: Any = record
    return [make(*row) for row in con.execute(f"SELECT {selected(record)} FROM {rows}", values).fetchall()]


def read_latest(
    con: duckdb.DuckDBPyConnection, ledger: type[Row], pipeline: str, partition_keys: Collection[str] | None = None
) -> dict[str, Row]:
    """The newest row of a ledger for each partition of a pipeline, by key; of some partitions if keys are given."""
    values: dict[str, Any] = {"pipeline": pipeline}
    if partition_keys is not None:
        values["keys"] = list(partition_keys)
    newest = (
        f"{LEDGERS_SCHEMA}.{LEDGERS[ledger]} WHERE pipeline = $pipeline "
        f"{'' if partition_keys is None else 'AND partition_key IN $keys '}"
        "QUALIFY row_number() OVER (PARTITION BY partition_key ORDER BY seq DESC) = 1"
    )
    return {row.partition_key: row for row in read_records(con, ledger, newest, values)}


def read_features_of(con: duckdb.DuckDBPyConnection, trainings: Collection[ModelTraining]) -> dict[str, dict[str, str]]:
    """The hashes of the features as some trainings of one pipeline found them: by serving period, then by partition key."""
    if not trainings:
        return {}
    query = (
        "SELECT training.seq, partition_key, arg_max(sha256, build.seq) "
        f"FROM {LEDGERS_SCHEMA}.{LEDGERS[FeatureBuild]} AS build JOIN (SELECT unnest($seqs) AS seq) AS training "
        "ON build.seq < training.seq WHERE pipeline = $pipeline GROUP BY ALL"
    )
    periods = {training.seq: training.serving_period for training in trainings}
    (pipeline,) = {training.pipeline for training in trainings}
    hashes: dict[str, dict[str, str]] = {}
    for seq, key, sha256 in con.execute(query, {"seqs": [*periods], "pipeline": pipeline}).fetchall():
        hashes.setdefault(periods[seq], {})[key] = sha256
    return hashes


def replace_statuses(
    con: duckdb.DuckDBPyConnection,
    pipeline: str,
    rows: Sequence[StatusRow],
    partition_keys: Collection[str] | None = None,
) -> None:
    """Replace the rows of `partition_status`: those of some partitions of a pipeline, or of all if no keys are given.

    What changed, see `statuses_of`, is still to be noted in the journal.
    """
    table, values = f"{LEDGERS_SCHEMA}.{STATUS_TABLE}", {"pipeline": pipeline}
    if partition_keys is None:
        con.execute(f"DELETE FROM {table} WHERE pipeline = $pipeline", values)
    else:
        keys = {"keys": list(partition_keys)}
        con.execute(f"DELETE FROM {table} WHERE pipeline = $pipeline AND partition_key IN $keys", values | keys)
    if rows:
        insert(con, STATUS_TABLE, [vars(row) for row in rows])


def statuses_of(pipeline: str) -> tuple[str, str, str]:
    """The statuses of a pipeline as the journal names them: the pipeline stands in the place of a partition."""
    return LEDGERS_SCHEMA, STATUS_TABLE, pipeline


def append(
    con: duckdb.DuckDBPyConnection,
    rows: Sequence[Row],
    *changed: str,
    beside: Sequence[tuple[str, str, str | None]] = (),
) -> list[int]:
    """Add rows to their ledger and return their ascending `seq`.

    Notes which of the pipeline's tables changed with them, and what else did, as `journal` is given it.
    """
    seqs = next_numbers(con, len(rows))
    numbered = list(zip(seqs, rows, strict=True))
    insert(con, LEDGERS[type(rows[0])], [{**vars(row), "seq": seq} for seq, row in numbered])
    changes = [Change(seq, row.pipeline, table, row.partition_key) for seq, row in numbered for table in changed]
    note(con, [*changes, *(Change(seqs[-1], *change) for change in beside)])
    return seqs


def next_numbers(con: duckdb.DuckDBPyConnection, count: int) -> list[int]:
    """Numbers for changes, ascending; they are taken once the changes are noted, which must happen before the next call.

    They go on from the journal, which only grows: it keeps its entries when rows are dropped, and every copy of the
    warehouse has it. So no number is used twice, in a warehouse made from a copy either.
    """
    first = newest_change(con) + 1
    return [*range(first, first + count)]


def note(con: duckdb.DuckDBPyConnection, changes: Sequence[Change]) -> None:
    """Record changes in the journal."""
    insert(con, _TABLES[Change], [vars(change) for change in changes])


def journal(con: duckdb.DuckDBPyConnection, changed: Sequence[tuple[str, str, str | None]]) -> list[int]:
    """Record changes, given by schema, table and partition key (None: the whole table); returns their numbers, ascending."""
    seqs = next_numbers(con, len(changed))
    note(con, [Change(seq, *change) for seq, change in zip(seqs, changed, strict=True)])
    return seqs


def note_partitions(con: duckdb.DuckDBPyConnection, schema: str, table: str, partition_keys: Collection[str]) -> None:
    """Record in the journal that partitions of a table changed."""
    journal(con, [(schema, table, key) for key in partition_keys])


def replace_records(
    con: duckdb.DuckDBPyConnection,
    committed: Sequence[ScoreRun],
    table: str,
    record: type[Record],
    rows: Sequence[Record],
) -> list[Change]:
    """Replace the rows of the committed partitions in a table of records, which is made with its first rows.

    Returns the changes, which are still to be noted.
    """
    pipeline = committed[0].pipeline
    if not rows and not has_table(con, pipeline, table):
        return []
    create_table(con, pipeline, table, record)
    keys = {"keys": [run.partition_key for run in committed]}
    con.execute(f"DELETE FROM {quoted(pipeline)}.{quoted(table)} WHERE partition_key IN $keys", keys)
    insert(con, table, [vars(row) for row in rows], schema=pipeline)
    return changes_of(committed, table)


def changes_of(committed: Sequence[ScoreRun], table: str) -> list[Change]:
    """The changes of a table in which the rows of committed partitions were replaced."""
    return [Change(run.seq, run.pipeline, table, run.partition_key) for run in committed]


def rows_of_partitions(  # noqa: PLR0913 - which rows, and their order
    con: duckdb.DuckDBPyConnection,
    record: type[Record],
    schema: str,
    table: str,
    partition_keys: Collection[str],
    *,
    order: str,
    only: str = "true",
) -> dict[str, tuple[Record, ...]]:
    """The rows of a table of records for which a condition holds, by partition key, in an order; a partition without any is left out."""
    if not partition_keys or not has_table(con, schema, table):
        return {}
    rows = f"{quoted(schema)}.{quoted(table)} WHERE partition_key IN $keys AND {only} ORDER BY {order}"
    by_partition: dict[str, list[Record]] = {}
    for row in read_records(con, record, rows, {"keys": list(partition_keys)}):
        by_partition.setdefault(vars(row)["partition_key"], []).append(row)
    return {key: tuple(rows) for key, rows in by_partition.items()}


def insert(
    con: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, Any]], *, schema: str = LEDGERS_SCHEMA
) -> None:
    """Insert rows of the same columns into a table, by name."""
    if not rows:
        return
    values = {column: [row[column] for row in rows] for column in rows[0]}
    columns = ", ".join(f"unnest(${column}) AS {quoted(column)}" for column in values)
    con.execute(f"INSERT INTO {quoted(schema)}.{table} BY NAME SELECT {columns}", values)


def as_record(record: type[Record], *rows: object, **own: object) -> Record:
    """A record made of the fields that it shares with other records, of which the last wins, and of its own fields."""
    make: Any = record
    shared = {name: value for row in rows for name, value in vars(row).items() if name in make.__dataclass_fields__}
    return make(**{**shared, **own})
