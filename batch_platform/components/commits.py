"""Reports to Dagster of a committed partition of each asset: by the run that committed it, or by a later tick in its place."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from batch_platform.components import checks, describe
from batch_platform.components.checks import RunCheck
from batch_platform.components.wiring import Wiring
from batch_platform.delivery.ledger import Delivered
from batch_platform.monitoring.measures.drift import DRIFT, PartitionDrift
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.train import Trained
from batch_platform.scoring.run import Committed
from batch_platform.warehouse.descriptions import tables_of_pipelines
from batch_platform.warehouse.sql import quoted, table_columns


@dataclass(frozen=True)
class Commit:
    """One committed partition, in Dagster's terms."""

    partition_key: str | None  # None for an unpartitioned asset
    data_version: str
    rows: int
    metadata: Mapping[str, Any]
    checked: Mapping[RunCheck[Any], Any] = field(default_factory=dict[RunCheck[Any], Any])  # what each check looks at


def features(wiring: Wiring, built: Built) -> Commit:
    """Built features."""
    metadata = describe.built(built, wiring.pipeline().history.file(built.build), wiring.spec.column_descriptions)
    return Commit(built.partition.key, built.build.sha256[:16], built.build.rows, metadata)


def features_in_turn(wiring: Wiring, builds: Iterable[Built], last: str) -> Iterator[tuple[Built, Commit]]:
    """Built features with what is reported of each: the columns only where they change, and of the `last` partition.

    The UI shows the columns of the newest partition; those of wide features are most of what Dagster stores of a partition.
    """
    columns = dict[str, str]()
    for built in builds:
        new = built.columns if built.columns != columns or built.partition.key == last else {}
        columns = built.columns or columns
        yield built, features(wiring, replace(built, columns=new))


def model(wiring: Wiring, trained: Trained) -> Commit:
    """A trained version, with its challengers."""
    version = trained.version
    checked: dict[RunCheck[Any], Any] = dict.fromkeys((checks.GATE, checks.NO_SUSPECTED_LEAKS), trained)
    if trained.challengers:
        checked[checks.CHALLENGERS_TRAINED] = [challenger.training for challenger in trained.challengers]
    key = None if wiring.serving_periods is None else version.serving_period
    return Commit(key, version.sha256[:16], version.rows_trained, describe.trained(wiring, trained), checked)


def predictions(wiring: Wiring, committed: Committed) -> Commit:
    """Committed predictions."""
    key = committed.partition.key
    checked = {checks.ROWS_BALANCE: replace(committed, measures={})} | checks.judge(
        wiring, "predictions", key, committed.measures, committed.task
    )
    version = describe.rows_version(committed)
    return Commit(key, version, committed.run.rows_in, describe.committed(committed), checked)


def drift(wiring: Wiring, committed: Committed) -> Commit:
    """The drift of committed predictions."""
    key, drift = committed.partition.key, DRIFT.of(committed.measures) or PartitionDrift(committed.run)
    checked = checks.judge(wiring, "drift", key, committed.measures, committed.task)
    metadata = {
        **describe.of_measures("drift", committed.measures),
        describe.PARTITION_ROWS: len(drift.columns),
        "model_version": committed.run.model_version,
    }
    return Commit(key, drift.sha256[:16], len(drift.columns), metadata, checked)


def performance(wiring: Wiring, evaluated: Evaluated) -> Commit:
    """An evaluation."""
    task = evaluated.served.version.task
    checked = checks.judge(wiring, "performance", evaluated.partition.key, evaluated.served.tables, task)
    version = describe.evaluation_version(evaluated)
    return Commit(evaluated.partition.key, version, evaluated.run.rows_labelled, describe.evaluated(evaluated), checked)


def delivered(row: Delivered) -> Commit:
    """A delivery."""
    metadata = {describe.PARTITION_ROWS: row.rows, "score_seq": row.score_seq, "delivered_at": str(row.delivered_at)}
    return Commit(row.partition_key, row.rows_hash[:16] or "none", row.rows, metadata)


def stored_table(wiring: Wiring, name: str) -> dict[str, Any]:
    """Metadata of a table of the warehouse as a whole, for the last partition that a run logs."""
    schema = wiring.spec.name
    with wiring.pipeline().warehouse.open() as con:
        columns = dict(table_columns(con, schema, name))
        ((rows,),) = con.execute(f"SELECT count(*) FROM {quoted(schema)}.{quoted(name)}").fetchall()
    return {
        describe.ROW_COUNT: rows,
        "dagster/column_schema": describe.table_schema(
            columns, wiring.spec.column_descriptions | dict(tables_of_pipelines()[name].columns)
        ),
    }
