"""The Spark engine under faults: executors, workers, the cluster and the driver are killed; tasks run twice, crash and do not fit."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.engine import Spark
from batch_platform.declaration.errors import DamagedFeaturesError, EngineError, WarehouseError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import file_digests, open_recorded
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.scoring.partition import ScoringOrder
from batch_platform.spark import scoring_tasks
from batch_platform.spark import session as spark_sessions
from batch_platform.spark.scoring import SparkEngine
from batch_platform.spark.scoring_tasks import Job, ReadPart, Task, parts_of, stretches_of
from batch_platform.spark.session import (
    MOST_LOGS,
    QUICK_JAVA,
    configuration,
    is_stopped,
    require_java,
    require_master,
    spark_session,
)
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.command_line import published
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.deployment import deploy
from batch_platform_tests.harness.small_pipeline import carry_out, feature_file, small_events, small_pipeline
from batch_platform_tests.harness.spark_cluster import CONF, LITTLE_JAVA, SparkCluster, free_ports, orders_for
from batch_platform_tests.harness.waiting_model import CRASH, GO, ONLY, OUT_OF_MEMORY, begun, wait_for
from batch_platform_tests.spark.spark_sql import ENDLESS, SPARK_SQL, build, wait_for_tasks

NOW = datetime(2024, 2, 4, 12, tzinfo=UTC)
DAYS = ("2024-02-01", "2024-02-02", "2024-02-03")
MODEL = {
    "import": "batch_platform_tests.harness.waiting_model.Waiting",
    "task": "regression",
    "estimator": None,
    "train": {"every": None},
}


def waiting(folder: Path, *more: pl.DataFrame, **overrides: Any) -> Pipeline:
    """A pipeline below a folder, whose model waits there for the file `go`; `more` are further orders."""
    model = MODEL | {
        "params": {"max_iter": None, "max_leaf_nodes": None, "early_stopping": None, "folder": str(folder)}
    }
    partitions = {"start": "2024-01-31"}  # the model serves from the next day on
    events = pl.concat([small_events().filter(pl.col("ts") < NOW), *more])
    return small_pipeline(folder, events=events, model=model, labels=None, partitions=partitions, **overrides)


@pytest.fixture
def pipeline(spark: SparkCluster, tmp_path: Path) -> Pipeline:
    """Three scored days, which are to be scored again on the cluster; the model waits."""
    (tmp_path / GO).touch()
    carry_out(waiting(tmp_path), NOW)
    (tmp_path / GO).unlink()
    for file in tmp_path.glob("begun-*"):
        file.unlink()
    return waiting(tmp_path, engine=spark.declared())


def days(pipeline: Pipeline) -> list[Partition]:
    return [pipeline.spec.partitions.calendar.named(key) for key in DAYS]


def predictions(pipeline: Pipeline) -> pl.DataFrame:
    with pipeline.warehouse.open() as con:
        return con.sql("FROM small.predictions").pl().drop("run_id", "scored_at").sort(pl.all())


def runs(pipeline: Pipeline) -> dict[str, str]:
    return {key: run.run_id for key, run in pipeline.state().scores.items()}


@pytest.fixture
def scoring(pipeline: Pipeline, tmp_path: Path) -> Iterator[Callable[[], Future[Any]]]:
    """Begin to score all days again, on a thread, which a failed test does not leave waiting."""
    with ThreadPoolExecutor(1) as thread:
        yield lambda: thread.submit(lambda: list(pipeline.score(days(pipeline), Stamp("again", NOW), force=True)))
        (tmp_path / GO).touch()


@pytest.mark.full
def test_a_task_that_runs_twice_at_a_time_gives_its_rows_once(pipeline, scoring, tmp_path, caplog):
    """The first test: Spark repeats a task on another host only, and the later tests kill what runs on the second one."""
    first = pl.read_parquet(feature_file(pipeline, DAYS[-1]))["amount"][0]
    (tmp_path / ONLY).write_text(str(first))
    before = predictions(pipeline)
    with caplog.at_level("INFO", "batch_platform"):
        scored = scoring()
        wait_for(tmp_path, len(DAYS) + 1)
        while not any(re.fullmatch(r"small, 2024-02-0.*: \d of \d tasks done\.", line) for line in caplog.messages):
            assert not scored.done()
            time.sleep(0.05)
    (tmp_path / GO).touch()
    scored.result()
    assert predictions(pipeline).equals(before)
    assert not list(pipeline.home.staging.iterdir())


@pytest.mark.full
def test_one_key_moves_a_pipeline_to_the_cluster_and_its_run_in_dagster_says_where_it_ran(spark, project, cli):
    declared = yaml.safe_load((pipeline_folder(project) / "defs.yaml").read_text())["attributes"]
    query = "SELECT * EXCLUDE (run_id, scored_at) FROM small.predictions ORDER BY ALL"
    before = published(project, query)
    write_defs_yaml(project, declared | {"engine": spark.declared(rows_per_task=10)})
    answer = cli(project, "run", "small", "--from", "2024-02-18", "--to", "2024-02-19", "--force")
    assert (answer.code, answer.err) == (0, "")
    assert "2 of 2 partitions scored: 80 rows in, 79 scored, 1 rejected." in answer.out
    assert published(project, query) == before
    engines = "SELECT engine, count(*) FROM batch_platform.score_runs GROUP BY ALL ORDER BY ALL"
    assert published(project, engines) == [("local", 29), ("spark", 2)]
    with dg.DagsterInstance.from_config(str(project / ".batch_platform" / "dagster")) as instance:
        events = instance.all_logs(next(iter(instance.get_runs(limit=1))).run_id)
    (logged,) = [event.user_message for event in events if "Spark application" in event.user_message]
    place = r"spark://127\.0\.0\.1:\d+, shown at http://127\.0\.0\.1:\d+ while it runs\."
    assert re.fullmatch(rf"small: Spark application app-\S+ on {place}", logged)
    made = [
        event.dagster_event.step_materialization_data.materialization.metadata
        for event in events
        if event.dagster_event and event.dagster_event.is_step_materialization
    ]
    shown = [metadata for metadata in made if "engine" in metadata]
    assert [metadata["engine"].value for metadata in shown] == ["spark", "spark"]
    assert all(metadata["engine_page"].value.startswith("http://127.0.0.1:") for metadata in shown)


@pytest.mark.parametrize("victim", ["executor", pytest.param("worker", marks=pytest.mark.full)])
def test_f33_a_killed_executor_or_worker_changes_nothing(pipeline, scoring, spark, tmp_path, victim):
    before, scored = predictions(pipeline), scoring()
    wait_for(tmp_path, 2)
    with spark_session(pipeline.spec.engine.on_spark, "small") as session:
        spark.kill_executor(session) if victim == "executor" else spark.kill_worker(session)
    wait_for(tmp_path, 3)
    (tmp_path / GO).touch()
    committed = scored.result()
    assert [(done.partition.key, done.run.rows_scored, done.run.engine) for done in committed] == [
        (key, 40, "spark") for key in DAYS
    ]
    assert begun(tmp_path) > len(DAYS), "a task ran again"
    assert predictions(pipeline).equals(before)
    assert not list(pipeline.home.staging.iterdir())
    if victim == "worker":
        spark.add_worker()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (CRASH, r"Spark gave up after 4 attempts: .*nothing of these"),
        (
            OUT_OF_MEMORY,
            r"it does not fit into the memory of this process \(Unable to allocate .* This happened on \S+\. Hint: give the executors",
        ),
    ],
    ids=["crash", "memory"],
)
@pytest.mark.full
def test_f33_a_task_that_crashes_or_lacks_memory_each_time_is_named_and_nothing_is_published(
    pipeline, scoring, tmp_path, fault, message
):
    (tmp_path / fault).touch()
    with pytest.raises(EngineError, match=rf"small, partition 2024-02-0\d: {message}"):
        scoring().result()
    assert set(runs(pipeline).values()) == {"run"}
    assert not list(pipeline.home.staging.iterdir())


@pytest.mark.full
def test_f5_without_room_on_the_disks_of_the_cluster_nothing_is_published(pipeline, scoring, spark, tmp_path):
    before, scored = predictions(pipeline), scoring()
    wait_for(tmp_path, 2)
    with spark.full_disks():
        (tmp_path / GO).touch()
        with pytest.raises(
            (WarehouseError, EngineError),  # for a file of ours, or for one that Spark itself needs first
            match=r"2024-02-0\d: .*File too large(\. This happened|,) on \S+\. Hint: make room on",
        ):
            scored.result()
    assert not list(pipeline.home.staging.iterdir())
    scoring().result()
    assert set(runs(pipeline).values()) == {"again"}
    assert predictions(pipeline).equals(before)


@pytest.mark.full
def test_a_partition_with_very_many_rows_is_divided_and_none_of_its_tasks_has_all(spark, tmp_path):
    """Three days of 40 rows and one of 300,023, in one job."""
    (tmp_path / GO).touch()
    skewed = small_events(date(2024, 2, 4), date(2024, 2, 4), 300_000).with_columns(pl.col("id") + 10_000)
    engine = spark.declared(rows_per_task=100_000)
    local, on_spark = (waiting(tmp_path, skewed, engine=engine) for engine in ("local", engine))
    carry_out(local, NOW + timedelta(days=1))
    (tmp_path / "out").mkdir()
    with SparkEngine(on_spark.spec, tmp_path / "out", Stamp("again", NOW)) as opened:
        staged = list(opened.staged(orders_for(on_spark, [*DAYS, "2024-02-04"])))
    rows = [[pq.read_metadata(file).num_rows for file in partition.predictions] for partition in staged]
    assert rows == [[40], [40], [40], [122_880, 122_880, 54_263]]
    scores = pl.read_parquet([file for partition in staged for file in partition.predictions])
    assert scores.drop("run_id", "scored_at").sort(pl.all()).equals(predictions(local))


DRIVER = """\
import sys
from pathlib import Path
from batch_platform.declaration.stamp import Stamp
from batch_platform_tests.spark.test_spark_engine import NOW, days, waiting
from batch_platform_tests.harness.spark_cluster import CONF

