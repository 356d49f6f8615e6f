"""Two versions side by side: in which facts they differ, and which is better on the same rows."""

from dataclasses import dataclass, replace
from typing import Any

from batch_platform.declaration.errors import listed
from batch_platform.models.bundle import Manifest, compared, read_judged, read_manifest
from batch_platform.models.judged import on_shared_rows
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.decisions import fitting_rule
from batch_platform.monitoring.metrics import default_metric, measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class ModelComparison:
    """A version beside another one."""

    version: str
    other: str
    # Metrics, data windows and what else differs, by name: of the version, and of the other.
    facts: dict[str, tuple[Any, Any]]
    shared_rows: int  # evaluation rows that both have scored, which the metrics are of; if 0, of the rows of each
    verdict: Verdict | None  # on the version beside the other
    not_compared: str | None  # why there is no verdict


def compare(pipeline: Pipeline, version: str, other: str) -> ModelComparison:
    """Compare two versions by the fits that the gate judged; raises WrongUseError if one does not exist.

    Where they share no row, the verdict is that of the gate, if it held one against the other.
    """
    registry, home, name = pipeline.published_state().registry, pipeline.home, pipeline.spec.name
    first, second = (read_manifest(home.bundle(name, it), registry.present(it).sha256) for it in (version, other))
    shared = _on_shared_rows(pipeline, version, other, first, second)
    facts = compared(first, second, None if isinstance(shared, str) else len(shared[0].predicted))
    if isinstance(shared, str):
        reverse = registry.judged_beside(other, version)
        verdict = registry.judged_beside(version, other) or (reverse and reverse.turned)
        return ModelComparison(version, other, facts, 0, verdict, None if verdict else shared)
    metric = pipeline.spec.model.promote.metric or default_metric(first.task)
    verdict = Verdict.on(metric, *shared)
    own, others = map(measure, shared)
    facts |= {f"metrics.{name}": (own.get(name), others.get(name)) for name in own | others}
    unmeasured = None if verdict else f"{metric} cannot be measured on the rows that both can score"
    return ModelComparison(version, other, facts, len(shared[0].predicted), verdict, unmeasured)


def _on_shared_rows(
    pipeline: Pipeline, left: str, right: str, first: Manifest, second: Manifest
) -> tuple[Outcomes, Outcomes] | str:
    """The outcomes of two versions on the rows that both were judged on; or why they cannot be compared."""
    folders = (pipeline.home.bundle(pipeline.spec.name, name) for name in (left, right))
    judged = [read_judged(folder, manifest) for folder, manifest in zip(folders, (first, second), strict=True)]
    if lacking := [name for name, scores in zip((left, right), judged, strict=True) if scores is None]:
        return f"the bundle of {listed(lacking)} holds no scores of evaluation rows"
    rule = fitting_rule(pipeline.spec.predictions.decide, first.task, first.classes)
    left_scores, right_scores = (scores for scores in judged if scores is not None)
    decided = replace(left_scores, outcomes=replace(left_scores.outcomes, rule=rule))
    return on_shared_rows(decided, right_scores)
