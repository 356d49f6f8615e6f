"""`drop`: partitions are deleted for good, everywhere, and stay away until somebody names them."""

from pathlib import Path

import dagster as dg
import duckdb
import pytest

from batch_platform.cli.project import find_project
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.checkout import GUIDE
from batch_platform_tests.harness.command_line import REJECTED_DAY, published
from batch_platform_tests.harness.dagster_project import PACKAGE

TABLES_OF_KEYS = "SELECT schema_name || '.' || table_name FROM duckdb_columns() WHERE column_name = 'partition_key'"
ENTRIES = "SELECT partition_key, rows > 0, actor <> '', run_id FROM small.dropped_partitions ORDER BY seq"


def tables_with(database: Path, key: str) -> set[str]:
    """The tables of a database that hold rows of a partition, without the journal and the record of the drops."""
    with duckdb.connect(str(database.resolve()), read_only=True) as con:
        tables = {name for (name,) in con.execute(TABLES_OF_KEYS).fetchall()}
        tables -= {"small.dropped_partitions", "batch_platform.changes"}
        return {
            name
            for name in tables
            if con.execute(f"SELECT count(*) FROM {name} WHERE partition_key = '{key}'").fetchall() != [(0,)]
        }


def known_to_dagster(project: Path, asset: str) -> set[str]:
    with dg.DagsterInstance.from_config(str(project / ".batch_platform" / "dagster")) as instance:
        return instance.get_materialized_partitions(dg.AssetKey(["small", asset]))


def feature_files(project: Path, key: str) -> list[Path]:
    return [*(project / ".batch_platform" / "lake" / "small" / "features").glob(f"{key}.*")]


def test_a_dropped_partition_is_nowhere_and_comes_back_only_if_it_is_named(cli, project):
    home, key = Home(project / ".batch_platform"), REJECTED_DAY
    rows = "SELECT * EXCLUDE (scored_at, run_id) FROM small.predictions ORDER BY ALL"
    before = published(project, rows)
    held = tables_with(home.warehouse, key)
    assert held >= {"small.predictions", "small.rejected_rows", "small.outcomes", "small.performance"}
    refused = cli(project, "drop", "small", "--partition", key)
    assert refused.code == 2
    assert f"small: to delete for good, {key}\n  " in refused.out
    assert "  1 row of rejected_rows\n" in refused.out
    assert "  1 feature file, " in refused.out
    assert refused.error.endswith("there is no terminal to ask on. Hint: add --yes.")
    unnamed = cli(project, "drop", "small", "--from", key, "--yes").error
    assert "name one with --partition" in unnamed
    assert tables_with(home.warehouse, key) == held

    answer = cli(project, "drop", "small", "--partition", key, "--yes", "--json").json
    assert answer["dropped"]["partitions"] == [key]
    for copy in (home.warehouse, *home.root.glob("published-*.duckdb")):
        assert tables_with(copy, key) == set(), copy
    assert feature_files(project, key) == []
    assert published(project, ENTRIES) == [(key, True, True, answer["run_id"])]
    for asset in ("features", "predictions", "performance"):
        assert key not in known_to_dagster(project, asset)
        assert "2024-02-20" in known_to_dagster(project, asset)
    status = cli(project, "status", "small").out.splitlines()
    assert status[0] == "small: 1 dropped, 28 scored, 31 warm-up"
    for options in ((), ("--from", "2024-02-18", "--to", "2024-02-20", "--force")):
        said = cli(project, "run", "small", *options).out
        assert f"left out {key}: dropped. To make it again: batch-platform run small --partition {key}\n" in said
        assert tables_with(home.published, key) == set()

    assert cli(project, "run", "small", "--partition", key).code == 0
    assert published(project, rows) == before
    assert cli(project, "status", "small").out.startswith("small: 29 scored, 31 warm-up\n")
    assert key in known_to_dagster(project, "performance")


@pytest.mark.full
def test_other_partitions_are_scored_only_once_the_former_ones_are_dropped(cli, project):
    yaml = project / "shop" / "defs" / "small" / "defs.yaml"
    days, counted = yaml.read_text(), "SELECT count(*), count(DISTINCT id) FROM small.predictions"
    weeks = (
        days.replace("every: day", "every: week", 1).replace("2024-03-01", "2024-02-26").replace("7 days", "14 days")
    )
    yaml.write_text(weeks)
    for command in (("check",), ("run", "small")):
        refused = cli(project, *command).error
        assert "small: predictions hold 25 partitions (2024-02-01 to 2024-02-29) that are no longer declared" in refused
        assert "batch-platform drop small --former" in refused
    yaml.write_text(days)
    assert cli(project, "check").code == 0, "declared as they were"
    assert cli(project, "drop", "small", "--former").out == "small: nothing is held.\n"

    yaml.write_text(weeks)
    assert cli(project, "drop", "small", "--former", "--yes").code == 0
    assert cli(project, "run", "small").code == 0
    ((rows, orders),) = published(project, counted)
    assert rows == orders > 0
    assert cli(project, "status", "small", "--json").json[0]["former_partitions"] == []


FOLLOWING = """\
import dagster as dg

EAGER = dg.AutomationCondition.eager()
NOTHING_MISSING = ~dg.AutomationCondition.any_deps_missing()


@dg.asset(deps=[["small", "predictions"]], automation_condition=EAGER)
def waits(): ...


@dg.asset(deps=[["small", "predictions"]], automation_condition=EAGER.without(NOTHING_MISSING))
def follows(): ...
"""


def test_an_asset_that_a_drop_silences_is_named_with_the_condition_that_goes_on_following(cli, project):
    (project / PACKAGE / "defs" / "following.py").write_text(FOLLOWING)
    answer = cli(project, "drop", "small", "--partition", REJECTED_DAY, "--yes")
    assert answer.code == 0
    last = answer.out.splitlines()[-1]
    assert last.startswith("waits: its automation condition waits until no partition is missing")
    assert last.endswith("AutomationCondition.eager().without(~AutomationCondition.any_deps_missing())")
    assert last.rpartition(": ")[2] in GUIDE["acting"].replace("dg.", "")
    definitions = find_project(project).definitions
    assets = dg.AssetSelection.assets("waits", "follows")
    with dg.DagsterInstance.from_config(str(project / ".batch_platform" / "dagster")) as instance:
        first = dg.evaluate_automation_conditions(definitions, instance, assets)
        scored = dg.AssetMaterialization(["small", "predictions"], partition="2024-02-02")
        instance.report_runless_asset_event(scored)
        then = dg.evaluate_automation_conditions(definitions, instance, assets, cursor=first.cursor)
    requested = [then.get_num_requested(dg.AssetKey(name)) for name in ("waits", "follows")]
    assert requested == [0, 1]


def test_no_model_learns_from_what_was_dropped(cli, project):
    key, learned = "2024-01-15", "SELECT rows_trained + rows_evaluated FROM batch_platform.model_versions ORDER BY seq"
    assert cli(project, "drop", "small", "--partition", key, "--yes").code == 0
    assert cli(project, "train", "small", "--period", "2024-02-01", "--force").code == 0
    ((before,), (after,)) = published(project, learned)
    assert before - 60 < after < before
    assert feature_files(project, key) == []
