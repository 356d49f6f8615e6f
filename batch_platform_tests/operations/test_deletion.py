"""What was deleted for good is in no byte of the home, whoever was reading or killed meanwhile."""

import hmac
import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import OvertakenError, WarehouseError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.segments import OTHERS
from batch_platform.operations.cleanup import drop_partitions, drop_pipelines
from batch_platform.operations.erase import erase_subject, held_subject
from batch_platform.operations.subjects import SubjectRows, find_rows
from batch_platform.pipeline.backtest import backtest
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform.pipeline.build import FeatureStep
from batch_platform.pipeline.deliver import deliver
from batch_platform.pipeline.measured_model import Measuring
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.artifacts import undelivered
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.database import StagedScores
from batch_platform.warehouse.deletion import held_pipelines, read_erasures
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.recovery import restore_from_published, verify
from batch_platform_tests.faults.victim import Job
from batch_platform_tests.harness.nursery import Nursery
from batch_platform_tests.harness.small_pipeline import carry_out, finished_pipeline, small_spec
from batch_platform_tests.pipeline.customers import CUSTOMERS, customers, customers_of, declared, holding

NOW = datetime(2024, 3, 3, 12, tzinfo=UTC)
STAMP = Stamp("deleted", NOW)
KEY = "2024-02-05"


def with_customers(tmp_path: Path, store: str = "duckdb", *, predictions: dict[str, Any] | None = None) -> Pipeline:
    overrides = declared(store, **(predictions or {}))
    return finished_pipeline(tmp_path, NOW, events=customers(), features_sql=CUSTOMERS["features_sql"], **overrides)


@pytest.mark.full
@pytest.mark.parametrize("store", ["duckdb", "parquet"])
def test_no_byte_of_a_dropped_partition_is_left_in_the_home(tmp_path, store):
    pipeline = with_customers(tmp_path, store)
    home = pipeline.home
    list(pipeline.score([pipeline.spec.partitions.calendar.named("2024-02-10")], STAMP, force=True))
    pipeline.publish()
    gone, kept = customers_of(pipeline, KEY), customers_of(pipeline, "2024-02-20")
    restore_from_published(home, NOW)
    assert len(gone) > 30
    kinds = {name.partition("/")[2] if "/" in name else name for name in holding(home, *gone)}
    assert {"published.duckdb", "warehouse.duckdb"} <= kinds or store == "parquet"
    before = {
        name for name in holding(home, *gone) if name.startswith(("published-", "warehouse.duckdb.before-restore"))
    }
    assert len(before) == 3 or store == "parquet", "two copies, and the file that the restoration set aside"
    with closing(duckdb.connect(str(home.published.resolve()), read_only=True)) as reader:
        reader.execute("FROM small.rejected_rows")
        drop_partitions(pipeline, [KEY], "somebody", STAMP)
        assert holding(home, *gone) == set()
        assert reader.execute("SELECT count(*) FROM small.rejected_rows").fetchall() != [(0,)]
    assert holding(home, *kept)
    assert verify(home).differing == ()
    assert not home.wiping.exists()
    drop_pipelines(home, ["small"])
    assert holding(home, *kept) == set()


@pytest.mark.full
def test_without_room_for_a_second_file_the_rows_are_deleted_and_the_next_run_removes_their_bytes(tmp_path):
    pipeline = with_customers(tmp_path)
    home, gone = pipeline.home, customers_of(pipeline, KEY)
    home.warehouse.with_name(".warehouse.duckdb.wal").mkdir()  # no file can be written there
    with pytest.raises(WarehouseError, match=r"their bytes are still in it.*Hint: make room"):
        drop_partitions(pipeline, [KEY], "somebody", STAMP)
    assert not customers_of(pipeline, KEY)
    assert holding(home, *gone)
    home.warehouse.with_name(".warehouse.duckdb.wal").rmdir()
    publish(home)
    assert holding(home, *gone) == set()


