"""The asset of the report with its own job and schedule, where `report` is declared."""

from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import dagster as dg

from batch_platform.components import describe
from batch_platform.components.automation import condition_of
from batch_platform.components.processes import at_work
from batch_platform.components.wiring import PIPELINE_TAG, Wiring, clear_failures
from batch_platform.declaration.redaction import redacted_output
from batch_platform.reports.report import WrittenReport, write_report

REPORT = "report"


def build_reporting(wiring: Wiring) -> dg.Definitions:
    """Build the asset of a report with its job and schedule; empty if none is declared."""
    spec = wiring.spec
    if spec.report is None:
        return dg.Definitions()
    declared = spec.report

    @dg.asset(
        key=wiring.key(REPORT),
        op_tags=wiring.op_tags,
        group_name=spec.name,
        owners=spec.owners,
        kinds={"html"},
        description=(
            "One HTML file without network access for people who decide things: what was scored and how good it was, the newest "
            f"{declared.every} beside the one before. The same as `batch-platform report {spec.name}`."
        ),
        deps=[wiring.key("predictions"), wiring.key("performance")],
        pool=spec.dagster.pool,
        automation_condition=condition_of(wiring, REPORT),
    )
    def report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        context.instance.add_run_tags(context.run.run_id, {PIPELINE_TAG: spec.name})
        with redacted_output(), clear_failures(), at_work(context):
            started = perf_counter()
            written = write_report(wiring.pipeline(), datetime.now(UTC), every=declared.every)
            return dg.MaterializeResult(metadata=_metadata(written, perf_counter() - started))

    name = f"{spec.name}_{REPORT}"
    job = dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(report),
        description=f"Writes the report on {spec.name}.",
        tags={PIPELINE_TAG: spec.name},
        executor_def=dg.in_process_executor,
    )
    schedule = dg.ScheduleDefinition(
        name=f"{name}_every_{declared.every}",
        job=job,
        cron_schedule=declared.cron,
        execution_timezone=spec.partitions.timezone,
        description=f"Writes the report on {spec.name}, the newest {declared.every} beside the one before.",
        tags={PIPELINE_TAG: spec.name},
    )
    return dg.Definitions(assets=[report], jobs=[job], schedules=[schedule])


def _metadata(written: WrittenReport, seconds: float) -> dict[str, Any]:
    figures = written.figures
    headlines = {headline.label.replace(" ", "_"): float(headline.value) for headline in figures.headlines}
    return {
        "file": dg.MetadataValue.path(written.file),
        "first": figures.window.all_keys[0],
        "last": figures.window.all_keys[-1],
        "summed_up": figures.summed_up.words,
        "partitions": len(figures.window.all_keys),
        "open_issues": len(figures.issues),
        "bytes": written.file.stat().st_size,
        "seconds": round(seconds, 3),
        **describe.rounded(headlines),
    }
