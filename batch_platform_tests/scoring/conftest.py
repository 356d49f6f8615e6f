"""The cluster that all tests of the Spark engine share, and a session that lasts as long."""

from collections.abc import Iterator

import pytest

from batch_platform.declaration.engine import Spark
from batch_platform.scoring.engines.spark_session import spark_session
from batch_platform_tests.spark_cluster import SparkCluster, spark_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    with spark_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="session")
def spark(cluster: SparkCluster) -> Iterator[SparkCluster]:
    """The cluster with a session of this process, which would otherwise be started for each engine."""
    with spark_session(Spark.model_validate(cluster.declared()["spark"]), "tests"):
        yield cluster
