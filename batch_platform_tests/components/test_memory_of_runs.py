"""The law: what a run holds in memory does not grow with the number of its partitions."""

import gc
from collections import Counter

import dagster as dg
import pytest

from batch_platform.components.events import PartitionLog
from batch_platform_tests.harness.deployment import Deployment, deploy_trained

KINDS = (dg.AssetMaterialization, dg.AssetCheckEvaluation)


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> Deployment:
    return deploy_trained(tmp_path, monkeypatch, monitoring={"drift": {"warn": 0.5, "fail": 5.0}})


def held(deployment, monkeypatch, last: str) -> Counter[type]:
    """The events that are in memory once the last partition of a run is logged."""
    log, counts = PartitionLog.committed, Counter[type]()

    def committed(self, commit, **options):
        log(self, commit, **options)
        if commit.partition_key == last:
            gc.collect()
            counts.clear()
            counts.update(type(it) for it in gc.get_objects() if type(it) in KINDS)

    with monkeypatch.context() as patched:
        patched.setattr(PartitionLog, "committed", committed)
        deployment.run("features", "predictions", "drift", first="2024-02-01", last=last)
    return counts


def test_events_of_committed_partitions_do_not_stay_in_memory(deployment, monkeypatch):
    few, many = (held(deployment, monkeypatch, last) for last in ("2024-02-03", "2024-02-13"))
    more = 10  # partitions
    assert few[dg.AssetMaterialization] > 0
    for kind in KINDS:
        assert many[kind] - few[kind] < more
