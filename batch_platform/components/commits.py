"""The record of a committed partition of each asset for Dagster: logged by the run that committed it, or by a later tick in its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from batch_platform.components import checks, describe
from batch_platform.components.checks import RunCheck, evaluation
from batch_platform.components.wiring import Wiring
from batch_platform.models.registry import Registry
from batch_platform.monitoring.metrics import default_metric
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.train import Trained
from batch_platform.scoring.run import Committed


@dataclass(frozen=True)
class Commit:
    """One committed partition, in Dagster's terms."""

    partition_key: str | None  # None for an unpartitioned asset
    data_version: str
    rows: int
    metadata: Mapping[str, Any]
    checked: Mapping[RunCheck[Any], Any] = field(default_factory=dict[RunCheck[Any], Any])  # what each check looks at
    charted: str | None = None  # the number of the metadata that is drawn for each partition

    def evaluations(self, asset: dg.AssetKey) -> list[Any]:
        """The results of its checks."""
        return [
            evaluation(
                dg.AssetCheckKey(asset, check.name),
                self.partition_key,
                passed=check.passed(value),
                metadata=check.metadata(value),
                severity=check.severity(value),
            )
            for check, value in self.checked.items()
        ]


def features(wiring: Wiring, built: Built) -> Commit:
    """Built features."""
    metadata = describe.built(built, wiring.pipeline().history.file(built.build))
    return Commit(built.partition.key, built.build.sha256[:16], built.build.rows, metadata)


def model(wiring: Wiring, trained: Trained, registry: Registry | None = None) -> Commit:
    """A trained version, with its challengers; `registry` is that of the warehouse unless it is known already."""
    version = trained.version
    checked: dict[RunCheck[Any], Any] = dict.fromkeys((checks.GATE, checks.NO_SUSPECTED_LEAKS), trained)
    if trained.challengers:
        checked[checks.CHALLENGERS_TRAINED] = [challenger.training for challenger in trained.challengers]
    key = None if wiring.serving_periods is None else version.serving_period
    return Commit(key, version.sha256[:16], version.rows_trained, describe.trained(wiring, trained, registry), checked)


def predictions(wiring: Wiring, committed: Committed) -> Commit:
    """Committed predictions."""
    checked: dict[RunCheck[Any], Any] = dict.fromkeys(checks.predictions(wiring), committed)
    if committed.challengers:
        checked[checks.CHALLENGERS_SCORED] = committed.challengers
    version = describe.rows_version(committed)
    mean = f"{committed.scores.column}_mean" if committed.scores and "mean" in committed.scores.numbers else None
    metadata = describe.committed(committed)
    return Commit(committed.partition.key, version, committed.run.rows_in, metadata, checked, mean)


def drift(wiring: Wiring, committed: Committed) -> Commit:
    """The drift of committed predictions."""
    checked: dict[RunCheck[Any], Any] = dict.fromkeys(checks.drift(wiring), committed)
    version, metadata = describe.drift_version(committed), describe.partition_drift(committed)
    return Commit(
        committed.partition.key, version, len(committed.drift), metadata, checked, charted=describe.WORST_INDEX
    )


def performance(wiring: Wiring, evaluated: Evaluated) -> Commit:
    """An evaluation."""
    measures = checks.measures(wiring)
    checked = {measures[name]: judged for name, judged in checks.judge(wiring, evaluated)}
    version = describe.evaluation_version(evaluated)
    metric = wiring.spec.model.promote.metric or default_metric(evaluated.served.version.task)
    metadata = describe.evaluated(evaluated)
    return Commit(evaluated.partition.key, version, evaluated.run.rows_labelled, metadata, checked, metric)
