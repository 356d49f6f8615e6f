"""The one rule for what is due: an artifact is due where it is missing, or where an input that it was made from differs now.

Each step makes an artifact for a key, and its ledger holds the versions of what it was made from. An input whose present version
nobody knows, such as the rows of a source that was not looked at, is no current input.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.predictions import Delivery
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.refinements.reasons import REASONS as EXPLAINING
from batch_platform.models.registry import Version
from batch_platform.planning.state import State
from batch_platform.planning.steps import Step

Versions = Mapping[str, object]

REASONS: Mapping[tuple[Step, str], str] = {
    ("features", "SQL"): "the SQL or its declaration changed",
    ("features", "source files"): "a source file changed",
    ("features", "rows"): "{current}",
    ("predictions", "files"): "a file of its {current} is gone or changed",
    ("predictions", "model"): "scored by {recorded}, the champion is {current}",
    ("predictions", "features"): "its features changed",
    ("predictions", "code"): "its declaration or the scoring code changed",
    ("predictions", "sources"): "{current}",
    ("predictions", "decision rule"): "the decision rule changed",
    ("performance", "predictions"): "scored again",
    ("performance", "label files"): "its labels changed",
    ("performance", "labels.sql"): "labels.sql or the declaration of the labels changed",
    ("performance", "monitoring.metrics"): "monitoring declares other metrics, segments or units",
    ("deliveries", "predictions"): "scored again",
    ("deliveries", "declaration"): "its declaration changed",
}


@dataclass(frozen=True)
class Artifact:
    """The result of a step for a key, and what it would be made from now."""

    step: Step
    recorded: Versions | None  # versions of the inputs by name; None if it was never made
    current: Versions  # the same now, the weightiest first

    @property
    def differing(self) -> list[str]:
        """The names of the inputs that differ."""
        recorded = self.recorded or {}
        return [name for name, version in self.current.items() if recorded.get(name) != version]

    @property
    def reason(self) -> str | None:
        """The reason why it is due; None if it is not."""
        if self.recorded is None:
            return "missing"
        if not (names := self.differing):
            return None
        name = names[0]
        return REASONS[self.step, name].format(recorded=self.recorded.get(name), current=self.current[name])


def with_snapshots_over(spec: PipelineSpec, state: State, now: datetime) -> State:
    """The state that knows which snapshots stay as they were taken: all but the newest that is due at a time."""
    if not spec.partitions.snapshot:
        return state
    newest = {partition.key for partition in spec.partitions.calendar.due(now)[-1:]}
    return replace(state, over=frozenset(state.features.keys() - newest))


def features_of(state: State, partition: Partition) -> Artifact:
    """The features of a partition. A snapshot that is over is never built again, nor is what has lost its source."""
    key, seen = partition.key, state.seen
    if (build := state.features.get(key)) is None:
        return Artifact("features", None, {})
    recorded = {"SQL": build.code_version, "source files": build.sources, "rows": ""}
    current = {} if key in state.over else {"SQL": state.declared.features_version}
    if key not in state.over and key not in seen.gone:  # building it again would leave it empty
        current |= {"source files": seen.source_versions.get(key, build.sources), "rows": seen.changed.get(key, "")}
    return Artifact("features", recorded, current)


def features_due(state: State, partition: Partition) -> str | None:
    """Say why the features of a partition are due; None if they are not."""
    return features_of(state, partition).reason


def predictions_of(state: State, partition: Partition, champion: Version | None) -> Artifact:
    """The predictions of a partition by the version that serves it now, if any does."""
    key = partition.key
    if (run := state.scores.get(key)) is None:
        return Artifact("predictions", None, {})
    recorded = {
        "files": "",
        "model": run.model_version,
        "features": run.input_hash,
        "code": run.code_version,
        "sources": "",
        "decision rule": run.decision_rule,
    }
    build, code = state.features.get(key), code_version_of(state, run.model_version)
    current: dict[str, object] = {"files": state.incomplete.get(key, "")}
    current |= {} if champion is None else {"model": champion.version}
    current |= {"code": code} if build is None else {"features": build.sha256, "code": code}
    current |= {} if build is None else {"sources": features_due(state, partition) or ""}
    return Artifact("predictions", recorded, {**current, "decision rule": state.declared.decision_rule})


def code_version_of(state: State, version: str) -> str:
    """The code version with which a model version would score now."""
    explained, unexplained = state.declared.scoring_version, state.declared.unexplained_version
    if unexplained in ("", explained):
        return explained
    known = state.registry.refinements(version)
    return unexplained if known and EXPLAINING.name not in known["applied"] else explained


def performance_of(state: State, partition: Partition) -> Artifact | None:
    """The evaluation of a partition; None if there is nothing to evaluate."""
    run, evaluation = state.scores.get(partition.key), state.evaluations.get(partition.key)
    if evaluation is None:
        return None if run is None else Artifact("performance", None, {})
    inputs, files = state.declared.inputs, evaluation.label_sources
    recorded = {"predictions": evaluation.score_seq, "label files": files}
    current: dict[str, object] = {} if run is None else {"predictions": run.seq}
    current |= {"label files": state.seen.label_versions.get(partition.key, files)}
    recorded |= inputs.recorded_by(evaluation, state.seen.fingerprints)
    return Artifact("performance", recorded, current | inputs.measured)


def delivery_of(state: State, delivery: Delivery, partition_key: str) -> Artifact | None:
    """The rows of a partition that a receiver holds; None if nothing is committed that it could hold."""
    run, delivered = state.scores.get(partition_key), state.deliveries.get((delivery.name, partition_key))
    if run is None:
        return None
    recorded = None if delivered is None else {"predictions": delivered.score_seq, "declaration": delivered.declared}
    return Artifact("deliveries", recorded, {"predictions": run.seq, "declaration": delivery.digest})


def undelivered(state: State, delivery: Delivery, partition_key: str) -> str | None:
    """Say why committed predictions are to be delivered; None if they are not, or if there are none."""
    artifact = delivery_of(state, delivery, partition_key)
    return artifact and artifact.reason
