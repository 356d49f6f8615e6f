"""Every measure by name: what the evaluation computes, and what tables, checks and the UI are built from."""

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import Check, Measure
from batch_platform.monitoring.performance import PERFORMANCE

MEASURES: dict[str, Measure] = {measure.name: measure for measure in (PERFORMANCE,)}


def declared_checks(spec: PipelineSpec) -> dict[str, Check]:
    """How the measures are judged for a pipeline, by measure; a measure that is not judged is left out."""
    checks = {name: measure.check(spec) for name, measure in MEASURES.items()}
    return {name: check for name, check in checks.items() if check is not None}
