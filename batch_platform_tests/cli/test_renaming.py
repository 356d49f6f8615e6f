"""`rename`, and what `gc` says of pipelines that nothing declares any more."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import yaml

from batch_platform.pipeline.rename import rename_pipeline
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import publish
from batch_platform_tests.command_line import REJECTED_DAY, copy_of, published
from batch_platform_tests.dagster_project import pipeline_folder

# Renames a pipeline of a home and ends itself before the call of a function that has this number among its calls.
VICTIM = """
import os, signal, sys
from pathlib import Path
from batch_platform.pipeline import rename
from batch_platform.warehouse import renaming
from batch_platform.warehouse.home import Home

home, file, name, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def ending(function):
    calls = []
    def call(*values, **named):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*values, **named)
    return call

module = renaming if name == "_note_all" else rename
declare = ending(lambda: file.write_text("orders")) if name == "declare" else lambda: file.write_text("orders")
if name != "declare":
    setattr(module, name, ending(getattr(module, name)))
rename.rename_pipeline(Home(home), "small", "orders", declare)
"""


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
    home, file = project / ".batch_platform", pipeline_folder(project) / "defs.yaml"
    file.write_text(file.read_text().replace("name: small\n", "name: 'small'  # the shop's orders\n"))
    before, rows = facts(home, "small"), published(project, "SELECT * FROM small.predictions ORDER BY ALL")
    answer = cli(project, "rename", "small", "orders", "--json").json
    folder = pipeline_folder(project, "orders")
    assert (answer["from"], answer["to"], answer["folder"]) == ("small", "orders", str(folder))
    assert answer["held"]["partitions"] == 29
    assert "name: orders  # the shop's orders\n" in (folder / "defs.yaml").read_text()
    assert not pipeline_folder(project).exists()
    assert facts(home, "orders") == before
    assert not held_by_anything(facts(home, "small"))
    assert published(project, "SELECT * FROM orders.predictions ORDER BY ALL") == rows
    schemas = (
        "SELECT schema_name FROM duckdb_schemas() WHERE NOT internal AND schema_name NOT IN ('main', 'batch_platform')"
    )
    assert published(project, schemas) == [("orders",)]
    status = cli(project, "status", "orders").out.splitlines()
    assert status[0] == "orders: 29 scored, 31 warm-up"
    assert "  due now: nothing; the partitions end on 2024-03-01 (partitions.end)" in status
    assert "nothing can be scored" not in cli(project, "run", "orders", "--from", "2024-02-01").out
    assert published(project, "SELECT DISTINCT run_id FROM orders.predictions") == sorted({(row[-1],) for row in rows})
    assert cli(project, "status", "orders").out.count("not materialized in Dagster") == 0, "the run told Dagster"
    assert cli(project, "gc").out == "Nothing to remove.\n"
    assert "There is no pipeline 'small'; there is only orders." in cli(project, "status", "small").error


def test_a_name_that_is_taken_or_not_valid_is_refused(cli, project):
    shutil.copytree(pipeline_folder(project), pipeline_folder(project, "other"))
    declared = pipeline_folder(project, "other") / "defs.yaml"
    declared.write_text(declared.read_text().replace("name: small", "name: other"))
    before = facts(project / ".batch_platform", "small")
    for args, says in {
        ("small", "other"): "There is a pipeline 'other' already.",
        ("smal", "orders"): "There is no pipeline 'smal'; there are other, small. Hint: did you mean 'small'?",
        ("small", "Orders!"): "'Orders!' is not a valid name",
    }.items():
        refused = cli(project, "rename", *args)
        assert (refused.code, refused.error[: len(says)]) == (2, says)
    assert facts(project / ".batch_platform", "small") == before


def test_a_folder_that_other_files_name_keeps_its_name(cli, fresh):
    (pipeline_folder(fresh) / "functions.py").write_text("from shop.defs.small.functions import x\n")
    said = cli(fresh, "rename", "small", "orders").out
    assert "the folder keeps its name: other files name 'small' as a folder or module" in said
    assert cli(fresh, "check").out.splitlines()[0] == "orders: ok"


def test_a_source_file_that_is_called_like_the_pipeline_does_not_keep_its_folder(cli, fresh):
    folder = pipeline_folder(fresh)
    (folder / "events.parquet").rename(fresh / "small.parquet")
    declared = folder / "defs.yaml"
    outside = f"{'../' * len(folder.relative_to(fresh).parts)}small.parquet"
    text = declared.read_text().replace("parquet: events.parquet", f"parquet: {outside}")
    declared.write_text(f"# Proposed for small.parquet: every line is a guess.\n{text}")
    assert "the folder keeps its name" not in cli(fresh, "rename", "small", "orders").out
    assert pipeline_folder(fresh, "orders").is_dir()
    assert cli(fresh, "check").out.splitlines()[0] == "orders: ok"


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
    assert " removed 29 partitions" in cli(dropped, "gc", "--drop", "small").out
    assert not held_by_anything(facts(dropped / ".batch_platform", "small"))
    assert cli(dropped, "gc").out == "Nothing to remove.\n"
    cli(project, "rename", "small", "orders")
    assert facts(project / ".batch_platform", "orders") == before
    assert cli(project, "gc").out == "Nothing to remove.\n"


def listed_day(text: str) -> str:
    return text.partition("the last of ")[2][:10]


def test_a_kill_leaves_all_of_the_old_name_or_all_of_the_new_one(project, tmp_path):
    whole, left = facts(project / ".batch_platform", "small"), list[str]()
    declared, home = tmp_path / "declared", tmp_path / "home"
    # `_note_all` is the last call before each of the two commits.
    for name, number in (
        ("_link", 2),
        ("_note_all", 1),
        ("declare", 1),
        ("drop_pipeline", 1),
        ("_note_all", 2),
        ("publish", 1),
    ):
        shutil.copytree(project / ".batch_platform", home, symlinks=True)
        declared.write_text("small")
        command = [sys.executable, "-c", VICTIM, str(home), str(declared), name, str(number)]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        publish(Home(home))  # as the next run does; it also undoes what was not committed
        left.append(declared.read_text())
        assert facts(home, left[-1]) == whole, (name, number)
        rename_pipeline(Home(home), "small", "orders", None if left[-1] == "orders" else lambda: None)
        assert facts(home, "orders") == whole, (name, number)
        assert not held_by_anything(facts(home, "small")), (name, number)
        shutil.rmtree(home)
    assert left == ["small"] * 3 + ["orders"] * 3


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


def test_a_renamed_column_stays_one_column_and_is_told_until_it_has_its_new_name(cli, project):
    query = "SELECT id, {}, {}, score, partition_key FROM small.predictions ORDER BY ALL"
    before = published(project, query.format("shop", "items"))
    counts = "SELECT count(shop), count(items) FROM small.predictions"
    refused = cli(project, "rename", "small", "--column", "shop", "store")
    assert refused.code == 2
    assert refused.error.startswith(
        "small: the column 'shop' is still declared; nothing is renamed. Hint: first write store"
    )
    rename_two_columns(project)
    for arguments, says in {
        (
            "shop",
            "stores",
        ): "declares no column 'stores' in features.key, features.time or predictions.keep. Hint: did you mean 'store'?",
        ("shops", "store"): "No table of small has a column 'shops'; predictions hold id, items, model_version,",
        ("score", "store"): "the column 'score' is made by scoring",
    }.items():
        refused = cli(project, "rename", "small", "--column", *arguments)
        assert refused.code == 2
        assert says in refused.error
    assert published(project, query.format("shop", "items")) == before, "what was stored stays readable"
    exported = cli(project, "export", "small", "--to", "scores.csv")
    assert "its rows in predictions are stored under another key than id, store." in exported.error
    lines = cli(project, "status").out.splitlines()
    hint = "is no longer declared; if it was renamed: batch-platform rename small --column"
    assert [line for line in lines if "no longer declared" in line] == [
        f"  predictions of 29 partitions hold {name}, which {hint} {name} NEW_NAME" for name in ("items", "shop")
    ]
    assert "  2024-02-01 to 2024-02-29 (29): stale, its declaration or the scoring code changed" in lines

    said = cli(project, "run", "small", "--partition", "2024-02-03", "--retrain").out
    assert "  learned now from pieces and no longer from items" in said
    assert "  predictions of 28 partitions hold shop, which is no longer declared" in said
    assert published(project, counts) == [(len(before) - 40, len(before) - 40)], "each row has one of the two names"
    assert cli(project, "rename", "small", "--column", "shop", "store", "--json").json == {
        "pipeline": "small",
        "from": "shop",
        "to": "store",
        "tables": ["outcomes", "predictions"],
    }
    cli(project, "rename", "small", "--column", "items", "pieces")
    after = published(project, query.format("store", "pieces"))
    assert [row[:3] for row in after] == [row[:3] for row in before]
    assert [row for row in after if row[-1] != "2024-02-03"] == [row for row in before if row[-1] != "2024-02-03"]
    assert "no longer declared" not in cli(project, "status").out
    assert cli(project, "export", "small", "--to", "scores.csv").code == 0
    with pytest.raises(duckdb.BinderException):
        published(project, counts)

    cli(project, "run", "small", "--from", "2024-02-01")
    assert cli(project, "status").out.startswith("small: 29 scored, 31 warm-up")
    assert [row[:3] for row in published(project, query.format("store", "pieces"))] == [row[:3] for row in before]


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
    cli(project, "rename", "small", "--column", "shop", "store")
    for arguments in (("--partition", "2024-02-03"), ("--partition", REJECTED_DAY)):
        done = cli(project, "run", "small", *arguments)
        assert done.code == 0, done.err
    assert published(project, query) == before
    assert published(project, rejected) == rejected_before
    assert published(project, "SELECT count(*) FROM small.performance WHERE partition_key = '2024-02-03'") != [(0,)]


def test_a_column_and_a_pipeline_are_not_renamed_at_once(cli, fresh):
    for arguments in (("small",), ("small", "orders", "--column", "shop", "store")):
        refused = cli(fresh, "rename", *arguments)
        assert refused.code == 2
        assert refused.error.startswith("Name either the new name of the pipeline or a column. Hint: batch-platform")