pipeline = waiting(Path(sys.argv[1]), engine={"spark": {"master": sys.argv[2], "conf": CONF}})
list(pipeline.score(days(pipeline), Stamp("killed", NOW), force=True))
"""


@pytest.mark.full
def test_f33_a_killed_driver_leaves_nothing_and_a_retry_converges(pipeline, scoring, spark, tmp_path):
    before = predictions(pipeline)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), spark.master])
    wait_for(tmp_path, 2, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    (tmp_path / GO).touch()
    assert set(runs(pipeline).values()) == {"run"}
    assert list(pipeline.home.staging.iterdir())
    scoring().result()
    assert set(runs(pipeline).values()) == {"again"}
    assert predictions(pipeline).equals(before)
    assert not list(pipeline.home.staging.iterdir())


def test_an_executor_that_does_not_see_the_home_or_has_another_version_says_so(pipeline, tmp_path):
    state, day = pipeline.state(), days(pipeline)[0]
    build = state.features[day.key]
    folder = pipeline.bundle_folder(state.registry.versions[0], 40)
    order = ScoringOrder(day, pipeline.history.file(build), build.sha256, build.rows, folder, build.xxh3)
    (tmp_path / "mark").touch()
    job = Job(pipeline.spec, tmp_path, "run", NOW, (order,), (Task(0),), tmp_path / "mark", attempts=4)
    for unfit, message in (
        (
            replace(job, mark=tmp_path / "absent" / "mark"),
            "does not see .*/absent, .*put the home on a file system that all",
        ),
        (replace(job, version="0.0.1"), r"runs batch_platform .*, the driver 0\.0\.1\. Hint: install the same"),
    ):
        with pytest.raises(EngineError, match=message):
            raise scoring_tasks.run_attempt(unfit, scoring_tasks.Attempt(0, 7, 3)).failure
        with pytest.raises(EngineError, match=message):
            scoring_tasks.run_attempt(unfit, scoring_tasks.Attempt(0, 7, 0))  # Spark tries another machine first


@given(rows=st.integers(1, 60), group=st.integers(1, 20), least=st.integers(1, 70))
def test_the_parts_of_a_file_are_its_rows_and_what_they_hash_is_what_the_whole_hashes(rows, group, least):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.parquet"
        table = pl.DataFrame({"id": range(rows), "text": [f"row {row}" * (row % 5) for row in range(rows)]}).to_arrow()
        pq.write_table(table, path, row_group_size=group)
        with open_recorded(path, *file_digests(path), pipeline="small", partition_key="day") as file:
            parts = [ReadPart(file, part) for part in parts_of(path, least)]
            read = [pl.DataFrame(pa.Table.from_batches(list(part.batches(7)))) for part in parts]
            assert pl.concat(read).equals(pl.DataFrame(table))
            assert [part.part.first_row for part in parts] == [sum(map(len, read[:at])) for at in range(len(read))]
            assert all(len(rows) >= least for rows in read[:-1])
            whole = stretches_of(file)
            assert all(part.hashes.items() <= whole.items() for part in parts)


def test_a_file_that_is_replaced_between_two_tasks_is_refused(pipeline, tmp_path):
    """A part whose bytes are not those that the whole had when it was hashed."""
    path = tmp_path / "features.parquet"
    table = pq.read_table(feature_file(pipeline, DAYS[0]))
    pq.write_table(table, path, row_group_size=16)
    sha256, xxh3 = file_digests(path)
    state = pipeline.state()
    folder = pipeline.bundle_folder(state.registry.versions[0], 40)
    order = ScoringOrder(days(pipeline)[0], path, sha256, 40, folder, xxh3)
    (tmp_path / GO).touch()
    (tmp_path / "mark").touch()
    tasks = (Task(0, scores=False), *(Task(0, part) for part in parts_of(path, 1)))
    job = Job(pipeline.spec, tmp_path, "run", NOW, (order,), tasks, tmp_path / "mark", attempts=4)
    summaries = [scoring_tasks.run_attempt(job, scoring_tasks.Attempt(number, number, 0)) for number in (0, 1)]
    pq.write_table(table.set_column(2, "amount", pa.array([1.0] * 40)), path, row_group_size=16)
    summaries += [scoring_tasks.run_attempt(job, scoring_tasks.Attempt(number, number, 0)) for number in (2, 3)]
    with pytest.raises(DamagedFeaturesError, match="small, partition 2024-02-01: the bytes of"):
        SparkEngine(pipeline.spec, tmp_path, Stamp("run", NOW)).whole(job, order, summaries)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "Spark needs a JDK of version 17 or 21, and there is no `java` at JAVA_HOME"),
        ("echo 'openjdk version \"11.0.2\"' >&2", r"and .*/bin/java is of version 11\."),
        (
            "echo 'Error: Module jdk.incubator.vector not found' >&2; exit 1",
            "with all modules, and .* does not start: Module jdk.incubator.vector not found",
        ),
    ],
)
def test_a_missing_or_unfit_java_is_named_with_the_package_to_install(tmp_path, script, message):
    if script is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "java").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "java").chmod(0o755)
    with pytest.raises(EngineError, match=f"{message}.*install openjdk-17-jdk-headless"):
        require_java({"JAVA_HOME": str(tmp_path)}, "small")
    require_java(os.environ, "small")


# Starts Spark in a process of its own, as a run does: one that has a Java cannot start another.
STARTING = """\
import json, sys
from pathlib import Path
from batch_platform.declaration.engine import Spark
from batch_platform.spark.jobs import spark_jobs
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import staging_folder
home, declared = Home(Path(sys.argv[1])), Spark.model_validate(json.loads(sys.argv[2]))
with staging_folder(home, "run") as folder, spark_jobs(declared, "small", folder):
    pass