def subject_of(pipeline: Pipeline) -> tuple[str, list[int]]:
    """The customer of every hundredth order, and these orders."""
    orders = pl.read_parquet(pipeline.folder / "events.parquet", columns=["id", "customer"])
    customer = orders["customer"][60]
    return customer, orders.filter(pl.col("customer") == customer)["id"].to_list()


def ledger(pipeline: Pipeline) -> list[tuple[int, int, int]]:
    """The counts of the newest commits, and of the rows that the tables hold."""
    counts = [0, 0, 0]
    for run in pipeline.state().scores.values():
        assert run.rows_in == run.rows_scored + run.rows_rejected
        counts = [sum(both) for both in zip(counts, (run.rows_in, run.rows_scored, run.rows_rejected), strict=True)]
    with pipeline.warehouse.open() as con:
        tables = [
            con.execute(f"SELECT count(*) FROM small.{name}").fetchall()[0][0]
            for name in ("predictions", "rejected_rows")
        ]
    return [(counts[0], counts[1], counts[2]), (sum(tables), *tables)]


def rows_of_others(pipeline: Pipeline, ids: list[int]) -> dict[str, pl.DataFrame]:
    """The rows of other orders, by table."""
    without = f"WHERE id NOT IN ({', '.join(map(str, ids))}) ORDER BY ALL"
    with pipeline.warehouse.open() as con:
        return {
            name: con.sql(f"FROM small.{name} {without}").pl()
            for name in ("predictions", "challenger_scores", "outcomes", "backtest_scores")
        }


@pytest.mark.parametrize("store", ["duckdb", pytest.param("parquet", marks=pytest.mark.full)])
def test_law_14_an_erased_customer_is_in_no_byte_of_the_home_and_nothing_is_stale_because_of_it(tmp_path, store):
    out, second = {"parquet": "out"}, {"csv": "second"}
    pipeline = with_customers(
        tmp_path, store, predictions={"deliver": [out, second, {"csv": "gone", "name": "former"}]}
    )
    home, (customer, ids) = pipeline.home, subject_of(pipeline)
    days, version = pipeline.spec.partitions.calendar.due(NOW)[31:], pipeline.state().registry.of_model[-1].version
    for delivery in pipeline.spec.predictions.deliver:
        list(deliver(pipeline, delivery, days[:8] if delivery.name == "former" else days, STAMP))
    pipeline = replace(pipeline, spec=small_spec(**declared(store, deliver=[out, second])))
    backtest(pipeline, days, BacktestModel(version=version), STAMP, keep_scores=True)
    list(pipeline.build_features(days[:3], Stamp("again", NOW), force=True))
    carry_out(pipeline, NOW)
    before, others, builds = ledger(pipeline), rows_of_others(pipeline, ids), pipeline.state().features
    assert {"lake", "published.duckdb", "warehouse.duckdb"} <= {
        name.split("/")[0] for name in holding(home, customer)
    } or store == "parquet"
    announced = held_subject(pipeline, {"customer": customer})
    assert held_subject(pipeline, {"customer": customer}) == announced, "nothing is changed"
    held = erase_subject(pipeline, {"customer": customer}, "somebody", STAMP)
    assert holding(home, customer) == set()
    assert holding(Home(pipeline.folder / "out"), customer) == set()
    assert replace(held, to_tell={}) == announced
    assert held.rows["features"] == len(ids) == 24
    assert held.rows["predictions"] == held.rows["challenger_scores"] == held.rows["backtest_scores"] == 11
    assert held.rows["rejected_rows"] == 1
    assert held.to_tell == {"former": "it is no longer declared"}
    assert held.receivers == ["csv", "former", "parquet"]
    state = pipeline.published_ledgers()
    assert not [
        key for of in pipeline.spec.predictions.deliver for key in held.partitions if undelivered(state, of, key)
    ]
    assert set(held.versions) == {version.version for version in pipeline.state().registry.versions}

    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    assert (plan.items, plan.stale, plan.remarks) == ([], {}, {})
    assert [
        tuple(old - new for old, new in zip(*both, strict=True)) for both in zip(before, ledger(pipeline), strict=True)
    ] == [(12, 11, 1)] * 2
    after = rows_of_others(pipeline, ids)
    assert all(after[name].equals(rows) for name, rows in others.items())
    assert all(
        build.rows == builds[key].rows - (key in held.partitions) for key, build in pipeline.state().features.items()
    )
    assert verify(home).differing == ()
    with open_published(home) as con:
        ((columns, subject, partitions),) = con.execute(
            "SELECT columns, subject, partitions FROM batch_platform.erasures"
        ).fetchall()
    key = bytes.fromhex(home.erasures_key.read_text())
    assert (columns, subject) == (
        '["customer"]',
        hmac.new(key, f'["customer","{customer}"]'.encode(), "sha256").hexdigest(),
    )
    assert sum(json.loads(partitions).values()) == 24
    assert home.erasures_key.stat().st_mode & 0o077 == 0
    assert erase_subject(pipeline, {"customer": customer}, "somebody", STAMP).rows == {}

    erased = pipeline.state().features
    list(pipeline.build_features(pipeline.spec.partitions.calendar.due(NOW), STAMP, force=True))
    rebuilt = pipeline.state().features
    assert {key: rebuilt[key].sha256 for key in erased} == {key: build.sha256 for key, build in erased.items()}
    assert holding(home, customer) == set(), "the source still holds it, and no build brings it back"
    home.erasures_key.unlink()
    with pytest.raises(WarehouseError, match=r"erasures.key cannot be read.*Hint: restore it"):
        list(pipeline.build_features(days[:1], STAMP, force=True))


