"""The names of PySpark's that are not public are there, are used in one module only, and mean what that module takes them for."""

import inspect
import re
from pathlib import Path

import pytest
from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql.connect.client import SparkConnectClient
from pyspark.sql.connect.client.retries import DefaultPolicy
from pyspark.sql.connect.session import SparkSession as RemoteSession

import batch_platform
from batch_platform.declaration.engine import Spark
from batch_platform.spark import internals
from batch_platform.spark.session import spark_session

PRIVATE = re.compile(r"\b_(?:jsc|gateway|jvm)\b|\bjava_gateway\b")


def test_only_one_module_uses_them():
    package = Path(batch_platform.__file__).parent
    users = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if PRIVATE.search(file.read_text())}
    assert users == {"spark/internals.py"}


def test_java_is_started_forgotten_and_read_by_names_that_are_there(monkeypatch):
    assert [*inspect.signature(launch_gateway).parameters][:2] == ["conf", "popen_kwargs"]
    assert "_jvm" in inspect.signature(SparkConf.__init__).parameters
    for name in ("_gateway", "_jvm"):
        assert name in vars(SparkContext)
        monkeypatch.setattr(SparkContext, name, object())
    assert internals.has_java()
    internals.forget_java()
    assert not internals.has_java()
    assert SparkContext._jvm is None


def test_the_client_of_a_session_of_spark_connect_takes_another_policy():
    policies = list[DefaultPolicy]()

    class Client:
        set_retry_policies = policies.extend

    class Session:
        client = Client

    internals.give_up_after_a_minute(Session())
    assert callable(SparkConnectClient.set_retry_policies)
    assert isinstance(RemoteSession.client, property)
    (policy,) = policies
    waits = [policy.initial_backoff]
    while len(waits) < policy.max_retries:
        waits.append(min(waits[-1] * policy.backoff_multiplier, policy.max_backoff))
    assert 30_000 < sum(waits) < 90_000, "milliseconds"


@pytest.mark.full
def test_the_context_of_java_tells_executors_and_is_gone_when_the_session_is(spark):
    with spark_session(Spark.model_validate(spark.declared()["spark"]), "small") as session:
        assert internals.java_context(session).getExecutorMemoryStatus().size() >= 1
        conf = internals.with_defaults(SparkConf().set("spark.app.name", "own"), SparkContext._gateway)
        assert conf.get("spark.app.name") == "own"
