"""`rejected`, `replay` and `gc`: what they say, and what they leave behind."""

import json
import os
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest

from batch_platform_tests.harness.command_line import OVERRIDES, REJECTED_DAY, REJECTED_ID, published
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.small_pipeline import small_declaration


def mend_the_source(project):
    """Give the rejected row an amount; the file is another one then, of which each partition's rows are the same."""
    path = pipeline_folder(project) / "events.parquet"
    amount = pl.when(pl.col("id") == REJECTED_ID).then(30.5).otherwise(pl.col("amount")).alias("amount")
    pl.read_parquet(path).with_columns(amount).write_parquet(path)


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


def test_rejected_of_one_partition(cli, project):
    assert cli(project, "rejected", "small", "--partition", REJECTED_DAY).out.startswith(
        f"small, partition {REJECTED_DAY}: 1 rejected row"
    )
    other = cli(project, "rejected", "small", "--partition", "2024-02-20")
    assert other.out == "small, partition 2024-02-20: no rejected rows.\n"
    assert (
        "'2024-02-30' is not the key of a partition"
        in cli(project, "rejected", "small", "--partition", "2024-02-30").error
    )


def test_rejected_reports_every_value_as_json(cli, project):
    report = cli(project, "rejected", "small", "--json").json
    assert (report["rows"], report["reasons"]) == (1, {"amount: below the minimum 0": 1})
    (row,) = report["listed"]
    assert (row["partition"], row["key"]["id"], row["column"]) == (REJECTED_DAY, REJECTED_ID, "amount")
    assert set(row["row"]) == {"id", "ts", "amount", "items", "shop", "known"}
    assert row["row"]["amount"] == -1.0


@pytest.mark.parametrize("fix", [pytest.param(mend_the_source, marks=pytest.mark.full), loosen_the_rule])
def test_replay_after_a_fix_scores_the_row_and_changes_no_other_score(cli, project, fix):
    scores = "SELECT id, prediction, score, partition_key FROM small.predictions ORDER BY id"
    before = published(project, scores)
    fix(project)
    answer = cli(project, "replay", "small")
    assert answer.err == ""
    assert answer.out.splitlines()[0] == "small: replaying 1 partition with 1 rejected row"
    assert "1 of 1 partitions scored: 40 rows in, 40 scored, 0 rejected." in answer.out.splitlines()
    after = published(project, scores)
    (new,) = set(after) - set(before)
    assert (new[0], len(after)) == (REJECTED_ID, len(before) + 1)
    assert published(project, "FROM small.rejected_rows") == []
    ledger = "SELECT rows_in, rows_scored, rows_rejected FROM batch_platform.score_runs WHERE partition_key = $day ORDER BY seq DESC"
    assert published(project, ledger, {"day": REJECTED_DAY})[0] == (40, 40, 0)
    evaluated = "SELECT rows_labelled FROM small.performance WHERE partition_key = $day"
    assert published(project, evaluated, {"day": REJECTED_DAY})[0][0] >= 39, "it is measured anew"
    assert "not scored" not in cli(project, "trace", "small", f"id={REJECTED_ID}").out


def test_replay_reports_as_json_and_finds_nothing_to_do(cli, project):
    report = cli(project, "replay", "small", "--json").json
    assert (report["partitions"], report["scored_now"], report["rows_rejected"]) == (1, 1, 1)
    nothing = cli(project, "replay", "small", "--partition", "2024-02-10").out
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


def test_gc_removes_rows_older_than_their_retention_and_status_says_so(cli, project):
    declared = pipeline_folder(project) / "defs.yaml"
    declared.write_text(declared.read_text() + "  retention: {predictions: 3 years, rejected_rows: 90 days}\n")
    announced = cli(project, "gc", "--dry-run").out
    kinds = {kind: f"small: {kind} of " for kind in ("predictions", "rejected_rows")}
    assert all(line.startswith(tuple(kinds.values())) for line in announced.splitlines())
    assert "could be removed, older than retention.rejected_rows.\n" in announced
    assert [old["kind"] for old in cli(project, "gc", "--json").json["old_rows"]][-1] == "rejected_rows"
    assert published(project, "SELECT count(*) FROM small.rejected_rows") == [(0,)]
    assert cli(project, "gc").out == "Nothing to remove.\n"
    assert "everything asked for is up to date" in cli(project, "run", "small").out


def test_gc_says_how_many_runs_and_bytes_it_removes(cli, project):
    assert cli(project, "gc").out == "Nothing to remove.\n", "no run is 90 days old"
    listed = json.loads(cli(project, "gc", "--runs-older-than", "0 days", "--dry-run", "--json").out)["old_runs"]
    assert listed["runs"] > 0
    home = Path(project, ".batch_platform", "dagster", "history")
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    assert " old run" in cli(project, "gc", "--runs-older-than", "0 days").out
    assert size - sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) > listed["size"] / 2


def test_gc_with_an_invalid_duration_is_wrong_use(cli, fresh):
    answer = cli(fresh, "gc", "--keep", "soon")
    assert (answer.code, "--keep: 'soon' is not a duration" in answer.error) == (2, True)


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
    assert lines[0] == (
        f"small, partition {day}: {len(rows)} rows refused, "
        "more than max_rejected (1.00%, or 1 row if that is more) allowed when last scored"
    )
    assert all(line.endswith("below the minimum 20") for line in rows)
    assert lines[-1].endswith(f"batch-platform run small --partition {day}")
    report = cli(project, *asked, "--json").json
    assert (report["rows"], report["refused"]["rows"]) == (0, len(rows))
    assert cli(project, "run", "small", "--partition", day).code == 1
    assert len(published(project, "FROM small.refused_rows")) == len(rows), "the next attempt replaces them"
    declare_budget(project, {"share": "1%", "rows": len(rows)})
    assert cli(project, "run", "small", "--partition", day).code == 0
    assert published(project, "FROM small.refused_rows") == []
    assert cli(project, *asked).out.startswith(f"small, partition {day}: {len(rows)} rejected rows\n")
