"""Challengers: which versions score a partition beside its champion, and their scores of the rows that the champion scored.

A challenger scores each of these rows, or its own contract rejects the row, which is counted. A challenger that fails on a
partition is recorded with the reason, and never affects the champion.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WrongUseError, failure_of
from batch_platform.declaration.predictions import DECISION
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle
from batch_platform.models.registry import Registry, Version
from batch_platform.monitoring.comparison import Agreement, columns_of
from batch_platform.monitoring.outcomes import prediction_columns
from batch_platform.scoring.batch import (
    Scored,
    reasons_of,
    repeated_text,
    repeated_time,
    score_batch,
)
from batch_platform.scoring.orders import OpenOrder

_DECIDING = ("binary", "multiclass", "outliers")  # tasks whose prediction is a decision that another model may flip
_ROW = "__place_in_batch"


@dataclass(frozen=True)
class ChallengerScores:
    """The result of a challenger for some rows; after a failure nothing but the number of rows and the reason."""

    name: str
    rows_in: int = 0  # rows that the champion scored
    rows_scored: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])  # rows that its own contract rejects, by reason
    agreement: Agreement = field(default_factory=Agreement)  # agreement with the champion
    failure: str = ""  # why it could not score; empty if it could
    files: tuple[Path, ...] = ()  # Parquet files of its scores, in the order of the rows
    hashes: tuple[str, ...] = ()  # XXH3 (128 bits) of each file, if they are published as they are

    def __add__(self, further: "ChallengerScores") -> "ChallengerScores":
        """The result for these rows and the rows after them."""
        rows_in, failure = self.rows_in + further.rows_in, self.failure or further.failure
        if failure:
            return ChallengerScores(self.name, rows_in, failure=failure)
        return ChallengerScores(
            name=self.name,
            rows_in=rows_in,
            rows_scored=self.rows_scored + further.rows_scored,
            reasons=dict(Counter(self.reasons) + Counter(further.reasons)),
            agreement=self.agreement + further.agreement,
            files=self.files + further.files,
            hashes=self.hashes + further.hashes,
        )


def challengers_of(
    spec: PipelineSpec, registry: Registry, partition: Partition, champion: Version
) -> dict[str, Version | str]:
    """The versions that score a partition beside its champion, by name of the challenger; or why a declared one cannot.

    A challenger without a version for the partition is left out, and so is the champion itself.
    """
    versions: dict[str, Version | str] = {}
    for challenger in spec.challengers:
        name = challenger.version
        if name is None:
            trained = registry.challenger_at(challenger.name, partition.start)
            name = None if trained is None else trained.version
        if name is None or name == champion.version:
            continue
        try:
            versions[challenger.name] = registry.present(name)
        except WrongUseError as error:
            versions[challenger.name] = failure_of(error)
    return versions


def score_beside(
    rows: pl.DataFrame, first_row: int, models: OpenOrder, spec: PipelineSpec, stamp: Stamp
) -> tuple[Scored, list[tuple[ChallengerScores, pa.Table | None]]]:
    """Score a batch with the champion, and the rows that it scored with the challengers; see `scored_batch`.

    Returns what `score_batch` returns for the champion; and for each challenger what it made of the rows, with its scores
    as they are stored, or None where it failed.

    Raises:
        DataError: As `score_batch`, for the champion only.
    """
    numbered = rows.with_row_index(_ROW)
    scored = score_batch(
        numbered,
        models.model.bundle,
        spec,
        models.model.predictor,
        keep=[*spec.predictions.keep, _ROW],
        profile=True,
    )
    served = scored.predictions
    scored_rows = numbered if served.height == numbered.height else numbered[served[_ROW]]
    results: list[tuple[ChallengerScores, pa.Table | None]] = []
    for name, challenger in models.challengers.items():
        if isinstance(challenger, str):
            results.append((ChallengerScores(name, served.height, failure=challenger), None))
            continue
        try:
            challenged = score_batch(scored_rows, challenger.bundle, spec, challenger.predictor, keep=[_ROW])
            agreement = _agreement(challenged.predictions, served, challenger.bundle, models, first_row)
            reasons = reasons_of(challenged.rejected) if challenged.rejected.height else {}
            scores = ChallengerScores(name, served.height, challenged.predictions.height, reasons, agreement)
            table = _stored(name, challenged.predictions, challenger.bundle, spec, models.order.partition, stamp)
        except Exception as error:  # noqa: BLE001 - whatever users' models raise: it is recorded, and production goes on
            results.append((ChallengerScores(name, served.height, failure=failure_of(error)), None))
        else:
            results.append((scores, table))
    return replace(scored, predictions=served.drop(_ROW), rejected=scored.rejected.drop(_ROW)), results


def _agreement(
    scored: pl.DataFrame, served: pl.DataFrame, challenger: Bundle, models: OpenOrder, first_row: int
) -> Agreement:
    task, champion = challenger.manifest.task, models.model.bundle
    if task != champion.manifest.task:
        msg = (
            f"{challenger.version} is a {task} model, and the champion {champion.version} is {champion.manifest.task}."
        )
        raise DataError(msg, hint="only models of the same task can be compared.")
    if scored.height != served.height:
        served = served.filter(pl.col(_ROW).is_in(scored[_ROW].implode()))
    if task == "binary" and challenger.manifest.positive != champion.manifest.positive:
        scored = scored.with_columns(1 - pl.col("score"))
    present = prediction_columns(task, challenger.manifest.classes)
    shared = [name for name in prediction_columns(task, champion.manifest.classes) if name in present]
    decision = DECISION if DECISION in {*served.columns} & {*scored.columns} else "prediction"
    columns = shared if task == "regression" else shared[1:]  # none for a clustering, whose clusters have no order
    return Agreement.of(
        scored[_ROW].to_numpy().astype("int64") + first_row,
        columns_of(served, columns),
        columns_of(scored, columns),
        served[decision].ne_missing(scored[decision]).to_numpy() if task in _DECIDING else None,
        models.order.rows,
    )


def _stored(  # noqa: PLR0913 - what is stored with every row
    name: str, scores: pl.DataFrame, bundle: Bundle, spec: PipelineSpec, partition: Partition, stamp: Stamp
) -> pa.Table:
    table = scores.drop(_ROW).to_arrow()
    carried, rows = len(spec.features.key_and_time), len(table)
    table = table.add_column(carried, "challenger", repeated_text(name, rows))
    table = table.add_column(carried + 1, "model_version", repeated_text(bundle.version, rows))
    table = table.append_column("partition_key", repeated_text(partition.key, rows))
    table = table.append_column("scored_at", repeated_time(stamp.at, rows))
    return table.append_column("run_id", repeated_text(stamp.run_id, rows))
