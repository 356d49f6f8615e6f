"""Backtests: score past partitions with another model, as of then, and compare it with production.

Trains, scores and measures with the code that production uses, and commits to tables of its own: no version is
registered, no prediction changes, and the models that it trains are removed at the end. Labels and features are those
known now, including corrections made since then. Rows of `<pipeline>.backtests` and, if the scores are kept, of
`<pipeline>.backtest_scores` are only ever added.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.registry import Version, read_registry
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.metrics import default_metric
from batch_platform.pipeline.backtest_comparison import Comparison, TestedPartition
from batch_platform.pipeline.backtest_models import (
    BacktestModel,
    require_features,
    train_models,
    trained_bundle,
    with_model,
)
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.score import BACKTEST_TABLES
from batch_platform.scoring.engines.known import engine_of
from batch_platform.scoring.partition import Watch
from batch_platform.scoring.run import BundleOf, Due, orders_of, staged_whole
from batch_platform.warehouse.database import Warehouse, require_none_erased
from batch_platform.warehouse.ledger import ScoreRun, as_record, create_table, insert, note_partitions, read_latest
from batch_platform.warehouse.lock import staging_folder
from batch_platform.warehouse.published import reading_published
from batch_platform.warehouse.replacing import replace_rows
from batch_platform.warehouse.sql import in_memory, literal

BACKTESTS, SCORES = BACKTEST_TABLES


@dataclass(frozen=True)
class Backtested:
    """The result of a backtest."""

    partitions: list[TestedPartition]  # oldest first
    versions: Mapping[str, Version]  # version that scored each partition, by key
    registered: bool  # whether these are registered versions, and not trained for the backtest alone
    verdict: Verdict | None  # tested model beside production, in the metric that judges the models

    @property
    def task(self) -> str:
        """Task of the tested model."""
        return next(iter(self.versions.values())).task


@dataclass(frozen=True)
class BacktestRow:
    """A row of the table of backtests: one metric of one partition."""

    backtest_id: str
    partition_key: str
    metric: str | None  # None if nothing could be measured; `note` says why
    value: float | None
    production_value: float | None
    rows_measured: int
    rows_in: int
    rows_scored: int
    rows_rejected: int
    in_sample: bool
    model_version: str | None  # None for a model that is not registered
    estimator: str
    params: str  # JSON
    serving_period: str
    trained_from: datetime
    trained_until: datetime
    rows_trained: int
    production_version: str | None
    production_in_sample: bool | None
    note: str
    run_at: datetime


def backtest(  # noqa: PLR0913 - what is tested, on what, and how it is reported
    pipeline: Pipeline,
    partitions: Sequence[Partition],
    model: BacktestModel,
    stamp: Stamp,
    *,
    keep_scores: bool = False,
    watch: Watch | None = None,
    announce: Callable[[Partition], object] = lambda _: None,
) -> Backtested:
    """Score and measure partitions, oldest first, and commit the results of all of them in one transaction.

    The run of the stamp names the backtest; labels are those known to it. `keep_scores` stores the scores of all rows too.
    Each training is announced by its serving period before it begins.

    Raises:
        WrongUseError: The version or estimator does not exist, or no model could have been trained for a partition.
        TrainingRefusedError: The data of a serving period cannot give a model; nothing is stored.
        DataError: Features are not built, or do not fit the model.
        IntegrityError: A feature file or a bundle is not what was recorded.
    """
    state, spec = pipeline.state(), pipeline.spec
    if spec.partitions.snapshot:
        msg = f"{spec.name} scores snapshots, which cannot be backtested: their labels were not dated when they were taken."
        raise WrongUseError(msg, hint="declare the other model as a challenger: it is measured on the rows held out.")
    tested, kept = list[TestedPartition](), list[Path]()
    with staging_folder(pipeline.home, stamp.run_id) as folder:
        bundle_folder: BundleOf = pipeline.bundle_folder
        if model.version is not None:
            require_features(pipeline, state, partitions)
            versions = dict.fromkeys((partition.key for partition in partitions), state.registry.present(model.version))
        else:
            other = replace(pipeline, spec=with_model(spec, model))
            versions = train_models(other, state, partitions, stamp, folder, announce)
            bundle_folder = partial(trained_bundle, spec, folder / "models")
        pipeline.publish()
        due = [Due(partition, versions[partition.key], state.features[partition.key], None) for partition in partitions]
        make_engine = engine_of(spec.engine.name)
        with (
            reading_published(pipeline.home) as con,
            pipeline.builder.session(labels=True) as session,
            make_engine(spec, folder, stamp, watch=watch) as engine,
            closing(
                staged_whole(engine, orders_of(due, pipeline.history, bundle_folder), pipeline.history, in_place=True)
            ) as results,
        ):
            runs, registry = read_latest(con, ScoreRun, spec.name), read_registry(con, spec.name)
            run = Comparison(pipeline, versions, bundle_folder, stamp, state.features, con, session, runs, registry)
            for item, staged in zip(due, results, strict=True):
                tested.append(run.tested(item.partition, staged, registered=model.version is not None))
                kept += staged.predictions if keep_scores else ()
                for file in (*staged.rejected, *(() if keep_scores else staged.predictions)):
                    file.unlink()
        metric = spec.model.promote.metric or default_metric(next(iter(versions.values())).task)
        result = Backtested(tested, versions, model.version is not None, run.verdict(metric))
        _commit(pipeline.warehouse, spec.name, result, stamp, kept, since=state.records.newest_change)
    pipeline.publish()
    return result


def _commit(  # noqa: PLR0913 - a backtest, and where it is recorded
    warehouse: Warehouse, pipeline: str, result: Backtested, stamp: Stamp, scores: Sequence[Path], *, since: int
) -> None:
    """Add a backtest to its tables, in one transaction with its entries in the journal of changes.

    `scores` are files of staged predictions of all rows; none if they are not kept. They are refused if a subject was erased
    after the change `since`.
    """
    rows = [vars(row) for row in _rows(result, stamp)]
    files = [_named(file) for file in scores]
    with warehouse.transaction() as con:
        create_table(con, pipeline, BACKTESTS, BacktestRow)
        insert(con, BACKTESTS, rows, schema=pipeline)
        if files:
            require_none_erased(con, pipeline, [partition.partition for partition in result.partitions], since)
            replace_rows(con, pipeline, SCORES, [], files)
        tables = [BACKTESTS, SCORES] if files else [BACKTESTS]
        for table in tables:
            note_partitions(con, pipeline, table, [partition.partition for partition in result.partitions])


def _rows(result: Backtested, stamp: Stamp) -> Iterator[BacktestRow]:
    for partition in result.partitions:
        version = result.versions[partition.partition]
        for metric in sorted(partition.metrics) or [None]:
            yield as_record(
                BacktestRow,
                version,
                partition,
                backtest_id=stamp.run_id,
                partition_key=partition.partition,
                metric=metric,
                value=None if metric is None else partition.metrics[metric],
                production_value=None if metric is None else partition.production.get(metric),
                model_version=version.version if result.registered else None,
                run_at=stamp.at,
            )


def _named(file: Path) -> Path:
    """Staged predictions with the column `backtest_id` instead of `run_id`."""
    named = file.with_name(f"{file.name}.named")
    with in_memory() as con:
        rows = f"SELECT * EXCLUDE (run_id), run_id AS backtest_id FROM read_parquet({literal(str(file))}, hive_partitioning := false)"
        con.execute(f"COPY ({rows}) TO {literal(str(named))} (FORMAT parquet)")
    file.unlink()
    return named
