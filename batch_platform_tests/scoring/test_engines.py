"""The contract of engines, checked for every engine and for one that is registered from outside the package."""

import json
import os
import pickle
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import reduce
from multiprocessing import get_context
from operator import add
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.engine import LOCAL, SPARK
from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError
from batch_platform.declaration.predictions import DUCKDB, PARQUET
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import file_digests
from batch_platform.models.registry import Version
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.scoring.batch import Counts, score_batch
from batch_platform.scoring.deciding import with_whole
from batch_platform.scoring.engines.known import ENGINES, Engine, engine_of
from batch_platform.scoring.partition import (
    OpenModels,
    ScoringOrder,
    Staged,
    merged,
    opened_features,
    write_part,
)
from batch_platform.scoring.rejected_rows import SAMPLES
from batch_platform.warehouse.tables_in_files import file_xxh3
from batch_platform_tests.harness.distribution import shop_extensions  # noqa: F401 - a fixture
from batch_platform_tests.harness.flavour_cases import CASES
from batch_platform_tests.harness.small_pipeline import SHOPS, feature_file, finished_pipeline, small_pipeline
from batch_platform_tests.scoring.engine_models import MODELS, OF_THE_HIGHEST, declared

pytestmark = pytest.mark.usefixtures("shop_extensions")
NOW = datetime(2024, 2, 8, 12, tzinfo=UTC)
STAMP = Stamp("engine", NOW)
DAYS = ("2024-02-02", "2024-02-03", "2024-02-04")
ROWS = "rows"  # name of the engine that is registered here
ROWS_PER_FILE = 16  # a day has 40 rows, and so three files
POOL = ProcessPoolExecutor(1, mp_context=get_context("spawn"))  # starts its process when it is first used
QUICK = ("trees",)  # models of the everyday tier


def stage_in_parts(order: ScoringOrder, spec: PipelineSpec, folder: Path, stamp: Stamp, name: str) -> Staged:
    """Score a partition in a process that knows nothing but the order."""
    models, parts, first_row = OpenModels(spec), list[Staged](), 0
    models.opened(order)
    with opened_features(order, spec, folder) as recorded:
        recorded.require_unchanged()
        for batch in recorded.batches(ROWS_PER_FILE):
            names, single = f"{order.partition.key}.{len(parts)}", (rows for rows in [batch])
            part = write_part(folder, names, order, models, single, first_row, spec=spec, stamp=stamp)
            parts.append(replace(part, remarks=(*part.remarks, f"run by {name}")))
            first_row += batch.num_rows
        return merged(parts)


class RowsEngine(Engine):
    """Scores in one other process, and writes a file for every few rows."""

    name = ROWS

    def staged(self, orders: Iterable[ScoringOrder]) -> Generator[Staged]:
        for order in orders:
            stamp = Stamp(self.stamp.run_id, self.stamp.now())
            staged = POOL.submit(stage_in_parts, order, self.spec, self.folder, stamp, self.name).result()
            self.watch(order.partition, staged.counts.rows_in, order.rows)
            yield staged


@pytest.fixture(scope="module", autouse=True)
def end_of_pool() -> Iterator[None]:
    yield
    POOL.shutdown()


def write_onnx(folder: Path) -> None:
    CASES["onnx columns"](folder)


@pytest.fixture
def model() -> str:
    return "trees"


@pytest.fixture(params=[LOCAL, ROWS, "logged", pytest.param(SPARK, marks=pytest.mark.full)])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an engine; a throw-away one is registered by its name and by its class, another one is the guide's."""
    monkeypatch.setitem(ENGINES, ROWS, RowsEngine)
    return request.param


@pytest.fixture
def declared_engine(request: pytest.FixtureRequest, engine: str) -> Any:
    """The engine as the YAML names it; Spark runs a task for each row group."""
    return request.getfixturevalue("spark").declared(rows_per_task=1) if engine == SPARK else engine


@pytest.fixture
def pipeline(model: str, declared_engine: Any, tmp_path: Path) -> Pipeline:
    """A pipeline that the local engine has scored."""
    finished_pipeline(tmp_path, NOW, before=write_onnx if model == "onnx" else None, **declared(model))
    return small_pipeline(tmp_path, **declared(model), engine=declared_engine)


def days(pipeline: Pipeline, *keys: str) -> list[Partition]:
    return [pipeline.spec.partitions.calendar.named(key) for key in keys or DAYS]


