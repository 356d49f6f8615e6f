"""Decisions on the highest scores of a whole partition: the same for every engine and store.

They are a condition on a row's score and key, which is known once all rows are scored: the commit evaluates it while it copies
the staged rows, or it is evaluated here and the files are written again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from batch_platform.declaration.predictions import DECISION, Decide
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.lake import parquet_writer
from batch_platform.models.refinements.reasons import COLUMN as REASONS
from batch_platform.scoring.partition import ChallengerScores, Staged
from batch_platform.warehouse.replacing import rows_of_files
from batch_platform.warehouse.sql import in_memory, literal, quoted
from batch_platform.warehouse.tables_in_files import PREDICTIONS, file_xxh3, storage_explained

# Columns with one text in all rows, which is stored once: reading it for each row takes three times as long as all the rest.
_REPEATED = ("partition_key", "challenger", "model_version", "run_id")


def with_whole(staged: Staged, spec: PipelineSpec, *, in_place: bool = False) -> Staged:
    """A scored partition with the decisions that need all of its rows: those of `top`, of the model and of its challengers.

    What is copied into DuckDB is decided while it is copied, which spares writing each row twice; with `in_place`, and where
    the files are published or their reasons depend on the decisions, the files have the decisions.

    Raises:
        WarehouseError: The disk does not take the files.
    """
    declared = spec.predictions.decide
    if declared is None or declared.top is None:
        return staged
    in_place = in_place or spec.predictions.in_files or spec.predictions.explains_decisions
    conditions = dict[Path, str]()

    def decide(files: Sequence[Path]) -> tuple[str, ...]:
        """Decide on the rows of files; returns their hashes, if they are published."""
        if in_place:
            return decide_on_highest(files, declared, spec)
        conditions.update(dict.fromkeys(files, _is_among_highest(files, declared, spec)))
        return ()

    def of_challenger(scores: ChallengerScores) -> ChallengerScores:
        if scores.failure:
            return scores
        hashes = decide(scores.files)
        flipped = differing(staged.predictions, scores.files, spec.features.key, DECISION, conditions)
        return replace(scores, hashes=hashes, agreement=replace(scores.agreement, flipped=flipped))

    with storage_explained(spec.name, PREDICTIONS, [staged.partition.key]):
        hashes = decide(staged.predictions)
        challengers = tuple(map(of_challenger, staged.challengers))
    return replace(staged, hashes=hashes, challengers=challengers, decided=conditions)


def decide_on_highest(files: Sequence[Path], declared: Decide, spec: PipelineSpec) -> tuple[str, ...]:
    """Write the files of a partition again with the decisions by rank; returns their hashes, if they are published.

    Reasons of decisions, which were computed for rows that might be selected, stay with those that are.
    """
    rows, values = rows_of_files(files)
    with in_memory() as con:
        query = f"SELECT {_is_among_highest(files, declared, spec)} AS {DECISION} FROM {rows}"
        chosen = con.sql(query, params=values).pl()[DECISION]
    first = 0
    for file in files:
        aside, repeated = file.with_suffix(".decided"), [it for it in pq.read_schema(file).names if it in _REPEATED]
        with pq.ParquetFile(file, read_dictionary=repeated) as parquet:
            schema = parquet.schema_arrow
            with parquet_writer(aside, schema, lasting=spec.predictions.in_files) as writer:
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, use_threads=False)
                    decided = chosen[first : first + len(table)]
                    if spec.predictions.explains_decisions and (at := schema.get_field_index(REASONS)) >= 0:
                        selected = pl.select(pl.when(decided).then(pl.int_range(len(table)))).to_series()
                        table = table.set_column(at, schema.field(REASONS), table[REASONS].take(selected.to_arrow()))
                    at = schema.get_field_index(DECISION)
                    writer.write_table(table.set_column(at, schema.field(DECISION), decided.to_arrow()))
                    first += len(table)
        aside.replace(file)
    return tuple(map(file_xxh3, files)) if spec.predictions.in_files else ()


def _is_among_highest(files: Sequence[Path], declared: Decide, spec: PipelineSpec) -> str:
    """The SQL condition by which `top` selects rows of a partition's files; of equal scores, those with the lowest keys come first."""
    scores = pl.concat([pl.read_parquet(file, columns=["score"])["score"] for file in files])
    if not (count := declared.most(len(scores))):
        return "false"
    last = scores.top_k(count).min()
    selected, tied = count - int((scores > last).sum()), int((scores == last).sum())
    score = f"'{last!r}'::DOUBLE"
    if selected == tied:
        return f"score >= {score}"
    key, paths = ", ".join(map(quoted, spec.features.key)), ", ".join(literal(str(file)) for file in files)
    rows = f"read_parquet([{paths}], union_by_name := true, hive_partitioning := false)"
    of_last = f"SELECT ({key}) FROM {rows} WHERE score = {score} ORDER BY {key} LIMIT 1 OFFSET {selected - 1}"
    return f"(score > {score} OR (score = {score} AND ({key}) <= ({of_last})))"


def differing(
    first: Sequence[Path],
    second: Sequence[Path],
    key: Sequence[str],
    column: str,
    decided: Mapping[Path, str] | None = None,
) -> int:
    """The number of rows of the second files whose value of a column differs from that of the first; see `rows_of_files`."""
    (of_first, values), (of_second, further) = (
        rows_of_files(files, decided, name=name) for files, name in ((first, "first"), (second, "second"))
    )
    differs = f"first.{quoted(column)} IS DISTINCT FROM second.{quoted(column)}"
    both = f"{of_first} AS first JOIN {of_second} AS second USING ({', '.join(map(quoted, key))})"
    with in_memory() as con:
        ((count,),) = con.execute(f"SELECT count(*) FROM {both} WHERE {differs}", values | further).fetchall()
    return int(count)