def test_f54_a_text_of_few_keys_is_in_no_table_of_many_rows_and_erase_names_the_bundles_that_hold_it(tmp_path):
    columns = {"amount": {"max": 250, "nullable": True}}
    pipeline = finished_pipeline(
        tmp_path,
        NOW,
        events=customers(),
        features_sql=CUSTOMERS["features_sql"],
        features={"columns": columns, "max_rejected": "50%"},
        predictions={"keep": ["customer"]},
        monitoring={"segments": ["customer"]},
    )
    home = pipeline.home
    bundles = {path.name: path for path in home.bundles("small").iterdir()}
    known = json.loads((bundles[min(bundles)] / "manifest.json").read_text())["contract"]
    (categories,) = (column["categories"] for column in known if column["name"] == "customer")
    orders = customers().group_by("customer").agg("id").filter(pl.col("id").list.len() == 1)
    once = {customer: ids[0] for customer, ids in orders.iter_rows()}
    customer = next(name for name in categories if name in once)
    with pipeline.warehouse.open() as con:
        for table in ("profiles", "estimates_by_segment"):
            rows = str(con.execute(f"SELECT t::VARCHAR FROM small.{table} AS t").fetchall())
            assert not [name for name in once if name in rows], table
        segments = con.execute(
            "SELECT DISTINCT segment FROM small.estimates_by_segment WHERE segment_column = 'customer'"
        )
        assert OTHERS in {segment for (segment,) in segments.fetchall()}
    held = erase_subject(pipeline, {"id": str(once[customer])}, "somebody", STAMP)
    assert set(held.remains) == holding(home, customer)
    assert {Path(place).name for place in held.remains} == {"manifest.json"}


