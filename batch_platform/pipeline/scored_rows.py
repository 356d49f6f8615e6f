"""The rows of a scored partition, read back: its predictions, the features that they were made from, and its segments."""

from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, listed
from batch_platform.declaration.predictions import DECISION
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.history import History
from batch_platform.features.row_checks import with_keys_of
from batch_platform.models.bundle import read_manifest
from batch_platform.models.contract import Contract
from batch_platform.models.registry import Version
from batch_platform.monitoring.measures.challengers import SCORES
from batch_platform.monitoring.outcomes import HIGH, LOW, UnitRule, prediction_columns
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun
from batch_platform.warehouse.sql import folded, quoted, table_columns
from batch_platform.warehouse.tables_in_files import PREDICTIONS, require_undamaged


def require_key(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, table: str, partition_keys: Sequence[str]) -> None:
    """Refuse rows of partitions that are stored under another key than the declared one, since a column of the key was renamed.

    Raises:
        DataError: A column of the key is missing, or holds nothing in these partitions.
    """
    of_table, where = f"{quoted(spec.name)}.{quoted(table)}", "partition_key IN $keys"
    stored = {folded(column) for column in con.table(of_table).columns}  # quicker than the catalog; asked per partition
    missing = [name for name in spec.features.key if folded(name) not in stored]
    if not missing:
        empty = " OR ".join(f"{quoted(name)} IS NULL" for name in spec.features.key)
        where += f" AND ({empty})"
    query = f"SELECT DISTINCT partition_key FROM {of_table} WHERE {where} ORDER BY ALL"
    if keys := [str(key) for (key,) in con.execute(query, {"keys": list(partition_keys)}).fetchall()]:
        msg = f"{spec.name}, partition {listed(keys)}: its rows in {table} are stored under another key than {listed(spec.features.key)}."
        hint = f"score them again: batch-platform run {spec.name} --from {keys[0]} --to {keys[-1]}"
        raise DataError(msg, hint=hint)


def committed_predictions(
    con: duckdb.DuckDBPyConnection,
    spec: PipelineSpec,
    partition: Partition,
    model: Version,
    challenger: str | None = None,
) -> pl.DataFrame:
    """The published predictions of a partition, or scores of a challenger: the key, the model's columns, and what stands beside them.

    That is the ends of intervals and the decision, where they are stored.

    Raises:
        DataError: The rows are stored under another key than the declared one.
        DamagedRowsError: A file with these rows is not as it was published.
    """
    table = SCORES if challenger else PREDICTIONS.view
    stored = {name for name, _ in table_columns(con, spec.name, table)}
    beside = [name for name in (LOW, HIGH, DECISION) if name in stored]
    columns = dict.fromkeys([*spec.features.key, *prediction_columns(model.task, model.class_labels), *beside])
    values = {"partition_key": partition.key} | ({"challenger": challenger} if challenger else {})
    conditions = " AND ".join(f"{name} = ${name}" for name in values)
    require_undamaged(con, spec.name, [partition.key], table)
    require_key(con, spec, table, [partition.key])
    query = f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(spec.name)}.{table} WHERE {conditions}"
    return con.sql(query, params=values).pl()


def encoded_features(
    history: History, build: FeatureBuild, partition: Partition, predictions: pl.DataFrame, contract: Contract
) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """The rows of a build that have a prediction and keep a contract, and the same rows encoded [n, columns].

    Raises:
        IntegrityError: The feature file is not the one recorded.
    """
    features = history.features(build)
    predictions = with_keys_of(features, history.spec, partition, predictions, what="predictions")
    joined = features.join(predictions, on=history.spec.features.key, how="inner", maintain_order="left")
    kept = contract.split(joined).kept
    return kept, contract.encode(kept)


def features_as_scored(  # noqa: PLR0913 - the rows, and what they were scored from
    history: History,
    builds: Mapping[str, FeatureBuild],
    partition: Partition,
    run: ScoreRun,
    model: Version,
    predictions: pl.DataFrame,
) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """The features that a partition was scored with, and the same rows encoded by the contract of a model [n, columns].

    Raises:
        DataError: The features were built again after the partition was scored.
        IntegrityError: The feature file or the manifest is not the one recorded.
    """
    (build,) = history.require(builds, partition)
    if build.sha256 != run.input_hash:
        msg = f"{run.pipeline}, partition {partition.key}: its features changed after it was scored."
        raise DataError(msg, hint=f"score it again: batch-platform run {run.pipeline} --partition {partition.key}")
    manifest = read_manifest(history.home.bundle(run.pipeline, model.version), model.sha256)
    contract = Contract.from_json(manifest.contract).under(history.spec.features.columns)
    return encoded_features(history, build, partition, predictions, contract)


def segments_of(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, partition: Partition) -> pl.DataFrame | None:
    """The key of each published row of a partition, and its columns of segments and of units; None if it has none."""
    stored = {name for name, _ in table_columns(con, spec.name, PREDICTIONS.view)}
    of_units = [name for name in UnitRule.of(spec).columns if name not in spec.features.key]
    columns = [name for name in [*spec.monitoring.segments, *of_units] if name in stored]
    if not columns:
        return None
    wanted = ", ".join(map(quoted, dict.fromkeys([*spec.features.key, *columns])))
    query = f"SELECT {wanted} FROM {quoted(spec.name)}.{PREDICTIONS.view} WHERE partition_key = $key"
    return con.sql(query, params={"key": partition.key}).pl()
