"""The schedules that keep a pipeline up to date, one for each job; `ticks.py` says what they request."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from batch_platform.components.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    UnresolvedAssetJobDefinition,
)
from batch_platform.components.jobs import Duty, schedule_name
from batch_platform.components.ticks import Tick, look_at, requests_of, skip_reason
from batch_platform.components.wiring import PIPELINE_TAG, Wiring
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.pipeline.plan import ASSET_OF, Request

_GAPS = "If nothing is due, the tick is skipped and says why. What was missed while the schedule was off is caught up."
_DEFAULT_CRONS = {"hour": "5 * * * *", "day": "0 5 * * *", "week": "0 5 * * 0", "month": "0 5 1 * *"}


def build_schedules(wiring: Wiring, jobs: Mapping[Duty, UnresolvedAssetJobDefinition]) -> list[dg.ScheduleDefinition]:
    """One schedule for each job, stopped until it is switched on."""
    return [_schedule(wiring, duty, job) for duty, job in jobs.items()]


def _schedule(wiring: Wiring, duty: Duty, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=schedule_name(wiring.spec.name, duty),
        job=job,
        cron_schedule=_cron(wiring.spec, duty),
        execution_timezone=wiring.spec.partitions.timezone,
        description=f"{_description(wiring.spec, duty)} {_GAPS}",
        tags={PIPELINE_TAG: wiring.spec.name},
    )
    def tick(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        look = look_at(wiring, context)
        requests = requests_of(duty, look)
        for request in requests:
            yield _run_request(look, request)
        if not requests:
            yield dg.SkipReason(skip_reason(duty, look))

    return tick


def _cron(spec: PipelineSpec, duty: Duty) -> str:
    if duty == "train":
        return spec.model.train.schedule
    return spec.predictions.schedule or _DEFAULT_CRONS[spec.partitions.every]


def _description(spec: PipelineSpec, duty: Duty) -> str:
    known = f"labels are known ({spec.labels.delay} after its end)" if spec.labels else "end has passed"
    return {
        "score": "Builds and scores every partition that is missing, failed or stale, oldest first.",
        "train": "Trains the model of every serving period that has none, once its features are built.",
        "evaluate": f"Evaluates every scored partition once its {known}.",
    }[duty]


def _run_request(tick: Tick, request: Request) -> dg.RunRequest:
    selection = [tick.wiring.key(ASSET_OF.get(step, step)) for step in request.steps]
    run_key = f"{tick.evaluated_at} {'+'.join(request.steps)} {request.first}..{request.last}"
    config: dict[str, Any] = {"challengers_only": True} if request.steps == ("challengers",) else {}
    single = "model" in {path.path[-1] for path in selection} and tick.wiring.serving_periods is None
    if single:
        config["until"] = request.first
    run_config = {"ops": {f"{tick.wiring.spec.name}__model": {"config": config}}} if config else None
    if single:
        return dg.RunRequest(run_key=run_key, run_config=run_config)
    tags = {ASSET_PARTITION_RANGE_START_TAG: request.first, ASSET_PARTITION_RANGE_END_TAG: request.last}
    return dg.RunRequest(run_key=run_key, asset_selection=selection, tags=tags, run_config=run_config)