"""
QUICK = {"spark.ui.enabled": False, "spark.driver.extraJavaOptions": LITTLE_JAVA}
# engine.spark, variables, cause, and a detail in the log
REASONS: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    "a forbidden option": (
        {"conf": {"spark.driver.extraJavaOptions": "-Xmx1g"}},
        {},
        "Not allowed to specify max heap",
        "Usage: spark-submit",
    ),
    "an unknown kind of master": (
        {"master": "sparkk://127.0.0.1:7077"},
        {},
        "Could not parse Master URL: 'sparkk://127.0.0.1:7077'",
        "Error initializing SparkContext",
    ),
    "no Spark": ({}, {"SPARK_HOME": "/nowhere"}, "there is no Spark at SPARK_HOME (/nowhere)", ""),
    "memory that is no number, but a secret": (
        {"conf": {"spark.driver.memory": "hush-hush"}},
        {"STORE_PASSWORD": "hush-hush"},
        "Invalid maximum heap size: -Xmx$STORE_PASSWORD",
        "Invalid maximum heap size: -Xmx$STORE_PASSWORD",
    ),
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.full
def test_spark_that_does_not_start_says_why_and_its_log_is_kept_in_the_home(tmp_path, reason):
    engine, variables, cause, detail = REASONS[reason]
    engine = {"master": "local[1]", **engine, "conf": QUICK | engine.get("conf", {})}
    logs = Home(tmp_path).spark_logs
    logs.mkdir()
    former = [logs / f"did-not-start-{number}.log" for number in range(MOST_LOGS)]
    for number, log in enumerate(former):
        log.touch()
        os.utime(log, (number, number))
    command = [sys.executable, "-c", STARTING, str(tmp_path), json.dumps(engine)]
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    *_, error = done.stderr.strip().splitlines()
    problem = re.search(r"EngineError: (.*) Hint: (.*)$", error)
    assert problem is not None, done.stderr
    assert problem[1].startswith(f"small: Spark did not start on {engine['master']}: ")
    assert cause in problem[1]
    assert "JAVA_GATEWAY_EXITED" not in problem[1]
    (log,) = {*logs.iterdir()}.difference(former)
    assert problem[2] == f"check engine.spark.master and engine.spark.conf; Spark's log is {log}."
    assert detail in log.read_text()
    assert "hush-hush" not in log.read_text() + problem[0]
    assert {*logs.iterdir()} == {log, *former[1:]}, "the newest"


def test_a_master_that_does_not_answer_is_named_at_once():
    (port,) = free_ports(1)
    with pytest.raises(EngineError, match=f"small: no Spark master answers at spark://127.0.0.1:{port} .*refused"):
        require_master(f"spark://127.0.0.1:{port}", "small")
    for master in ("local[*]", "yarn", "k8s://https://host:6443"):
        require_master(master, "small")


@pytest.mark.parametrize(
    ("master", "bound"),
    [
        ("local[*]", True),
        ("spark://127.0.0.1:7077", True),
        ("spark://host:7077", False),
        ("yarn", False),
        ("k8s://https://host:6443", False),
    ],
)
def test_nothing_listens_to_other_machines_where_the_cluster_is_on_this_one(master, bound):
    options = configuration(Spark(master=master, conf={"spark.speculation": True}), "small")
    assert (options.get("spark.driver.bindAddress") == "127.0.0.1") == bound
    assert (options["spark.master"], options["spark.speculation"]) == (master, "true")


def test_a_process_has_one_session_of_its_own_or_the_users(spark, monkeypatch):
    with (
        pytest.raises(WrongUseError, match=r"runs another Spark session, on spark://.*processes of their own"),
        spark_session(Spark(master="local[2]"), "small"),
    ):
        pass
    monkeypatch.setattr(spark_sessions, "_shared", [])  # now the session that the tests share is a user's
    with (
        pytest.raises(
            WrongUseError, match=rf"has a Spark session on {spark.master}, and engine\.spark\.master is yarn"
        ),
        spark_session(Spark(master="yarn"), "small"),
    ):
        pass


@pytest.mark.full
def test_java_is_started_for_short_work_and_declared_options_hold(spark):
    def java_options(_: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        process = os.getpid()
        while "java" not in (command := Path(f"/proc/{process}/cmdline").read_text()).partition("\0")[0]:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        yield pa.record_batch({"options": [command.replace("\0", " ")]})

    with spark_session(Spark.model_validate(spark.declared()["spark"]), "small") as session:
        driver = session._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean().getInputArguments()
        assert QUICK_JAVA in [*driver]
        (row, *_) = session.range(1).mapInArrow(java_options, "options string").collect()
    assert row.options.index(QUICK_JAVA) < row.options.index(LITTLE_JAVA), "what is declared comes after, and holds"


@pytest.mark.full
def test_in_dagster_the_session_of_a_declared_resource_is_used_and_left_running(spark, tmp_path, monkeypatch):
    """The resource finds the session that the tests share; by the declared master nothing could be scored."""
    monkeypatch.setattr(spark_sessions, "_shared", [])
    carry_out(small_pipeline(tmp_path), NOW)
    declared = {"engine": {"spark": {"master": "spark://127.0.0.1:1", "resource": "pyspark"}}}
    resource = import_module("dagster_pyspark").LazyPySparkResource(spark_config={})
    deployed = deploy(tmp_path, monkeypatch, resources={"pyspark": resource}, **declared)
    done = deployed.run("predictions", first="2024-02-01", config={"predictions": {"force": True}})
    assert done.success
    assert deployed.pipeline.state().scores["2024-02-01"].engine == "spark"
    with spark_session(Spark(master=spark.master), "small") as session:
        assert not is_stopped(session)
    without = deploy(tmp_path, monkeypatch, **declared)
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="resource with key 'pyspark' required by op 'small__"):
        without.run("predictions", first="2024-02-01")


@pytest.mark.usefixtures("spark")
def test_without_pyspark_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    monkeypatch.setattr(spark_sessions, "_shared", [])
    with (
        pytest.raises(
            WrongUseError,
            match=r"pyspark is needed here, and cannot be imported .*Hint: pip install 'batch-platform\[spark\]'",
        ),
        spark_session(Spark(), "small"),
    ):
        pass


@pytest.mark.full
def test_f33_without_its_cluster_a_run_fails_clearly_and_a_retry_converges_with_one_full_disk_too(
    pipeline, scoring, spark, tmp_path
):
    """The last test with the shared session, which ends with its cluster."""
    before, impatient = predictions(pipeline), spark.declared(wait_for_executors="1 second")
    lost, no_executor = waiting(tmp_path, engine=impatient), "the cluster spark://.* had no executor for 1 second"
    with ThreadPoolExecutor(2) as threads, spark_session(lost.spec.engine.on_spark, "small") as session:
        scored = threads.submit(lambda: list(lost.score(days(lost)[:1], Stamp("lost", NOW), force=True)))
        wait_for(tmp_path, 1)
        built = threads.submit(build, tmp_path / "features", impatient, ENDLESS)
        wait_for_tasks(session, 2, built)
        spark.kill()
        with pytest.raises(EngineError, match=rf"small, partition 2024-02-01: ({no_executor}|Spark on \S+ ended)"):
            scored.result()
        with pytest.raises(EngineError, match=rf"small, partition 2024-01-02: ({no_executor}|Spark on \S+ ended)"):
            built.result()
    assert set(runs(pipeline).values()) == {"run"}
    assert not [*tmp_path.glob("**/home/staging/*"), *tmp_path.glob("features/home/lake/small/features/[!.]*")]
    with pytest.raises(EngineError, match=r"no Spark master answers at spark://127\.0\.0\.1:\d+ .* run again\."):
        scoring().result()
    (tmp_path / GO).touch()
    spark.start()
    tolerant = {"conf": CONF | {"spark.excludeOnFailure.enabled": True}}
    elsewhere = waiting(tmp_path, engine=spark.declared(**tolerant))
    with spark_session(elsewhere.spec.engine.on_spark, "small"):
        list(elsewhere.score(days(elsewhere), Stamp("again", NOW), force=True))
        assert predictions(pipeline).equals(before)
        build(tmp_path / "features", spark.declared(**tolerant), SPARK_SQL)
        with spark.full_disks(workers=1):
            list(elsewhere.score(days(elsewhere), Stamp("elsewhere", NOW), force=True))
    assert set(runs(pipeline).values()) == {"elsewhere"}
    assert predictions(pipeline).equals(before)
