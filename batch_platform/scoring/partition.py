"""A partition on its way to the warehouse: what is to be scored, what each batch becomes, and the files it goes to.

Counts every row and knows where the time goes. It starts no thread and opens no database.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import parquet_writer
from batch_platform.models.bundle import Bundle, Predictor
from batch_platform.models.native_threads import hold_loaded_libraries
from batch_platform.scoring.batch import REJECTED, ignored_columns, reasons_of, rejected_rows, samples_of, score_batch
from batch_platform.scoring.challengers import Contender, Shadowed, ShadowPart, score_beside
from batch_platform.scoring.repeated import repeated_text, repeated_time


@dataclass(frozen=True)
class Order:
    """A partition to be scored.

    Args:
        partition: The partition.
        features: Its feature file.
        sha256: What the file's bytes must be.
        rows: How many the file holds.
        bundle: The model.
        predictor: What evaluates it; give the one for all rows of a run that this model scores.
        xxh3: The same as `sha256` by a quicker hash, which is then what is checked; empty where none is recorded.
        contenders: The challengers that score the same rows.
    """

    partition: Partition
    features: Path
    sha256: str
    rows: int
    bundle: Bundle
    predictor: Predictor
    xxh3: str = ""
    contenders: tuple[Contender, ...] = ()


@dataclass(frozen=True)
class Spent:
    """Seconds that some work took; those of threads that work at once add up to more than passed on the clock."""

    read: float = 0.0
    score: float = 0.0
    write: float = 0.0  # into staged files
    commit: float = 0.0  # into the warehouse
    clock: float = 0.0  # from beginning to end, commit included

    @property
    def shares(self) -> dict[str, float]:
        """Which part of the work was reading, scoring and committing, which writing is a part of."""
        parts = {"read": self.read, "score": self.score, "commit": self.write + self.commit}
        total = sum(parts.values())
        return {name: seconds / total for name, seconds in parts.items()} if total else {}


@dataclass(frozen=True)
class Staged:
    """A scored partition on disk, not yet committed."""

    partition: Partition
    predictions: Path
    rejected: Path
    rows_in: int
    rows_scored: int
    rows_rejected: int
    started_at: datetime
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    unseen: dict[str, int] = field(default_factory=dict[str, int])
    ignored: tuple[str, ...] = ()  # feature columns that nobody asked for
    spent: Spent = field(default_factory=Spent)
    shadowed: tuple[Shadowed, ...] = ()  # what the challengers gave


@dataclass(frozen=True)
class Part:
    """What one batch becomes."""

    rows: int
    predictions: pa.Table
    rejected: pa.Table
    reasons: dict[str, int]
    unseen: dict[str, int]
    samples: list[str]
    ignored: tuple[str, ...]
    seconds: float
    shadows: tuple[ShadowPart, ...] = ()


def scored_part(rows: pl.DataFrame, *, order: Order, spec: PipelineSpec, stamp: Stamp, started: datetime) -> Part:
    """Score one batch, on any thread, and give its rows as they are stored."""
    began = perf_counter()
    hold_loaded_libraries()
    if order.contenders:
        scored, shadows = score_beside(
            rows,
            order.bundle,
            order.predictor,
            order.contenders,
            spec,
            partition=order.partition,
            stamp=stamp,
            started=started,
        )
    else:
        scored, shadows = score_batch(rows, order.bundle, spec, order.predictor), ()
    rejected, reasons, samples = _none_rejected(), dict[str, int](), list[str]()
    if scored.rejected.height:
        rejected = rejected_rows(scored.rejected, spec, order.partition, stamp).to_arrow()
        reasons, samples = reasons_of(scored.rejected), samples_of(scored.rejected, spec)
    marks = {"partition_key": order.partition.key, "model_version": order.bundle.version}
    predictions = _marked(scored.predictions.to_arrow(), {**marks, "run_id": stamp.run_id}, started)
    ignored = ignored_columns(rows.columns, order.bundle, spec)
    seconds = perf_counter() - began
    return Part(rows.height, predictions, rejected, reasons, scored.unseen, samples, ignored, seconds, shadows)


def _none_rejected() -> pa.Table:
    """Made by polars when it is wanted: Arrow would import pandas for it, and polars starts its threads."""
    return pl.DataFrame(schema=dict.fromkeys(REJECTED, pl.String)).to_arrow()


def _marked(rows: pa.Table, texts: dict[str, str], scored_at: datetime) -> pa.Table:
    """The rows with what is the same for each of them, kept once."""
    columns: dict[str, pa.Array] = {name: repeated_text(text, len(rows)) for name, text in texts.items()}
    columns["scored_at"] = repeated_time(scored_at, len(rows))
    for name in ("partition_key", "model_version", "scored_at", "run_id"):
        rows = rows.append_column(name, columns[name])
    return rows


def require_within_budget(spec: PipelineSpec, staged: Staged, samples: list[str]) -> None:
    """Check that no more rows are rejected than is declared.

    Raises:
        DataError: There are more; the message has reasons and samples.
    """
    budget = spec.features.max_rejected
    if not staged.rows_rejected or staged.rows_rejected / staged.rows_in <= budget:  # 29 of 100 are 29%: no product is
        return
    top = ", ".join(f"{count} times {reason}" for reason, count in Counter(staged.reasons).most_common(3))
    msg = (
        f"{spec.name}, partition {staged.partition.key}: {staged.rows_rejected} of {staged.rows_in} rows break the "
        f"contract, more than max_rejected ({budget:.2%}) allows; nothing is published. Reasons: {top}. "
        f"For example {'; '.join(samples)}."
    )
    raise DataError(msg, hint="mend the features, or raise features.max_rejected.")


class TableWriter:
    """Writes tables of one schema to a Parquet file, a row group for each."""

    def __init__(self, path: Path) -> None:
        """Write nothing yet."""
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0

    def __enter__(self) -> Self:
        """Give the writer."""
        return self

    def write(self, table: pa.Table) -> None:
        """Write rows; the first ones, be there none, give the columns."""
        if self._writer is None:
            self._writer = parquet_writer(self._path, table.schema, lasting=False)
        elif not len(table):
            return
        self._writer.write_table(table.cast(self._writer.schema))
        self.rows += len(table)

    def __exit__(self, *_: object) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.close()
