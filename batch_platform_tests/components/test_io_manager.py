"""Users' own assets on a pipeline's tables: the situations in which stock IO managers lose or swap data, and the others."""

import fcntl
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest

from batch_platform.components.resources import IO_MANAGER, IO_MANAGER_KEY, TableIOManager
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.user_tables import TableName, open_table
from batch_platform_tests.components.stores import LAST, Held, score_ten_days, stored
from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.deployment import QUIET, SCORED_FROM, Deployment, deploy_after, range_tags

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")  # a user's single-run backfill is in beta

DAYS = dg.DailyPartitionsDefinition(start_date="2024-01-01", end_date="2024-03-01", timezone="Europe/Berlin")
ODD = ["it's", 'say "hi"', "../up", "a b", "ключ", "'; DROP TABLE reports.odd; --"]


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> Deployment:
    """Ten days of the small pipeline, scored and published."""
    return deploy_after(score_ten_days, tmp_path, monkeypatch, name="ten days scored", trained=True)


def materialize(
    deployment: Deployment,
    *assets: dg.AssetsDefinition,
    first: str | None = None,
    last: str | None = None,
    **resources: Any,
) -> dg.ExecuteInProcessResult:
    """Run a user's assets beside the pipeline, over a range if `last` is given."""
    mine = dg.Definitions(assets=[*assets], resources=resources)
    job = dg.Definitions.merge(deployment.definitions, mine).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        run_config={"loggers": QUIET},
        instance=deployment.instance,
        asset_selection=[asset.key for asset in assets],
        partition_key=first if last is None else None,
        tags=range_tags(first, last),
        raise_on_error=False,
    )


def succeeded(deployment: Deployment, *assets: dg.AssetsDefinition, **options: Any) -> dg.ExecuteInProcessResult:
    done = materialize(deployment, *assets, **options)
    assert done.success, [failure_of(done)]
    return done


def failure_of(done: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in done.all_events if event.is_step_failure]
    data = failure.step_failure_data
    return data.user_failure_data.description if data.user_failure_data else data.error.to_string()


def reading(
    take: type, see: Callable[[Any], None], *, partitioned: bool = True, **metadata: Any
) -> dg.AssetsDefinition:
    """An asset that shows what it is given of the predictions."""

    def seen(predictions):
        see(predictions)
        return dg.MaterializeResult()

    seen.__annotations__ = {"predictions": take}
    return dg.asset(
        key=["reports", "seen"],
        ins={"predictions": dg.AssetIn(["small", "predictions"], metadata=metadata)},
        partitions_def=DAYS if partitioned else None,
        backfill_policy=dg.BackfillPolicy.single_run() if partitioned else None,
    )(seen)


def writing(make: Callable[[str], Any], *key: str, partitions: dg.PartitionsDefinition | None = DAYS, **options: Any):
    """An asset whose table is what a function makes of the run's partition."""

    def table(context: dg.AssetExecutionContext):
        return make(context.partition_key if context.has_partition_key else "")

    return dg.asset(
        key=[*(key or ("reports", "table"))],
        partitions_def=partitions,
        io_manager_key=IO_MANAGER_KEY,
        backfill_policy=dg.BackfillPolicy.single_run() if partitions else None,
        **options,
    )(table)


def height(rows: Any) -> int:
    if isinstance(rows, duckdb.DuckDBPyRelation):
        return rows.aggregate("count(*)").fetchall()[0][0]
    return rows.lazy().collect().height


# Inputs


@pytest.mark.parametrize("take", [pl.LazyFrame, pl.DataFrame, duckdb.DuckDBPyRelation])
def test_predictions_come_as_each_type_of_one_partition_of_a_range_and_of_all(deployment, take):
    seen: list[Any] = []
    succeeded(deployment, reading(take, seen.append), first=SCORED_FROM)
    succeeded(deployment, reading(take, seen.append), first="2024-02-02", last="2024-02-04")
    succeeded(deployment, reading(take, seen.append, partitioned=False))
    assert all(isinstance(rows, take) for rows in seen)
    assert [height(rows) for rows in seen] == [40, 120, 400]


