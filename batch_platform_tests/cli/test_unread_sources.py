"""A source that cannot be looked at is not called unchanged, by no command and no schedule."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from batch_platform.components.checks import _up_to_date
from batch_platform.components.wiring import stamp_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.command_line import Answer
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_dagster_project
from batch_platform_tests.harness.deployment import deploy
from batch_platform_tests.harness.small_pipeline import small_events, write_small_project
from batch_platform_tests.harness.ticks import look

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
DECLARED = {
    "partitions": {"start": "2024-01-20", "end": "2024-02-08", "timezone": "UTC"},
    "sources": {"events": {"parquet": None, "sql": {"uri": "sqlite:///shop.sqlite", "query": "events.sql"}}},
    "model": {"train": {"start": "2024-02-01", "evaluate": "2 days"}},
    "predictions": {"keep": []},
}
FILES = {
    "features_sql": "SELECT id, CAST(ts AS TIMESTAMP) AS ts, amount, items FROM events",
    "labels_sql": "SELECT id, returned = 1 AS returned FROM events WHERE returned IS NOT NULL",
}
UNKNOWN = "it is not known whether the rows of 'events' changed"


def fill(folder: Path) -> Path:
    """Write the orders into a file of SQLite, and a query for those of a partition; returns the file."""
    (folder / "events.sql").write_text("SELECT * FROM events WHERE ts >= $partition_start AND ts < $partition_end")
    file, rows = folder / "shop.sqlite", small_events().select("id", "ts", "amount", "items", "returned")
    with closing(sqlite3.connect(file)) as con, con:
        con.execute("CREATE TABLE events (id INTEGER, ts TEXT, amount REAL, items INTEGER, returned INTEGER)")
        values = ((at, f"{ts:%Y-%m-%d %H:%M:%S}", *others) for at, ts, *others in rows.rows())
        con.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", values)
    return file


def test_f51_a_source_that_cannot_be_looked_at_is_named_by_run_and_status_and_is_an_error_where_it_was_asked_for(
    cli, tmp_path
):
    write_dagster_project(tmp_path, **FILES, **DECLARED)
    file = fill(pipeline_folder(tmp_path))

    def called(*arguments: str) -> Answer:
        return cli(tmp_path, *arguments)

    assert called("run", "small").code == 0
    known = called("run", "small", "--from", "2024-02-01", "--recheck")
    assert (known.code, "everything asked for is up to date." in known.out) == (0, True)
    file.rename(file.with_suffix(".away"))

    unknown = called("run", "small", "--from", "2024-02-01", "--recheck")
    assert unknown.code == 1
    assert "everything asked for is up to date, as far as its sources could be looked at." in unknown.out
    assert unknown.out.count("not looked at: Source 'events' of 'small': ") == 1
    assert unknown.error == (
        f"small: {UNKNOWN}, which could not be looked at. Hint: repeat the command once the source answers."
    )
    plain = called("status", "small")
    assert (plain.code, plain.out.count(f"health: warn: {UNKNOWN}: Source 'events' of 'small': ")) == (0, 1)
    assert [called("status", "small", *asked).code for asked in (["--recheck"], ["--fail-on", "fail"])] == [1, 1]

    file.with_suffix(".away").rename(file)
    assert called("run", "small", "--recheck").code == called("status", "--recheck", "--fail-on", "fail").code == 0


def test_f51_a_tick_and_the_check_name_a_source_that_cannot_be_looked_at(tmp_path, monkeypatch):
    write_small_project(tmp_path / "project")
    file = fill(tmp_path / "project")
    deployment = deploy(tmp_path, monkeypatch, **FILES, **DECLARED)
    pipeline = deployment.pipeline
    list(pipeline.build_features(pipeline.spec.partitions.calendar.due(NOW)[-2:], stamp_of("run")))
    state, _ = pipeline.conclude(NOW)
    assert state.seen.unread == {}
    file.unlink()
    requests, skipped = look(deployment, "performance", NOW)
    assert (requests, skipped.count("Not looked at: Source 'events' of 'small': ")) == ([], 1)
    plan = make_plan(pipeline.spec, unknown := pipeline.published_state(), PlanRequest(NOW))
    assert _up_to_date(plan, unknown, None).passed is False
