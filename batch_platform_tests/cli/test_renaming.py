"""`rename`, and what `gc` says of pipelines that nothing declares any more."""

import json
from pathlib import Path

import duckdb
import yaml

from batch_platform_tests.components.users_assets import OF_A_USER
from batch_platform_tests.harness.command_line import REJECTED_DAY, copy_of, published
from batch_platform_tests.harness.dagster_project import pipeline_folder


def declare(project: Path, name: str, *, instead_of: str = "small") -> None:
    """Write another name of a pipeline into its YAML."""
    file = pipeline_folder(project) / "defs.yaml"
    file.write_text(file.read_text().replace(f"name: {instead_of}\n", f"name: {name}\n"))


def facts(home: Path, name: str) -> dict[str, list[tuple[object, ...]]]:
    """All that the warehouse and the disk hold of a pipeline."""
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        query = "SELECT table_name FROM duckdb_tables() WHERE schema_name = $name ORDER BY ALL"
        tables = [table for (table,) in con.execute(query, {"name": name}).fetchall()]
        held = {table: con.execute(f"FROM {name}.{table} ORDER BY ALL").fetchall() for table in tables}
        for ledger in (
            "feature_builds",
            "score_runs",
            "evaluations",
            "model_versions",
            "promotions",
            "partition_status",
        ):
            rows = f"SELECT * EXCLUDE (pipeline) FROM batch_platform.{ledger} WHERE pipeline = $name ORDER BY ALL"
            held[ledger] = con.execute(rows, {"name": name}).fetchall()
    for room in ("lake", "models"):
        files = sorted(path for path in (home / room / name).rglob("*") if path.is_file())
        held[room] = [(str(path.relative_to(home / room / name)), path.stat().st_size) for path in files]
    return held


def held_by_anything(held: dict[str, list[tuple[object, ...]]]) -> bool:
    return any(held.values())


def test_a_renamed_pipeline_keeps_everything_and_nothing_is_scored_again(cli, project):
    home = project / ".batch_platform"
    before, rows = facts(home, "small"), published(project, "SELECT * FROM small.predictions ORDER BY ALL")
    declare(project, "orders")
    answer = cli(project, "rename", "small", "orders", "--json").json
    assert (answer["from"], answer["to"], answer["held"]["partitions"]) == ("small", "orders", 29)
    assert facts(home, "orders") == before
    assert not held_by_anything(facts(home, "small"))
    assert published(project, "SELECT * FROM orders.predictions ORDER BY ALL") == rows
    schemas = (
        "SELECT schema_name FROM duckdb_schemas() WHERE NOT internal AND schema_name NOT IN ('main', 'batch_platform')"
    )
    assert published(project, schemas) == [("orders",)]
    uncommented = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'orders' AND comment IS NULL"
    assert published(project, uncommented) == []
    status = cli(project, "status", "orders").out.splitlines()
    assert status[0] == "orders: 29 scored, 31 warm-up"
    assert "  due now: nothing; the partitions end on 2024-03-01 (partitions.end)" in status
    assert "nothing can be scored" not in cli(project, "run", "orders", "--from", "2024-02-01").out
    assert published(project, "SELECT DISTINCT run_id FROM orders.predictions") == sorted({(row[-1],) for row in rows})
    assert cli(project, "status", "orders").out.count("not materialized in Dagster") == 0, "the run told Dagster"
    assert cli(project, "gc").out == "Nothing to remove.\n"
    assert "There is no pipeline 'small'; there is only orders." in cli(project, "status", "small").error


def test_a_rename_says_which_assets_of_the_user_refer_to_the_old_name(cli, project):
    pipeline_folder(project, "mine.py").write_text(OF_A_USER)
    assert "still declared" in cli(project, "rename", "small", "orders").error
    declare(project, "orders")
    answer = cli(project, "rename", "small", "orders")
    assert answer.out.startswith("small is now orders.\n")
    stale = "counts refers to small/predictions, dashboard refers to small/predictions"
    assert answer.err == f"Warning: {stale}: write orders in the place of small there.\n"


def test_a_name_that_is_taken_or_not_declared_is_refused(cli, project):
    before = facts(project / ".batch_platform", "small")
    still_declared = "small is still declared under this name; nothing is renamed. Hint: "
    for args, says in {
        ("small", "orders"): f"{still_declared}write name: orders in its YAML first, then call batch-platform rename",
        ("small", "small"): f"{still_declared}choose another name: small is a pipeline already.",
        (
            "smal",
            "small",
        ): "The warehouse holds nothing of a pipeline 'smal'; it holds small. Hint: did you mean 'small'?",
        ("smal", "orders"): "There is no pipeline 'orders'; there is only small.",
    }.items():
        refused = cli(project, "rename", *args)
        assert (refused.code, refused.error[: len(says)]) == (2, says)
    declare(project, "orders")
    cli(project, "run", "orders", "--partition", "2024-02-01")
    refused = cli(project, "rename", "small", "orders")
    assert "Something was made already under the name 'orders'" in refused.error
    assert "gc --drop orders removes it." in refused.error
    declare(project, "small", instead_of="orders")
    cli(project, "gc", "--drop", "orders", "--yes")
    declare(project, "orders")
    assert cli(project, "rename", "small", "orders").code == 0
    assert facts(project / ".batch_platform", "orders") == before


