"""Runs of the job that brings a range up to date."""

from typing import Any

import dagster as dg

from batch_platform_tests.harness.deployment import QUIET, Deployment, range_tags

JOB = "small_bring_up_to_date"


def bring(deployment: Deployment, first: str, last: str, **config: Any) -> dg.ExecuteInProcessResult:
    """Launch the job over a range, as a backfill in one run does; `config` is that of the predictions."""
    return deployment.definitions.resolve_job_def(JOB).execute_in_process(
        instance=deployment.instance,
        tags=range_tags(first, last),
        run_config={"ops": {"small__predictions": {"config": config}}, "loggers": QUIET},
        raise_on_error=False,
    )


def keys(deployment: Deployment, asset: str, run_id: str) -> list[str | None]:
    return [entry.asset_materialization.partition for entry in deployment.materializations(asset, run_id)]
