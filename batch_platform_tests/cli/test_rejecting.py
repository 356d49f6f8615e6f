"""`rejected`, `replay` and `gc`: what they say, and what they leave behind."""

import json
import os
import shutil
from pathlib import Path

import duckdb

from batch_platform_tests.harness.command_line import OVERRIDES, REJECTED_DAY, REJECTED_ID, published
from batch_platform_tests.harness.dagster_project import write_defs_yaml
from batch_platform_tests.harness.small_pipeline import small_declaration


def loosen_the_rule(project):
    features = {**OVERRIDES["features"], "columns": {"amount": {"min": -5}}}
    write_defs_yaml(project, small_declaration(**{**OVERRIDES, "features": features}))


def test_rejected_lists_rows_with_column_value_and_reason(cli, project):
    lines = cli(project, "rejected", "small").out.splitlines()
    assert lines[0] == "small: 1 rejected row"
    assert lines[2].split(maxsplit=1) == ["1", "amount: below the minimum 0"]
    (row,) = [line for line in lines if line.startswith(REJECTED_DAY)]
    assert f"id={REJECTED_ID} shop=" in row
    assert row.split()[-5:] == ["-1.0", "below", "the", "minimum", "0"]
    assert lines[-1] == "Hint: after a fix, batch-platform replay small scores these partitions again."
    other = cli(project, "rejected", "small", "--partition", "2024-02-20")
    assert other.out == "small, partition 2024-02-20: no rejected rows.\n"


def test_replay_after_a_fix_scores_the_row_and_changes_no_other_score(cli, project):
    scores = "SELECT id, prediction, score, partition_key FROM small.predictions ORDER BY id"
    before = published(project, scores)
    loosen_the_rule(project)
    answer = cli(project, "replay", "small")
    assert answer.err == ""
    assert answer.out.splitlines()[0] == "small: replaying 1 partition with 1 rejected row"
    assert "1 of 1 partitions scored: 40 rows in, 40 scored, 0 rejected." in answer.out.splitlines()
    after = published(project, scores)
    (new,) = set(after) - set(before)
    assert (new[0], len(after)) == (REJECTED_ID, len(before) + 1)
    assert published(project, "FROM small.rejected_rows") == []
    nothing = cli(project, "replay", "small").out
    assert nothing == "small: no rejected rows: there is nothing to replay.\n"


def make_garbage(project):
    models = project / ".batch_platform" / "models" / "small"
    orphan = shutil.copytree(next(models.iterdir()), models / "2024-02-01-00000000")
    os.utime(orphan, (0, 0))
    with duckdb.connect(str(project / ".batch_platform" / "warehouse.duckdb")) as con:  # ledgers that are older still
        con.execute("UPDATE batch_platform.meta SET created_at = '1969-12-31'")
    return orphan


def test_gc_lists_and_then_removes_what_nothing_refers_to(cli, project):
    assert cli(project, "gc").out == "Nothing to remove.\n"
    orphan = make_garbage(project)
    lines = cli(project, "gc", "--dry-run").out.splitlines()
    assert lines[0].startswith("models/small/2024-02-01-00000000  ")
    assert lines[0].endswith("  never registered: its run was killed")
    assert lines[1].startswith("1 could be removed, ")
    assert orphan.exists()
    report = json.loads(cli(project, "gc", "--json").out)
    assert (report["removed"], len(report["found"])) == (True, 1)
    assert not orphan.exists()
    assert cli(project, "gc").out == "Nothing to remove.\n"


def test_gc_says_how_many_runs_and_bytes_it_removes(cli, project):
    assert cli(project, "gc").out == "Nothing to remove.\n", "no run is 90 days old"
    listed = json.loads(cli(project, "gc", "--runs-older-than", "0 days", "--dry-run", "--json").out)["old_runs"]
    assert listed["runs"] > 0
    home = Path(project, ".batch_platform", "dagster", "history")
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    assert " old run" in cli(project, "gc", "--runs-older-than", "0 days").out
    assert size - sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) > listed["size"] / 2


def declare_budget(project, budget):
    features = {**OVERRIDES["features"], "columns": {"amount": {"min": 20}}, "max_rejected": budget}
    write_defs_yaml(project, small_declaration(**{**OVERRIDES, "features": features}))


def test_the_rows_that_cost_a_partition_its_publication_are_shown_until_it_is_published(cli, project):
    day, asked = "2024-02-20", ("rejected", "small", "--partition", "2024-02-20")
    declare_budget(project, {"share": "1%", "rows": 1})
    refused = cli(project, "run", "small", "--from", day, "--to", day)
    assert (
        "of 40 rows break the contract, more than max_rejected (1.00%, or 1 row if that is more) allows"
        in refused.error
    )
    assert f"Hint: batch-platform rejected small --partition {day} shows the rows; " in refused.error
    lines = cli(project, *asked).out.splitlines()
    rows = [line for line in lines if line.startswith(f"{day}  id=")]
    assert len(rows) > 1
    assert lines[0].startswith(f"small, partition {day}: {len(rows)} rows refused, more than max_rejected ")
    declare_budget(project, {"share": "1%", "rows": len(rows)})
    assert cli(project, "run", "small", "--partition", day).code == 0
    assert published(project, "FROM small.refused_rows") == []
    assert cli(project, *asked).out.startswith(f"small, partition {day}: {len(rows)} rejected rows\n")