def test_a_pipeline_renamed_by_hand_is_listed_by_gc_and_taken_over_or_dropped(cli, project, tmp_path):
    file = pipeline_folder(project) / "defs.yaml"
    before = facts(project / ".batch_platform", "small")
    file.write_text(file.read_text().replace("name: small\n", "name: orders\n"))
    listed = cli(project, "gc")
    assert listed.out.splitlines()[-2:] == [
        f"small: no pipeline of this project; 29 partitions with 1,159 predictions, the last of {listed_day(listed.out)}, 1 model",
        "If one was renamed: batch-platform rename small NEW_NAME carries it over; batch-platform gc --drop small removes it for good.",
    ]
    assert facts(project / ".batch_platform", "small") == before
    dropped = copy_of(project, tmp_path / "dropped")
    assert "'orders'" in cli(dropped, "gc", "--drop", "orders").error
    assert [
        item["name"] for item in json.loads(cli(dropped, "gc", "--drop", "small", "--dry-run", "--json").out)["orphans"]
    ] == ["small"]
    assert facts(dropped / ".batch_platform", "small") == before
    assert cli(dropped, "gc", "--drop", "small").error == (
        "Nothing is removed without a confirmation, and there is no terminal to ask on. Hint: add --yes."
    )
    assert facts(dropped / ".batch_platform", "small") == before
    assert " removed 29 partitions" in cli(dropped, "gc", "--drop", "small", "--yes").out
    assert not held_by_anything(facts(dropped / ".batch_platform", "small"))
    assert cli(dropped, "gc").out == "Nothing to remove.\n"
    cli(project, "rename", "small", "orders")
    assert facts(project / ".batch_platform", "orders") == before
    assert cli(project, "gc").out == "Nothing to remove.\n"


def listed_day(text: str) -> str:
    return text.partition("the last of ")[2][:10]


def rename_two_columns(project: Path) -> None:
    """Rename a column of the key and a kept feature in the SQL and the YAML."""
    folder = pipeline_folder(project)
    for file, changes in {
        "features.sql": {"items, shop": "items AS pieces, shop AS store"},
        "labels.sql": {"shop": "shop AS store"},
        "defs.yaml": {"- items": "- pieces", "- shop": "- store"},
    }.items():
        text = (folder / file).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (folder / file).write_text(text)


def test_the_rows_of_a_column_with_another_name_are_scored_again_and_say_the_same(cli, project):
    query = "SELECT id, {}, {}, score, partition_key FROM small.predictions ORDER BY ALL"
    before = published(project, query.format("shop", "items"))
    rename_two_columns(project)
    assert published(project, query.format("shop", "items")) == before, "what was stored stays readable"
    refused = cli(project, "export", "small", "--to", "scores.csv").error
    assert "its rows in predictions are stored under another key than id, store. Hint: score them again" in refused
    lines = cli(project, "status").out.splitlines()
    assert "  2024-02-01 to 2024-02-29 (29): stale, its declaration or the scoring code changed" in lines
    cli(project, "run", "small", "--from", "2024-02-01", "--to", "2024-02-29", "--retrain")
    assert [row[:3] for row in published(project, query.format("store", "pieces"))] == [row[:3] for row in before]
    assert published(project, "SELECT count(shop), count(items) FROM small.predictions") == [(0, 0)]
    assert cli(project, "export", "small", "--to", "scores.csv").code == 0


def test_a_feature_that_was_renamed_is_read_by_the_models_that_know_its_former_name(cli, project):
    query = "SELECT id, prediction, score, model_version FROM small.predictions WHERE partition_key = '2024-02-03' ORDER BY ALL"
    rejected = "SELECT partition_key, reason FROM small.rejected_rows ORDER BY ALL"
    before, rejected_before = published(project, query), published(project, rejected)
    rename_two_columns(project)
    failed = cli(project, "run", "small", "--partition", "2024-02-03")
    assert failed.code == 1
    assert "if one was renamed, write its former name under features.columns.NEW_NAME.formerly" in failed.err
    declared = pipeline_folder(project) / "defs.yaml"
    rules = yaml.safe_load(declared.read_text())
    rules["attributes"]["features"]["columns"]["pieces"] = {"formerly": "items"}
    declared.write_text(yaml.safe_dump(rules))
    for arguments in (("--partition", "2024-02-03"), ("--partition", REJECTED_DAY)):
        done = cli(project, "run", "small", *arguments)
        assert done.code == 0, done.err
    assert published(project, query) == before
    assert published(project, rejected) == rejected_before
    assert published(project, "SELECT count(*) FROM small.performance WHERE partition_key = '2024-02-03'") != [(0,)]
