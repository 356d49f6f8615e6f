"""From PostgreSQL and a store through a schedule back to PostgreSQL and a Delta table, with every row accounted for."""

import os
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import pytest
from deltalake import DeltaTable

from batch_platform.delivery.known import SINKS
from batch_platform.warehouse.published import open_published
from batch_platform_tests.delivery.conftest import QUOTED, SECRET
from batch_platform_tests.delivery.receivers import POSTGRESQL, execute
from batch_platform_tests.harness.deployment import Deployment, deploy
from batch_platform_tests.harness.object_store import BUCKET, bytes_of
from batch_platform_tests.harness.postgres_server import Server
from batch_platform_tests.harness.small_pipeline import SHOPS, small_events
from batch_platform_tests.harness.ticks import at, look, tick

FEATURES = """
SELECT id, ts, amount, items, shop, known, floor_space FROM events JOIN shops USING (shop)
WHERE ts >= $partition_start AND ts < $partition_end
"""


def served(server: Server, store: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The small pipeline with orders in PostgreSQL and shops in a store, delivered to a Delta table and back."""
    store.files.pipe(
        {f"{BUCKET}/shops.parquet": bytes_of(pl.DataFrame({"shop": SHOPS, "floor_space": [*range(6)]}).write_parquet)}
    )
    rules = Path(execute("SELECT current_setting('hba_file')").item())
    rules.write_text(f"host all clerk 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    execute(f"CREATE ROLE clerk LOGIN PASSWORD '{SECRET}'", "SELECT pg_reload_conf()")
    execute("GRANT CREATE, USAGE ON SCHEMA public TO clerk")
    with closing(adbc.connect(os.environ[POSTGRESQL])) as con, closing(con.cursor()) as cursor:
        cursor.adbc_ingest("events", small_events().to_arrow(compat_level=pl.CompatLevel.oldest()))
        con.commit()
    execute("GRANT SELECT ON events TO clerk")
    uri = server.address.replace("+psycopg2://dagster@", f"://clerk:{QUOTED}@")
    return deploy(
        folder,
        monkeypatch,
        features_sql=FEATURES,
        sources={
            "events": {"parquet": None, "sql": {"uri": uri, "table": "events"}},
            "shops": {"parquet": f"s3://{BUCKET}/shops.parquet"},
        },
        predictions={
            "deliver": [
                {"delta": "out/table", "name": "archive"},
                {"sql": {"uri": uri, "table": "late"}, "name": "shop"},
            ]
        },
    )


@pytest.mark.full
def test_a_schedule_reads_and_delivers_through_a_database_that_is_killed_and_every_row_arrives_once(
    postgresql, store, tmp_path, monkeypatch
):
    deployment = served(postgresql, store, tmp_path, monkeypatch)
    deployment.train()
    delta, killed = SINKS["delta"], list[str]()

    def killing(target: Any, rows: Any) -> None:
        if not killed:
            postgresql.stop(signal.SIGKILL)
        killed.append(target.partition_key)
        delta.replace(target, rows)

    monkeypatch.setitem(SINKS, "delta", replace(delta, replace=killing))
    when = at("2024-02-06T05:00")
    assert tick(deployment, "predictions", when) == [False]
    days = [f"2024-02-0{day}" for day in range(1, 6)]
    assert killed == days
    state = deployment.pipeline.state()
    assert sorted(state.scores) == days
    assert [(failure.step, failure.partition_key) for failure in state.failures.values()] == [
        ("delivered_shop", day) for day in days
    ]
    postgresql.start()
    assert tick(deployment, "predictions", when) == [True]
    assert look(deployment, "predictions", when)[0] == []
    assert deployment.pipeline.state().scores == state.scores
    assert not deployment.pipeline.state().failures

    orders = small_events().filter(
        pl.col("ts").is_between(at("2024-02-01T00:00"), at("2024-02-06T00:00"), closed="left")
    )
    with open_published(deployment.pipeline.home) as con:
        published = con.sql("SELECT partition_key, id, score FROM small.predictions ORDER BY ALL").fetchall()
    assert [id_ for _, id_, _ in published] == orders["id"].to_list()
    assert execute("SELECT partition_key, id, score FROM late ORDER BY 1, 2").rows() == published
    table = pl.DataFrame(DeltaTable(deployment.pipeline.folder / "out/table").scan().read_all())
    assert table.select("partition_key", "id", "score").sort(pl.all()).rows() == published
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        content = file.read_bytes()
        assert SECRET.encode() not in content, file
        assert QUOTED.encode() not in content, file
