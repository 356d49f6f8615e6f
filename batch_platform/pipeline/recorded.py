"""Committed partitions, read back as the step that committed them returned them.

A run that is killed may commit a partition and tell nobody. All that is shown of the partition is in the published copy,
except what is only measured while a step runs: its speed, and categories that the model did not know.
"""

from collections.abc import Collection, Iterator, Sequence

import polars as pl
import pyarrow.parquet as pq

from batch_platform.monitoring.catalogue import evaluated_measures
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.measured_model import MeasuredModel
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.train import Trained, TrainedChallenger
from batch_platform.planning.state import State
from batch_platform.scoring.run import Committed, read_committed
from batch_platform.warehouse.published import reading_published


def recorded_features(pipeline: Pipeline, state: State, keys: Sequence[str]) -> Iterator[Built]:
    """The features of partitions as recorded."""
    for key in keys:
        build = state.features[key]
        schema = pq.read_schema(pipeline.history.file(build))
        columns = {name: str(dtype) for name, dtype in zip(schema.names, schema.types, strict=True)}
        yield Built(pipeline.spec.partitions.calendar.named(key), build, skipped=False, columns=columns)


def recorded_predictions(pipeline: Pipeline, state: State, keys: Sequence[str]) -> Iterator[Committed]:
    """The predictions of partitions as committed."""
    if keys:
        with reading_published(pipeline.home) as con:
            commits = state.commits(pipeline.spec, pipeline.home, [state.scores[key] for key in keys])
            committed = read_committed(con, commits, skipped=False)
        yield from committed


def recorded_evaluations(pipeline: Pipeline, state: State, keys: Sequence[str]) -> Iterator[Evaluated]:
    """The evaluations of partitions as committed; a partition without measured rows is left out."""
    if not keys:
        return
    measures = evaluated_measures()
    with reading_published(pipeline.home) as con:
        tables = {name: measure.rows(con, pipeline.spec.name, keys) for name, measure in measures.items()}
    for key in keys:
        rows = {name: table.filter(pl.col("partition_key") == key) for name, table in tables.items()}
        models = {
            challenger: version
            for table in rows.values()
            for challenger, version in table.select("challenger", "model_version").unique().sort("challenger").rows()
        }
        measured = [
            MeasuredModel(
                version=state.registry.named(version),
                tables={
                    name: table.filter(pl.col("challenger").eq_missing(challenger)).select(*measures[name].columns)
                    for name, table in rows.items()
                },
                rows_labelled=state.evaluations[key].rows_labelled,
                challenger=challenger,
            )
            for challenger, version in models.items()
        ]
        served = [model for model in measured if model.challenger is None]
        if served:
            others = tuple(model for model in measured if model.challenger is not None)
            partition = pipeline.spec.partitions.calendar.named(key)
            yield Evaluated(partition, state.evaluations[key], served[0], others)


def recorded_models(state: State, periods: Collection[str]) -> Iterator[Trained]:
    """The newest version of serving periods with the last decision on it, and their challengers."""
    newest = {
        version.serving_period: version for version in state.registry.of_model if version.serving_period in periods
    }
    for period, version in sorted(newest.items()):
        decision = state.registry.last_decision(version.version)
        trainings = [training for training in state.registry.challenger_trainings if training.serving_period == period]
        challengers = tuple(
            TrainedChallenger(
                training,
                state.registry.named(training.version) if training.version else None,
                state.registry.last_decision(training.version) if training.version else None,
            )
            for training in {training.challenger: training for training in trainings}.values()
        )
        if decision is not None:
            yield Trained(version, decision, challengers=challengers)
