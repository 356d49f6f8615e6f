"""Log one event for each partition as it commits, with its own metadata, data version and provenance.

Dagster would log the partitions of a range only at the end of the step, all with the same data version. So the assets log
their partitions themselves, and the output of the step carries Dagster's mark of an output whose events were logged in the
body. Commits of a run that was killed before it could log them, or whose events were wiped, are logged afterwards.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Container, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import dagster as dg

from batch_platform import spark
from batch_platform.components import commits
from batch_platform.components.checks import Checked, CheckLog, RunCheck
from batch_platform.components.commits import Commit
from batch_platform.components.dagster_internals import (
    LOGGED_IN_THE_BODY,
    Provenance,
    data_version_tags,
    event_log_kept_open,
)
from batch_platform.components.dagster_records import forget_planned, forget_planned_partitions
from batch_platform.components.progress import Pace, RunProgress, report
from batch_platform.components.runs import range_tag
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Calendar, Partition
from batch_platform.declaration.predictions import Delivery
from batch_platform.delivery.ledger import Delivered
from batch_platform.pipeline.recorded import (
    recorded_evaluations,
    recorded_features,
    recorded_models,
    recorded_predictions,
)
from batch_platform.pipeline.train import Trained
from batch_platform.planning.state import State
from batch_platform.scoring import engines
from batch_platform.spark.session import lent

MOST_LOGGED = 500  # partitions of an asset that one call of `log_unknown_commits` logs; the next call continues
SECONDS_BETWEEN_LINES = 10  # each line in the log of a run is a stored event


class _ToTheRun(logging.Handler):
    """Passes on what is logged to the log of a run."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        super().__init__(logging.INFO)
        self._context = context

    def emit(self, record: logging.LogRecord) -> None:
        self._context.log.log(record.levelno, record.getMessage())


