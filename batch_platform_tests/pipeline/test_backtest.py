"""Backtests: another model scores the past as of then and is compared with production, which does not change."""

import hashlib
from datetime import UTC, datetime

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.backtest import backtest
from batch_platform.pipeline.backtest_comparison import totals
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform_tests.harness.small_pipeline import DECLARATION, finished_pipeline, small_events

NOW = datetime(2024, 2, 13, 12, tzinfo=UTC)
DECLARED = BacktestModel(estimator=DECLARATION["model"]["estimator"], params=DECLARATION["model"]["params"])
TREE = BacktestModel(estimator="sklearn.tree.DecisionTreeClassifier", params={"max_depth": 2})
WEEKLY = {"train": {"every": "week", "start": "2024-02-04", "evaluate": "3 days"}}
OWN_TABLES = {"small.backtests", "small.backtest_scores", "batch_platform.changes"}


def made(tmp_path, **overrides):
    return finished_pipeline(tmp_path, NOW, **overrides)


def days(pipeline, first="2024-02-03", last="2024-02-10"):
    return [day for day in pipeline.spec.partitions.calendar.due(NOW) if first <= day.key <= last]


def backtested(pipeline, model, partitions=None, name="b1", **options):
    return backtest(pipeline, partitions or days(pipeline), model, Stamp(name, NOW), **options).partitions


def stored(pipeline, query):
    with duckdb.connect(str(pipeline.home.published.resolve()), read_only=True) as con:
        return con.execute(query).fetchall()


def everything(pipeline):
    """Every table except those of backtests, and every file of models, features and staging."""
    with pipeline.warehouse.open() as con:
        names = [f"{schema}.{table}" for schema, table in con.execute(_TABLES).fetchall()]
        rows = {name: con.execute(f"FROM {name} ORDER BY ALL").fetchall() for name in set(names) - OWN_TABLES}
    files = [*pipeline.home.models.rglob("*"), *pipeline.home.lake.rglob("*"), *pipeline.home.staging.rglob("*")]
    return rows, {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


_TABLES = "SELECT schema_name, table_name FROM duckdb_tables() WHERE schema_name IN ('small', 'batch_platform')"


@pytest.mark.full
def test_the_declared_estimator_gives_exactly_what_production_gave(tmp_path):
    pipeline = made(tmp_path, model=WEEKLY)
    partitions = backtested(pipeline, DECLARED, days(pipeline, "2024-02-04", "2024-02-12"), keep_scores=True)
    assert len(partitions) == 9
    assert len({partition.model for partition in partitions}) == 2
    assert all(partition.metrics == partition.production for partition in partitions)
    assert sum(partition.rows_measured for partition in partitions) > 300
    counts = stored(
        pipeline,
        "SELECT count(*), count(*) FILTER (p.score = b.score AND p.prediction = b.prediction AND p.shop = b.shop) "
        "FROM small.predictions AS p JOIN small.backtest_scores AS b USING (id, partition_key)",
    )
    assert counts == [(9 * 40, 9 * 40)]


def test_each_partition_is_scored_by_the_model_of_its_serving_period(tmp_path):
    pipeline = made(tmp_path, model=WEEKLY)
    partitions = days(pipeline, "2024-02-09", "2024-02-12")
    result = backtest(pipeline, partitions, TREE, Stamp("b1", NOW))
    assert [(tested.partition, tested.model) for tested in result.partitions] == [
        ("2024-02-09", "trained for 2024-02-04"),
        ("2024-02-10", "trained for 2024-02-04"),
        ("2024-02-11", "trained for 2024-02-11"),
        ("2024-02-12", "trained for 2024-02-11"),
    ]
    assert all(result.versions[day.key].trained_until <= day.start for day in partitions)
    assert not any(tested.in_sample for tested in result.partitions)


KINDS = {
    "several classes": (
        pl.when(pl.col("amount") > 90).then(pl.lit("a")).when(pl.col("known")).then(pl.lit("b")).otherwise(pl.lit("c")),
        {"estimator": "sklearn.ensemble.RandomForestClassifier", "params": {"n_estimators": 5}},
        BacktestModel(estimator="sklearn.linear_model.LogisticRegression"),
        "log_loss",
    ),
    "outliers": (
        None,
        {"estimator": "sklearn.ensemble.IsolationForest", "params": {"n_estimators": 5}},
        BacktestModel(estimator="sklearn.ensemble.IsolationForest", params={"n_estimators": 9}),
        "outlier_share",
    ),
}


@pytest.mark.parametrize("kind", [pytest.param(it, marks=[pytest.mark.full] * (it != "outliers")) for it in KINDS])
def test_every_kind_of_model_is_compared_with_production(tmp_path, kind):
    label, declared, tested, metric = KINDS[kind]
    none = {"max_leaf_nodes": None, "early_stopping": None, "max_iter": None}
    # What these labels follow from is without noise.
    overrides = {"model": {**declared, "params": {**none, **declared["params"]}, "allow_suspected_leaks": ["*"]}}
    if label is None:
        overrides["labels"] = None
    else:
        overrides["events"] = small_events().with_columns(returned=label)
    pipeline = made(tmp_path, **overrides)
    before = everything(pipeline)
    partitions = backtested(pipeline, tested)
    assert all(set(partition.metrics) == set(partition.production) for partition in partitions)
    performance = stored(pipeline, f"SELECT partition_key, value FROM small.performance WHERE metric = '{metric}'")
    for partition in partitions:
        assert partition.production[metric] == pytest.approx(dict(performance)[partition.partition])
    (total,) = [total for total in totals(partitions) if total.metric == metric]
    assert (total.partitions, total.compared) == (8, 8)
    assert everything(pipeline) == before


def test_a_range_before_the_first_model_is_refused_with_what_could_be_tested(tmp_path):
    pipeline = made(tmp_path)
    with pytest.raises(WrongUseError, match=r"too little history before 2024-01-30, 2024-01-31 .*--from 2024-02-01"):
        backtested(pipeline, TREE, days(pipeline, "2024-01-30", "2024-02-02"))


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (BacktestModel("2024-02-01-0000000f"), WrongUseError, r"has no version '2024-02-01-0000000f'"),
        (
            BacktestModel(estimator="sklearn.tree.DecisionTreeClasifier"),
            WrongUseError,
            "did you mean 'DecisionTreeClassifier'",
        ),
        (BacktestModel(estimator="sklearn.linear_model.Ridge"), TrainingRefusedError, "refuses|string"),
    ],
)
def test_a_model_that_cannot_be_tested_leaves_nothing_behind(tmp_path, model, error, says):
    kind = pl.when(pl.col("returned")).then(pl.lit("yes")).otherwise(pl.lit("no"))
    pipeline = made(tmp_path, events=small_events().with_columns(returned=kind))
    before = everything(pipeline)
    with pytest.raises(error, match=says):
        backtested(pipeline, model)
    assert everything(pipeline) == before
    assert list(pipeline.home.staging.iterdir()) == []
    with pipeline.warehouse.open() as con:
        assert not {f"{schema}.{table}" for schema, table in con.execute(_TABLES).fetchall()} & {"small.backtests"}
