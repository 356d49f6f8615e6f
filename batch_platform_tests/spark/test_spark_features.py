"""Features by Spark's SQL: the same files as DuckDB's SQL gives, under the same checks, and nothing left of what fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.engine import Spark
from batch_platform.declaration.errors import DataError, SourceError
from batch_platform.features.build import FeatureBuilder, FeatureFile
from batch_platform.features.lineage import spark_statement
from batch_platform.features.origins import RowsRead, SourceColumn
from batch_platform.sources.opening import Sources
from batch_platform.spark.jobs import FailedTask
from batch_platform.spark.session import spark_session
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.sql import quoted
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    feature_file,
    small_events,
    small_spec,
    write_small_project,
)
from batch_platform_tests.harness.spark_cluster import CONF, SparkCluster
from batch_platform_tests.sources.delta_tables import ODD, odd_table
from batch_platform_tests.spark.spark_sql import KEY, SPARK_SQL, build, wait_for_tasks

CATALOG = {"parquet": None, "spark_table": "sales.events"}
NOWHERE = {"spark": {"master": "spark://127.0.0.1:1"}}  # a cluster that nothing starts


class Built:
    """A project in a folder, whose features DuckDB and Spark can make."""

    def __init__(
        self,
        folder: Path,
        engine: Any,
        events: pl.DataFrame | None = None,
        *,
        on_spark: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """Sources that are declared otherwise for Spark are given in `on_spark`."""
        write_small_project(folder, events=events)
        self.folder, self._engine, self._spec = folder, engine, spec
        self._on_spark = on_spark or {}

    def builder(self, *, on_spark: bool, sql: str) -> FeatureBuilder:
        kind = {"sql": None, "spark_sql": "features.sql"} if on_spark else {}
        features = {**self._spec.get("features", {}), **kind}
        sources = {**self._spec.get("sources", {}), **(self._on_spark if on_spark else {})}
        spec = small_spec(**{**self._spec, "sources": sources, "features": features, "engine": self._engine})
        (self.folder / "features.sql").write_text(sql)
        return FeatureBuilder(spec, Sources(spec, self.folder, Home(self.folder)))

    def partition(self, key: str) -> Partition:
        return small_spec(**self._spec).partitions.calendar.named(key)

    def by_duckdb(self, sql: str, *keys: str) -> list[FeatureFile]:
        builder = self.builder(on_spark=False, sql=sql)
        with builder.session() as session:
            return [session.write(self.partition(key), self.folder / "lake") for key in keys or (KEY,)]

    def by_spark(self, sql: str, *keys: str) -> list[FeatureFile]:
        """The files, of which nothing else is left."""
        builder, staging = self.builder(on_spark=True, sql=sql), self.folder / "staging"
        try:
            with builder.session(spill=staging) as session:
                return [session.write(self.partition(key), self.folder / "lake on spark") for key in keys or (KEY,)]
        finally:
            assert not [path for path in staging.iterdir() if path.is_dir() and [*path.iterdir()]]
            assert not [*(self.folder / "lake on spark").glob(".*")]

    def refusals(self, error: type[Exception], sql: str) -> tuple[str, str]:
        """The messages of DuckDB and of Spark."""
        with pytest.raises(error) as by_duckdb:
            self.by_duckdb(sql)
        with pytest.raises(error) as by_spark:
            self.by_spark(sql.replace("$", ":"))
        return str(by_duckdb.value), str(by_spark.value)


@pytest.mark.full
def test_the_sql_of_spark_gives_the_very_files_that_the_sql_of_duckdb_gives(spark, tmp_path):
    """One text in both dialects, over Parquet files as they are and over sources that are copied for Spark."""
    sql = """\