def orders(pipeline: Pipeline, *keys: str) -> list[ScoringOrder]:
    """Orders over feature files of several row groups, which an engine may divide."""
    state = pipeline.state()
    folders = {
        state.registry.challengers.get(version.version): pipeline.bundle_folder(version, 120)
        for version in state.registry.versions
    }
    files = {day: divided(pipeline.history.file(state.features[day.key])) for day in days(pipeline, *keys)}
    return [
        ScoringOrder(
            partition=day,
            features=files[day],
            sha256=file_digests(files[day])[0],
            rows=state.features[day.key].rows,
            model=folders[None],
            xxh3=file_digests(files[day])[1],
            challengers={name: folder for name, folder in folders.items() if name} | {"absent": "it is not here"},
        )
        for day in days(pipeline, *keys)
    ]


def divided(features: Path) -> Path:
    """A copy of a feature file with a row group for every few rows."""
    copy = features.with_name(f"divided.{features.name}")
    if not copy.exists():
        pq.write_table(pq.read_table(features), copy, row_group_size=ROWS_PER_FILE)
    return copy


def stage(pipeline: Pipeline, asked: Sequence[ScoringOrder], folder: Path, **options: Any) -> list[Staged]:
    folder.mkdir(exist_ok=True)
    factory: type[Engine] = engine_of(pipeline.spec.engine.name)
    with factory(pipeline.spec, folder, STAMP, **options) as opened:
        return list(opened.staged(asked))


def frame(files: Sequence[Path]) -> pl.DataFrame:
    return pl.read_parquet(list(files))


def champion(pipeline: Pipeline) -> Version:
    (version,) = pipeline.state().registry.of_model
    return version


@pytest.mark.parametrize(
    "model",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.full)
        for name in MODELS
        if name != OF_THE_HIGHEST
    ],
)
@pytest.mark.usefixtures("model")
def test_predictions_are_those_of_one_batch(pipeline, tmp_path):
    asked = orders(pipeline)
    assert len(asked) == len(DAYS)
    for order, staged in zip(asked, stage(pipeline, asked, tmp_path / "out"), strict=True):
        whole = score_batch(pl.read_parquet(order.features), pipeline.bundle(champion(pipeline)), pipeline.spec)
        predictions = frame(staged.predictions)
        same = [pl.col("ts").dt.epoch("us"), *(name for name in whole.predictions.columns if name != "ts")]
        assert predictions.select(same).equals(whole.predictions.select(same))
        marks = predictions.select("partition_key", "model_version", "scored_at", "run_id").unique()
        expected = (order.partition.key, champion(pipeline).version, NOW, "engine")
        assert marks.rows() == ([expected] if predictions.height else [])


@pytest.mark.parametrize("model", [OF_THE_HIGHEST])
@pytest.mark.usefixtures("model")
def test_the_highest_scores_of_a_partition_and_their_reasons_are_those_of_the_local_engine(pipeline, tmp_path):
    columns = ("id", "score", "decision", "reasons")
    parts = stage(pipeline, orders(pipeline), tmp_path / "out")
    assert [part.partition.key for part in parts] == list(DAYS)
    for staged in parts:
        decided = frame(with_whole(staged, pipeline.spec).predictions)
        with pipeline.warehouse.open() as con:
            query = f"SELECT {', '.join(columns)} FROM small.predictions WHERE partition_key = $key"
            stored = con.sql(query, params={"key": staged.partition.key}).pl()
        assert decided.select(columns).sort("id").equals(stored.sort("id"))
        assert decided["decision"].sum() == min(3, decided.height)


def test_rejected_rows_have_a_reason_and_the_counts_balance(pipeline, tmp_path):
    staged = stage(pipeline, orders(pipeline), tmp_path / "out")
    assert [part.partition.key for part in staged] == list(DAYS)
    for part in staged:
        counts, rejected = part.counts, frame(part.rejected)
        assert counts.rows_in == counts.rows_scored + counts.rows_rejected
        assert (frame(part.predictions).height, rejected.height) == (counts.rows_scored, counts.rows_rejected)
        assert sum(counts.reasons.values()) == counts.rows_rejected
        assert {profile.rows for profile in part.counts.profiles} == {counts.rows_scored}
        assert {profile.name: profile.rejected for profile in part.counts.profiles}["amount"] == counts.rows_rejected
    assert [part.counts.rows_rejected for part in staged] == [2, 1, 0]
    assert staged[0].counts.reasons == {"amount: below the minimum 0": 2}
    assert staged[0].counts.samples == ("id=1290 (amount=-1.0)", "id=1300 (amount=-1.0)")
    assert [json.loads(key) for key in frame(staged[0].rejected)["key"]] == [{"id": 1290}, {"id": 1300}]


