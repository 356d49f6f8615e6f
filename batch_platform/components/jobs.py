"""The three jobs of a pipeline: their names, the names of their schedules, and the steps that each does."""

from typing import Literal

import dagster as dg

from batch_platform.components.dagster_internals import UnresolvedAssetJobDefinition
from batch_platform.components.wiring import PIPELINE_TAG, Wiring
from batch_platform.pipeline.plan import ASSET_OF, Step

Duty = Literal["score", "train", "evaluate"]
MAKES: dict[Duty, tuple[Step, ...]] = {
    "score": ("features", "predictions"),
    "train": ("model", "challengers"),
    "evaluate": ("performance",),
}
DUTY_OF: dict[Step, Duty] = {step: duty for duty, steps in MAKES.items() for step in steps}
_DESCRIPTIONS: dict[Duty, str] = {
    "score": "Builds the features of partitions and scores them with their champions.",
    "train": "Trains the model of a serving period and submits it to the gate. The launchpad shows the declared parameters; "
    "changes apply to that training only.",
    "evaluate": "Evaluates the predictions of partitions whose labels are known.",
}


def job_name(pipeline: str, duty: Duty) -> str:
    """Name of the job."""
    return f"{pipeline}_{duty}"


def schedule_name(pipeline: str, duty: Duty) -> str:
    """Name of the job's schedule."""
    return f"{job_name(pipeline, duty)}_when_due"


def assets_of(duty: Duty) -> tuple[Step, ...]:
    """The assets that the job materializes; challengers belong to the model."""
    return tuple(dict.fromkeys(ASSET_OF.get(step, step) for step in MAKES[duty]))


def build_jobs(wiring: Wiring) -> dict[Duty, UnresolvedAssetJobDefinition]:
    """The jobs of a pipeline."""
    return {
        duty: dg.define_asset_job(
            job_name(wiring.spec.name, duty),
            selection=dg.AssetSelection.assets(*(wiring.key(asset) for asset in assets_of(duty))),
            description=description,
            tags={PIPELINE_TAG: wiring.spec.name},
            executor_def=dg.in_process_executor,
        )
        for duty, description in _DESCRIPTIONS.items()
    }
