import duckdb
import numpy as np
import pytest

from batch_platform.monitoring.measures.scored import (
    BARS,
    BINS,
    ScoreDistribution,
    committed_distributions,
    staged_distributions,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def con():
    with duckdb.connect(":memory:") as con:
        con.execute("CREATE SCHEMA small")
        yield con


def fill(con: duckdb.DuckDBPyConnection, column: str, dtype: str, rows: list[tuple[str, object]]) -> None:
    con.execute(f"CREATE TABLE small.predictions (partition_key VARCHAR, {column} {dtype})")
    con.executemany("INSERT INTO small.predictions VALUES (?, ?)", rows)


def counted(distribution: ScoreDistribution) -> int:
    """How many rows the bars count."""
    return sum(count for _, count in distribution.bars)


def test_quantiles_and_mean_match_the_rows_to_the_width_of_a_bin(con):
    values = np.random.default_rng(1).beta(2, 5, 3000)
    fill(con, "score", "DOUBLE", [("a", float(value)) for value in values] + [("b", 1.0), ("b", 0.0)])
    distributions = committed_distributions(con, "small", ["a", "b", "c"])
    assert set(distributions) == {"a", "b"}
    assert distributions["a"].numbers["mean"] == pytest.approx(values.mean())
    for share in (10, 50, 90):
        assert distributions["a"].numbers[f"p{share}"] == pytest.approx(
            np.quantile(values, share / 100), abs=1.5 / BINS
        )
    assert (
        len(distributions["a"].bars),
        counted(distributions["a"]),
        distributions["a"].low,
        distributions["a"].high,
    ) == (BARS, 3000, 0, 1)
    assert [count for _, count in distributions["b"].bars] == [1, *[0] * (BARS - 2), 1]


def test_classes_are_counted_by_name_most_frequent_first(con):
    rows = [("a", f"class {at:02}") for at in range(15)] + [("a", "class 03")] * 5
    fill(con, "prediction", "VARCHAR", rows)
    distribution = committed_distributions(con, "small", ["a"])["a"]
    assert distribution.bars[0] == ("class 03", 6)
    assert distribution.bars[-1] == ("others", 8)
    assert (counted(distribution), distribution.numbers["share_class 03"]) == (20, 0.3)


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        ("score", "DOUBLE", [0.0, 0.25, 1.0, 0.25]),
        ("score", "DOUBLE", [-0.4, 0.1, 0.3]),
        ("prediction", "DOUBLE", [-5.0, 15.0, 2.5]),
        ("prediction", "INTEGER", [1, 2, 2]),
        ("prediction", "VARCHAR", ["b", "a", "b"]),
    ],
)
def test_staged_scores_have_the_distribution_of_the_committed_ones(con, tmp_path, column, dtype, values):
    fill(con, column, dtype, [("a", value) for value in values] + [("b", values[0])])
    files = [tmp_path / f"{key}.parquet" for key in ("a", "b", "none")]
    for file in files:
        con.execute(f"COPY (FROM small.predictions WHERE partition_key = '{file.stem}') TO '{file}'")
    staged = staged_distributions(files)
    assert set(staged) == {"a", "b"}
    assert staged == committed_distributions(con, "small", ["a", "b", "none"])
