"""The evaluation of scored partitions: what was committed, the labels known now, and the measures between them.

Reads the published copy, the lake and the label query; commits nothing. A model that is no longer on disk does not
stand in the way, unless its contract is needed to measure a clustering.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import duckdb
import numpy as np
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, IntegrityError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureSession
from batch_platform.features.history import History
from batch_platform.features.row_checks import with_keys_of
from batch_platform.models.bundle import read_manifest
from batch_platform.models.contract import Contract
from batch_platform.models.fitting import as_truth, known_to
from batch_platform.models.registry import Registry, Version, read_registry
from batch_platform.monitoring.performance import measure_classes, measure_outliers, measure_segments, measure_values
from batch_platform.scoring.batch import prediction_columns
from batch_platform.scoring.challenger_tables import ChallengerRun, read_challenger_runs, read_challenger_scores
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun, read_latest
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import quoted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """A partition held against its true outcomes."""

    partition: Partition
    run: EvaluationRun
    model_version: str
    metrics: dict[str, float]
    challengers: tuple["EvaluatedChallenger", ...] = ()  # that scored it too, whether they are still declared or not


@dataclass(frozen=True)
class EvaluatedChallenger:
    """What a challenger gave for a partition, held against the same outcomes."""

    name: str
    model_version: str
    rows_labelled: int
    metrics: dict[str, float]


def evaluated(history: History, partitions: Sequence[Partition], stamp: Stamp) -> Iterator[Evaluated]:
    """Measure the scored ones of some partitions against the labels known now; the records are not committed yet.

    Raises:
        SourceError: `labels.sql` fails.
        IntegrityError: A clustering's features or manifest are not those that it was scored with.
    """
    name = history.spec.name
    with open_published(history.home) as con:
        runs = read_latest(con, ScoreRun, name)
        scored = [partition for partition in partitions if partition.key in runs]
        if not scored:
            return
        challengers: dict[str, list[ChallengerRun]] = defaultdict(list)
        for one in read_challenger_runs(con, name):
            challengers[one.partition_key].append(one)
        known = _Known(history, read_registry(con, name), read_latest(con, FeatureBuild, name), challengers)
        with history.builder.session(scored[0]) as session:
            for partition in scored:
                yield _evaluated(known, con, session, partition, run=runs[partition.key], stamp=stamp)


def not_scored(pipeline: str, partition_key: str) -> DataError:
    """The error of a partition that cannot be measured, since it is not scored."""
    msg = f"{pipeline}, partition {partition_key}: it is not scored yet."
    return DataError(msg, hint=f"batch-platform run {pipeline} --partition {partition_key}")


def measured(
    spec: PipelineSpec,
    predictions: pl.DataFrame,
    model: Version,
    labels: pl.DataFrame | None,
    segments: Callable[[], dict[str, float]],
) -> dict[str, float]:
    """The metrics of some predictions.

    Args:
        spec: The pipeline.
        predictions: Key columns and those that the model gave.
        model: That gave them.
        labels: Key columns, of the types in the predictions, and the label; None where the pipeline has none.
        segments: Measures a clustering, of which the predictions alone do not tell enough.
    """
    if spec.labels is not None and labels is not None:
        key, label = spec.features.key, spec.labels.column
        return measure(predictions, labels, key=key, label=label, task=model.task, classes=model.class_labels)
    if model.task == "outliers":
        return measure_outliers(predictions["score"].to_numpy(), None)
    return segments()


def committed_predictions(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, partition: Partition, model: Version
) -> pl.DataFrame:
    """What a model gave for a partition, as it is published: key columns and those that the model adds."""
    columns = [*spec.features.key, *prediction_columns(model.task, model.class_labels)]
    names = ", ".join(quoted(name) for name in columns)
    query = f"SELECT {names} FROM {quoted(spec.name)}.predictions WHERE partition_key = $key"
    return con.sql(query, params={"key": partition.key}).pl()


def metric_rows(group: Sequence[Evaluated]) -> pl.DataFrame:
    """The rows of `performance` of some partitions: of the predictions, and of what challengers gave beside them."""
    rows = [
        {
            "partition_key": one.partition.key,
            "metric": metric,
            "value": value,
            "rows_labelled": labelled,
            "model_version": version,
            "evaluated_at": one.run.evaluated_at,
            "run_id": one.run.run_id,
            "challenger": name,
        }
        for one in group
        for name, version, labelled, metrics in _told_of(one)
        for metric, value in sorted(metrics.items())
    ]
    return pl.DataFrame(rows, schema=_COLUMNS)


def _told_of(one: Evaluated) -> Iterator[tuple[str | None, str, int, dict[str, float]]]:
    yield None, one.model_version, one.run.rows_labelled, one.metrics
    for each in one.challengers:
        yield each.name, each.model_version, each.rows_labelled, each.metrics


_COLUMNS = {
    "partition_key": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "rows_labelled": pl.Int64,
    "model_version": pl.String,
    "evaluated_at": pl.Datetime("us", "UTC"),
    "run_id": pl.String,
    "challenger": pl.String,  # null of the predictions
}


@dataclass(frozen=True)
class _Known:
    """What is recorded of the pipeline whose partitions are evaluated."""

    history: History
    registry: Registry
    builds: Mapping[str, FeatureBuild]
    challengers: Mapping[str, list[ChallengerRun]]  # by partition key


def _evaluated(  # noqa: PLR0913 - each is one fact of the evaluation
    known: _Known,
    con: duckdb.DuckDBPyConnection,
    session: FeatureSession,
    partition: Partition,
    *,
    run: ScoreRun,
    stamp: Stamp,
) -> Evaluated:
    spec = known.history.spec
    versions = known.history.builder.label_versions(partition)  # before the labels are read
    model = known.registry.named(run.model_version)
    predictions = committed_predictions(con, spec, partition, model)
    labels = None
    if spec.labels is not None:
        labels = known.history.labels(session, partition, stamp)
        labels = with_keys_of(predictions, spec, partition, labels, what="labels")
    metrics = measured(spec, predictions, model, labels, partial(_clusters, known, predictions, model, partition, run))
    challengers = tuple(_challengers(known, con, partition, run, labels))
    evaluation = EvaluationRun(
        pipeline=spec.name,
        partition_key=partition.key,
        score_seq=run.seq,
        rows_scored=run.rows_scored,
        rows_labelled=round(metrics.get(COVERAGE, 0.0) * run.rows_scored),
        evaluated_at=stamp.now(),
        run_id=stamp.run_id,
        label_sources=versions,
    )
    return Evaluated(partition, evaluation, run.model_version, metrics, challengers)


def _challengers(
    known: _Known, con: duckdb.DuckDBPyConnection, partition: Partition, run: ScoreRun, labels: pl.DataFrame | None
) -> Iterator[EvaluatedChallenger]:
    """Measure what challengers gave for a partition; one whose bundle is gone has no measure that needs it."""
    spec = known.history.spec
    for one in known.challengers.get(partition.key, ()):
        if one.failure is not None or one.model_version is None:
            continue
        model = known.registry.named(one.model_version)
        columns = [*spec.features.key, *prediction_columns(model.task, model.class_labels)]
        given = read_challenger_scores(con, spec.name, one, columns)
        known_now = None if labels is None else with_keys_of(given, spec, partition, labels, what="labels")
        try:
            metrics = measured(spec, given, model, known_now, partial(_clusters, known, given, model, partition, run))
        except (DataError, IntegrityError) as error:
            _log.warning("partition %s: challenger %r is not measured: %s", partition.key, one.challenger, error)
            continue
        labelled = round(metrics.get(COVERAGE, 0.0) * given.height)
        yield EvaluatedChallenger(one.challenger, one.model_version, labelled, metrics)


def _clusters(
    known: _Known, predictions: pl.DataFrame, model: Version, partition: Partition, run: ScoreRun
) -> dict[str, float]:
    history = known.history
    (build,) = history.require(known.builds, partition)
    if build.sha256 != run.input_hash:
        msg = f"{run.pipeline}, partition {partition.key}: its features changed after it was scored."
        raise DataError(msg, hint=f"score it again: batch-platform run {run.pipeline} --partition {partition.key}")
    manifest = read_manifest(history.home.bundle(run.pipeline, model.version), model.sha256)
    features = history.features(build, partition)
    predictions = with_keys_of(features, history.spec, partition, predictions, what="predictions")
    return measure_clusters(predictions, features, history.spec.features.key, Contract.from_json(manifest.contract))


COVERAGE = "label_coverage"
_TRUTH = "__truth"


def measure(  # noqa: PLR0913 - predictions, labels, and what joins and explains them
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    key: Sequence[str],
    label: str,
    task: str,
    classes: Sequence[object],
) -> dict[str, float]:
    """The metrics of a partition, and which share of its scored rows has a label.

    Args:
        predictions: Key columns and those that the model gave.
        labels: Key columns and the label, without nulls.
        key: The key columns.
        label: The label's column.
        task: Of the model that scored it.
        classes: That the model tells apart; a label that is none of them counts as not covered.
    """
    joined = predictions.join(labels.rename({label: _TRUTH}), on=list(key), how="inner", maintain_order="left")
    if task == "outliers":
        found = measure_outliers(joined["score"].to_numpy(), as_truth(joined[_TRUTH]))
    elif task == "regression":
        found = measure_values(as_truth(joined[_TRUTH]).astype(np.float64), joined["prediction"].to_numpy())
    else:
        joined = joined.filter(known_to(classes, joined[_TRUTH]))
        scores = joined.select(prediction_columns(task, classes)[1:]).to_numpy()
        both = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if task == "binary" else scores
        found = measure_classes(as_truth(joined[_TRUTH]), both, classes)
    return found | {COVERAGE: joined.height / predictions.height if predictions.height else 0.0}


def measure_clusters(
    predictions: pl.DataFrame, features: pl.DataFrame, key: Sequence[str], contract: Contract
) -> dict[str, float]:
    """How well a partition falls into the segments that it was given.

    Args:
        predictions: Key columns and `prediction`.
        features: Key columns and those of the contract, as they were scored.
        key: The key columns.
        contract: Of the model that scored it.
    """
    joined = features.join(predictions, on=list(key), how="inner", maintain_order="left")
    kept = contract.split(joined).kept
    return measure_segments(contract.encode(kept), kept["prediction"].to_numpy()) if kept.height else {}
