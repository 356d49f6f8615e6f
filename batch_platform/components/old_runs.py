"""The job and the schedule of a pipeline that remove what Dagster recorded of its old runs, and rows older than `retention`."""

import dagster as dg

from batch_platform.components.dagster_records import forget_runs
from batch_platform.components.wiring import PIPELINE_TAG, Wiring, now
from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.cleanup import remove_old_rows


def name_of_cleanup(pipeline: str) -> str:
    """Name of the job."""
    return f"{pipeline}_remove_old_runs"


def build_old_runs(wiring: Wiring) -> dg.Definitions:
    """Build the job and its schedule, which is stopped until it is switched on."""
    spec = wiring.spec
    name, age = name_of_cleanup(spec.name), spec.dagster.keep_runs
    description = (
        f"Removes the records of runs of {spec.name} that ended more than {age} ago (`dagster.keep_runs`). Of a run with steps "
        "of your own nothing is removed. The newest materialization of each partition and the newest result of each check stay. Rows that "
        "are older than `retention` go too. The same as `batch-platform gc`."
    )

    @dg.op(name=f"{spec.name}__remove_old_runs", tags=wiring.op_tags)
    def remove(context: dg.OpExecutionContext) -> None:
        before = parse_duration(age).before(now(), spec.partitions.calendar.zone)
        old = forget_runs(context.instance, PIPELINE_TAG, [spec.name], before)
        context.log.info("Removed the records of %d runs: %.1f MiB.", old.runs, old.size / 2**20)
        for rows in remove_old_rows(wiring.pipeline(), Stamp(context.run_id, now())):
            context.log.info("Removed %s of %d partitions: %d rows.", rows.kind, len(rows.partitions), rows.rows)

    @dg.job(name=name, description=description, tags={PIPELINE_TAG: spec.name}, executor_def=dg.in_process_executor)
    def job() -> None:
        remove()

    schedule = dg.ScheduleDefinition(
        name=f"{name}_every_week",
        job=job,
        cron_schedule="40 3 * * 0",
        execution_timezone=spec.partitions.timezone,
        description=description,
        tags={PIPELINE_TAG: spec.name},
    )
    return dg.Definitions(jobs=[job], schedules=[schedule])
