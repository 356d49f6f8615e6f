"""Column lineage as Dagster keeps it: on the definitions what the SQL tells, on a run's newest partition the rest."""

import sys

import dagster as dg

from batch_platform.components.lineage import CODE, LINEAGE, READABLE
from batch_platform_tests.harness.deployment import Deployment, deploy

STARRED = "SELECT * EXCLUDE (returned) FROM events WHERE ts >= $partition_start AND ts < $partition_end"
FUNCTION = """\
import polars as pl

def features(events, partition):
    return events.filter(pl.col("ts").is_between(partition.start, partition.end, closed="left")).drop("returned")
"""


def defined(deployment: Deployment, asset: str) -> dict[str, dg.MetadataValue]:
    specs = {spec.key: spec for spec in deployment.definitions.resolve_all_asset_specs()}
    return dict(specs[deployment.key(asset)].metadata)


def deps(value: object) -> dict[str, set[str]]:
    assert isinstance(value, dg.TableColumnLineage | dg.TableColumnLineageMetadataValue)
    lineage = value if isinstance(value, dg.TableColumnLineage) else value.column_lineage
    return {
        column: {f"{dep.asset_key.to_user_string()}.{dep.column_name}" for dep in reads}
        for column, reads in lineage.deps_by_column.items()
    }


def readable(metadata: dict[str, dg.MetadataValue]) -> str:
    return str(metadata[READABLE].value)


def logged(deployment: Deployment, asset: str) -> dict[str, dict[str, dg.MetadataValue]]:
    """The metadata of the materializations of an asset, by partition."""
    entries = deployment.materializations(asset)
    by_partition = {entry.asset_materialization.partition: entry.asset_materialization.metadata for entry in entries}
    return {key: dict(metadata) for key, metadata in by_partition.items()}


def test_the_definitions_say_where_the_columns_of_every_table_come_from(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch)
    features, predictions = defined(deployment, "features"), defined(deployment, "predictions")
    performance = defined(deployment, "performance")
    assert deps(features[LINEAGE])["amount"] == {"small/events.amount"}
    assert deps(predictions[LINEAGE]) == {
        "id": {"small/features.id"},
        "ts": {"small/features.ts"},
        "shop": {"small/features.shop"},
        "prediction": {f"small/features.{name}" for name in ("amount", "items", "shop", "known")},
    }
    assert deps(performance[LINEAGE]) == {
        "value": {"small/predictions.prediction", "small/events.returned"},
        "rows_labelled": {"small/events.returned"},
    }
    assert "| `amount` | `events`: `amount` unchanged |" in readable(features)
    assert "Filters, joins and groups select the rows by `events`: `ts`." in readable(features)
    assert "| `prediction` | all 4 columns that the model reads:" in readable(predictions)
    assert "`returned` by `labels.sql`, from `events`: `returned` unchanged" in readable(performance)


def test_definitions_link_to_the_source_code(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch)
    linked = {
        asset: [reference.file_path for reference in value.code_references]
        for asset in ("events", "features", "model", "predictions", "performance")
        if (value := defined(deployment, asset).get(CODE)) is not None
    }
    folder = deployment.pipeline.folder
    labels = [str(folder / "labels.sql")]
    assert linked == {"features": [str(folder / "features.sql")], "model": labels, "performance": labels}


def test_the_columns_of_a_star_are_unknown_until_a_run_looks_them_up_in_the_sources(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, features_sql=STARRED)
    before = defined(deployment, "features")
    assert LINEAGE not in before
    assert "The SQL does not show the other columns" in readable(before)
    assert LINEAGE not in defined(deployment, "predictions")
    assert deployment.run("features", first="2024-01-01", last="2024-01-03").success
    metadata = logged(deployment, "features")
    assert [LINEAGE in metadata[key] for key in sorted(metadata)] == [False, False, True]
    newest = metadata["2024-01-03"]
    assert deps(newest[LINEAGE]) == {
        name: {f"small/events.{name}"} for name in ("id", "ts", "amount", "items", "shop", "known")
    }
    assert "| `shop` | `events`: `shop` unchanged |" in readable(newest)


def test_the_lineage_of_features_made_by_a_function_is_unknown_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "made_by_hand.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    deployment = deploy(tmp_path, monkeypatch, features={"sql": None, "python": "made_by_hand.features"})
    metadata = defined(deployment, "features")
    assert LINEAGE not in metadata
    assert "The origin of the columns is unknown: the features are made by made_by_hand.features" in readable(metadata)
    (reference,) = metadata[CODE].code_references
    assert (reference.file_path, reference.line_number) == (str(tmp_path / "made_by_hand.py"), 3)
    assert deployment.run("features", first="2024-01-01").success
    assert LINEAGE not in logged(deployment, "features")["2024-01-01"]
    sys.modules.pop("made_by_hand")