def test_an_empty_partition_has_files_with_columns_and_no_rows(pipeline, tmp_path):
    (staged,) = stage(pipeline, orders(pipeline, "2024-02-04"), tmp_path / "out")
    assert staged.counts == Counts(ignored=staged.counts.ignored)
    assert frame(staged.predictions).schema["score"] == pl.Float64
    assert frame(staged.rejected).columns == ["partition_key", "key", "reason", "column_name", "row", "run_id"]


def test_challengers_score_what_the_champion_scored_and_one_that_cannot_says_why(pipeline, tmp_path):
    (staged,) = stage(pipeline, orders(pipeline, "2024-02-02"), tmp_path / "out")
    served = frame(staged.predictions)
    by_name = {scores.name: scores for scores in staged.challengers}
    assert set(by_name) == {"tree", "linear", "absent"}
    absent = by_name.pop("absent")
    assert (absent.rows_in, absent.rows_scored, absent.files, absent.failure) == (
        served.height,
        0,
        (),
        "it is not here",
    )
    for name, scores in by_name.items():
        scored = frame(scores.files)
        assert scored["id"].equals(served["id"])
        assert set(scored["challenger"]) == {name}
        assert scores.rows_in == scores.rows_scored == scores.agreement.rows == served.height


def test_a_changed_byte_is_refused_and_leaves_no_file_of_its_partition(pipeline, tmp_path):
    asked = orders(pipeline, "2024-02-02", "2024-02-03")
    content = bytearray(asked[1].features.read_bytes())
    content[300] ^= 1
    asked[1].features.write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(IntegrityError, match=r"small, partition 2024-02-03: the bytes of .*--force builds it again"):
        stage(pipeline, asked, out)
    assert not [file.name for file in out.iterdir() if file.name.startswith("2024-02-03")]


def test_a_changed_bundle_is_refused(pipeline, tmp_path):
    (order,) = orders(pipeline, "2024-02-02")
    (order.model.folder / "model.skops").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"model\.skops of the bundle .* the bundle is not loaded"):
        stage(pipeline, [order], tmp_path / "out")


def test_a_missing_column_names_the_partition(pipeline, tmp_path):
    (order,) = orders(pipeline, "2024-02-02")
    renamed = tmp_path / "renamed.parquet"
    pl.read_parquet(order.features).rename({"amount": "amout"}).write_parquet(renamed)
    with pytest.raises(
        DataError,
        match=r"small, partition 2024-02-02: .* lack the columns amount.*did you mean 'amout'.*train small --all",
    ):
        stage(pipeline, [replace(order, features=renamed, sha256=file_digests(renamed)[0], xxh3="")], tmp_path / "out")


def test_partitions_before_a_failure_are_yielded_and_orders_are_taken_as_they_are_needed(pipeline, tmp_path):
    def failing() -> Iterator[ScoringOrder]:
        yield from orders(pipeline, "2024-02-02", "2024-02-03")
        msg = "no more orders"
        raise LookupError(msg)

    (tmp_path / "out").mkdir()
    committed: list[str] = []
    with (
        engine_of(pipeline.spec.engine.name)(pipeline.spec, tmp_path / "out", STAMP) as opened,
        pytest.raises(LookupError, match="no more orders"),
    ):
        committed.extend(staged.partition.key for staged in opened.staged(failing()))
    assert committed == ["2024-02-02", "2024-02-03"]


def test_progress_ends_with_all_rows_of_a_partition(pipeline, tmp_path):
    progress: dict[str, tuple[int, int]] = {}
    stage(
        pipeline,
        orders(pipeline),
        tmp_path / "out",
        watch=lambda partition, done, rows: progress.update({partition.key: (done, rows)}),
    )
    assert progress == {"2024-02-02": (40, 40), "2024-02-03": (40, 40), "2024-02-04": (0, 0)}


def table(pipeline: Pipeline, name: str) -> pl.DataFrame:
    with pipeline.warehouse.open() as con:
        frame = con.sql(f"FROM small.{name}").pl()
    return frame.drop("run_id", "scored_at", strict=False).sort(pl.all())


