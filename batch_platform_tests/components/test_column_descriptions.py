"""The descriptions of columns flow from the YAML to Dagster, to DuckDB's comments and to those of the published copy."""

import duckdb

from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.deployment import SCORED_FROM, deploy_trained
from batch_platform_tests.harness.small_pipeline import small_pipeline

SHOP = "Where the order was placed; 'online' is a shop, too."
COMMENTS = "SELECT table_name, comment FROM duckdb_columns() WHERE schema_name = 'small' AND column_name = 'shop' AND table_name IN ('predictions', 'rejected_rows')"


def test_a_description_is_shown_by_dagster_and_by_duckdb_and_changes_no_prediction(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch, features={"columns": {"shop": {"description": SHOP}}})
    for asset in ("features", "predictions"):
        assert deployment.run(asset, first=SCORED_FROM).success
        (*_, made) = deployment.materializations(asset)
        schema = made.asset_materialization.metadata["dagster/column_schema"].value
        assert {column.name: column.description for column in schema.columns}["shop"] == SHOP
    with deployment.pipeline.warehouse.open() as con:
        assert con.execute(COMMENTS).fetchall() == [("predictions", SHOP)]
    with duckdb.connect(str(deployment.pipeline.home.published.resolve()), read_only=True) as con:
        assert con.execute(COMMENTS).fetchall() == [("predictions", SHOP)]
    other = small_pipeline(tmp_path, features={"columns": {"shop": {"description": "A shop."}}})
    partition = other.spec.partitions.calendar.named(SCORED_FROM)
    plan = make_plan(other.spec, other.state(), PlanRequest(partition.end, [partition]))
    assert not plan.of("features", "predictions")
