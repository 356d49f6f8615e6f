"""Which partitions are to be brought up to date, and how: what `run` and the job that brings a pipeline up to date plan."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import RunFailedError, merged
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.pipeline.plan import Plan, make_plan, training_asked_for
from batch_platform.pipeline.state import State
from batch_platform.warehouse.failures import FailedStep, Failure

_LABELS: Mapping[FailedStep, str] = {
    "features": "",
    "model": "model ",
    "predictions": "",
    "performance": "evaluation of ",
}
_NOUNS: Mapping[FailedStep, str] = {"model": "model", "performance": "evaluation"}


@dataclass(frozen=True)
class Wanted:
    """Partitions to bring up to date, with whatever upstream they lack."""

    partitions: Sequence[Partition]
    now: datetime
    force: bool = False  # build and score the partitions again even if nothing changed
    model: str | None = None  # version to score with instead of the champions; no model is trained then
    recheck: bool = False  # compare the partitions with their sources, however old they are
    retrain: bool = False  # train the newest serving period again even if nothing changed
    serve_all: bool = False  # a pipeline's only model has to serve the oldest of them that has enough history

    def plan(self, spec: PipelineSpec, state: State, failed_models: Collection[str] = ()) -> Plan:
        """Plan what has to be done, upstream included."""
        version = None if self.model is None else state.registry.named(self.model)
        train = training_asked_for(spec, state, self.now, force=True)[0] if self.retrain else None
        return make_plan(
            spec,
            state,
            self.now,
            only=self.partitions,
            failed_models=frozenset(failed_models),
            version=version,
            force=self.force,
            train=train,
            serve_all=self.serve_all,
        )

    def rest(self, spec: PipelineSpec, state: State, run_ids: Collection[str]) -> Plan:
        """What is left to do once models are trained, without what failed in some runs.

        The previous model scores for a model that could not be trained.
        """
        failures = failures_of(state, run_ids)
        failed_models = {failure.partition_key for failure in failures if failure.step == "model"}
        failed = {failure.partition_key for failure in failures if failure.step in ("features", "predictions")}
        plan = replace(self, retrain=False).plan(spec, state, failed_models)
        items = [item for item in plan.items if item.partition.key not in failed and not item.awaits_model]
        return replace(plan, items=items)


def failures_of(state: State, run_ids: Collection[str]) -> list[Failure]:
    """What failed in some runs while the rest was done."""
    return [failure for failure in state.failures.values() if failure.run_id in run_ids]


def error_of(spec: PipelineSpec, state: State, run_ids: Collection[str]) -> RunFailedError | None:
    """One error that names everything that failed in some runs; None if nothing did."""
    failures = failures_of(state, run_ids)
    labels = [_LABELS[item.step] + item.partition_key for item in failures]
    errors = [RunFailedError(item.reason, hint=item.hint) for item in failures]
    others = {label: noun for label, item in zip(labels, failures, strict=True) if (noun := _NOUNS.get(item.step))}
    return merged(spec.name, list(zip(labels, errors, strict=True)), 0, others) if errors else None