@contextmanager
def cluster_heard(context: dg.AssetExecutionContext, wiring: Wiring) -> Generator[None]:
    """Log what is said of a cluster's work as events of the run, where a reader of the run looks for it.

    Where a resource is declared, the work is done in its session.
    """
    heard, handler = [logging.getLogger(room.__name__) for room in (engines, spark)], _ToTheRun(context)
    levels = [logger.level for logger in heard]
    for logger in heard:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        with ExitStack() as lending:
            for key in wiring.resource_keys:
                lending.enter_context(lent(lambda key=key: getattr(context.resources, key).spark_session))
            yield
    finally:
        for logger, level in zip(heard, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(handler)


class PartitionLog:
    """Logs the partitions of one asset in one step."""

    def __init__(self, context: dg.AssetExecutionContext, spec: dg.AssetSpec, calendar: Calendar, total: int) -> None:
        """Record the state of the upstream assets before the work begins; `total` partitions of a calendar are to come.

        The asset may be another one than that of the step.
        """
        if tag := range_tag(context):
            context.instance.add_run_tags(context.run.run_id, tag)
        self._context, self._asset = context, spec.key
        self._pace = Pace(spec.key.path[-1], total)
        self._next_line = monotonic() + SECONDS_BETWEEN_LINES
        self._provenance = Provenance(context, spec)
        self._checked = defaultdict[str, list[Any]](list)
        self._forget = partial(forget_planned, context.instance, context.run.run_id)
        self._results = CheckLog(spec.key, calendar, context.op_execution_context.log_event, self._forget)
        self.flush = self._results.flush

    def committed(
        self,
        commit: Commit,
        *,
        metadata: Mapping[str, Any] | None = None,
        trained: Trained | None = None,
        findings: Sequence[str] = (),
        retold: bool = False,
    ) -> None:
        """Log a committed partition and the results of its checks, with further metadata that only the run knows.

        A `trained` model is reported by its version; the findings on a partition are warnings. A partition that is `retold` was committed before and is no progress.
        """
        tags = data_version_tags(commit.data_version) | self._provenance.tags(commit.partition_key)
        event = dg.AssetMaterialization(
            self._asset, partition=commit.partition_key, metadata={**commit.metadata, **(metadata or {})}, tags=tags
        )
        self._context.log_event(event)
        for finding in findings:
            self._context.log.warning("%s: %s.", commit.partition_key, finding)
        if not retold:
            progress = self._pace.reached(
                trained.version.version if trained else commit.partition_key or "", commit.rows
            )
            self._report(replace(progress, findings=tuple(findings)))
        for check, checked in commit.checked.items():
            self.check(check, commit.partition_key, checked)

    def made_before(self, asset: dg.AssetKey, commit: Commit) -> None:
        """Record a partition of an upstream asset, which the same step has made, as an input of the next commit."""
        if commit.partition_key is not None:
            self._provenance.made(asset, commit.partition_key, commit.data_version)

    def observed(self, done: str, partition_key: str | None, *, metadata: Mapping[str, Any]) -> None:
        """Log an observation of a partition that itself stays as it is."""
        self._context.log_event(dg.AssetObservation(asset_key=self._asset, partition=partition_key, metadata=metadata))
        self._report(self._pace.reached(done, 0))

    def leave_out(self, partition_keys: Collection[str]) -> None:
        """Take back that the run makes some partitions, which a failure of others would show as failed."""
        forget_planned_partitions(self._context.instance, self._context.run.run_id, self._asset, partition_keys)

    def waiting(self, partition_key: str, reason: str) -> None:
        """Log why a partition is left as it is: an observation is none of its materializations."""
        self._context.log.info("%s %s: %s.", self._asset.path[-1], partition_key, reason)
        self.observed(partition_key, partition_key, metadata={"waits": reason})

    def on_the_way(self, partition: Partition, rows: int, of: int) -> None:
        """Report how many rows of an unfinished partition are done."""
        self._report(self._pace.reached(partition.key, rows, of))

    def _report(self, progress: RunProgress) -> None:
        """Report progress to the listener and, now and then, to the log of the run."""
        report(progress)
        if (now := monotonic()) >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self._context.log.info(str(progress))

    def check(self, check: RunCheck[Checked], partition_key: str | None, checked: Checked) -> None:
        """Log the result of a check on one partition. Only the result for the whole step can block."""
        self._checked[check.name].append(checked)
        self._results.add(check, partition_key, checked)

    def finish(self, *checks: RunCheck[Any]) -> Iterator[dg.MaterializeResult | dg.Output[None]]:
        """Yield the outputs of the step with the results of its checks, once every partition is logged.

        A check that judged nothing gives no result, so that its last one stands.
        """
        selected = {key.name for key in self._context.selected_asset_check_keys if key.asset_key == self._asset}
        asked = [check for check in checks if check.name in selected]
        results = [check.result(self._checked[check.name], self._asset) for check in asked if self._checked[check.name]]
        yield dg.MaterializeResult(asset_key=self._asset, metadata=LOGGED_IN_THE_BODY, check_results=results)
        for check in asked:
            if not self._checked[check.name]:
                self._forget(check.key(self._asset))
                yield dg.Output(None, check.spec(self._asset).get_python_identifier())


def log_unknown_commits(
    wiring: Wiring, instance: dg.DagsterInstance, state: State, busy: Container[tuple[str, str]]
) -> None:
    """Log commits that Dagster does not know of, since their run was killed or what it logged was wiped.

    At most MOST_LOGGED of each asset. `busy` holds the assets and partitions of runs in progress, which log their own.
    """
    pipeline = wiring.pipeline()
    runs = {
        "features": {key: build.run_id for key, build in state.features.items()},
        "model": {version.serving_period: version.run_id for version in state.registry.of_model},
        "predictions": {key: run.run_id for key, run in state.scores.items()},
        "performance": {key: run.run_id for key, run in state.evaluations.items()},
    }
    for delivery in wiring.spec.predictions.deliver:
        runs[delivery.asset] = {row.partition_key: row.run_id for row in _delivered(state, delivery)}
    if wiring.spec.monitoring.drift is not None:
        runs["drift"] = runs["predictions"]
    unknown = {asset: _unknown(wiring, instance, asset, runs[asset], busy) for asset in runs}
    if not any(unknown.values()):
        return
    unlogged: dict[str, Iterator[Commit]] = {
        "features": (
            commit
            for _, commit in commits.features_in_turn(
                wiring, recorded_features(pipeline, state, unknown["features"]), max(unknown["features"], default="")
            )
        ),
        "model": (commits.model(wiring, it) for it in recorded_models(state, unknown["model"])),
        "predictions": (
            commits.predictions(wiring, it) for it in recorded_predictions(pipeline, state, unknown["predictions"])
        ),
        "drift": (commits.drift(wiring, it) for it in recorded_predictions(pipeline, state, unknown.get("drift", ()))),
        "performance": (
            commits.performance(wiring, it) for it in recorded_evaluations(pipeline, state, unknown["performance"])
        ),
    }
    for delivery in wiring.spec.predictions.deliver:
        rows = [row for row in _delivered(state, delivery) if row.partition_key in unknown[delivery.asset]]
        unlogged[delivery.asset] = map(commits.delivered, rows)
    with event_log_kept_open():
        for asset, commits_of_asset in unlogged.items():
            results = CheckLog(wiring.key(asset), wiring.spec.partitions.calendar, instance.report_runless_asset_event)
            for commit in commits_of_asset:
                run_id = runs[asset][commit.partition_key or unknown[asset][0]]
                _log_in_place_of_run(instance, wiring.key(asset), commit, run_id)
                for check, checked in commit.checked.items():
                    results.add(check, commit.partition_key, checked)
            results.flush()


def _delivered(state: State, delivery: Delivery) -> list[Delivered]:
    return [row for row in state.deliveries.values() if row.name == delivery.name]


def _unknown(
    wiring: Wiring, instance: dg.DagsterInstance, asset: str, runs: Mapping[str, str], busy: Container[tuple[str, str]]
) -> list[str]:
    """The keys of committed partitions of an asset that Dagster does not know of."""
    definition = wiring.partitions_of(asset)
    if definition is None:  # one model for all partitions
        known = bool(instance.fetch_materializations(wiring.key(asset), limit=1).records)
        return [] if known or (asset, "") in busy else list(runs)[-1:]
    missing = runs.keys() - instance.get_materialized_partitions(wiring.key(asset))
    return sorted(key for key in missing if (asset, key) not in busy and definition.has_partition_key(key))[
        :MOST_LOGGED
    ]


def _log_in_place_of_run(instance: dg.DagsterInstance, asset: dg.AssetKey, commit: Commit, run_id: str) -> None:
    metadata = {**commit.metadata, "logged_for_run": run_id}
    tags = data_version_tags(commit.data_version)
    event = dg.AssetMaterialization(asset, partition=commit.partition_key, metadata=metadata, tags=tags)
    instance.report_runless_asset_event(event)
