"""Backtests: another model scores the past as of then and is compared with production, which does not change."""

import hashlib
from datetime import UTC, datetime

import duckdb
import polars as pl
import pytest

from batch_platform.declaration.errors import DataError, TrainingRefusedError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.backtest import backtest
from batch_platform.pipeline.backtest_comparison import totals
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform_tests.harness.small_pipeline import (
    DECLARATION,
    feature_file,
    finished_pipeline,
    small_events,
    small_pipeline,
)

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


@pytest.mark.full
def test_a_model_does_not_learn_from_labels_that_were_not_known_by_then(tmp_path):
    known = pl.col("ts") < datetime(2024, 1, 30, 23, tzinfo=UTC)  # with the delay of a day, on 1 February in Berlin
    flipped = small_events().with_columns(returned=pl.when(known).then("returned").otherwise(~pl.col("returned")))
    query = "SELECT id, score FROM small.backtest_scores ORDER BY id"
    scores = []
    for name, events in (("as it was", small_events()), ("otherwise", flipped)):
        pipeline = made(tmp_path / name, events=events)
        backtested(pipeline, TREE, keep_scores=True)
        scores.append(stored(pipeline, query))
    assert scores[0] == scores[1]
    assert len(scores[0]) == 8 * 40


@pytest.mark.parametrize("model", [pytest.param("version", marks=pytest.mark.full), "estimator"])
def test_production_does_not_change(tmp_path, model):
    pipeline = made(tmp_path)
    (version,) = pipeline.state().registry.versions
    before = everything(pipeline)
    backtested(pipeline, TREE if model == "estimator" else BacktestModel(version.version), keep_scores=True)
    assert everything(pipeline) == before


def test_a_version_scores_every_partition_and_those_it_learned_from_are_marked(tmp_path):
    pipeline = made(tmp_path, model=WEEKLY)
    *_, newest = pipeline.state().registry.versions
    partitions = backtested(pipeline, BacktestModel(newest.version), days(pipeline, "2024-02-05", "2024-02-12"))
    assert {partition.model for partition in partitions} == {newest.version}
    until = {partition.partition: partition.in_sample for partition in partitions}
    assert until["2024-02-05"]
    assert not until["2024-02-12"]
    rows = stored(pipeline, "SELECT DISTINCT in_sample, model_version, production_in_sample FROM small.backtests")
    assert set(rows) == {(True, newest.version, False), (False, newest.version, False)}
    assert stored(pipeline, "SELECT DISTINCT in_sample FROM batch_platform.score_runs") == [(False,)]


@pytest.mark.full
def test_both_are_measured_on_the_rows_that_both_scored(tmp_path):
    minimum = {"features": {"columns": {"amount": {"min": 50}}, "max_rejected": "100%"}}
    pipeline = made(tmp_path, **minimum)
    loose = small_pipeline(tmp_path, features={"columns": {"amount": {"min": 0}}, "max_rejected": "100%"})
    (partition,) = backtested(loose, DECLARED, days(loose)[:1])
    run = pipeline.state().scores[partition.partition]
    assert (partition.rows_scored, partition.rows_rejected) == (40, 0)
    assert partition.rows_measured <= run.rows_scored < 40
    query = f"SELECT value FROM small.performance WHERE metric = 'roc_auc' AND partition_key = '{partition.partition}'"
    assert stored(pipeline, query) == [(partition.production["roc_auc"],)]


def test_partitions_whose_labels_are_not_known_yet_are_scored_and_say_so(tmp_path):
    pipeline = made(tmp_path)
    partitions = backtested(pipeline, TREE, days(pipeline, "2024-02-11", "2024-02-12"))
    assert [partition.note for partition in partitions] == ["", "its labels are not known before 2024-02-13 23:00 UTC"]
    assert (partitions[1].metrics, partitions[1].rows_scored) == ({}, 40)
    rows = stored(pipeline, "SELECT metric, value, note FROM small.backtests WHERE partition_key = '2024-02-12'")
    assert rows == [(None, None, partitions[1].note)]


@pytest.mark.full
def test_partitions_without_a_single_label_say_so(tmp_path):
    lost = pl.when(pl.col("ts") < datetime(2024, 2, 4, 23, tzinfo=UTC)).then("returned")
    pipeline = made(tmp_path, events=small_events().with_columns(returned=lost))
    *_, partition = backtested(pipeline, TREE, days(pipeline, "2024-02-04", "2024-02-05"))
    assert (partition.note, partition.rows_measured) == ("none of its rows can be measured", 0)


def test_a_partition_that_production_never_scored_is_measured_alone(tmp_path):
    pipeline = small_pipeline(tmp_path)
    stamp = Stamp("features", NOW)
    list(pipeline.build_features(pipeline.spec.partitions.calendar.due(NOW), stamp))
    partitions = backtested(pipeline, TREE)
    assert all(partition.production_version is None and not partition.production for partition in partitions)
    assert all(partition.metrics["roc_auc"] > 0.5 for partition in partitions)


