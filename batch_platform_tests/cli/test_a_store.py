"""A pipeline over objects in a store, from its proposal to a replaced object, a dead server and what goes on after it."""

import io
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml

from batch_platform_tests.harness.command_line import Answer
from batch_platform_tests.harness.object_store import BUCKET, SECRET, ObjectStore, object_store
from batch_platform_tests.proposal.proposals import DAYS, START, orders

pytestmark = pytest.mark.usefixtures("few_trees")
TABLE = orders()
CORRECTED = START + timedelta(days=DAYS - 3)


def fill(store: ObjectStore, *, corrected: bool = False) -> None:
    """Put the orders of each day into an object of its own, those of one day perhaps corrected."""
    for at in range(DAYS):
        day = (START + timedelta(days=at)).date()
        rows = TABLE.filter(pl.col("at").dt.date() == day)
        if corrected and day == CORRECTED.date():
            rows = rows.with_columns(pl.col("amount") * 2)
        file = io.BytesIO()
        rows.write_parquet(file)
        store.files.pipe(f"{BUCKET}/orders/{day}.parquet", file.getvalue())


def holds_the_secret(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


@pytest.mark.full
def test_a_pipeline_over_a_store_is_proposed_runs_sees_a_replaced_object_and_survives_a_dead_server(
    cli, tmp_path, monkeypatch
):
    key = str(CORRECTED.date())
    with object_store() as store:
        fill(store)
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)

        def called(*arguments: str) -> Answer:
            return cli(tmp_path, *arguments)

        proposed = called("new", "orders", "--from", f"s3://{BUCKET}/orders/*.parquet", "--label", "returned", "--yes")
        assert proposed.code == 0, proposed.err
        (declared,) = tmp_path.rglob("defs.yaml")
        sources = yaml.safe_load(declared.read_text(encoding="utf-8"))["attributes"]["sources"]
        assert sources == {"orders": {"parquet": f"s3://{BUCKET}/orders/{{partition_key}}.parquet"}}
        assert called("check").code == 0
        assert called("run", "orders").code == 0
        assert "stale" not in called("status", "orders").out

        fill(store, corrected=True)
        assert f"{key}: stale, a source file changed" in called("status", "orders").out
        store.kill()
        failed = called("run", "orders")
        assert failed.code == 1
        assert "(sources.orders.parquet): s3://lake/orders/" in failed.error
        assert "Could not connect to the endpoint" in failed.error
        assert "what it reads of source 'orders' cannot be looked up now" in called("status", "orders").out

        store.start()
        fill(store, corrected=True)
        went_on = called("run", "orders")
        assert (went_on.code, f"build features of 1 partition ({key})" in went_on.out) == (0, True)
        assert "stale" not in called("status", "orders").out
    assert not holds_the_secret(tmp_path)
