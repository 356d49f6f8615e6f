from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import polars as pl
import pytest
from dagster._core.definitions.data_version import StaleStatus

from batch_platform.components import checks, scoring
from batch_platform.components.batch_inference import build_definitions
from batch_platform.components.wiring import Wiring, clear_failures
from batch_platform.declaration.errors import DataError, WarehouseBusyError
from batch_platform.kernels.forest import arrays, compiled
from batch_platform.models import bundle
from batch_platform.scoring.run import Committed
from batch_platform_tests.harness.deployment import QUIET, Deployment, deploy, deploy_trained, range_tags
from batch_platform_tests.harness.events import evaluations, failure, partitions_of, status, upstream, value
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, LABELS_SQL, feature_file, small_events
from batch_platform_tests.harness.workspace import workspace

RULE = {"performance": {"warn_below": 0.6}}
THREE_WEEKS = {"start": "2024-01-17", "end": "2024-02-07"}  # enough for a model from the end of January on


@pytest.fixture
def trained(tmp_path, monkeypatch):
    return deploy_trained(tmp_path, monkeypatch)


def specs(deployment: Deployment) -> dict[str, dg.AssetSpec]:
    return {spec.key.path[1]: spec for spec in deployment.definitions.resolve_all_asset_specs()}


def published(deployment: Deployment, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(deployment.pipeline.home.published.resolve()), read_only=True) as con:
        return con.execute(query).fetchall()


def test_assets_say_what_they_are(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, owners=["team:shop", "a@example.com"], monitoring=RULE)
    declared = specs(deployment)
    kinds = {name: spec.kinds for name, spec in declared.items()}
    assert kinds == {
        "events": {"parquet"},
        "features": {"duckdb", "parquet"},
        "model": {"scikitlearn"},
        "predictions": {"duckdb", "table"},
        "performance": {"duckdb", "table"},
    }
    assert {spec.key.path[0] for spec in declared.values()} == {"small"}
    assert {spec.group_name for spec in declared.values()} == {"small"}
    assert all(list(spec.owners) == ["team:shop", "a@example.com"] for spec in declared.values())
    assert all(len(spec.description or "") > 60 for spec in declared.values())
    assert all(spec.code_version for name, spec in declared.items() if name != "events")
    assert "WHERE ts >= $partition_start" in declared["features"].description
    assert declared["predictions"].metadata["dagster/table_name"] == "small.predictions"
    assert declared["performance"].metadata["dagster/table_name"] == "small.performance"
    assert declared["features"].metadata["batch_platform/features_of"] == "small"
    assert Wiring.of(declared["features"]).spec == deployment.pipeline.spec
    assert Wiring.of(declared["predictions"]) is None
    names = {key.name: key.asset_key.path[1] for key in deployment.definitions.resolve_asset_graph().asset_check_keys}
    assert names == {
        "rows_balance": "predictions",
        "rejected_share": "predictions",
        "score_distribution": "predictions",
        "volume": "predictions",
        "feature_rows": "predictions",
        "champion_age": "predictions",
        "up_to_date": "predictions",
        "gate": "model",
        "no_suspected_leaks": "model",
        "performance": "performance",
        "concept_drift": "performance",
    }


def test_code_versions_change_with_the_code_that_they_stand_for(tmp_path, monkeypatch):
    def versions(name: str, **overrides: Any) -> dict[str, str | None]:
        declared = specs(deploy(tmp_path / name, monkeypatch, **overrides))
        return {asset: spec.code_version for asset, spec in declared.items()}

    def changed(name: str, **overrides: Any) -> set[str]:
        return {asset for asset, version in versions(name, **overrides).items() if version != before[asset]}

    before = versions("before")
    sql = "SELECT id, ts, amount FROM events WHERE ts >= $partition_start AND ts < $partition_end"
    assert changed("sql", features_sql=sql) == {"features", "model"}
    assert changed("params", model={"params": {"max_iter": 6}}) == {"model"}
    assert changed("kept", predictions={"keep": []}) == {"predictions"}
    assert changed("labels", labels_sql="SELECT id, returned FROM events WHERE returned IS NOT NULL") == {
        "model",
        "performance",
    }
    assert changed("cron", model={"train": {"schedule": "0 0 * * *"}}, predictions={"schedule": "0 1 * * *"}) == set()


