"""The typical values of clusters: those that polars computes from the features, and none that tells what a single row held."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.measure import ScoredPartition
from batch_platform.monitoring.measures.evaluated import CLUSTER_PROFILES, LEAST_ROWS
from batch_platform.monitoring.outcomes import UnitRule
from batch_platform.operations.erase import erase_subject
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, carry_out, feature_file, small_pipeline

NOW = datetime(2024, 2, 5, 12, tzinfo=UTC)
KEY = "2024-02-04"
ROWS = 400
KMEANS = {  # so many clusters that some hold a single row of a partition
    "estimator": "sklearn.cluster.KMeans",
    "params": {"n_clusters": 16, "random_state": 0, "max_iter": None, "max_leaf_nodes": None, "early_stopping": None},
}


def drawn(rows: int = ROWS) -> pl.DataFrame:
    """Rows of three clusters with numbers, texts and nulls that have to do with their cluster, and some that do not."""
    random = np.random.default_rng(5)
    cluster = random.choice([0, 2, 5], rows, p=[0.5, 0.3, 0.2])
    text = np.where(random.random(rows) < 0.7, np.array(["a", "b", "c"])[cluster // 2], "d")
    nulls = random.random(rows) < 0.1
    return pl.DataFrame(
        {
            "id": range(rows),
            "at": [NOW] * rows,
            "apart": random.normal(size=rows) + 3 * cluster,
            "noise": pl.Series(np.where(nulls, np.nan, random.normal(size=rows))).fill_nan(None),
            "whole": pl.Series(random.integers(0, 9, rows), dtype=pl.Int32),
            "flag": random.random(rows) < cluster / 6,
            "text": pl.Series(text).set(pl.Series(nulls), None),
            "same": [0.1] * rows,
            "prediction": pl.Series(cluster, dtype=pl.Int32),
        }
    )


def scored(frame: pl.DataFrame, **further: object) -> ScoredPartition:
    predictions = frame.select("id", "prediction")
    return ScoredPartition("clustering", [], ["id"], predictions, None, lambda: (frame, np.empty((0, 0))), **further)


def profiles(frame: pl.DataFrame, **further: object) -> pl.DataFrame:
    return CLUSTER_PROFILES.compute(scored(frame, **further)).sort("column_name", "cluster")


def explained(frame: pl.DataFrame, column: str) -> float:
    """The share of the variance between clusters of a number, or of the zeros and ones of a text."""
    known = frame.drop_nulls(column)
    values = (
        known[column].to_dummies() if known[column].dtype == pl.String else known.select(pl.col(column).cast(float))
    )
    between = values.with_columns(cluster=known["prediction"]).select(pl.exclude("cluster").mean().over("cluster"))
    return (
        between.select(pl.all().var(ddof=0)).sum_horizontal()[0]
        / values.select(pl.all().var(ddof=0)).sum_horizontal()[0]
    )


@pytest.mark.unit
@pytest.mark.parametrize("column", ["apart", "noise", "whole", "flag"])
def test_the_typical_number_is_the_mean_of_the_known_values(column):
    frame = drawn()
    means = frame.group_by(cluster=pl.col("prediction").cast(pl.Int64)).agg(
        rows=pl.len().cast(pl.Int64), mean=pl.col(column).cast(float).mean()
    )
    of_column = profiles(frame).filter(column_name=column)
    assert_frame_equal(of_column.select("cluster", "rows", "mean"), means.sort("cluster"), rel_tol=1e-12)
    assert of_column["explained"].to_list() == pytest.approx([explained(frame, column)] * 3, rel=1e-9)
    assert of_column["category"].null_count() == of_column["share"].null_count() == 3


@pytest.mark.unit
@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["a", "b", "c", "d"])])
def test_the_typical_text_is_the_most_frequent_one_with_its_share_of_all_rows_of_the_cluster(dtype):
    frame = drawn()
    counts = frame.drop_nulls("text").group_by("prediction", "text").len().sort("len", descending=True)
    most = counts.group_by("prediction", maintain_order=True).first().sort("prediction")
    of_text = profiles(frame.with_columns(pl.col("text").cast(dtype))).filter(column_name="text")
    assert of_text["category"].to_list() == most["text"].to_list()
    assert (of_text["share"] * of_text["rows"]).to_list() == pytest.approx(most["len"].to_list())
    assert of_text["mean"].null_count() == 3
    assert of_text["explained"].to_list() == pytest.approx([explained(frame, "text")] * 3, rel=1e-9)


@pytest.mark.unit
def test_fewer_than_five_rows_have_no_typical_value():
    assert LEAST_ROWS == 5
    frame = drawn().filter((pl.col("prediction") != 5) | (pl.int_range(pl.len()).over("prediction") < 4))
    few = profiles(frame).filter(cluster=5)
    assert set(few["rows"]) == {4}
    assert few.select("mean", "category", "share").null_count().row(0) == (few.height,) * 3
    five = drawn().filter((pl.col("prediction") != 5) | (pl.int_range(pl.len()).over("prediction") < 5))
    five = five.with_columns(noise=pl.when(pl.int_range(pl.len()) > 0).then("noise"), text=pl.lit("a"))
    five = profiles(five).filter(cluster=5)
    assert five.filter(column_name="apart")["mean"].null_count() == 0
    assert five.filter(column_name="text")["category"].to_list() == [None], "a text needs as many as a segment"


@pytest.mark.unit
def test_what_may_name_somebody_is_no_typical_value():
    frame = drawn().with_columns(customer=pl.lit("Ann"), household=pl.lit(7), plan=pl.lit("gold"))
    frame = frame.with_columns(remark=pl.format("text {}", "id"))
    known = {"apart", "noise", "whole", "flag", "text", "same", "plan"}
    unit = UnitRule("household")
    columns = set(profiles(frame, not_given=["customer", "whole"], unit=unit)["column_name"])
    assert columns == known | {"remark"}, "neither key nor time, and a number whether or not a model is given it"
    assert profiles(frame).filter(column_name="remark")["category"].null_count() == 3, "each text is in one row"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A pipeline of clusters of 40 orders a day, some of which have fewer than five."""
    sql = FEATURES_SQL.replace("known", "known, 100 * amount AS cents, 'customer ' || id AS customer")
    columns = {"amount": {"nullable": True}, "cents": {"feature": False}, "customer": {"feature": False}}
    pipeline = small_pipeline(
        tmp_path_factory.mktemp("clusters"), features_sql=sql, features={"columns": columns}, labels=None, model=KMEANS
    )
    carry_out(pipeline, NOW)
    return pipeline


def table(pipeline) -> pl.DataFrame:
    with open_published(pipeline.home) as con:
        return con.sql("FROM small.cluster_profiles ORDER BY ALL").pl()


def features_of(pipeline, key: str) -> pl.DataFrame:
    with open_published(pipeline.home) as con:
        predictions = con.sql(f"SELECT id, prediction FROM small.predictions WHERE partition_key = '{key}'").pl()
    return pl.read_parquet(feature_file(pipeline, key)).join(predictions, on="id")


def test_the_value_of_an_erased_row_is_not_among_the_typical_ones(done):
    frame = features_of(done, KEY).drop_nulls("amount")
    lonely = frame.filter(pl.len().over("prediction") == 1)
    assert lonely.height, "a cluster of a single row"
    row = lonely.row(0, named=True)
    erase_subject(done, {"id": str(row["id"])}, "somebody", Stamp("erased", NOW))
    rows = table(done).filter(partition_key=KEY)
    assert not rows.filter(pl.col("mean").is_in([row["amount"], float(row["items"])])).height
    assert rows.filter(cluster=row["prediction"]).select("mean", "category").null_count().row(0) == (5, 5)