@pytest.mark.full
def test_a_single_row_is_erased_by_its_key_and_other_columns_and_values_are_refused(tmp_path):
    pipeline = with_customers(tmp_path)
    _, ids = subject_of(pipeline)
    with pytest.raises(
        WrongUseError, match=r"small cannot erase rows by 'amount'; it can by customer, id, shop.*predictions.keep"
    ):
        held_subject(pipeline, {"amount": "1"})
    assert held_subject(pipeline, {"id": "0"}).rows == {}
    assert not pipeline.home.erasures_key.exists()
    held = erase_subject(pipeline, {"id": str(ids[-1])}, "somebody", STAMP)
    assert held.rows == {"features": 1, "predictions": 1, "challenger_scores": 1, "outcomes": 1}
    assert erase_subject(pipeline, {"id": str(ids[-2]), "shop": "no such shop"}, "somebody", STAMP).rows == {}


def test_a_run_that_read_the_features_before_an_erasure_commits_and_leaves_nothing_of_them(tmp_path):
    pipeline = with_customers(tmp_path)
    customer, _ = subject_of(pipeline)
    before, partition = pipeline.state(), pipeline.spec.partitions.calendar.named("2024-02-04")
    erase_subject(pipeline, {"customer": customer}, "somebody", STAMP)
    building = FeatureStep(pipeline.history, pipeline.warehouse, before, Stamp("slow", NOW), force=True)
    with pytest.raises(
        OvertakenError, match=r"rows of its features were erased after this run started.*Hint: run it again"
    ):
        list(building.recorded([partition]))
    assert holding(pipeline.home, customer) == set()
    assert partition.key in pipeline.state().features
    build = pipeline.state().features[partition.key]
    staged = StagedScores(
        [], [], replace(pipeline.state().scores[partition.key], input_hash=before.features[partition.key].sha256), 10**9
    )
    with pytest.raises(OvertakenError, match="were erased"):
        pipeline.warehouse.commit_scores("small", [staged], may_empty=True, clock=lambda: NOW)
    assert build.sha256 == pipeline.state().scores[partition.key].input_hash


@pytest.mark.full
def test_the_proof_of_an_erasure_outlives_its_pipeline_and_a_later_one_of_the_name_leaves_the_customer_out(tmp_path):
    pipeline = with_customers(tmp_path, "parquet")
    customer, _ = subject_of(pipeline)
    matches = find_rows(pipeline, {"customer": customer})
    with pipeline.warehouse.open() as con:
        files = SubjectRows(pipeline, con, matches).files  # before the rows are asked for
    assert {table.view for table, *_ in files} == {"predictions", "challenger_scores"}
    erase_subject(pipeline, {"customer": customer}, "somebody", STAMP)
    drop_pipelines(pipeline.home, ["small"])
    with pipeline.warehouse.open() as con:
        assert len(read_erasures(con, "small")) == 1
        assert held_pipelines(con) == {}
    list(
        pipeline.build_features(
            [pipeline.spec.partitions.calendar.named(row.partition_key) for _, row, *_ in files[:1]], STAMP
        )
    )
    assert pipeline.state().features
    assert holding(pipeline.home, customer) == set()


def test_rows_whose_features_are_gone_are_erased_too(tmp_path):
    pipeline = with_customers(tmp_path)
    customer, _ = subject_of(pipeline)
    with pipeline.warehouse.transaction() as con:
        con.execute("DELETE FROM batch_platform.feature_builds")
    shutil.rmtree(pipeline.home.features("small"))
    held = erase_subject(pipeline, {"customer": customer}, "somebody", STAMP)
    assert held.rows == {"predictions": 11, "challenger_scores": 11, "outcomes": 11, "rejected_rows": 1}
    assert holding(pipeline.home, customer) == set()
    assert ledger(pipeline)[0] == ledger(pipeline)[1]


