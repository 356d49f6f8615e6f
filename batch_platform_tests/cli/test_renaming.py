"""Pipelines and columns under another name, and what `gc` says of pipelines that nothing declares any more."""

import json

import pytest
import yaml

from batch_platform_tests.harness.command_line import published
from batch_platform_tests.harness.dagster_project import pipeline_folder


def test_a_pipeline_of_another_name_starts_anew_and_the_old_one_is_listed_by_gc_and_dropped(cli, project):
    file, home = pipeline_folder(project) / "defs.yaml", project / ".batch_platform"
    file.write_text(file.read_text().replace("name: small\n", "name: orders\n"))
    about, command = cli(project, "gc").out.splitlines()[-2:]
    assert about.startswith("small: no pipeline of this project; 29 partitions with 1,159 predictions, the last of 20")
    assert command == "batch-platform gc --drop small removes it for good."
    refused = cli(project, "rename", "small", "orders")
    assert (refused.code, "run NEW_NAME makes everything under the new name" in refused.error) == (2, True)
    assert "'orders'" in cli(project, "gc", "--drop", "orders").error
    dry = json.loads(cli(project, "gc", "--drop", "small", "--dry-run", "--json").out)
    assert [item["name"] for item in dry["orphans"]] == ["small"]
    assert cli(project, "gc", "--drop", "small").error == (
        "Nothing is removed without a confirmation, and there is no terminal to ask on. Hint: add --yes."
    )
    assert published(project, "SELECT count(*) FROM small.predictions") == [(1159,)]
    assert " removed 29 partitions" in cli(project, "gc", "--drop", "small", "--yes").out
    assert published(project, "FROM duckdb_tables() WHERE schema_name = 'small'") == []
    assert not [path for room in ("lake", "models") for path in (home / room / "small").rglob("*") if path.is_file()]
    assert cli(project, "gc").out == "Nothing to remove.\n"


@pytest.mark.full
def test_the_rows_of_a_key_with_another_name_are_scored_again_and_say_the_same(cli, project):
    query, folder = "SELECT id, {}, partition_key FROM small.predictions ORDER BY ALL", pipeline_folder(project)
    before = published(project, query.format("shop"))
    for file, old, new in (
        ("features.sql", ", shop", ", shop AS store"),
        ("labels.sql", "shop", "shop AS store"),
        ("defs.yaml", "- shop", "- store"),
    ):
        (folder / file).write_text((folder / file).read_text().replace(old, new))
    refused = cli(project, "export", "small", "--to", "scores.csv").error
    assert "its rows in predictions are stored under another key than id, store. Hint: score them again" in refused
    assert cli(project, "run", "small").code == 0
    assert published(project, query.format("store")) == before
    assert published(project, "SELECT count(shop) FROM small.predictions") == [(0,)]
    assert cli(project, "export", "small", "--to", "scores.csv").code == 0


def test_a_former_name_of_a_column_is_refused_with_what_to_do_instead(cli, fresh):
    file = pipeline_folder(fresh) / "defs.yaml"
    declared = yaml.safe_load(file.read_text())
    declared["attributes"]["features"]["columns"] = {"pieces": {"formerly": "items"}}
    file.write_text(yaml.safe_dump(declared))
    refused = cli(fresh, "check")
    assert refused.code == 2
    assert "keep the column's name in the SQL instead of formerly, or train the models again" in refused.error, (
        refused.err
    )
