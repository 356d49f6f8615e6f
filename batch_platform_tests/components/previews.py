"""Previews, and runs as the UI launches them."""

from datetime import UTC, datetime
from typing import Any

from batch_platform_tests.harness.workspace import REPOSITORY, Workspace

WHEN = datetime(2024, 2, 5, 3, tzinfo=UTC)  # before the ticks of that morning in Berlin
PREVIEW = """
mutation ($selector: ScheduleSelector!, $at: Float) {scheduleDryRun(selectorData: $selector, timestamp: $at) {
  __typename
  ... on DryRunInstigationTick {evaluationResult {
    skipReason error {message}
    runRequests {runConfigYaml jobName runKey tags {key value} assetSelection {path} assetChecks {name assetKey {path}}}
  }}
}}"""


def preview(pipeline: Workspace, duty: str) -> list[dict[str, Any]]:
    """The run requests that the UI shows for the next tick."""
    selector = {**REPOSITORY, "scheduleName": f"small_{duty}_when_due"}
    result = pipeline.ask(PREVIEW, selector=selector, at=WHEN.timestamp())["evaluationResult"]
    assert result["error"] is None, result["error"]
    return result["runRequests"] or []


def launched_by_the_ui(duty: str, request: dict[str, Any]) -> dict[str, Any]:
    """What *Launch all* sends for a run request; where the request names no asset or check, it sends an empty list."""
    checks = [{"name": check["name"], "assetKey": check["assetKey"]} for check in request["assetChecks"] or []]
    return {
        "runConfigData": request["runConfigYaml"],
        "selector": {
            "jobName": request["jobName"] or f"small_{duty}",
            **REPOSITORY,
            "assetSelection": request["assetSelection"] or [],
            "assetCheckSelection": checks,
        },
        "mode": "default",
        "executionMetadata": {"tags": request["tags"]},
    }
