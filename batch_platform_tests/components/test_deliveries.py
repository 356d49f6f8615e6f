"""Deliveries as Dagster and the commands make them: after the scores, on their own, recorded, retried, and never in their way."""

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from batch_platform.components.jobs import MAKES, job_name
from batch_platform.warehouse.published import open_published
from batch_platform_tests.components.bringing import bring, keys
from batch_platform_tests.harness.deployment import QUIET, Deployment, deploy_trained, range_tags
from batch_platform_tests.harness.ticks import at, look, requested, tick

DAYS = ["2024-02-01", "2024-02-02", "2024-02-03"]


def delivering(*deliveries: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    return {"predictions": {"keep": ["shop"], "deliver": list(deliveries), **overrides}}


def at_receiver(deployment: Deployment, path: str = "out/late") -> list[tuple[Any, ...]]:
    """The delivered rows, each with its partition."""
    query = f"FROM read_parquet('{deployment.pipeline.folder / path}/**/*.parquet', hive_partitioning = true, hive_types_autocast = false)"
    with duckdb.connect() as con:
        return con.sql(f"SELECT partition_key, id, score {query} ORDER BY ALL").fetchall()


def published(deployment: Deployment) -> list[tuple[Any, ...]]:
    with open_published(deployment.pipeline.home) as con:
        return con.sql("SELECT partition_key, id, score FROM small.predictions ORDER BY ALL").fetchall()


def ledger(deployment: Deployment) -> list[tuple[Any, ...]]:
    with open_published(deployment.pipeline.home) as con:
        return con.sql("SELECT partition_key, name, rows, score_seq FROM small.deliveries ORDER BY ALL").fetchall()


def score(deployment: Deployment, first: str, last: str, **config: Any) -> Any:
    """Launch the job of the score schedule over a range, as a tick requests it."""
    return deployment.definitions.resolve_job_def(job_name("small", "score")).execute_in_process(
        instance=deployment.instance,
        asset_selection=deployment.wiring.keys(MAKES["score"]),
        tags=range_tags(first, last),
        run_config={"ops": {"small__predictions": {"config": config}}, "loggers": QUIET},
        raise_on_error=False,
    )


def test_the_job_that_scores_delivers_what_it_committed_and_the_next_run_delivers_nothing(tmp_path, monkeypatch):
    deployment = deploy_trained(
        tmp_path, monkeypatch, **delivering({"parquet": "out/late", "name": "late"}, {"delta": "out/table"})
    )
    run = score(deployment, DAYS[0], DAYS[-1])
    assert run.success
    assert keys(deployment, "delivered_late", run.run_id) == keys(deployment, "delivered_delta", run.run_id) == DAYS
    assert at_receiver(deployment) == published(deployment)
    assert len(at_receiver(deployment)) == 120
    scores = deployment.pipeline.state().scores
    assert ledger(deployment) == [(day, name, 40, scores[day].seq) for day in DAYS for name in ("delta", "late")]
    table = pl.read_delta(str(deployment.pipeline.folder / "out/table"))
    assert table.select("partition_key", "id", "score").sort(pl.all()).rows() == published(deployment)
    before = deployment.pipeline.state().deliveries
    assert bring(deployment, DAYS[0], DAYS[-1]).success
    assert deployment.pipeline.state().deliveries == before


@pytest.mark.full
def test_a_partition_that_is_scored_again_is_delivered_again_and_one_copy_is_there(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch, **delivering({"parquet": "out/late", "name": "late"}))
    assert bring(deployment, DAYS[0], DAYS[-1]).success
    before = deployment.pipeline.state().deliveries
    assert bring(deployment, DAYS[1], DAYS[1], force=True).success
    after = deployment.pipeline.state().deliveries
    changed = {key for (_, key), row in after.items() if row != before["late", key]}
    assert changed == {DAYS[1]}
    assert after["late", DAYS[1]].rows_hash != before["late", DAYS[1]].rows_hash, "the run is another one"
    assert at_receiver(deployment) == published(deployment)


def test_columns_are_chosen_and_renamed_and_other_rows_can_be_delivered(tmp_path, monkeypatch):
    deployment = deploy_trained(
        tmp_path,
        monkeypatch,
        **delivering(
            {"csv": "out/late", "columns": {"score": "risk", "id": "order", "partition_key": "day"}},
            {"parquet": "out/rejected", "of": "rejected_rows"},
            {"delta": "out/challengers", "of": "challengers"},
        ),
    )
    assert score(deployment, DAYS[0], DAYS[0]).success
    folder = deployment.pipeline.folder
    rows = pl.read_csv(folder / "out/late/day=2024-02-01/small.csv")
    assert rows.columns == ["risk", "order"]
    assert sorted(rows.rows()) == sorted((score, id_) for _, id_, score in published(deployment))
    assert pl.read_parquet(folder / "out/rejected/partition_key=2024-02-01/small.parquet").is_empty()
    assert not Path(folder / "out/challengers").exists(), "there is no challenger"
    assert [rows for *_, rows, _ in ledger(deployment)] == [40, 0, 0]


def test_an_unknown_column_is_named_with_the_nearest_one(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch, **delivering({"parquet": "out/late", "columns": ["id", "scor"]}))
    assert not score(deployment, DAYS[0], DAYS[0]).success
    (failure,) = deployment.pipeline.state().failures.values()
    assert failure.reason.startswith("small, partition 2024-02-01: small.predictions has no column 'scor'; it has ")
    assert failure.hint == "did you mean 'score'?"


@pytest.mark.full
def test_a_tick_of_the_schedule_ends_in_deliveries_and_later_ones_deliver_only_what_is_left(tmp_path, monkeypatch):
    deployment = deploy_trained(
        tmp_path,
        monkeypatch,
        known=True,
        **delivering({"parquet": "out/late/file", "name": "late"}, {"csv": "out/other"}),
    )
    in_the_way = deployment.pipeline.folder / "out/late"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    when = at("2024-02-04T05:00")
    made = ("predictions", "delivered_late", "delivered_csv")
    assert requested(deployment, "predictions", when) == [(made, DAYS[0], DAYS[-1])]
    assert tick(deployment, "predictions", when) == [False]
    assert [(day, name) for day, name, *_ in ledger(deployment)] == [(day, "csv") for day in DAYS]
    scores = deployment.pipeline.state().scores
    assert requested(deployment, "predictions", when) == [(made[1:], DAYS[0], DAYS[-1])]
    in_the_way.unlink()
    assert tick(deployment, "predictions", when) == [True]
    assert deployment.pipeline.state().scores == scores
    assert at_receiver(deployment, "out/late/file") == published(deployment)
    assert look(deployment, "predictions", when)[0] == []


def test_a_stored_file_that_was_changed_since_it_was_scored_is_not_delivered(tmp_path, monkeypatch):
    deployment = deploy_trained(
        tmp_path, monkeypatch, **delivering({"parquet": "out/late", "name": "late"}, store="parquet")
    )
    assert score(deployment, DAYS[0], DAYS[-1]).success
    before = at_receiver(deployment)
    (file,) = [path for path in deployment.pipeline.state().records.files if DAYS[1] in str(path)]
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    forced = {"delivered_late": {"force": True}}
    assert not deployment.run("delivered_late", first=DAYS[0], last=DAYS[-1], config=forced).success
    (failure,) = deployment.pipeline.state().failures.values()
    assert (failure.step, failure.partition_key) == ("delivered_late", DAYS[1])
    assert f"small, partition {DAYS[1]}: the file of predictions {file} is damaged" in failure.reason
    assert failure.hint.endswith(f"batch-platform run small --partition {DAYS[1]} --force")
    assert at_receiver(deployment) == before