def test_only_the_columns_asked_for_are_read(deployment):
    seen: list[pl.LazyFrame] = []
    succeeded(deployment, reading(pl.LazyFrame, seen.append, columns=["shop", "score"]), first=SCORED_FROM)
    assert seen[0].collect_schema().names() == ["shop", "score"]


@pytest.mark.parametrize(
    ("take", "metadata", "says"),
    [
        (pl.LazyFrame, {"columns": ["shp"]}, "small.predictions has no column 'shp'"),
        (pl.LazyFrame, {"colums": ["id"]}, "unknown metadata 'colums'"),
        (dict, {}, "cannot be of type dict"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(deployment, take, metadata, says):
    done = materialize(deployment, reading(take, print, **metadata), first=SCORED_FROM)
    assert says in failure_of(done)


def test_filters_and_columns_of_a_lazy_frame_are_pushed_down_to_the_database(deployment):
    seen: list[str] = []
    dear = reading(pl.LazyFrame, lambda rows: seen.append(rows.filter(pl.col("score") > 0.5).select("id").explain()))
    succeeded(deployment, dear, first=SCORED_FROM)
    assert "PYTHON SCAN" in seen[0]
    assert "FILTER" not in seen[0]


def test_other_tables_of_a_pipeline_can_be_read(deployment):
    seen: list[pl.DataFrame] = []
    succeeded(deployment, reading(pl.DataFrame, seen.append, table="rejected_rows"), first=SCORED_FROM)
    assert "reason" in seen[0].columns

    @dg.asset(
        key=["reports", "inputs"],
        ins={"rows": dg.AssetIn(["small", "features"], metadata={"columns": ["id"]})},
        partitions_def=DAYS,
    )
    def inputs(rows: pl.DataFrame):
        seen.append(rows)
        return dg.MaterializeResult()

    succeeded(deployment, inputs, first=SCORED_FROM)
    assert (seen[1].height, seen[1].columns) == (40, ["id"])


def test_a_missing_partition_is_refused_rather_than_read_as_empty(deployment):
    done = materialize(deployment, reading(pl.LazyFrame, print), first="2024-02-10", last="2024-02-12")
    assert "no rows are published of partition 2024-02-11, 2024-02-12" in failure_of(done)
    seen: list[pl.DataFrame] = []
    lenient = reading(pl.DataFrame, seen.append, allow_missing_partitions=True)
    succeeded(deployment, lenient, first="2024-02-10", last="2024-02-12")
    assert seen[0].height == 40


def test_an_input_is_read_while_another_process_writes(deployment):
    seen: list[pl.DataFrame] = []
    with Held(deployment):
        succeeded(deployment, reading(pl.DataFrame, seen.append), first=SCORED_FROM)
    assert seen[0].height == 40


# Outputs


@pytest.mark.parametrize(
    "make",
    [
        lambda _: pl.DataFrame({"n": [1, 2]}),
        lambda _: pl.LazyFrame({"n": [1, 2]}),
        lambda _: duckdb.sql("SELECT * FROM (VALUES (1), (2)) AS v(n)"),
    ],
)
def test_a_table_of_each_type_is_stored_and_published_with_what_the_ui_shows_of_it(deployment, make):
    done = succeeded(deployment, writing(make), first=SCORED_FROM)
    assert stored(deployment) == [(1, SCORED_FROM), (2, SCORED_FROM)]
    (event,) = done.asset_materializations_for_node("reports__table")
    assert event.metadata["dagster/table_name"].value == "reports.table"
    assert event.metadata["dagster/row_count"].value == 2
    assert [column.name for column in event.metadata["dagster/column_schema"].value.columns] == ["n"]


def test_a_partition_is_replaced_and_the_others_stay(deployment):
    for day, n in (("2024-02-01", 1), ("2024-02-02", 2), ("2024-02-01", 3)):
        succeeded(deployment, writing(lambda _, n=n: pl.DataFrame({"n": [n]})), first=day)
    assert stored(deployment) == [(2, "2024-02-02"), (3, "2024-02-01")]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (pl.DataFrame({"n": ["1", "two"]}), "values do not fit reports.table: n is BIGINT, now VARCHAR"),
        (pl.DataFrame({"n": [3], "partition_key": ["2024-02-09"]}), "rows belong to partition '2024-02-09'"),
        (None, "the asset returned NoneType, which is not a table"),
        ([1], "the asset returned list, which is not a table"),
    ],
)
def test_rows_that_cannot_be_stored_are_refused_and_leave_the_old_partition(deployment, rows, says):
    succeeded(deployment, writing(lambda _: pl.DataFrame({"n": [1, 2]})), first=SCORED_FROM)
    assert says in failure_of(materialize(deployment, writing(lambda _: rows), first=SCORED_FROM))
    assert stored(deployment) == [(1, SCORED_FROM), (2, SCORED_FROM)]


def test_rows_that_fail_on_their_way_leave_the_old_partition_and_nothing_in_staging(deployment):
    def torn(_: str) -> pl.LazyFrame:
        return pl.LazyFrame({"n": [1, 2]}).map_batches(lambda frame: frame.select(pl.col("nosuch")))

    succeeded(deployment, writing(lambda _: pl.DataFrame({"n": [1]})), first=SCORED_FROM)
    assert "nosuch" in failure_of(materialize(deployment, writing(torn), first=SCORED_FROM))
    assert stored(deployment) == [(1, SCORED_FROM)]
    assert not list(deployment.pipeline.home.staging.iterdir())


def test_columns_are_matched_by_name_a_new_one_is_added_and_one_left_out_is_null(deployment):
    for day, rows in (("2024-02-01", {"a": [1], "b": [10]}), ("2024-02-02", {"b": [20], "c": ["x"]})):
        succeeded(deployment, writing(lambda _, rows=rows: pl.DataFrame(rows)), first=day)
    assert stored(deployment, "SELECT a, b, c FROM reports.table ORDER BY b") == [(1, 10, None), (None, 20, "x")]


def test_partition_keys_hold_any_text(deployment):
    days = dg.StaticPartitionsDefinition(ODD)
    for key in ODD:
        succeeded(deployment, writing(lambda of: pl.DataFrame({"of": [of]}), partitions=days), first=key)
    assert {*stored(deployment)} == {(key, key) for key in ODD}
    relation = open_table(deployment.pipeline.home, TableName("reports", "table"), partitions=[ODD[0]])
    assert relation.fetchall() == [(ODD[0], ODD[0])]


def test_schemas_tables_and_columns_are_quoted(deployment):
    rows = pl.DataFrame({'a"b': [1], "select": [2], "it's": [3]})
    succeeded(
        deployment,
        writing(lambda _: rows, "reports", "select", metadata={"schema": 'a "schema"; --'}),
        first=SCORED_FROM,
    )
    relation = open_table(deployment.pipeline.home, TableName('a "schema"; --', "select"), columns=['a"b', "it's"])
    assert relation.fetchall() == [(1, 3)]


def test_a_range_is_stored_in_one_run_by_the_partition_of_each_row(deployment):
    @dg.asset(
        key=["reports", "table"],
        ins={"predictions": dg.AssetIn(["small", "predictions"], metadata={"columns": ["id", "partition_key"]})},
        partitions_def=DAYS,
        io_manager_key=IO_MANAGER_KEY,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def table(predictions: pl.LazyFrame) -> pl.LazyFrame:
        return predictions.group_by("partition_key").agg(pl.len().alias("n"))

    succeeded(deployment, table, first="2024-02-02", last="2024-02-04")
    expected = {("2024-02-02", 40), ("2024-02-03", 40), ("2024-02-04", 40)}
    assert {*stored(deployment, "SELECT partition_key, n FROM reports.table")} == expected


def test_rows_of_a_range_without_their_partition_are_refused(deployment):
    def rows(_: str) -> pl.DataFrame:
        return pl.DataFrame({"n": [1]})

    done = materialize(deployment, writing(rows), first="2024-02-02", last="2024-02-04")
    assert "the run is for 3 partitions, and the rows do not say to which partition they belong" in failure_of(done)


def test_a_table_without_partitions_is_replaced_whole_and_gains_and_loses_them_with_its_rows(deployment):
    for rows in (pl.DataFrame({"a": [1, 2]}), pl.DataFrame({"b": ["x"]})):
        succeeded(deployment, writing(lambda _, rows=rows: rows, partitions=None))
    assert open_table(deployment.pipeline.home, TableName("reports", "table")).pl().to_dicts() == [{"b": "x"}]
    own = writing(lambda of: pl.DataFrame({"of": [of]}))
    succeeded(deployment, own, first="2024-02-02")
    assert stored(deployment, "SELECT of, partition_key FROM reports.table") == [("2024-02-02", "2024-02-02")]
    succeeded(deployment, writing(lambda of: pl.DataFrame({"of": [of]}), partitions=None))
    assert stored(deployment, "SELECT of FROM reports.table") == [("",)]


def test_an_empty_partition_is_not_a_missing_one(deployment):
    succeeded(deployment, writing(lambda _: pl.DataFrame(schema={"n": pl.Int64})), first=SCORED_FROM)
    assert (
        open_table(deployment.pipeline.home, TableName("reports", "table"), partitions=[SCORED_FROM]).fetchall() == []
    )


def test_tables_of_a_pipeline_and_reserved_schemas_are_not_written(deployment):
    rows = pl.DataFrame({"n": [1]})
    before = stored(deployment, "SELECT count(*) FROM small.predictions")
    for schema, table in (
        ("small", "rejected_rows"),
        ("small", "predictions"),
        ("batch_platform", "changes"),
        ("main", "t"),
    ):
        name = {"schema": schema}
        done = materialize(deployment, writing(lambda _: rows, "mine", table, metadata=name), first=SCORED_FROM)
        assert "of yours" in failure_of(done)
    assert stored(deployment, "SELECT count(*) FROM small.predictions") == before


def test_a_key_of_one_part_goes_to_the_schema_that_the_io_manager_names(deployment):
    own = writing(lambda _: pl.DataFrame({"n": [1]}), "lonely", partitions=None)
    succeeded(deployment, own)
    assert stored(deployment, "SELECT n FROM assets.lonely") == [(1,)]

    @dg.asset(name="lonely", io_manager_key="mine")
    def lonely():
        return pl.DataFrame({"n": [2]})

    succeeded(deployment, lonely, mine=TableIOManager(default_schema="night"))
    assert stored(deployment, "SELECT n FROM night.lonely") == [(2,)]


def test_an_io_manager_of_the_users_own_is_left_in_place(deployment):
    @dg.asset
    def plain():
        return [1, 2]

    done = succeeded(deployment, plain, io_manager=dg.mem_io_manager)
    assert done.output_for_node("plain") == [1, 2]
    assert deployment.definitions.resources[IO_MANAGER_KEY] is IO_MANAGER


def test_no_lock_is_left_after_a_failure(deployment):
    materialize(deployment, writing(lambda _: pl.DataFrame({"n": ["x"], "N": [1]})), first=SCORED_FROM)
    materialize(deployment, writing(lambda _: 1), first=SCORED_FROM)
    materialize(deployment, reading(pl.LazyFrame, print, columns=["nosuch"]), first=SCORED_FROM)
    with deployment.pipeline.home.warehouse_lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is held
    with Warehouse(deployment.pipeline.home, timeout=0).open():
        pass


WEEKLY_SUMMARY = """\
import dagster as dg
import polars as pl


@dg.asset(
    key=["reports", "late_by_carrier"],
    partitions_def=dg.WeeklyPartitionsDefinition("2013-03-03", end_date="2013-12-29", timezone="America/New_York"),
    ins={"predictions": dg.AssetIn(["flight_delays", "predictions"], metadata={"columns": ["carrier", "score"]})},
    io_manager_key="batch_platform_io_manager",
)
def late_by_carrier(predictions: pl.LazyFrame) -> pl.LazyFrame:
    return predictions.group_by("carrier").agg(pl.len().alias("flights"), pl.mean("score").alias("expected_late"))
"""


def executed(text: str, ours: dict[str, str]) -> dict[str, Any]:
    """Execute a file of the guide on the flights with names and dates of the small pipeline; gives what it defines."""
    for theirs, own in {"flight_delays": "small", "America/New_York": "Europe/Berlin", **ours}.items():
        assert theirs in text
        text = text.replace(theirs, own)
    written: dict[str, Any] = {}
    exec(text, written)
    return written


def test_the_weekly_summary_of_the_guide_works_as_it_stands(deployment):
    assert WEEKLY_SUMMARY in blocks("python", GUIDE["acting"])
    written = executed(WEEKLY_SUMMARY, {'"carrier"': '"shop"', "2013-03-03": "2024-02-04", "2013-12-29": "2024-02-25"})
    succeeded(deployment, written["late_by_carrier"], first="2024-02-04")
    (first, *_) = stored(
        deployment, "SELECT shop, flights, expected_late, partition_key FROM reports.late_by_carrier ORDER BY ALL"
    )
    query = "SELECT shop, count(*), avg(score) FROM small.predictions WHERE partition_key BETWEEN '2024-02-04' AND '2024-02-10' GROUP BY shop ORDER BY ALL"
    expected = stored(deployment, query)[0]
    assert (first[0], first[1], first[3]) == (*expected[:2], "2024-02-04")
    assert first[2] == pytest.approx(expected[2])
    missing = materialize(deployment, written["late_by_carrier"], first="2024-02-18")
    assert "no rows are published of partition 2024-02-18" in failure_of(missing)


def test_the_sink_of_the_guide_keeps_one_copy_of_each_day_and_follows_a_day_that_is_scored_again(
    deployment, tmp_path, monkeypatch
):
    (text,) = [block for block in blocks("python", GUIDE["extending"]) if "shop_scores" in block]
    ours = {'"flight_id"': '"id"', "2013-03-01": "2024-01-01", "2014-01-01": "2024-03-01"}
    sink = executed(text, ours)["shop_scores"]
    monkeypatch.setenv("SHOP_DATABASE", str(tmp_path / "shop.sqlite"))
    for day in (SCORED_FROM, LAST, LAST):
        succeeded(deployment, sink, first=day)
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as con:
        delivered = con.execute("SELECT day, CAST(flight_id AS INTEGER), score FROM scores ORDER BY 1, 2").fetchall()
    days = f"partition_key IN ('{SCORED_FROM}', '{LAST}')"
    assert delivered == stored(
        deployment, f"SELECT partition_key, id, score FROM small.predictions WHERE {days} ORDER BY ALL"
    )

    definitions = dg.Definitions.merge(deployment.definitions, dg.Definitions(assets=[sink]))

    def wanted(cursor: Any) -> Any:
        return dg.evaluate_automation_conditions(
            definitions, deployment.instance, dg.AssetSelection.assets(sink.key), cursor=cursor
        )

    before = wanted(None)
    assert deployment.run("predictions", first=SCORED_FROM, config={"predictions": {"force": True}}).success
    after = wanted(before.cursor)
    assert (before.get_requested_partitions(sink.key), after.get_requested_partitions(sink.key)) == (
        set(),
        {SCORED_FROM},
    )
