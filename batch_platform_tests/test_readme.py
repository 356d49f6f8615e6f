"""What the README promises works as it is written there, and so does what the guide says of the shipped pipeline."""

import re
import sys
from datetime import UTC, date, datetime
from shlex import quote

import duckdb
import polars as pl
import pytest
import yaml

from batch_platform.cli.sample import CUSTOMERS
from batch_platform.declaration.errors import DataError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.cleanup import drop_partitions
from batch_platform.operations.erase import erase_subject
from batch_platform.pipeline.backtest import backtest
from batch_platform.pipeline.backtest_models import BacktestModel
from batch_platform.pipeline.deliver import deliver
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.checkout import (
    DEMO_OUTPUT,
    GUIDE,
    README,
    ROOT,
    blocks,
    clone_after_demo,
    command,
    copy_checkout,
    shell,
)
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    LABELS_SQL,
    carry_out,
    small_events,
    small_pipeline,
)
from batch_platform_tests.harness.stories import daily_files

NOW = datetime(2024, 2, 10, 12, tzinfo=UTC)
ACTIVATED = ". .venv/bin/activate"
TREE = "sklearn.tree.DecisionTreeClassifier"


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """A clone in which the first command has run, and its output."""
    clone = clone_after_demo(tmp_path_factory.mktemp("of_clone"))
    return clone, (clone / DEMO_OUTPUT).read_text(encoding="utf-8")


@pytest.mark.full
def test_first_command_ends_with_predictions_in_duckdb(demonstrated):
    clone, output = demonstrated
    (auc,) = re.findall(r"^champion +roc_auc +(0\.\d+) +0\.\d+ to 0\.\d+ +[\d,]+ *$", output, flags=re.MULTILINE)
    assert float(auc) > 0.65
    assert "61 of 61 partitions scored: 57,164 rows in" in output
    assert f"The data are in {clone}/.batch_platform/published.duckdb." in output
    commands = output.partition("Three things to try next:\n")[2].splitlines()
    assert [line.split()[:2] for line in commands] == [["batch-platform", name] for name in ("report", "ui", "demo")]
    ((rows,),) = query(clone, "SELECT count(*) FROM flight_delays.predictions")
    assert rows == 57_164
    assert f"scores two months, {rows:,} flights," in README


@pytest.mark.full
def test_every_block_runs_as_it_stands_one_after_the_other_in_one_shell(demonstrated, tmp_path):
    clone, _ = demonstrated
    demo, *others = [block for block in blocks("bash", README) if "batch_platform_tests" not in block]
    assert ACTIVATED in demo
    shown = shell("\n".join([f"export HOME={tmp_path}", ACTIVATED, *others]), clone)
    headers = re.findall(r"^(flight_id|customer) .*score +prediction *$", shown, flags=re.MULTILINE)
    assert headers == ["flight_id", "customer"]
    ((scored,),) = query(tmp_path / "shop", "SELECT count(*) FROM churn.predictions")
    assert scored == CUSTOMERS
    assert "churn" in (tmp_path / "shop" / "churn.html").read_text(encoding="utf-8")


@pytest.mark.full
def test_queries_of_the_readme_and_the_guide_answer(demonstrated):
    clone, _ = demonstrated
    statements = [
        statement
        for block in blocks("sql")
        if "flight_delays." in block
        for statement in block.split(";")
        if statement.strip()
    ]
    assert statements
    for statement in statements:
        assert query(clone, statement)


