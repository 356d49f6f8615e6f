"""`backtest`: what it reports, what it stores, and what it refuses."""

import pytest

from batch_platform_tests.harness.command_line import published

RANGE = ("--from", "2024-02-10", "--to", "2024-02-20")
TREE = ("--estimator", "sklearn.tree.DecisionTreeClassifier", "--param", "max_depth=3", "--param", "criterion=entropy")
PRODUCTION = ("predictions", "rejected_rows", "performance")


def production(folder):
    return [published(folder, f"FROM small.{table} ORDER BY ALL") for table in PRODUCTION]


def test_backtest_of_an_estimator_shows_each_partition_the_totals_and_the_table(cli, project):
    before = production(project)
    lines = cli(project, "backtest", "small", *RANGE, *TREE).out.splitlines()
    assert lines[0] == (
        "small: backtest of sklearn.tree.DecisionTreeClassifier, trained for each serving period, on 11 partitions"
    )
    (row,) = [line.split() for line in lines if line.startswith("2024-02-19")]
    assert row[1:4] == ["trained", "for", "2024-02-01"]
    (total,) = [line for line in lines if line.startswith("  roc_auc: ")]
    assert ", the mean of 11 partitions; production 0." in total
    assert lines[1] == "  training the model of 2024-02-01"
    (verdict,) = [line for line in lines if " production: " in line]
    assert verdict.startswith("  on all rows together: ")
    assert "table small.backtests, backtest_id 'backtest-" in lines[-1]
    assert published(project, "SELECT count(DISTINCT partition_key) FROM small.backtests") == [(11,)]
    assert published(project, "SELECT DISTINCT params FROM small.backtests") == [
        ('{"criterion": "entropy", "max_depth": 3}',)
    ]
    assert production(project) == before


def test_backtest_of_a_version_is_reported_as_json_and_stored_as_reported(cli, project):
    (version,) = (name for (name,) in published(project, "SELECT version FROM batch_platform.model_versions LIMIT 1"))
    report = cli(project, "backtest", "small", *RANGE, "--model", version, "--scores", "--json").json
    assert report["candidate"] == {"version": version, "estimator": None, "params": {}}
    assert [line["metrics"] for line in report["partitions"]] == [line["production"] for line in report["partitions"]]
    scored = "SELECT count(*) FROM small.backtest_scores AS b JOIN small.predictions AS p USING (id, shop, score)"
    assert published(project, scored) == [(11 * 40 - 1,)], "one row of it breaks the contract"
    assert {line["rows_rejected"] for line in report["partitions"]} == {0, 1}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (RANGE, "give either --model, or --estimator"),
        ((*RANGE, *TREE, "--param", "splitter"), "--param 'splitter' is not NAME=VALUE"),
        ((*RANGE, *TREE, "--param", "spliter=best"), "'spliter': did you mean 'splitter'?"),
        ((*RANGE, "--model", "2024-02-01"), "small has no version '2024-02-01'"),
        (("--from", "2024-02-03", "--to", "2024-03-03", *TREE), "2024-03-03"),
    ],
)
def test_wrong_use_is_refused_and_nothing_is_stored(cli, project, args, says):
    answer = cli(project, "backtest", "small", *args)
    assert (answer.code, says in answer.error) == (2, True)
    assert published(project, "SELECT 1 FROM duckdb_tables() WHERE table_name LIKE 'backtest%'") == []
