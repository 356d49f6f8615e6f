"""The number of SQL statements of a commit and a publish, by DuckDB's own log of them."""

import pytest

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.sql import in_memory
from batch_platform_tests.faults.invariants import SCORED, STAMP, days, prepared

MOST = 80  # with the status, which a commit writes too; statements that read the state, score and publish a group


@pytest.fixture
def pipeline(tmp_path) -> Pipeline:
    prepared_pipeline = prepared(tmp_path)
    scored(prepared_pipeline, SCORED[:1])  # now two copies are published, as in use
    return prepared_pipeline


def scored(pipeline: Pipeline, keys: list[str]) -> list[str]:
    """The statements that score some partitions again and publish them; their features are there."""
    with in_memory() as con:
        con.execute("CALL enable_logging('QueryLog')")
    list(pipeline.score(days(pipeline, *keys), STAMP, force=True))
    pipeline.publish()
    with in_memory() as con:
        con.execute("CALL disable_logging()")
        logged = con.execute("SELECT message FROM duckdb_logs WHERE type = 'QueryLog' ORDER BY timestamp").fetchall()
        con.execute("CALL truncate_duckdb_logs()")
    statements = [statement for (statement,) in logged]
    assert sum(statement == "COMMIT" for statement in statements) == 1
    return statements[:-1]


def test_a_group_of_ten_partitions_takes_no_statement_more_than_one_partition_which_takes_few(pipeline):
    assert len(SCORED) == 10
    assert len(scored(pipeline, SCORED)) <= len(scored(pipeline, SCORED[:1])) <= MOST
