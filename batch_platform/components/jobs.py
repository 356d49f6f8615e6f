"""The jobs of a pipeline: their names and steps, the runs that do what is due, and the options of a run.

One job follows the whole plan, for partitions that somebody asks for. The others do one part of it each: one builds features,
and three are what the schedules launch. Features have partitions that no model serves, and Dagster lets a job materialize only
assets with the same partitions. So the jobs that score and train build the features that they lack in their own step.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from batch_platform.components.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)
from batch_platform.components.wiring import PIPELINE_TAG, Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.redaction import redacted
from batch_platform.planning.plan import Plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.steps import ASSET_OF, Request, Step

AssetJob = Any  # what `dg.define_asset_job` returns, for which Dagster exports no type
Duty = Literal["build", "score", "train", "evaluate"]
MAKES: dict[Duty, tuple[Step, ...]] = {
    "build": ("features",),
    "score": ("predictions", "deliveries"),
    "train": ("model", "challengers"),
    "evaluate": ("performance",),
}
SCHEDULED: tuple[Duty, ...] = ("score", "train", "evaluate")
DUTY_OF: dict[Step, Duty] = {step: duty for duty, steps in MAKES.items() for step in steps}
_DESCRIPTIONS: dict[Duty, str] = {
    "build": "Builds the features of partitions, also of those that no model serves.",
    "score": "Builds the features of partitions, where they are due, scores them with their champions and delivers them.",
    "train": "Builds the features of the training window, where they are due, trains the model of a serving period and submits "
    "it to the gate. The launchpad shows the declared parameters; changes apply to that training only.",
    "evaluate": "Evaluates the predictions of partitions whose labels are known.",
}


# Steps of the job that follows the whole plan.
MAKES_ALL: tuple[Step, ...] = ("predictions", "performance", "deliveries")


def job_name(pipeline: str, duty: Duty) -> str:
    """Name of the job."""
    return f"{pipeline}_{duty}"


def name_of_whole(pipeline: str) -> str:
    """Name of the job that follows the whole plan."""
    return f"{pipeline}_bring_up_to_date"


def schedule_name(pipeline: str, duty: Duty) -> str:
    """Name of the job's schedule."""
    return f"{job_name(pipeline, duty)}_when_due"


def assets_of(duty: Duty) -> tuple[Step, ...]:
    """The assets that the job materializes; challengers belong to the model."""
    return tuple(dict.fromkeys(ASSET_OF.get(step, step) for step in MAKES[duty]))


def build_jobs(wiring: Wiring) -> dict[Duty, AssetJob]:
    """The jobs of a pipeline."""
    return {
        duty: dg.define_asset_job(
            job_name(wiring.spec.name, duty),
            selection=dg.AssetSelection.assets(*wiring.keys(assets_of(duty))),
            description=description,
            tags={PIPELINE_TAG: wiring.spec.name},
            executor_def=_executor(wiring),
        )
        for duty, description in _DESCRIPTIONS.items()
    }


def _executor(wiring: Wiring) -> dg.ExecutorDefinition | None:
    """The declared executor; None for that of the project."""
    return dg.in_process_executor if wiring.spec.dagster.executor == "in_process" else None


def is_of_job(run: dg.DagsterRun, wiring: Wiring, *duties: Duty) -> bool:
    """Return whether a run is of one of these jobs of a pipeline, rather than of assets that somebody chose."""
    return run.job_name in {job_name(wiring.spec.name, duty) for duty in duties}


def build_whole_job(wiring: Wiring) -> AssetJob:
    """The job that follows the whole plan for its partitions.

    Dagster lets a job materialize only assets with the same partitions. Features and models that are due are made in the step
    of the predictions, which records them as their own assets would.
    """
    return dg.define_asset_job(
        name_of_whole(wiring.spec.name),
        selection=dg.AssetSelection.assets(*wiring.keys(MAKES_ALL)),
        description="Brings partitions up to date: builds the features and trains the models that they lack, scores them and "
        "evaluates them, each only where it is due. The same as `batch-platform run`. Confirm where Dagster warns that features and "
        "model are not materialized yet: this job makes them.",
        tags={PIPELINE_TAG: wiring.spec.name},
        executor_def=_executor(wiring),
    )


_announced: ContextVar[list[Plan]] = ContextVar("announced_plans")


@contextmanager
def announcing(plan: Plan | None) -> Generator[None]:
    """Hand a plan that was announced to the run of the whole job in this thread, which carries it out once."""
    token = _announced.set([] if plan is None else [plan])
    try:
        yield
    finally:
        _announced.reset(token)


def announced() -> Plan | None:
    """The plan that this run was started for, unless it was taken before.

    None where Dagster started the run, or repeats a step: then it has to plan by what is recorded now.
    """
    plans = _announced.get([])
    return plans.pop() if plans else None


