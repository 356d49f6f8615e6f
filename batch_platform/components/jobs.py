"""The three jobs of a pipeline: what each makes, and what it and its schedule are called."""

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
    "score": "Builds the features of partitions and scores them by their champions.",
    "train": "Trains the model of a serving period and judges it by the gate. The parameters shown are those declared; "
    "other ones count for that training only.",
    "evaluate": "Measures the predictions of partitions whose labels are known by now.",
}


def job_name(pipeline: str, duty: Duty) -> str:
    """What the job is called."""
    return f"{pipeline}_{duty}"


def schedule_name(pipeline: str, duty: Duty) -> str:
    """What the schedule of the job is called."""
    return f"{job_name(pipeline, duty)}_when_due"


def assets_of(duty: Duty) -> tuple[Step, ...]:
    """The assets that the job makes; challengers are of the model's."""
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