def test_dependencies_are_those_of_the_sql(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, sources={"unread": {"csv": "unread.csv"}}, features_sql=WITH_CASE)
    graph = deployment.definitions.resolve_asset_graph()
    parents = {
        key.path[1]: {parent.path[1] for parent in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()
    }
    assert parents == {
        "events": set(),
        "unread": set(),
        "features": {"events"},
        "model": {"features", "events"},
        "predictions": {"features", "model"},
        "performance": {"predictions", "events"},
    }


WITH_CASE = """\
WITH day AS (SELECT * FROM "Events" WHERE ts >= $partition_start AND ts < $partition_end)
SELECT id, ts, amount, items, shop, known FROM day
"""


def test_predictions_and_performance_begin_with_the_first_serving_period_and_features_before_it(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch)
    keys = {
        name: spec.partitions_def.get_partition_keys() for name, spec in specs(deployment).items() if name != "events"
    }
    assert keys == {
        "features": deployment.days("2024-01-01", "2024-02-29"),
        "model": ["2024-02-01"],
        "predictions": deployment.days("2024-02-01", "2024-02-29"),
        "performance": deployment.days("2024-02-01", "2024-02-29"),
    }
    graph = deployment.definitions.resolve_asset_graph()
    features, predictions = (graph.get(deployment.key(asset)) for asset in ("features", "predictions"))
    mapping = graph.get_partition_mapping(predictions.key, features.key)
    days = features.partitions_def.subset_with_partition_keys(["2024-01-31", "2024-02-01"])
    downstream = mapping.get_downstream_partitions_for_partitions(
        days, features.partitions_def, predictions.partitions_def
    )
    assert list(downstream.get_partition_keys()) == ["2024-02-01"]
    single = deploy(tmp_path / "single", monkeypatch, model={"train": {"every": None}})
    assert specs(single)["predictions"].partitions_def == specs(single)["features"].partitions_def


def test_a_model_learns_from_the_history_before_its_period(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch)
    assert upstream(deployment, "model", "features", "2024-02-01") == deployment.days("2024-01-01", "2024-01-31")


@pytest.mark.full
def test_a_range_logs_each_partition_once_with_its_own_facts(trained):
    days = trained.days("2024-02-01", "2024-02-10")
    result = trained.run("features", "predictions", first=days[0], last=days[-1])
    assert result.success
    features, predictions = trained.materializations("features"), trained.materializations("predictions")
    assert partitions_of(features) == partitions_of(predictions) == days
    assert len({entry.tags["dagster/data_version"] for entry in features}) == len(days)
    assert len({entry.tags["dagster/data_version"] for entry in predictions}) == len(days)
    for entry in (features[0], features[-1]):
        schema = value(entry, "dagster/column_schema")
        assert {column.name: column.type for column in schema.columns}["shop"] in ("string", "large_string")
    for entry in features:
        assert value(entry, "dagster/partition_row_count") == 40
        shows_columns = "dagster/column_schema" in entry.asset_materialization.metadata
        assert shows_columns == (entry in (features[0], features[-1])), "columns that do not change are not repeated"
        assert pl.read_parquet(value(entry, "dagster/uri")).height == 40
    for entry in predictions:
        assert (
            value(entry, "rows_in") == value(entry, "dagster/partition_row_count") + value(entry, "rows_rejected") == 40
        )
        assert value(entry, "model_version").startswith("2024-02-01-")
        assert value(entry, "rows_per_second") > 0
        assert value(entry, "peak_memory_mib") > 1
        shares = [value(entry, f"share_of_time_in_{name}") for name in ("read", "score", "commit")]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert "| rows/s | peak memory | time to read | time to score | time to commit |" in value(entry, "speed")
    balances = evaluations(trained, "predictions", "rows_balance")
    assert set(balances) == {f"{days[0]}...{days[-1]}", None}, "partitions that pass share a result"
    numbers = balances[f"{days[0]}...{days[-1]}"].metadata["numbers"].value
    assert {day: numbers[day]["rows_in"] for day in days} == dict.fromkeys(days, 40)
    assert balances[None].metadata["balance"].value == "400 rows in = 400 scored + 0 rejected"
    assert all(balance.passed for balance in balances.values())
    assert published(trained, "SELECT count(*), count(DISTINCT partition_key) FROM small.predictions") == [(400, 10)]
    assert published(trained, "SELECT bool_and(committed_at > started_at) FROM batch_platform.score_runs") == [(True,)]


@pytest.mark.full
def test_after_a_run_nothing_is_out_of_date_and_after_a_change_whatever_depends_on_it_is(trained):
    days = trained.days("2024-02-01", "2024-02-03")
    assert trained.run("model", first="2024-02-01").success
    assert trained.run("features", "predictions", first=days[0], last=days[-1]).success
    assert trained.run("performance", first=days[0], last=days[-1]).success
    assert trained.run("events").success
    assert {status(trained, asset, day) for asset in PARTITIONED for day in days} == {StaleStatus.FRESH}
    other = small_events().with_columns(pl.col("amount") + 1)
    other.write_parquet(trained.pipeline.folder / "events.parquet")
    assert trained.run("features", first=days[1], config={"features": {"force": True}}).success
    assert status(trained, "features", days[1]) == StaleStatus.FRESH
    assert status(trained, "predictions", days[1]) == StaleStatus.STALE
    assert status(trained, "predictions", days[2]) == StaleStatus.FRESH


PARTITIONED = ("features", "predictions", "performance")


@pytest.mark.full
def test_scores_of_a_model_that_cannot_be_compiled_here_say_so(trained, tmp_path, monkeypatch):
    assert trained.run("features", "predictions", first="2024-02-01").success
    flatten = arrays.flatten

    def wrong(ensemble):
        flat = flatten(ensemble)
        flat.trees.value[:] = np.nextafter(flat.trees.value, 2)
        return flat

    monkeypatch.setattr(arrays, "flatten", wrong)
    monkeypatch.setattr(bundle, "WORTH_COMPILING", 1)
    monkeypatch.setattr(compiled, "MOST_VISITS", 0)
    again = deploy(tmp_path, monkeypatch)  # as another process, which has loaded no model yet
    assert again.run("features", "predictions", first="2024-02-02").success
    as_ever, native = again.materializations("predictions")
    assert "engine" not in as_ever.asset_materialization.metadata
    assert value(native, "engine").startswith("local; not compiled, since on this machine the compiled form differs")
    assert again.pipeline.state().scores["2024-02-02"].engine == value(native, "engine")


@pytest.mark.parametrize(("rows_rejected", "goes_on"), [(1, True), (0, False)])
def test_a_row_that_is_neither_scored_nor_rejected_stops_what_depends_on_it(trained, rows_rejected, goes_on):
    trained.score("2024-02-01", "2024-02-01")
    run = replace(
        trained.pipeline.state().scores["2024-02-01"], rows_in=40, rows_scored=39, rows_rejected=rows_rejected
    )
    committed = Committed(trained.wiring.named(["2024-02-01"])[0], run, skipped=False)
    key = dg.AssetKey("scores")

    @dg.asset(key=key, check_specs=[checks.ROWS_BALANCE.spec(key)])
    def scores() -> dg.MaterializeResult:
        return dg.MaterializeResult(check_results=[checks.ROWS_BALANCE.result([committed], key)])

    @dg.asset(deps=[scores])
    def emails() -> None: ...

    result = dg.materialize([scores, emails], instance=trained.instance, raise_on_error=False)
    assert result.success is goes_on
    assert bool(result.asset_materializations_for_node("emails")) is goes_on


def test_a_model_is_logged_with_its_gate(trained):
    assert trained.run("model", first="2024-02-01", config={"model": {"params": {"max_iter": 3}}}).success
    (logged,) = trained.materializations("model")
    assert value(logged, "decision").startswith("approved")
    assert "| max_iter | 3 |" in value(logged, "params")
    assert "| max_leaf_nodes | 7 |" in value(logged, "params")
    gates = evaluations(trained, "model", "gate")
    assert gates["2024-02-01"].passed
    assert gates[None].passed
    assert gates["2024-02-01"].metadata["version"].value == value(logged, "version")


def test_a_refused_model_is_a_warning_and_not_a_failure(tmp_path, monkeypatch):
    demanding = {"promote": {"metric": "roc_auc", "at_least": 1.1}}
    trained = deploy_trained(tmp_path, monkeypatch, model=demanding)
    champion = trained.pipeline.state().registry.versions[0].version
    assert trained.run("model", first="2024-02-01").success
    gate = evaluations(trained, "model", "gate")["2024-02-01"]
    assert not gate.passed
    assert gate.severity == dg.AssetCheckSeverity.WARN
    assert "roc_auc" in gate.metadata["reason"].value
    assert trained.run("features", "predictions", first="2024-02-01").success
    assert value(trained.materializations("predictions")[0], "model_version") == champion


@pytest.mark.full
def test_one_model_for_all_learns_from_all_that_is_known_unless_the_run_scores_earlier_partitions(
    tmp_path, monkeypatch
):
    deployment = deploy(tmp_path, monkeypatch, model={"train": {"every": None}}, partitions=THREE_WEEKS)
    assert "batch-platform train small --period 2024-02-06 builds them first" in failure(deployment.run("model"))
    assert deployment.run("features", first="2024-01-17", last="2024-02-06").success
    assert deployment.run("model", "predictions", first="2024-02-05", last="2024-02-06").success
    assert deployment.run("model", "predictions", first="2024-02-03").success
    state = deployment.pipeline.state()
    assert [version.serving_period for version in state.registry.versions] == ["2024-02-05", "2024-02-03"]
    assert sorted(state.scores) == ["2024-02-03", "2024-02-05", "2024-02-06"]
    assert not any(run.in_sample for run in state.scores.values())
    refused = deployment.run("predictions", first="2024-02-01")
    assert "no model serves it; the earliest approved version" in failure(refused)


def test_performance_warns_of_partitions_below_the_rule(tmp_path, monkeypatch):
    trained = deploy_trained(tmp_path, monkeypatch, monitoring={"performance": {"warn_below": 1.1}})
    trained.score("2024-02-01", "2024-02-03")
    days = trained.days("2024-02-01", "2024-02-03")
    assert trained.run("performance", first=days[0], last=days[-1]).success
    logged = trained.materializations("performance")
    assert partitions_of(logged) == days
    assert all(0.5 < value(entry, "roc_auc") <= 1 for entry in logged)
    results = evaluations(trained, "performance", "performance")
    assert set(results) == {*days, None}
    assert not any(evaluation.passed for evaluation in results.values())
    assert results[days[0]].severity == dg.AssetCheckSeverity.WARN
    assert results[days[0]].metadata["roc_auc"].value == value(logged[0], "roc_auc")
    assert days[2] in results[None].metadata["the_worst"].value


def test_features_that_fail_do_not_hold_up_the_features_and_predictions_of_other_partitions(tmp_path, monkeypatch):
    broken = FEATURES_SQL.replace("items", "CASE WHEN id = 1300 THEN error('broken') ELSE items END AS items")
    trained = deploy_trained(tmp_path, monkeypatch, features_sql=broken)
    result = trained.run("features", "predictions", first="2024-02-01", last="2024-02-05")
    assert failure(result).startswith("small, partition 2024-02-02: the SQL of ")
    assert failure(result).splitlines()[0].count("The other 4 partitions of this run succeeded.") == 1
    done = ["2024-02-01", "2024-02-03", "2024-02-04", "2024-02-05"]
    for asset in ("features", "predictions"):
        assert partitions_of(trained.materializations(asset, result.run_id)) == done
    status = "SELECT partition_key, run_id FROM small.failures"
    assert published(trained, status) == [("2024-02-02", result.run_id)]


def test_f42_performance_of_labels_that_are_not_mature_waits_whichever_run_asks(tmp_path, monkeypatch):
    trained = deploy_trained(tmp_path, monkeypatch, labels={"delay": "9000 days"})
    days = trained.days("2024-02-01", "2024-02-02")
    trained.score(days[0], days[-1])
    tags = range_tags(days[0], days[-1])
    assert trained.run("performance", first=days[0]).success
    assert trained.run("performance", first=days[0], last=days[-1]).success
    for job in ("small_evaluate", "small_bring_up_to_date"):
        defined = trained.definitions.resolve_job_def(job)
        assert defined.execute_in_process(instance=trained.instance, tags=tags, run_config={"loggers": QUIET}).success
    assert trained.materializations("performance") == []
    assert trained.pipeline.state().evaluations == {}
    waits = [entry.asset_observation.metadata["waits"].value for entry in trained.observations("performance")]
    assert len(waits) == 5, "of the partition, of the range twice"
    assert waits[0] == "its labels are not known before 2048-09-22 22:00 UTC"


SHOWN = """
query ($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key) {... on AssetNode {assetPartitionStatuses {
  ... on TimePartitionStatuses {ranges {status startKey endKey}}
}}}}"""
CHECKED = """
query ($key: AssetKeyInput!) {assetCheckExecutions(assetKey: $key, checkName: "performance", limit: 100) {status partition}}"""


@pytest.mark.full
@pytest.mark.parametrize("job", ["small_evaluate", "small_bring_up_to_date"])
def test_f42_days_whose_labels_are_not_mature_are_not_shown_as_failed_where_another_day_fails(
    tmp_path, monkeypatch, job
):
    broken = LABELS_SQL + "AND (id <> 1250 OR error(id::VARCHAR) IS NULL)"  # an order of 1 February
    deployment = deploy(tmp_path, monkeypatch, labels_sql=broken, monitoring={"performance": {"warn_below": 0.1}})
    deployment.train()
    deployment.score("2024-02-01", "2024-02-04")
    monkeypatch.setattr(scoring, "now", lambda: datetime(2024, 2, 3, 12, tzinfo=UTC))
    defined, tags = deployment.definitions.resolve_job_def(job), range_tags("2024-02-01", "2024-02-04")
    options: dict[str, Any] = {"run_config": {"loggers": QUIET}, "tags": tags, "raise_on_error": False}
    assert not defined.execute_in_process(instance=deployment.instance, **options).success
    key = {"path": ["small", "performance"]}
    with workspace(deployment) as location:
        ranges = location.ask(SHOWN, key=key)["assetPartitionStatuses"]["ranges"]
        checked = [(it["status"], it["partition"]) for it in location.ask(CHECKED, key=key)]
    assert ranges == [{"status": "FAILED", "startKey": "2024-02-01", "endKey": "2024-02-01"}]
    assert checked == [("EXECUTION_FAILED", "2024-02-01")]


def test_only_a_busy_warehouse_allows_a_retry():
    with pytest.raises(dg.Failure) as busy, clear_failures():
        raise WarehouseBusyError("held", hint="wait")
    with pytest.raises(dg.Failure) as wrong, clear_failures():
        raise DataError("wrong")
    assert (busy.value.allow_retries, wrong.value.allow_retries) == (True, False)
    assert busy.value.description == "held Hint: wait"


def test_users_assets_read_through_the_warehouse_resource(trained):
    trained.score("2024-02-01", "2024-02-01")
    trained.pipeline.publish()
    counts: list[int] = []

    @dg.asset(required_resource_keys={"batch_platform_warehouse"})
    def summary(context: dg.AssetExecutionContext) -> None:
        warehouse = context.resources.batch_platform_warehouse
        with warehouse.published() as con:
            counts.extend(con.execute("SELECT count(*) FROM small.predictions").fetchone())
        with warehouse.get_connection() as con:
            counts.extend(con.execute("SELECT count(*) FROM small.predictions").fetchone())

    together = dg.Definitions.merge(
        build_definitions(trained.pipeline.spec, trained.pipeline.folder), dg.Definitions(assets=[summary])
    )
    job = together.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=trained.instance, asset_selection=[summary.key]).success
    assert counts == [40, 40]


@pytest.mark.full
def test_a_serving_period_whose_training_fails_does_not_hold_up_the_next(tmp_path, monkeypatch):
    deployment = deploy(
        tmp_path, monkeypatch, model={"train": {"every": "week", "start": "2024-01-07", "evaluate": "1 day"}}
    )
    assert deployment.run("features", first="2024-01-01", last="2024-01-28").success
    feature_file(deployment.pipeline, "2024-01-10").write_bytes(b"damaged")
    result = deployment.run("model", first="2024-01-07", last="2024-01-28")
    message = failure(result)
    assert (
        "serving period 2024-01-14: the model is not trained, since the features of 2024-01-10 are missing" in message
    )
    assert (
        "2 more serving periods failed the same way: 2024-01-21, 2024-01-28. The other 1 serving period of" in message
    )
    assert partitions_of(deployment.materializations("model", result.run_id)) == ["2024-01-07"]