@dataclass(frozen=True)
class Launch:
    """A requested run, in Dagster's terms."""

    job: str
    assets: list[dg.AssetKey]
    tags: dict[str, str]  # range of partitions; empty for the only model of a pipeline
    ops: dict[str, Any]  # configuration of the assets, by op


def launch_of(wiring: Wiring, request: Request, config: Mapping[Step, Mapping[str, Any]] | None = None) -> Launch:
    """The run that does what is requested, with further configuration by step."""
    name, duty = wiring.spec.name, DUTY_OF[request.steps[0]]
    single = duty == "train" and wiring.serving_periods is None
    tags = {ASSET_PARTITION_RANGE_START_TAG: request.first, ASSET_PARTITION_RANGE_END_TAG: request.last}
    until = {"until": request.first} if single else {}
    ops = dict[str, Any]()
    for step in request.steps:
        asset = ASSET_OF.get(step, step)
        only = {"challengers_only": True} if step == "challengers" else {}
        if values := {**(config or {}).get(step, {}), **only, **until}:
            ops[f"{name}__{asset}"] = {"config": values}
    assets = wiring.keys(ASSET_OF.get(step, step) for step in request.steps)
    return Launch(job_name(name, duty), assets, {} if single else tags, ops)


def launch_of_all(wiring: Wiring, partitions: Sequence[Partition], wanted: PlanRequest) -> Launch:
    """The run that brings a range of partitions up to date."""
    options = ("force", "model", "recheck", "retrain", "serve_all")
    config = {name: value for name in options if (value := getattr(wanted, name)) is not None}
    tags = {ASSET_PARTITION_RANGE_START_TAG: partitions[0].key, ASSET_PARTITION_RANGE_END_TAG: partitions[-1].key}
    name = wiring.spec.name
    return Launch(name_of_whole(name), wiring.keys(MAKES_ALL), tags, {f"{name}__predictions": {"config": config}})


class FeaturesConfig(dg.Config):
    """Options for building features."""

    force: bool = Field(
        default=False,
        description="Build partitions again even if neither the SQL nor the sources changed. Otherwise they are skipped.",
    )


class PredictionsConfig(dg.Config):
    """Options for scoring partitions."""

    force: bool = Field(
        default=False,
        description="Score partitions again even if features, model and rules are unchanged. A partition may become empty.",
    )
    model: str | None = Field(
        default=None,
        description="Version to score with, such as 2013-03-01-3f9c1a2b, instead of the champion as of each partition's start.",
    )
    recheck: bool = Field(
        default=True,
        description="In the job that brings a pipeline up to date: compare the partitions with their sources, however old "
        "they are.",
    )
    retrain: bool = Field(
        default=False,
        description="In the job that brings a pipeline up to date: train the newest model again even if nothing has changed.",
    )
    serve_all: bool = Field(
        default=True,
        description="In the job that brings a pipeline up to date: train the only model of a pipeline for the oldest partition "
        "of the run that has enough history. Otherwise it learns from all that is known.",
    )


@dataclass(frozen=True)
class TrainingConfig:
    """The options of a training: the values of `training_schema`."""

    params: dict[str, Any] = field(default_factory=dict[str, Any])
    until: str | None = None
    challengers_only: bool = False


def training_config(wiring: Wiring, values: Mapping[str, Any]) -> TrainingConfig:
    """Read the configuration of a training.

    A parameter equal to the declared one is dropped, so that the declared form holds: JSON turns `{0: 1}` into `{"0": 1}`.
    """
    declared = wiring.spec.model.params
    config = TrainingConfig(**values)
    changed = {
        name: value
        for name, value in config.params.items()
        if name not in declared or json.dumps(value, sort_keys=True) != json.dumps(declared[name], sort_keys=True)
    }
    return replace(config, params=changed)


def training_schema(wiring: Wiring) -> Mapping[str, Any]:
    """The configuration schema of a training, with the declared parameters filled in.

    Uses Dagster's own types: in a `dg.Config`, a parameter whose value is None breaks the launchpad.
    """
    params = wiring.spec.model.params
    schema: dict[str, Any] = {
        "params": dg.Field(
            dg.Permissive(),
            default_value=params if redacted(params) == params else {},  # none if one of them is a secret
            description="Estimator parameters for this training only, such as {max_iter: 300}. They replace or extend those of "
            "model.params. The gate judges the resulting version like any other.",
        )
    }
    if wiring.serving_periods is None:
        schema["until"] = dg.Field(
            dg.Noneable(str), is_required=False, description="Key of the first partition the model serves."
        )
    if wiring.spec.challengers:
        schema["challengers_only"] = dg.Field(
            bool,
            default_value=False,
            description="Train only the challengers missing in this serving period; the model stays as it is.",
        )
    return schema