WITH opened AS (SELECT id, ts, amount, shop FROM events WHERE ts >= $partition_start AND ts < $partition_end)  -- its partition
SELECT opened.*, shops.manager, orders.note, CAST($partition_key AS DATE) AS day FROM opened
LEFT JOIN shops ON shops.shop = opened.shop LEFT JOIN orders ON orders.id = opened.id;
"""
    sources = {"shops": {"csv": "shops.csv"}, "orders": {"parquet": "orders {x,y} {partition_key}.parquet"}}
    made = Built(tmp_path, spark.declared(), sources=sources)
    shops = small_events()["shop"].unique(maintain_order=True)
    pl.DataFrame({"shop": shops, "manager": [f"Müller {n}" for n in range(len(shops))]}).write_csv(
        tmp_path / "shops.csv"
    )
    keys = (KEY, "2024-01-03")
    for key in keys:
        notes = pl.DataFrame({"id": range(50, 110), "note": [None if n % 3 else f"note of {key}" for n in range(60)]})
        notes.write_parquet(tmp_path / f"orders {{x,y}} {key}.parquet")
    expected = made.by_duckdb(sql, *keys)
    written = made.by_spark(sql.replace("$", ":"), *keys)
    assert [file.rows for file in written] == [40, 40]
    assert [(file.sha256, file.columns) for file in written] == [(file.sha256, file.columns) for file in expected]


@pytest.mark.full
def test_spark_reads_the_files_of_a_delta_table_and_the_values_that_its_log_has_for_them(spark, tmp_path):
    """A partition is read from one version, by Spark and by DuckDB that counts its rows; the next one from the newest."""
    expected = odd_table(tmp_path / "orders")
    spec = {
        "sources": {"orders": {"delta": "orders"}},
        "partitions": {"end": "2024-08-01"},
        "features": {"driving": {"source": "orders", "time": "ts"}},
    }
    made = Built(tmp_path, spark.declared(), **spec)
    named = quoted(ODD)
    sql = (
        f"SELECT * EXCLUDE ({named}), {named} AS place FROM orders WHERE ts >= $partition_start AND ts < $partition_end"
    )
    spark_sql = sql.replace("$", ":").replace("EXCLUDE", "EXCEPT").replace(named, f"`{ODD.replace('`', '``')}`")
    days = [made.partition(f"2024-07-0{day}") for day in (1, 2, 3)]
    written = made.by_spark(spark_sql, *(day.key for day in days))
    by_duckdb = made.by_duckdb(sql, *(day.key for day in days))
    assert [file.rows for file in written] == [3, 2, 2]
    assert [(file.sha256, file.columns) for file in written] == [(file.sha256, file.columns) for file in by_duckdb]
    with made.builder(on_spark=True, sql=spark_sql).session(spill=tmp_path / "staging") as session:
        assert session.write(days[0], tmp_path / "again").sha256 == written[0].sha256
        late = expected.filter(id=7).with_columns(id=pl.lit(100, pl.Int64))
        write_deltalake(tmp_path / "orders", late.to_arrow(), mode="append")
        assert session.write(days[1], tmp_path / "again").rows == 3


@pytest.fixture
def create_table(spark: SparkCluster, tmp_path: Path) -> "Iterator[Callable[[str, pl.DataFrame], Path]]":
    """Creates a table in the catalog of the session, whose rows are those of the Parquet files in the folder that it returns."""
    tables = list[str]()
    with spark_session(Spark.model_validate(spark.declared()["spark"]), "tables") as session:

        def create(table: str, rows: pl.DataFrame) -> Path:
            folder = tmp_path / "tables" / table
            folder.mkdir(parents=True)
            rows.write_parquet(folder / "1.parquet")
            session.sql(f"CREATE TABLE {table} USING parquet LOCATION '{folder}'")
            tables.append(table)
            return folder

        session.sql(f"CREATE DATABASE sales LOCATION '{tmp_path / 'sales'}'")
        yield create
        for table in tables:
            session.sql(f"DROP TABLE {table}")
        session.sql("DROP DATABASE sales")


@pytest.mark.full
def test_spark_reads_a_table_of_its_catalog_as_it_is_when_a_partition_is_built(spark, tmp_path, create_table):
    """A source of the same name does not hide a table, and what another program adds to one is seen by the next partition."""
    events = small_events()
    folder = create_table("sales.events", events)
    create_table("shops", pl.DataFrame({"shop": events["shop"].unique(maintain_order=True), "open": True}))
    made = Built(
        tmp_path,
        spark.declared(),
        sources={"shops": {"parquet": "managers.parquet"}, "opened": {"parquet": "tables/shops/1.parquet"}},
        on_spark={"events": CATALOG, "opened": {"spark_table": "shops"}},
        features={"driving": {"source": "events", "time": "ts"}},
    )
    managers = pl.DataFrame({"shop": events["shop"].unique(maintain_order=True), "manager": "Müller"})
    managers.write_parquet(tmp_path / "managers.parquet")
    sql = """
        SELECT events.id, events.ts, amount, manager, open FROM events
        LEFT JOIN shops ON shops.shop = events.shop LEFT JOIN opened ON opened.shop = events.shop
        WHERE ts >= $partition_start AND ts < $partition_end
    """
    days = [made.partition(key) for key in (KEY, "2024-01-03")]
    expected = made.by_duckdb(sql, *(day.key for day in days))
    builder = made.builder(on_spark=True, sql=sql.replace("$", ":"))
    with builder.session(spill=tmp_path / "staging") as session:
        assert session.write(days[0], tmp_path / "on spark").sha256 == expected[0].sha256
        late = events.filter(id=100).with_columns(id=pl.lit(-1, pl.Int64))
        late.write_parquet(folder / "2.parquet")
        assert session.write(days[1], tmp_path / "on spark").rows == expected[1].rows + 1
        (folder / "2.parquet").unlink()
        assert session.write(days[1], tmp_path / "on spark").sha256 == expected[1].sha256
    in_duckdb = made.builder(on_spark=False, sql=sql).source_state("events", None)
    seen = builder.source_state("events", None)
    assert (seen.rows, seen.columns) == (in_duckdb.rows, in_duckdb.columns)
    assert seen.location == "sales.events in Spark's catalog"
    late.write_parquet(folder / "2.parquet")
    assert builder.source_state("events", None).version != seen.version
    assert builder.sources.version("events", days[0]) == builder.sources.version("events", days[1])


def test_what_duckdb_reads_cannot_be_a_table_of_the_catalog(tmp_path):
    with pytest.raises(
        ValueError, match=r"sources\.events\.spark_table: only `features\.spark_sql` reads .*declare the folder"
    ):
        small_spec(sources={"events": CATALOG})
    made = Built(tmp_path, NOWHERE, on_spark={"events": CATALOG})
    builder = made.builder(on_spark=True, sql=SPARK_SQL)
    assert builder.sources.in_duckdb == []
    problem = r"Source 'events' of 'small' is the table sales\.events of Spark's catalog, which only features\.spark_sql can read\."
    with pytest.raises(SourceError, match=problem):
        _ = builder.labels_query
    with pytest.raises(SourceError, match=problem), builder.sources.connect(made.partition(KEY), names=["events"]):
        pass


def test_values_of_every_type_are_those_that_duckdb_gives(spark, tmp_path):
    """Times without a zone are local, on the day of 23 hours too; a partition without rows has the same columns."""
    start = datetime.fromisoformat("2024-03-31")
    hours = range(-2, 26)
    events = pl.DataFrame(
        {
            "id": pl.Series([-n for n in hours], dtype=pl.Int64),
            "local": [start + timedelta(hours=n) for n in hours if n != 2] + [start + timedelta(hours=3, minutes=1)],
            "instant": pl.Series([start + timedelta(hours=n) for n in hours]).dt.replace_time_zone("UTC"),
            "day": [date(1583, 1, 1) + timedelta(days=365 * n) for n in hours],
            "price": pl.Series([Decimal(n) / 100 for n in hours], dtype=pl.Decimal(22, 2)),
            **{f"i{bits}": pl.Series(hours, dtype=getattr(pl, f"Int{bits}")) for bits in (8, 16, 32)},
            "narrow": pl.Series([n / 3 for n in hours], dtype=pl.Float32),
            "odd": [float("nan"), float("inf"), -0.0, None, *range(24)],
            "flag": [None if n % 3 else n % 2 == 0 for n in hours],
            "text": ["", "a\0b", "'; DROP TABLE x; --", "متجر", None, *map(str, range(23))],
            "raw": [bytes([n % 256]) for n in hours],
        },
        strict=False,
    )
    spec = {"partitions": {"end": "2024-05-01"}, "features": {"time": "local"}}
    made = Built(tmp_path, spark.declared(), events, **spec)
    sql = "SELECT * FROM events WHERE local >= $partition_start AND local < $partition_end"
    keys = ("2024-03-31", "2024-04-20")
    expected, written = made.by_duckdb(sql, *keys), made.by_spark(sql.replace("$", ":"), *keys)
    assert [file.columns for file in written] == [file.columns for file in expected]
    assert [file.rows for file in written] == [24, 0]
    for ours, theirs in zip(written, expected, strict=True):
        assert pl.read_parquet(ours.path).equals(pl.read_parquet(theirs.path))
        assert ours.sha256 == theirs.sha256


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda events: pl.concat([events, events[50:52]]), "keys occur more than once in the features: id=51, id=52."),
        (lambda events: events.with_columns(id=pl.when(pl.col("id") != 60).then("id")), "the key has nulls in id."),
    ],
)
def test_the_rows_are_checked_as_those_of_duckdb_are(spark, tmp_path, change, problem):
    by_duckdb, by_spark = Built(tmp_path, spark.declared(), change(small_events())).refusals(DataError, FEATURES_SQL)
    assert by_spark == by_duckdb
    assert problem in by_spark


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        (
            SPARK_SQL.replace("amount", "\namont"),
            r"small, partition 2024-01-02: the SQL of \S+features\.sql:2 fails: \[UNRESOLVED_COLUMN\.WITH_SUGGESTION\] .* `amont` cannot be .*\]\. Hint: ",
        ),
        (
            SPARK_SQL.replace("amount", "CAST(shop AS INT) AS n"),
            r"features\.sql:1 fails: \[CAST_INVALID_INPUT\] The value '",
        ),
        (
            SPARK_SQL.replace("items", "array(items) AS items, ts - ts AS gap, NULL AS none"),
            r"cannot hold: gap \(interval day to second\), items \(array<int>\), none \(void\)\. Hint: cast them",
        ),
        (
            SPARK_SQL.replace("amount", "amount AS `net.``amount`"),
            r"fails: \[INVALID_ATTRIBUTE_NAME_SYNTAX\] .*net\.`amount",
        ),
    ],
)
def test_sql_that_cannot_give_features_is_refused_in_one_paragraph(spark, tmp_path, capfd, sql, problem):
    made = Built(tmp_path, spark.declared())
    with pytest.raises(SourceError, match=problem) as refused:
        made.by_spark(sql)
    assert "\n" not in str(refused.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SELECT id FROM events; SELECT 1", "it must be one SELECT; it holds SELECT, SELECT"),
        ("SELECT id FROM events JOIN sales.orders USING (id)", r"reads sales\.orders; it can read only the sources events\."),
        ("SELECT * FROM parquet.`/etc/x`", r"reads parquet\./etc/x; it can read only"),
        ("SELECT java_method('java.lang.System', 'exit', 1)", r"reads java_method\(\); it can read only"),
        ("SELECT TRANSFORM (id) USING 'cat' AS (id) FROM events", "reads transform … using; it can read only"),
        (FEATURES_SQL, r"uses the parameters \$partition_end, \$partition_start\. Hint: Spark's SQL writes a parameter with a colon"),
    ],
)  # fmt: skip
def test_sql_is_refused_before_spark_is_started(tmp_path, sql, problem):
    with pytest.raises(SourceError, match=problem):
        _ = Built(tmp_path, NOWHERE).builder(on_spark=True, sql=sql).query


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("a.parquet", "_b.parquet"), r"source 'events' of 'small': Spark does not read files .*_b\.parquet\. Hint: rename"),
        (("a.parquet", "b.parquet"), r"source 'events' of 'small': \S+b\.parquet lacks 'amount', which other files"),
    ],
)  # fmt: skip
def test_files_that_spark_would_read_as_nothing_or_as_nulls_are_refused(spark, tmp_path, names, problem):
    made = Built(tmp_path, spark.declared(), sources={"events": {"parquet": "days/*.parquet"}})
    (tmp_path / "days").mkdir()
    for name, part in zip(names, (small_events(), small_events().drop("amount")), strict=True):
        part.write_parquet(tmp_path / "days" / name)
    with pytest.raises(SourceError, match=f"(?i){problem}"):
        made.by_spark(SPARK_SQL)


def test_the_text_alone_says_what_is_read_from_which_rows_and_when_it_is_another_statement(tmp_path):
    made = Built(tmp_path, NOWHERE, sources={"shops": {"csv": "shops.csv"}})

    def builder(sql: str) -> FeatureBuilder:
        return made.builder(on_spark=True, sql=sql)

    plain = builder(SPARK_SQL)
    assert plain.feature_sources == ["events"]
    assert plain.dated.rows_read("events") == RowsRead(
        "ts", looks_back=False, names=frozenset({"id", "ts", "amount", "items", "shop", "known", "events"})
    )
    assert plain.lineage.of("amount").copy_of == SourceColumn("events", "amount")
    assert builder(SPARK_SQL.replace("\n", "  -- c\n\n")).code_version == plain.code_version
    for other in (SPARK_SQL.replace("amount", "amount + 1 AS amount"), SPARK_SQL + "AND shop <> 'a'"):
        assert builder(other).code_version != plain.code_version
    assert made.builder(on_spark=False, sql=FEATURES_SQL).code_version != plain.code_version
    assert builder("SELECT /*+ BROADCAST(s) */ e.id FROM events e JOIN shops s USING (shop)").feature_sources == [
        "events",
        "shops",
    ]
    exploded = builder("SELECT id, ts, word FROM events LATERAL VIEW explode(split(shop, ' ')) t AS word")
    assert not exploded.lineage.of("word").known
    assert spark_statement("SELECT 'it''s'").words != spark_statement("SELECT 'it' 's'").words


COUNT = "aggregate(sequence(1, 5000 + id), 0L, (total, n) -> total + n)"
SLOW = (
    f" AND aggregate(sequence(1, 300), 0L, (total, n) -> total + n + {COUNT}) > 0"  # a tenth of a second a row, or so
)


def slowly(folder: Path, engine: Any) -> tuple[Built, str]:
    """A day whose rows lie in two files, and so in two tasks, and SQL that takes a second or more for each."""
    made = Built(folder, engine, sources={"events": {"parquet": "events/*.parquet"}})
    (folder / "events").mkdir()
    day = small_events().filter(pl.col("id").is_between(41, 80))
    for number in range(2):
        day.gather_every(2, number).write_parquet(folder / "events" / f"{number}.parquet")
    return made, SPARK_SQL + SLOW


def read_on_all_executors(spark: SparkCluster, folder: Path) -> None:
    """Read Parquet on all executors at the same time: reading it for the first time unpacks a library onto the disk."""
    files, readers = folder / "zstd", CONF["spark.cores.max"]
    files.mkdir()
    for number in range(readers):
        pl.DataFrame({"id": [number]}).write_parquet(files / f"{number}.parquet", compression="zstd")
    with spark_session(Spark.model_validate(spark.declared()["spark"]), "tests") as session:
        rows = session.read.parquet(str(files)).mapInArrow(lambda batches: batches, "id long", barrier=True)
        assert len(rows.collect()) == readers


@pytest.mark.full
def test_f33_an_executor_that_is_lost_in_the_middle_of_the_features_changes_nothing(spark, tmp_path):
    made, sql = slowly(tmp_path, spark.declared())
    declared = Spark.model_validate(spark.declared()["spark"])
    read_on_all_executors(spark, tmp_path)  # one alone would run the tasks one after the other
    with spark_session(declared, "tests") as session, ThreadPoolExecutor(1) as thread:
        built = thread.submit(made.by_spark, sql)
        wait_for_tasks(session, 2, built)
        spark.kill_executor(session)
        (written,) = built.result()
    (expected,) = made.by_duckdb(FEATURES_SQL)
    assert (written.rows, written.sha256) == (40, expected.sha256)


def test_the_task_for_which_spark_gives_up_is_read_from_its_error():
    """As Spark 4.3 writes it where all machines were excluded."""
    text = (
        "An error occurred while calling o1.collectToPython.\n: SparkException: Job aborted due to stage failure: \n"
        "Aborting TaskSet 2.0 because task 1 (partition 1)\ncannot run anywhere due to node and executor excludeOnFailure.\n"
        "Most recent failure:\nLost task 1.2 in stage 2.0 (TID 19) (127.0.0.2 executor 0): "
        "org.apache.spark.api.python.PythonException: An exception was thrown from the Python worker: Traceback:\n  File x\n"
        "batch_platform.declaration.errors.WarehouseError: small, partition x: no room. Hint: make room.\n SQLSTATE: 38000"
    )
    assert FailedTask.of(RuntimeError(text)) == FailedTask(1, 3, "small, partition x: no room", "make room.")


DRIVER = """\
import sys
from pathlib import Path
from batch_platform_tests.spark.spark_sql import ENDLESS, KEY, build
from batch_platform_tests.harness.spark_cluster import CONF

build(Path(sys.argv[1]), {"spark": {"master": sys.argv[2], "conf": CONF}}, ENDLESS)
"""


@pytest.mark.full
def test_f33_a_killed_driver_leaves_no_features_and_a_retry_leaves_nothing_else(spark, tmp_path):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), spark.master])
    while not [*tmp_path.glob("home/staging/*/*/*/columns.parquet")]:
        assert driver.poll() is None
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not [*tmp_path.glob("home/lake/small/features/[!.]*")]
    pipeline = build(tmp_path, spark.declared(), SPARK_SQL)
    assert [*tmp_path.glob("home/lake/small/features/*")] == [feature_file(pipeline, KEY)]
    assert not [*pipeline.home.staging.iterdir()]