@pytest.mark.full
def test_an_evaluation_and_a_backtest_in_flight_during_an_erasure_bring_nothing_back(tmp_path, monkeypatch):
    pipeline = with_customers(tmp_path)
    partition = pipeline.spec.partitions.calendar.named("2024-02-04")
    (first, *_), of_version = customers_of(pipeline, partition.key), Measuring.of_version
    second = customers_of(pipeline, partition.key)[1]

    def erase_once(customer: str) -> None:
        if holding(pipeline.home, customer):
            erase_subject(pipeline, {"customer": customer}, "somebody", STAMP)

    def measured_and_erased(*args: Any) -> Any:
        result = of_version(*args)
        erase_once(first)
        return result

    monkeypatch.setattr(Measuring, "of_version", measured_and_erased)
    with pytest.raises(OvertakenError, match=r"were erased after this run started.*Hint: run it again"):
        list(pipeline.evaluate([partition], Stamp("slow", NOW)))
    monkeypatch.undo()
    version = pipeline.state().scores[partition.key].model_version
    slow = {"keep_scores": True, "watch": lambda *_: erase_once(second)}
    with pytest.raises(OvertakenError, match="were erased"):
        backtest(pipeline, [partition], BacktestModel(version=version), Stamp("slow", NOW), **slow)
    assert holding(pipeline.home, first, second) == set()
    assert ledger(pipeline)[0] == ledger(pipeline)[1]


def killed_at(tmp_path: Path, task: str, pipeline: Pipeline, **arguments: Any) -> Iterator[str]:
    """Kill a task before steps of every kind, each time on the same home; yields the kind of each step."""
    home, intact = pipeline.home, tmp_path / "intact"
    shutil.copytree(home.root, intact, symlinks=True)
    job = asdict(Job(str(home.root), str(pipeline.folder), "killed", NOW.isoformat(), declared("parquet")))
    with Nursery() as nursery:
        marks, _ = nursery.fork(task, job=job, **arguments, name_steps=True).end()
        steps = [mark.split()[1] for mark in marks if mark.startswith("step ")]
        assert {"COMMIT", "replace", "rename", "unlink"} <= set(steps)
        # The steps of one kind are alike, so the first and the last stand for all.
        for number in [n for n, kind in enumerate(steps) if kind not in steps[:n] or kind not in steps[n + 1 :]]:
            shutil.rmtree(home.root)
            shutil.copytree(intact, home.root, symlinks=True)
            assert nursery.fork(task, job=job, **arguments, stop_at=number).bury() == -signal.SIGKILL
            with duckdb.connect(str(home.published.resolve()), read_only=True) as con:
                con.execute("FROM batch_platform.score_runs")
            yield steps[number]
            assert verify(home).differing == ()
            assert list(home.features("small").glob(".*")) == []


@pytest.mark.release
def test_a_drop_that_is_killed_at_any_step_is_completed_by_the_next_publication(tmp_path):
    pipeline, outcomes = with_customers(tmp_path, "parquet"), Counter[bool]()
    gone = customers_of(pipeline, KEY)
    for step in killed_at(tmp_path, "drop", pipeline, keys=[KEY]):
        publish(pipeline.home)
        is_held = KEY in pipeline.state().scores
        outcomes[is_held] += 1
        assert is_held or holding(pipeline.home, *gone) == set(), step
    assert outcomes.keys() == {True, False}


@pytest.mark.release
def test_an_erasure_that_is_killed_at_any_step_is_completed_by_the_next_publication_or_the_same_command(tmp_path):
    pipeline, outcomes = with_customers(tmp_path, "parquet"), Counter[bool]()
    customer, ids = subject_of(pipeline)
    for step in killed_at(tmp_path, "erase", pipeline, values={"customer": customer}):
        publish(pipeline.home)
        held = held_subject(pipeline, {"customer": customer})
        outcomes[bool(held.rows)] += 1
        assert held.rows.get("features", 24) == len(ids), "all or nothing"
        assert held.rows or holding(pipeline.home, customer) == set(), step
        erase_subject(pipeline, {"customer": customer}, "somebody", STAMP)
        assert holding(pipeline.home, customer) == set(), step
        plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
        assert (plan.items, plan.stale) == ([], {}), step
    assert outcomes.keys() == {True, False}