@pytest.mark.full
def test_tables_of_the_guide_exist_with_their_columns(demonstrated, tmp_path):
    clone, _ = demonstrated
    drifted = pl.col("ts").is_between(datetime(2024, 2, 4, tzinfo=UTC), datetime(2024, 2, 5, tzinfo=UTC))
    amount = pl.when(drifted).then(pl.col("amount") * 1000).otherwise("amount")
    leaky = small_events().with_columns(known=pl.col("returned").fill_null(value=False), amount=amount)
    model = {"allow_suspected_leaks": ["known"], "refit": False}  # scores of a second fit may have no reference
    further = {
        "challengers": [{"name": "tree", "estimator": TREE}],
        "predictions": {"store": "parquet", "decide": {"threshold": 0.5}, "reasons": 1, "deliver": [{"csv": "out"}]},
        "monitoring": {"segments": ["shop"], "drift": {}},
    }
    pipeline = small_pipeline(tmp_path, events=leaky, model=model, **further)  # what the demo has no need of
    carry_out(pipeline, NOW)
    (delivery,) = pipeline.spec.predictions.deliver
    list(deliver(pipeline, delivery, [pipeline.spec.partitions.calendar.named("2024-02-03")], Stamp("d", NOW)))
    erase_subject(pipeline, {"id": "1"}, "somebody", Stamp("e", NOW))
    backtest(
        pipeline,
        [pipeline.spec.partitions.calendar.named("2024-02-03")],
        BacktestModel(estimator=TREE),
        Stamp("b", NOW),
        keep_scores=True,
    )
    strict = small_pipeline(tmp_path, events=leaky, model=model, features={"columns": {"amount": {"min": 100}}})
    with pytest.raises(DataError):
        list(strict.score([strict.spec.partitions.calendar.named("2024-02-03")], Stamp("s", NOW)))
    drop_partitions(pipeline, ["2024-02-03"], "alice", Stamp("d", NOW))
    regression = {
        "features_sql": FEATURES_SQL.replace("amount, ", ""),
        "labels_sql": LABELS_SQL.replace("returned", "amount"),
        "labels": {"column": "amount"},
        "model": {"estimator": "sklearn.ensemble.HistGradientBoostingRegressor", "promote": {"baseline": False}},
        "predictions": {"interval": "90%"},
    }
    intervals = small_pipeline(tmp_path / "intervals", **regression)
    carry_out(intervals, NOW)
    kmeans = {"estimator": "sklearn.cluster.KMeans", "params": None}
    clusters = small_pipeline(tmp_path / "clusters", labels=None, model=kmeans)
    carry_out(clusters, NOW)
    columns = "SELECT schema_name, table_name, column_name FROM duckdb_columns() WHERE NOT internal"
    described = query(clone, columns)
    for home in (pipeline.home, intervals.home, clusters.home):
        with duckdb.connect(str(home.warehouse), read_only=True) as con:
            described += con.execute(columns).fetchall()
    present: dict[str, set[str]] = {}
    for schema, table, column in described:
        name = re.sub(r"^(flight_delays|small)\.", "<pipeline>.", f"{schema}.{table}")
        present.setdefault(name, set()).add(column)
    rows = re.findall(r"^\| (`(?:<pipeline>|batch_platform)\..+?) \| (.+) \|$", GUIDE["tables"], flags=re.MULTILINE)
    described = {name: meaning for names, meaning in rows for name in re.findall(r"`([^`]+)`", names)}
    assert set(described) == set(present)
    for name, meaning in described.items():
        assert set(re.findall(r"`([a-z_]+)`", meaning)) <= present[name], name


@pytest.mark.full
def test_second_command_finds_every_test(tmp_path):
    """With the packages of this environment, which the installing half of the command has made."""
    installing, _, running = command("batch_platform_tests").rpartition(" && .venv/bin/python ")
    assert installing == "python3 -m venv .venv && .venv/bin/pip install -e '.[test]'"
    collected = shell(f"{quote(sys.executable)} {running} --release --collect-only -q", copy_checkout(tmp_path))
    files = {line.split("::")[0] for line in collected.splitlines() if "::" in line}
    assert files == {str(path.relative_to(ROOT)) for path in (ROOT / "batch_platform_tests").rglob("test_*.py")}


def test_the_two_commands_stand_alone_on_their_lines():
    assert command("demo") == f"python3 -m venv .venv && {ACTIVATED} && pip install -e . && batch-platform demo"
    assert command("batch_platform_tests").startswith("python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && ")


def test_the_three_files_are_a_pipeline(tmp_path):
    yesterday = date(2026, 11, 24)
    daily_files(tmp_path, yesterday)
    for file in (tmp_path / "orders").iterdir():  # as all but pandas write times
        pl.read_parquet(file).cast({pl.Datetime: pl.Datetime("us", "UTC")}).write_parquet(file)
    (text,) = blocks("yaml", README)
    (queries,) = blocks("sql", README)
    folder = tmp_path / "returns"
    folder.mkdir()
    for file, statement in zip(("features.sql", "labels.sql"), queries.split(";"), strict=True):
        assert f"-- {file}:" in statement
        (folder / file).write_text(statement, encoding="utf-8")
    spec = PipelineSpec.model_validate(yaml.safe_load(text)["attributes"])
    pipeline = Pipeline(spec, folder, Home(tmp_path / "home"))
    carry_out(pipeline, datetime(2026, 11, 25, 6, tzinfo=UTC))
    scored, evaluated = pipeline.state().scores, pipeline.state().evaluations
    assert (min(scored), max(scored)) == ("2026-10-01", "2026-11-24")
    assert max(evaluated) == "2026-11-17"


def test_the_guide_shows_the_shipped_pipeline():
    declared = yaml.safe_load(blocks("yaml", GUIDE["declaring"])[0])
    shipped = yaml.safe_load((ROOT / "batch_platform" / "defs" / "flight_delays" / "defs.yaml").read_text())
    assert set(declared["attributes"]) == set(shipped["attributes"])
    assert declared["attributes"]["sources"] == shipped["attributes"]["sources"]


def test_it_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 180


def query(clone, statement):
    with duckdb.connect(str(clone / ".batch_platform" / "published.duckdb"), read_only=True) as con:
        return con.execute(statement).fetchall()


def test_the_examples_of_the_page_on_tests_are_tests():
    page = (ROOT / "batch_platform_tests" / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    tests = [file.read_text(encoding="utf-8") for file in (ROOT / "batch_platform_tests").rglob("test_*.py")]
    assert len(examples) == 4
    assert [example for example in examples if not any(example in test for test in tests)] == []
    assert len(page.splitlines()) <= 60
