"""Spark Connect, and staging in an object store: real servers on 127.0.0.1, with the home on a local disk that no task reads."""

import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from batch_platform.declaration.engine import Spark
from batch_platform.declaration.errors import EngineError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.spark.session import lent, require_master, spark_session, zipped_modules
from batch_platform.spark.staging import object_staging
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.object_store import BUCKET, ObjectStore, forget_connections, object_store
from batch_platform_tests.harness.small_pipeline import finished_pipeline, small_pipeline, small_spec
from batch_platform_tests.harness.spark_cluster import connect_server, descendants, free_ports, kill
from batch_platform_tests.scoring.engine_models import declared

NOW = datetime(2024, 2, 8, 12, tzinfo=UTC)
DAYS = ("2024-02-02", "2024-02-03", "2024-02-05")
STAGING = f"s3://{BUCKET}/staging"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as started:
        yield started


@pytest.fixture(scope="module")
def server(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_server(tmp_path_factory.mktemp("connect"), **store.environment) as (address, _):
        yield address


@pytest.fixture
def staged(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    store.requests()
    yield store
    forget_connections()


def predictions(pipeline: Pipeline) -> dict[str, pl.DataFrame]:
    tables = ("predictions", "rejected_rows", "challenger_scores")
    with pipeline.warehouse.open() as con:
        return {
            table: con.sql(f"FROM small.{table}").pl().drop("run_id", "scored_at", strict=False).sort(pl.all())
            for table in tables
        }


def again(pipeline: Pipeline) -> list[Any]:
    days = [pipeline.spec.partitions.calendar.named(key) for key in DAYS]
    return list(pipeline.score(days, Stamp("again", NOW), force=True))


def on(server: str, folder: Path, **options: Any) -> Pipeline:
    engine = {"spark": {"master": server, "wait_for_executors": "5 minutes", **options}}
    return small_pipeline(folder, **declared("trees"), engine=engine)


@pytest.mark.full
def test_a_server_of_spark_connect_scores_what_the_local_engine_scores_with_the_home_on_a_local_disk(
    server, staged, tmp_path, caplog
):
    local = finished_pipeline(tmp_path, NOW, **declared("trees"))
    before = predictions(local)
    pipeline = on(server, tmp_path, staging=STAGING, rows_per_task=16)
    with caplog.at_level("INFO", "batch_platform"):
        results = again(pipeline)
    assert len(results) == len(DAYS)
    after = predictions(pipeline)
    assert all(after[table].equals(before[table]) for table in before)
    assert pl.concat(after.values(), how="diagonal").height > 0
    assert [run.engine for run in pipeline.state().scores.values()].count("spark") == len(DAYS)
    assert any(re.fullmatch(rf"small: Spark application .+ on {server}\.", line) for line in caplog.messages)
    written = [path for method, path, _ in staged.requests() if method == "PUT"]
    assert any(re.search(r"/2024-02-0\d\.\d\.[0-9a-f]{32}\.predictions\.parquet", path) for path in written)
    assert not staged.files.find(f"{BUCKET}/staging")
    assert not list(pipeline.home.staging.iterdir())
    assert not list(pipeline.home.spark_logs.iterdir())


@pytest.mark.full
@pytest.mark.usefixtures("staged")
def test_a_session_that_the_user_lends_or_has_begun_is_used_and_left_running(server, tmp_path):
    from pyspark.sql.connect.session import SparkSession

    local = finished_pipeline(tmp_path, NOW, **declared("trees"))
    before = predictions(local)
    session: Any = SparkSession.builder.remote(server).create()
    try:
        with lent(lambda: session):
            assert len(again(on("local[*]", tmp_path, staging=STAGING))) == len(DAYS)
        with spark_session(Spark(master=server), "small") as used:
            assert used is session
        assert not session.is_stopped
        assert session.range(3).count() == 3
    finally:
        session.stop()
    assert predictions(local)["predictions"].equals(before["predictions"])


@pytest.mark.full
def test_without_staging_the_executors_use_the_home_and_the_modules_of_the_project_are_sent(
    server, tmp_path, monkeypatch
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "of_the_project.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    finished_pipeline(tmp_path, NOW, **declared("trees"))
    pipeline = on(server, tmp_path)
    before = predictions(pipeline)
    assert len(again(pipeline)) == len(DAYS)
    assert predictions(pipeline)["predictions"].equals(before["predictions"])

    def answers(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa
        from of_the_project import ANSWER

        yield from (pa.record_batch({"answer": [ANSWER]}) for _ in batches)

    with spark_session(Spark(master=server), "small") as session:
        assert [row.answer for row in session.range(1).mapInArrow(answers, "answer long").collect()] == [42]


@pytest.mark.full
def test_what_a_running_server_does_not_let_a_session_set_is_named(server):
    declared = Spark(master=server, conf={"spark.executor.memory": "8g"})
    message = rf"small: {server} refuses engine\.spark\.conf, spark\.executor\.memory: "
    with pytest.raises(EngineError, match=message) as raised, spark_session(declared, "small"):
        pass
    assert "what a session may set" in raised.value.hint


def test_a_server_that_is_not_there_is_named_without_its_token_before_anything_starts():
    (port,) = free_ports(1)
    with pytest.raises(
        EngineError, match=rf"no server of Spark Connect answers at sc://127\.0\.0\.1:{port} \("
    ) as raised:
        require_master(f"sc://127.0.0.1:{port}/;token=hush", "small")
    assert "hush" not in str(raised.value)


def test_a_store_that_does_not_answer_is_named_before_spark_starts_and_a_killed_run_is_swept(staged, tmp_path):
    folder = Home(tmp_path).create().staging / "run-abcdefgh"
    folder.mkdir()
    with (
        pytest.raises(EngineError, match=r"small: s3://nowhere/\S+ cannot be used") as raised,
        object_staging("s3://nowhere/staging", "small", folder),
    ):
        pass
    assert "bucket" in raised.value.hint
    killed = object_staging(STAGING, "small", folder)
    killed.__enter__()
    note = Home(tmp_path).spark_logs / "staged-run-abcdefgh"
    assert staged.files.find(f"{BUCKET}/staging")
    assert note.read_text() == f"{STAGING}/small/run-abcdefgh"
    folder.rename(folder.with_name("swept"))
    later = folder.with_name("run-stuvwxyz")
    later.mkdir()
    with object_staging(STAGING, "small", later):
        assert staged.files.find(f"{BUCKET}/staging") == [f"{BUCKET}/staging/small/run-stuvwxyz/driver"]
        assert not note.exists()
    assert not staged.files.find(f"{BUCKET}/staging")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.RETRIES_EXCEEDED:UserWarning")  # PySpark's, beside what it raises
def test_a_server_that_is_killed_ends_the_run_with_a_sentence_and_a_retry_converges(server, tmp_path):
    finished_pipeline(tmp_path, NOW, **declared("trees"))
    with connect_server(tmp_path) as (address, process):
        pipeline = on(address, tmp_path)
        before = predictions(pipeline)
        with spark_session(pipeline.spec.engine.on_spark, "small"):
            kill([*descendants(process.pid), process.pid])
            with pytest.raises(EngineError, match=rf"small: Spark on {address} ended: "):
                again(pipeline)
    assert all(table.equals(before[name]) for name, table in predictions(pipeline).items())
    assert len(again(on(server, tmp_path))) == len(DAYS)
    assert all(table.equals(before[name]) for name, table in predictions(pipeline).items())


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"master": "spark://127.0.0.1"}, "write spark://HOST:PORT"),
        ({"master": "spark://a:7077,b"}, "write spark://HOST:PORT"),
        ({"master": "sc://"}, "write sc://HOST or sc://HOST:PORT"),
        ({"conf": {"spark.remote": "sc://host"}}, "give that address as engine.spark.master"),
        ({"staging": "/mnt/shared"}, "engine.spark.staging begins with one of "),
        ({"staging": "hdfs://host/staging"}, "engine.spark.staging begins with one of "),
    ],
)
def test_a_wrong_address_is_refused_where_it_is_declared(declared, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Spark.model_validate(declared)


def test_sql_of_spark_and_staging_in_a_store_exclude_each_other():
    engine = {"spark": {"staging": STAGING}}
    with pytest.raises(ValidationError, match=r"features\.spark_sql: the cluster writes its rows into the home"):
        small_spec(features={"sql": None, "spark_sql": "features.sql"}, engine=engine)


def test_a_variable_that_turns_every_session_into_one_of_spark_connect_is_named(monkeypatch):
    monkeypatch.setenv("SPARK_REMOTE", "sc://host:15002/;token=hush")
    with (
        pytest.raises(WrongUseError, match=r"SPARK_REMOTE is set, and engine\.spark\.master is local\[2\]") as raised,
        spark_session(Spark(master="local[2]"), "small"),
    ):
        pass
    assert raised.value.hint == "declare master: sc://host:15002, or unset SPARK_REMOTE."


def test_the_modules_that_are_sent_are_those_of_a_project_and_not_of_this_package(tmp_path):
    for name in ("a.py", "own/__init__.py", "own/deep/b.py", "data/c.py", "batch_platform/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    content = zipped_modules([tmp_path])
    assert zipped_modules([tmp_path]) == content
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.namelist() == ["a.py", "own/__init__.py", "own/deep/b.py"]
