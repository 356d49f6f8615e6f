"""`sql`: one SELECT over the published tables, shown or written, while a run holds the warehouse."""

import json
import subprocess

import polars as pl
import pytest

from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.command_line import COMMAND, clean_environment, published

BEST = (
    "SELECT id, score, scored_at::DATE AS day FROM predictions WHERE partition_key = '2024-02-18' ORDER BY score DESC"
)


def test_a_query_is_answered_while_a_run_holds_the_warehouse(cli, project):
    expected = published(project, BEST.replace("predictions", "small.predictions"))
    with Warehouse(Home(project / ".batch_platform")).open():
        shown = cli(project, "sql", "small", BEST, "--limit", "3")
        rows = cli(project, "sql", "small", BEST, "--json").json
    assert (shown.code, shown.err) == (0, "")
    head, *lines, more = shown.out.splitlines()
    assert head.split() == ["id", "score", "day"]
    assert len(lines) == 3
    assert more == "and more rows. Hint: --limit N shows more; --to scores.csv writes all of them."
    assert [(row["id"], row["score"], row["day"]) for row in rows] == [(a, b, f"{day}") for a, b, day in expected]


def test_an_answer_is_written_whole_or_not_at_all(cli, project, tmp_path):
    file = tmp_path / "best.csv"
    answer = cli(project, "sql", "small", f"{BEST}; -- the best ones\n", "--to", str(file))
    expected = published(project, BEST.replace("predictions", "small.predictions"))
    assert answer.out == f"{len(expected)} rows written to {file}\n"
    assert pl.read_csv(file).select("id", "score").rows() == [row[:2] for row in expected]
    again = cli(project, "sql", "small", "SELECT 1", "--to", str(file))
    assert again.code == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]


@pytest.mark.parametrize(
    ("query", "code", "says"),
    [
        ("DELETE FROM predictions", 2, "The query must be one SELECT; the published tables cannot be changed."),
        ("SELECT scor FROM predictions", 1, 'small: the query fails: Binder Error: Referenced column "scor" not found'),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused_in_a_sentence(cli, project, query, code, says):
    answer = cli(project, "sql", "small", query)
    assert answer.code == code
    assert says in answer.error
    assert "Hint: " in answer.error


READ_ONLY = """
mount --bind "$1" "$1"
mount -o remount,bind,ro,nosuid,nodev "$1"
cd "$1"
if touch written; then exit 9; fi
"$2" sql small "SELECT count(*) AS scores FROM predictions" --json
"$2" report small --out "$3"/report.html --json
"$2" health --json
"""


@pytest.mark.full
def test_readers_of_a_home_on_a_read_only_mount_get_their_answers(project, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    script = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-eu", "-c", READ_ONLY, "sh")
    done = subprocess.run(
        [*script, str(project), COMMAND, str(out)], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert published(project, "SELECT count(*) FROM small.predictions") == [
        (json.loads(done.stdout.partition("]")[0] + "]")[0]["scores"],)
    ]
    assert [path.name for path in out.iterdir()] == ["report.html"]
    assert '"healthy": true' in done.stdout
