"""What was committed of some partitions, read back as the step that committed it returned it.

A run that is killed may commit a partition and tell nobody. All that is shown of the partition is in the published copy,
except what is only measured while a step runs: its speed, and categories that the model did not know.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import polars as pl
import pyarrow.parquet as pq

from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.scores import committed_distributions
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.evaluate import Evaluated, MeasuredModel, measured_rows
from batch_platform.pipeline.health import Past, partition_aspects
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.state import State
from batch_platform.pipeline.train import Trained, TrainedChallenger
from batch_platform.scoring.challenger_tables import ChallengerRun, read_challenger_runs
from batch_platform.scoring.drift_tables import read_drift, read_segment_alarms
from batch_platform.scoring.estimate_tables import read_estimates, track_records
from batch_platform.scoring.rejected_rows import reasons_by_partition
from batch_platform.scoring.run import Committed
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
    if not keys:
        return
    name = pipeline.spec.name
    with reading_published(pipeline.home) as con:
        distributions = committed_distributions(con, name, keys)
        reasons = reasons_by_partition(con, name, keys)
        challengers = _by_partition(read_challenger_runs(con, name))
        drift, segment_alarms = read_drift(con, name, keys), read_segment_alarms(con, name, keys)
        estimated, records = read_estimates(con, name, keys), track_records(con, name)
    past = Past(pipeline.spec.partitions.calendar, state.scores.values())
    versions = {version.version: version for version in state.registry.versions}
    for key in keys:
        run = state.scores[key]
        yield Committed(
            pipeline.spec.partitions.calendar.named(key),
            run,
            skipped=False,
            reasons=reasons.get(key, {}),
            scores=distributions.get(key),
            challengers=tuple(challengers[key]),
            drift=drift.get(key, ()),
            segment_alarms=segment_alarms.get(key, ()),
            estimates=estimated.get(key, ()),
            records=records,
            aspects=partition_aspects(pipeline.spec, past, run, versions.get(run.model_version)),
        )


def recorded_evaluations(pipeline: Pipeline, state: State, keys: Sequence[str]) -> Iterator[Evaluated]:
    """The evaluations of partitions as committed; a partition without measured rows is left out."""
    if not keys:
        return
    with reading_published(pipeline.home) as con:
        tables = {name: measured_rows(con, pipeline.spec.name, name, keys) for name in MEASURES}
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
                    name: table.filter(pl.col("challenger").eq_missing(challenger)).select(*MEASURES[name].columns)
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


def _by_partition(runs: Sequence[ChallengerRun]) -> dict[str, list[ChallengerRun]]:
    by_partition = defaultdict[str, list[ChallengerRun]](list)
    for run in runs:
        by_partition[run.partition_key].append(run)
    return by_partition