@pytest.mark.parametrize("store", [DUCKDB, pytest.param(PARQUET, marks=pytest.mark.full)])
def test_a_pipeline_holds_the_same_rows_whatever_its_engine_and_its_store(pipeline, engine, store):
    declared_store = pipeline.spec.predictions.model_copy(update={"store": store})
    pipeline = replace(pipeline, spec=pipeline.spec.model_copy(update={"predictions": declared_store}))
    written = ("predictions", "rejected_rows", "challenger_scores", "challengers", "profiles")
    names = (*written, "drift_by_segment", "estimates_by_segment")
    before = {name: table(pipeline, name) for name in names}
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    assert not plan.of("predictions"), "another engine makes no prediction stale"
    committed = list(pipeline.score(days(pipeline), STAMP, force=True))
    for name in ("rejected_rows", "challengers"):
        assert table(pipeline, name).equals(before[name])
    moments = [pl.col(name).round_sig_figs(9) for name in ("lowest", "highest", "mean", "variance")]
    profiles, exact = table(pipeline, "profiles"), before["profiles"]
    features = pl.col("role") == "feature"  # the cells of a score may differ by a row where its last bit does
    assert profiles.filter(features).with_columns(moments).equals(exact.filter(features).with_columns(moments))
    assert profiles["rows"].sum() == exact["rows"].sum() > 0
    assert profiles["rejected"].sum() == 3
    for name in ("predictions", "challenger_scores"):
        assert table(pipeline, name).equals(before[name])
    list(pipeline.evaluate(days(pipeline), STAMP))
    pipeline.conclude(NOW)
    for name in ("drift_by_segment", "estimates_by_segment"):
        assert table(pipeline, name).equals(before[name])
        assert before[name].filter(segment_column="shop")["segment"].n_unique() == len(SHOPS)
    expected = f"{engine}; run by {engine}" if engine == ROWS else engine
    assert {partition.run.engine for partition in committed} == {expected}
    assert all(state.engine == expected for key, state in pipeline.state().scores.items() if key in DAYS)
    for name in ("predictions", "challenger_scores"):
        files = [*pipeline.home.lake.glob(f"small/{name}/*/*")]
        assert [path.stem for path in files] == [file_xxh3(path) for path in files]
        assert {path.parent.name for path in files} == ({"2024-02-02", "2024-02-03"} if store == PARQUET else set()), (
            "nobody ordered on the 4th"
        )


def test_a_partition_that_fails_stays_as_it_was_and_all_others_are_committed(pipeline):
    path, before = feature_file(pipeline, "2024-02-03"), pipeline.state().scores
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # found only by reading it
    with pytest.raises(IntegrityError, match="small, partition 2024-02-03: the bytes of"):
        list(pipeline.score(days(pipeline), Stamp("again", NOW), force=True))
    after = pipeline.state().scores
    assert [after[key].run_id for key in ("2024-02-02", "2024-02-04")] == ["again", "again"]
    assert after["2024-02-03"] == before["2024-02-03"]


def test_an_order_is_plain_data_that_may_go_to_another_process(pipeline):
    asked = orders(pipeline)
    assert pickle.loads(pickle.dumps(asked)) == asked != []
    for order in asked:
        assert json.loads(json.dumps(asdict(order), default=str))["partition"]["key"] == order.partition.key


def test_the_declaration_accepts_every_engine_and_no_other():
    with pytest.raises(
        WrongUseError, match=r"engine: 'lokal' is not an engine; allowed are local,.* spark\. .*'local'"
    ):
        engine_of("lokal")


NAMES = st.sampled_from(["amount", "items", "shop"])
COUNTS = st.builds(
    Counts,
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    st.dictionaries(NAMES, st.integers(1, 9)),
    st.dictionaries(NAMES, st.integers(1, 9)),
    st.lists(NAMES, max_size=SAMPLES).map(tuple),
    st.lists(NAMES, unique=True).map(tuple),
)


@given(st.lists(COUNTS, max_size=6), st.integers(0, 6))
def test_counts_of_a_whole_are_the_merge_of_those_of_its_parts(parts, cut):
    whole = reduce(add, parts, Counts())
    assert reduce(add, parts[:cut], Counts()) + reduce(add, parts[cut:], Counts()) == whole
    assert whole.rows_in == sum(part.rows_in for part in parts)
    assert whole.reasons == {
        name: sum(part.reasons.get(name, 0) for part in parts)
        for name in {name for part in parts for name in part.reasons}
    }
    assert whole.samples == tuple(sample for part in parts for sample in part.samples)[:SAMPLES]
