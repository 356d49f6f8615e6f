"""Dagster's judgement of whether a partition is out of date, which has no public name."""

from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from batch_platform_tests.harness.deployment import Deployment


def status(deployment: Deployment, asset: str, day: str) -> StaleStatus:
    graph = deployment.definitions.resolve_asset_graph()
    loading = LoadingContextForTest(deployment.instance)
    return CachingStaleStatusResolver(deployment.instance, graph, loading).get_status(deployment.key(asset), day)
