"""The step that delivers scored partitions to one receiver.

Reads the published copy in batches. The warehouse is held only to record a partition once the receiver has it. A process that
is killed in between has recorded nothing, so the next one replaces the same rows at the receiver once more.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, ReceiverDownError, did_you_mean, listed
from batch_platform.declaration.predictions import Delivery
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.delivery.known import replace_at_receiver
from batch_platform.delivery.ledger import Delivered, asset_of, record_delivery
from batch_platform.delivery.sink import BATCH_ROWS, TABLE_OF, Target, alone
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.set_apart import setting_apart
from batch_platform.pipeline.shipped import FOLDER
from batch_platform.planning.state import State
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.descriptions import OF_PIPELINES
from batch_platform.warehouse.ledger import ScoreRun, read_latest
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.sql import digest, folded, quoted, table_columns
from batch_platform.warehouse.tables_in_files import require_undamaged


def deliver(
    pipeline: Pipeline, delivery: Delivery, partitions: Sequence[Partition], stamp: Stamp
) -> Generator[tuple[Partition, Delivered]]:
    """Deliver scored partitions to one receiver, oldest first; see `setting_apart` for those that fail.

    Raises:
        DeliveryError: The receiver refuses a partition.
        DamagedRowsError: A file with rows of a partition is not as it was published.
        DataError: A partition is not scored, or lacks a declared column.
    """
    # A shipped pipeline lies among the installed files: it delivers beside the home.
    folder = pipeline.home.root.parent if pipeline.folder.is_relative_to(FOLDER) else pipeline.folder
    step = _DeliveryStep(pipeline.spec, folder, pipeline.warehouse, pipeline.state(), delivery, stamp)
    yield from step.recorded(partitions)


@dataclass(frozen=True)
class _DeliveryStep:
    """The delivery of scored partitions to one receiver in one run; each is recorded on its own."""

    spec: PipelineSpec
    folder: Path  # absolute, at which relative paths start
    warehouse: Warehouse
    state: State
    delivery: Delivery
    stamp: Stamp

    def recorded(self, partitions: Sequence[Partition]) -> Generator[tuple[Partition, Delivered]]:
        """Deliver partitions, oldest first; see `deliver`."""
        publish(self.warehouse.home)
        step = asset_of(self.delivery)
        with setting_apart(
            self.spec, self.warehouse, self.state.declared.text, step, self.stamp, len(partitions)
        ) as apart:
            for partition in partitions:
                with apart.attempt(partition.key):
                    for key, error in apart.failed[-1:]:  # each try may take as long as a receiver is waited for
                        if isinstance(error, ReceiverDownError):
                            raise ReceiverDownError(error.message.replace(key, partition.key, 1), hint=error.hint)
                    yield partition, self._delivered(partition)

    def _delivered(self, partition: Partition) -> Delivered:
        """Deliver what is published of one partition, and record it."""
        name, home, key = self.spec.name, self.warehouse.home, partition.key
        # An older commit must not take the place of a newer one.
        with alone(home, f"{name}.{self.delivery.asset}"), open_published(home) as con:
            run = read_latest(con, ScoreRun, name, [key]).get(key)
            if run is None:
                msg = f"{name}, partition {key}: it is not scored yet."
                raise DataError(msg, hint=f"batch-platform run {name} --partition {key}")
            rows, rows_hash = self._replace(con, partition)
            done = Delivered(
                partition_key=key,
                name=self.delivery.name,
                rows=rows,
                rows_hash=rows_hash,
                score_seq=run.seq,
                declared=self.delivery.digest,
                delivered_at=self.stamp.now(),
                run_id=self.stamp.run_id,
            )
            with self.warehouse.transaction() as warehouse:
                record_delivery(warehouse, name, self.delivery, done)
        return done

    def _replace(self, con: duckdb.DuckDBPyConnection, partition: Partition) -> tuple[int, str]:
        """Replace the rows at the receiver; returns their number and hash."""
        name, table = self.spec.name, TABLE_OF[self.delivery.of]
        present = [column for column, _ in table_columns(con, name, table)]
        if not present:  # no partition has had such rows
            return 0, ""
        require_undamaged(con, name, [partition.key], table)
        columns = self.delivery.renamed or {column: column for column in self._current(con, partition, present)}
        if unknown := columns.keys() - {*present}:
            msg = f"{name}, partition {partition.key}: {name}.{table} has no column {listed(map(repr, unknown))}; it has {listed(present)}."
            guess = did_you_mean(min(unknown), present)
            raise DataError(msg, hint=guess or f"correct `columns` of the delivery {self.delivery.name!r}.")
        named = {**columns, "partition_key": self.delivery.partition_column}
        selected = ", ".join(f"{quoted(column)} AS {quoted(new)}" for column, new in named.items())
        query = f"SELECT {selected} FROM {quoted(name)}.{quoted(table)} WHERE partition_key = $key"
        values = {"key": partition.key}
        ((rows, total),) = con.execute(f"SELECT {digest(named.values())} FROM ({query})", values).fetchall()
        target = Target(name, partition.key, self.delivery, self.folder, self.warehouse.home, int(rows))
        replace_at_receiver(target, lambda: con.sql(query, params=values).to_arrow_reader(BATCH_ROWS))
        return int(rows), f"{int(total or 0):032x}"

    def _current(self, con: duckdb.DuckDBPyConnection, partition: Partition, present: Sequence[str]) -> list[str]:
        """The columns of a table without those that are no longer declared and have no value in the partition."""
        name, table = self.spec.name, TABLE_OF[self.delivery.of]
        declared = {*self.spec.features.key_and_time, *self.spec.predictions.keep, *OF_PIPELINES[table].columns}
        declared = {*map(folded, declared)}
        if not (others := [column for column in present if folded(column) not in declared]):
            return [*present]
        counts = ", ".join(f"count({quoted(column)})" for column in others)
        query = f"SELECT {counts} FROM {quoted(name)}.{quoted(table)} WHERE partition_key = $key"
        (values,) = con.execute(query, {"key": partition.key}).fetchall()
        empty = {column for column, count in zip(others, values, strict=True) if not count}
        return [column for column in present if column not in empty]