KINDS = {
    "several classes": (
        pl.when(pl.col("amount") > 90).then(pl.lit("a")).when(pl.col("known")).then(pl.lit("b")).otherwise(pl.lit("c")),
        {"estimator": "sklearn.ensemble.RandomForestClassifier", "params": {"n_estimators": 5}},
        BacktestModel(estimator="sklearn.linear_model.LogisticRegression"),
        "log_loss",
    ),
    "numbers": (
        pl.col("items") * 2.0 + pl.col("amount").fill_null(0),
        {"estimator": "sklearn.ensemble.HistGradientBoostingRegressor", "params": {"max_iter": 5}},
        BacktestModel(estimator="sklearn.linear_model.Ridge", params={"alpha": 0.1}),
        "rmse",
    ),
    "segments": (
        None,
        {"estimator": "sklearn.cluster.KMeans", "params": {"n_clusters": 2}},
        BacktestModel(estimator="sklearn.cluster.KMeans", params={"n_clusters": 3}),
        "silhouette",
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


@pytest.mark.full
def test_earlier_backtests_are_kept(tmp_path):
    pipeline = made(tmp_path)
    backtested(pipeline, TREE, name="b1", keep_scores=True)
    first = stored(pipeline, "FROM small.backtests ORDER BY ALL")
    backtested(pipeline, DECLARED, name="b2", keep_scores=True)
    assert stored(pipeline, "FROM small.backtests WHERE backtest_id = 'b1' ORDER BY ALL") == first
    counts = stored(pipeline, "SELECT backtest_id, count(*) FROM small.backtest_scores GROUP BY ALL ORDER BY ALL")
    assert counts == [("b1", 320), ("b2", 320)]
    assert stored(pipeline, "SELECT DISTINCT estimator FROM small.backtests WHERE backtest_id = 'b2'") == [
        (DECLARED.estimator,)
    ]


@pytest.mark.full
def test_a_partition_with_too_many_rejected_rows_is_measured_with_a_note(tmp_path):
    pipeline = made(tmp_path, features={"columns": {"amount": {"min": 50}}, "max_rejected": "100%"})
    strict = small_pipeline(tmp_path, features={"columns": {"amount": {"min": 50}}, "max_rejected": "1%"})
    (partition,) = backtested(strict, DECLARED, days(pipeline)[:1])
    assert partition.note.endswith("of its rows are rejected, more than max_rejected (1.00%) allows")
    assert partition.metrics == partition.production


@pytest.mark.full
def test_a_single_model_is_trained_as_of_the_first_partition(tmp_path):
    pipeline = made(tmp_path, model={"train": {"every": None}})
    list(pipeline.build_features(pipeline.spec.partitions.calendar.due(NOW), Stamp("features", NOW)))
    partitions = backtested(pipeline, DECLARED, days(pipeline, "2024-02-10", "2024-02-12"))
    assert {partition.model for partition in partitions} == {"trained for 2024-02-10"}
    with pytest.raises(WrongUseError, match=r"history before 2024-01-10 .*Hint: --from 2024-01-16"):
        backtested(pipeline, DECLARED, days(pipeline, "2024-01-10", "2024-01-10"))


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
        (BacktestModel(estimator="sklearnn.tree.X"), WrongUseError, "the module 'sklearnn.tree' cannot be imported"),
        (BacktestModel(estimator="Tree"), WrongUseError, "the estimator: 'Tree'"),
        (
            BacktestModel(estimator="pathlib.Path"),
            WrongUseError,
            r"pathlib\.Path is not a scikit-learn-compatible estimator",
        ),
        (BacktestModel(estimator="os.getcwd"), WrongUseError, r"os\.getcwd returned str, which is not an estimator"),
        (
            BacktestModel(estimator=TREE.estimator, params={"max_dept": 2}),
            WrongUseError,
            r"no parameter max_dept.*'max_dept': did you mean 'max_depth'",
        ),
        (
            BacktestModel(estimator=TREE.estimator, params={"max_depth": -1}),
            WrongUseError,
            "model.params.max_depth: -1 is not allowed; DecisionTreeClassifier takes an int in the range",
        ),
        (
            BacktestModel(estimator="sklearn.linear_model.Ridge"),
            TrainingRefusedError,
            "refuses|string",
        ),
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


def test_features_that_are_missing_or_of_another_sql_are_not_built(tmp_path):
    pipeline = made(tmp_path)
    feature_file(pipeline, days(pipeline)[1].key).unlink()
    with pytest.raises(DataError, match=r"features of 2024-02-04 are not built.*run small --partition 2024-02-04"):
        backtested(pipeline, TREE)
    query = pipeline.folder / "features.sql"
    query.write_text(query.read_text().replace("WHERE", "WHERE true AND", 1))
    changed = type(pipeline)(pipeline.spec, pipeline.folder, pipeline.home)
    with pytest.raises(DataError, match=r"features of 2024-01-01, .* more are built by an earlier version of the SQL"):
        backtested(changed, TREE, days(changed, "2024-02-05"))
