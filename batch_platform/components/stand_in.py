"""What stands for a pipeline in its project where its own definitions are not there: assets, jobs and schedules of its names.

Users' schedules and sensors name its jobs, and their assets map their partitions to its own. Dagster loads nothing of a code
location in which such a name or mapping leads nowhere. Every run fails with the reason, and every tick is skipped with it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from batch_platform.components.dagster_internals import without_beta_warnings
from batch_platform.components.jobs import SCHEDULED, build_jobs, build_whole_job, job_name, schedule_name
from batch_platform.components.old_runs import name_of_cleanup
from batch_platform.components.reporting import REPORT
from batch_platform.components.resources import IO_MANAGER_KEY
from batch_platform.components.wiring import Wiring

_MADE = ("features", "model", "predictions", "performance", "deliveries")
_MIDNIGHT = "0 0 * * *"  # the declared times may be what is wrong


def build_stand_in(
    wiring: Wiring,
    reason: Callable[[], str],
    *,
    description: str,
    metadata: Mapping[str, Any],
    partitioned: bool = True,
) -> dg.Definitions:
    """Build definitions of the names and partitions of a pipeline, of which every run fails.

    Args:
        wiring: The pipeline as far as its declaration can be read.
        reason: Says why its own definitions are not there.
        description: Description of the assets.
        metadata: Metadata of the assets.
        partitioned: Whether its partitions are known. Dagster takes assets without any for a job of users' partitioned assets, and
            none with others.
    """
    name, spec = wiring.spec.name, wiring.spec
    made = wiring.keys([*_MADE, *([REPORT] if spec.report else [])])
    assets = [
        failing_asset(
            key,
            reason,
            group=name,
            description=description,
            metadata=metadata,
            partitions=wiring.partitions_of(key.path[-1]) if partitioned and key.path[-1] != REPORT else None,
        )
        for key in made
    ]
    jobs = [build_whole_job(wiring), *build_jobs(wiring).values(), _failing_job(name_of_cleanup(name), reason)]
    schedules = {schedule_name(name, duty): job_name(name, duty) for duty in SCHEDULED}
    schedules[f"{name_of_cleanup(name)}_every_week"] = name_of_cleanup(name)
    if spec.report:
        jobs.append(dg.define_asset_job(f"{name}_{REPORT}", selection=[wiring.key(REPORT)]))
        schedules[f"{name}_{REPORT}_every_{spec.report.every}"] = f"{name}_{REPORT}"
    return dg.Definitions(
        assets=assets,
        jobs=jobs,
        schedules=[
            dg.ScheduleDefinition(name=schedule, job_name=job, cron_schedule=_MIDNIGHT, execution_fn=_skipping(reason))
            for schedule, job in schedules.items()
        ],
    )


def failing_asset(  # noqa: PLR0913 - what an asset shows
    key: dg.AssetKey,
    reason: Callable[[], str],
    *,
    group: str,
    description: str,
    metadata: Mapping[str, Any],
    partitions: dg.PartitionsDefinition | None = None,
) -> dg.AssetsDefinition:
    """Build an asset that cannot be materialized, for a reason that it shows."""

    def cannot_be_loaded() -> None:
        raise dg.Failure(reason(), allow_retries=False)

    with without_beta_warnings():  # single-run backfills
        return dg.asset(
            key=key,
            group_name=group,
            description=description,
            metadata=metadata,
            partitions_def=partitions,
            io_manager_key=IO_MANAGER_KEY,
            backfill_policy=dg.BackfillPolicy.single_run(),
        )(cannot_be_loaded)


def _failing_job(name: str, reason: Callable[[], str]) -> dg.JobDefinition:
    @dg.op(name=f"{name}_cannot_be_loaded")
    def cannot_be_loaded() -> None:
        raise dg.Failure(reason(), allow_retries=False)

    @dg.job(name=name, executor_def=dg.in_process_executor)
    def job() -> None:
        cannot_be_loaded()

    return job


def _skipping(reason: Callable[[], str]) -> Callable[[dg.ScheduleEvaluationContext], dg.SkipReason]:
    def tick(context: dg.ScheduleEvaluationContext) -> dg.SkipReason:  # noqa: ARG001 - as Dagster calls it
        return dg.SkipReason(reason())

    return tick
