"""Decisions on the highest scores of a whole partition, made in its staged files: the same for every engine and store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from batch_platform.declaration.deciding import DECISION, Decide
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.lake import parquet_writer
from batch_platform.models.refinements.reasons import COLUMN as REASONS
from batch_platform.monitoring.decisions import highest
from batch_platform.scoring.challengers import ChallengerScores
from batch_platform.scoring.partition import Staged
from batch_platform.warehouse.instance import in_memory
from batch_platform.warehouse.sql import quoted
from batch_platform.warehouse.tables_in_files import PREDICTIONS, file_xxh3, storage_explained

# Columns with one text in all rows, which is stored once: reading it for each row takes three times as long as all the rest.
_REPEATED = ("partition_key", "challenger", "model_version", "run_id")


def with_whole(staged: Staged, spec: PipelineSpec) -> Staged:
    """A scored partition with the decisions that need all of its rows: those of `top`, of the model and of its challengers.

    Raises:
        WarehouseError: The disk does not take the files.
    """
    declared = spec.predictions.decide
    if declared is None or declared.top is None:
        return staged

    def decided(scores: ChallengerScores) -> ChallengerScores:
        if scores.failure:
            return scores
        hashes = decide_on_highest(scores.files, declared, spec)
        flipped = differing(staged.predictions, scores.files, spec.features.key, DECISION)
        return replace(scores, hashes=hashes, agreement=replace(scores.agreement, flipped=flipped))

    with storage_explained(spec.name, PREDICTIONS, [staged.partition.key]):
        hashes = decide_on_highest(staged.predictions, declared, spec)
        return replace(staged, hashes=hashes, challengers=tuple(map(decided, staged.challengers)))


def decide_on_highest(files: Sequence[Path], declared: Decide, spec: PipelineSpec) -> tuple[str, ...]:
    """Decide on the rows of the files of a partition by their rank; returns the hashes of the files, if they are published.

    Reasons of decisions, which were computed for rows that might be selected, stay with those that are.
    """
    # polars converts: Arrow would import pandas for it, wherever it is installed.
    scores = pl.concat([pl.read_parquet(file, columns=["score"]) for file in files])["score"].to_numpy()
    chosen = highest(
        scores.astype(np.float64, copy=False), declared.most(len(scores)), lambda rows: _keys(files, spec, rows)
    )
    first = 0
    for file in files:
        aside, repeated = file.with_suffix(".decided"), [it for it in pq.read_schema(file).names if it in _REPEATED]
        with pq.ParquetFile(file, read_dictionary=repeated) as parquet:
            schema = parquet.schema_arrow
            with parquet_writer(aside, schema, lasting=spec.predictions.in_files) as writer:
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, use_threads=False)
                    decided = pl.Series(chosen[first : first + len(table)])
                    if spec.predictions.explains_decisions and (at := schema.get_field_index(REASONS)) >= 0:
                        selected = pl.select(pl.when(decided).then(pl.int_range(len(table)))).to_series()
                        table = table.set_column(at, schema.field(REASONS), table[REASONS].take(selected.to_arrow()))
                    at = schema.get_field_index(DECISION)
                    writer.write_table(table.set_column(at, schema.field(DECISION), decided.to_arrow()))
                    first += len(table)
        aside.replace(file)
    return tuple(map(file_xxh3, files)) if spec.predictions.in_files else ()


def _keys(files: Sequence[Path], spec: PipelineSpec, rows: np.ndarray[Any, np.dtype[np.int64]]) -> pl.DataFrame:
    """The keys of some rows of files, of types that are ordered by their values."""
    keys = pl.concat([pl.DataFrame(pq.ParquetFile(file).read(spec.features.key)) for file in files])[rows]
    return keys.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))


def differing(first: Sequence[Path], second: Sequence[Path], key: Sequence[str], column: str) -> int:
    """The number of rows of the second files whose value of a column differs from that of the first files."""
    files = {"first": list(map(str, first)), "second": list(map(str, second))}
    rows = "read_parquet(${}, union_by_name := true, hive_partitioning := false) AS {}"
    differs = f"first.{quoted(column)} IS DISTINCT FROM second.{quoted(column)}"
    query = f"SELECT count(*) FROM {rows.format('first', 'first')} JOIN {rows.format('second', 'second')} USING ({', '.join(map(quoted, key))}) WHERE {differs}"
    with in_memory() as con:
        ((count,),) = con.execute(query, files).fetchall()
    return int(count)
