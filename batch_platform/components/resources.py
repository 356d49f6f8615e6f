"""The resources for users' own assets: the warehouse, and an IO manager with a pipeline's tables in, their own tables out.

Inputs come from the readers' copy, so that they can be read while runs write. Outputs are streamed to a file first and
then replace their partitions, or the whole table, in one short transaction; by name, never by position.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
from dagster_duckdb import DuckDBResource
from pydantic import Field

from batch_platform.components import describe
from batch_platform.components.dagster_internals import is_built_by_hand, read_partitions
from batch_platform.components.held import text_of
from batch_platform.components.wiring import NAME_METADATA, clear_failures
from batch_platform.declaration.errors import DataError, NothingPublishedError, WrongUseError, did_you_mean, listed
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FeatureBuild, read_latest
from batch_platform.warehouse.lock import staging_folder
from batch_platform.warehouse.published import open_published, publish, reading_published
from batch_platform.warehouse.sql import connect
from batch_platform.warehouse.user_tables import (
    DEFAULT_SCHEMA,
    PARTITION,
    TableName,
    check_own,
    open_table,
    store_table,
    stored_partitions,
    table_of_asset,
)

WAREHOUSE_KEY = "batch_platform_warehouse"
ROWS_OF_A_GROUP = 131_072
IO_MANAGER_KEY = "batch_platform_io_manager"
BROKEN_METADATA = "batch_platform/broken"  # metadata of the assets of a pipeline that cannot be loaded
INPUT_METADATA = ("columns", "table", "allow_missing_partitions")
_TYPES = "pl.LazyFrame, pl.DataFrame or duckdb.DuckDBPyRelation"


class WarehouseResource(DuckDBResource):
    """The tables of all pipelines, to be read in SQL; assets store tables of their own through the IO manager."""

    database: str = Field(default="", description="Leave empty: the published copy in BATCH_PLATFORM_HOME is read.")

    @contextmanager
    def get_connection(self) -> Generator[duckdb.DuckDBPyConnection]:
        """The published copy as of the last run, read-only; it locks nothing, also while runs write.

        Raises:
            NothingPublishedError: Nothing is published yet.
            WarehouseError: The copy cannot be read.
        """
        with open_published(Home.from_environment()) as con:
            yield con

    published = get_connection


class TableIOManager(dg.ConfigurableIOManager):
    """Reads tables of pipelines and of users, and stores users' tables.

    An asset's table is the last part of its key; its schema is the part before, or `default_schema`, unless the asset
    says `metadata={"schema": …}`. On an input, `metadata={"columns": […]}` reads no others, `{"table": …}` reads
    another table of the same schema (`rejected_rows`), and `{"allow_missing_partitions": True}` those that there are.
    """

    default_schema: str | None = Field(  # none rather than its name, which every launchpad would show first
        default=None, description=f"Schema of tables whose asset key has one part only; left out: {DEFAULT_SCHEMA}."
    )

    def load_input(self, context: dg.InputContext) -> pl.LazyFrame | pl.DataFrame | duckdb.DuckDBPyRelation:
        """The partitions that the run is about, or all rows for an asset without partitions."""
        with clear_failures():
            relation = self._relation(context)
            wanted: object = Any
            with suppress(dg.DagsterInvariantViolationError):  # a context that is built by hand need not have a type
                wanted = context.dagster_type.typing_type
            if wanted is duckdb.DuckDBPyRelation:
                return relation
            if wanted is pl.DataFrame:
                return relation.pl()
            if wanted in (pl.LazyFrame, Any):
                return relation.pl(lazy=True)
            msg = f"{_named(context)}: an input cannot be of type {getattr(wanted, '__name__', wanted)}."
            raise WrongUseError(msg, hint=f"annotate it as {_TYPES}.")

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Store what an asset returns, and publish it."""
        with clear_failures():
            home = Home.from_environment()
            name = self._table_of(context.asset_key, context.definition_metadata)
            check_own(name)
            keys = list(context.asset_partition_keys) if context.has_asset_partitions else None
            if keys is None and is_built_by_hand(context) and context.has_partition_key:
                keys = [context.partition_key]
            with staging_folder(home, context.run_id) as folder:
                file = folder / "table.parquet"
                columns = _write(name, obj, file, keys)
                rows = store_table(Warehouse(home), name, file, keys)
            publish(home)
        context.add_output_metadata(
            {
                "dagster/table_name": name.shown,
                "dagster/row_count": rows,
                "dagster/column_schema": describe.table_schema(columns),
            }
        )

    def _relation(self, context: dg.InputContext) -> duckdb.DuckDBPyRelation:
        metadata = context.definition_metadata
        if unknown := [key for key in metadata if key not in INPUT_METADATA and "/" not in key]:
            msg = f"{_named(context)}: unknown metadata {listed(map(repr, unknown))} on the input; there is {listed(INPUT_METADATA)}."
            raise WrongUseError(msg, hint=did_you_mean(unknown[0], INPUT_METADATA))
        above = context.upstream_output.definition_metadata if context.upstream_output else {}
        if BROKEN_METADATA in above:  # its partitions are unknown, so that all rows would be read
            msg = f"{_named(context)}: its pipeline cannot be loaded."
            raise WrongUseError(msg, hint="batch-platform check says why.")
        keys = read_partitions(context)
        home, columns = Home.from_environment(), metadata.get("columns")
        if pipeline := text_of(above.get(NAME_METADATA)):
            return _features(home, pipeline, keys, columns)
        name = self._table_of(context.asset_key, above)
        name = TableName(name.schema, metadata.get("table", name.table))
        if keys is not None and metadata.get("allow_missing_partitions"):
            keys = sorted(set(keys) & stored_partitions(home, name))
        return open_table(home, name, partitions=keys, columns=columns)

    def _table_of(self, key: dg.AssetKey, metadata: Mapping[str, Any]) -> TableName:
        schema = metadata.get("schema")
        if isinstance(schema, dg.MetadataValue):
            schema = schema.value
        named = table_of_asset(key.path, self.default_schema)
        return TableName(schema, named.table) if schema else named


def _features(
    home: Home, pipeline: str, keys: Sequence[str] | None, columns: Sequence[str] | None
) -> duckdb.DuckDBPyRelation:
    """Features of partitions, from their files; an error if one of them is not built."""
    builds: dict[str, FeatureBuild] = {}
    with suppress(NothingPublishedError), reading_published(home) as published:
        builds = read_latest(published, FeatureBuild, pipeline)
    files = {key: home.feature_file(pipeline, key, build.sha256) for key, build in sorted(builds.items())}
    if keys is not None:
        files = {key: files.get(key) for key in keys}
    if missing := [key for key, file in files.items() if file is None or not file.is_file()]:
        msg = f"{pipeline}: the features of partition {listed(missing)} are not built."
        raise DataError(msg, hint="materialize them first.")
    if not files:
        msg = f"{pipeline}: no features are built yet."
        raise DataError(msg, hint="materialize them first.")
    con = connect()
    con.execute("SET TimeZone = 'UTC'")
    relation = con.read_parquet([str(file) for file in files.values()], union_by_name=True, hive_partitioning=False)
    if unknown := [name for name in columns or () if name not in relation.columns]:
        msg = f"{pipeline}: the features have no column {listed(map(repr, unknown))}; they have {listed(relation.columns)}."
        raise DataError(msg, hint=did_you_mean(unknown[0], relation.columns))
    return relation if columns is None else relation.select(*(duckdb.ColumnExpression(name) for name in columns))


def _write(name: TableName, obj: object, file: Path, keys: Sequence[str] | None) -> dict[str, str]:
    """Stream rows to a Parquet file, each with its partition if there are any; returns the columns with their types."""
    if isinstance(obj, pl.DataFrame):
        obj = obj.lazy()
    if isinstance(obj, duckdb.DuckDBPyRelation):
        obj = obj.pl(lazy=True)
    if not isinstance(obj, pl.LazyFrame):
        msg = f"{name.shown}: the asset returned {type(obj).__name__}, which is not a table."
        raise WrongUseError(msg, hint=f"return {_TYPES}.")
    schema = obj.collect_schema()
    if keys is None and PARTITION in schema:
        msg = f"{name.shown}: an asset without partitions cannot have a column {PARTITION!r}."
        raise DataError(msg, hint="rename the column, or partition the asset.")
    if keys is not None and PARTITION not in schema:
        if len(keys) > 1:
            msg = f"{name.shown}: the run is for {len(keys)} partitions, and the rows do not say to which partition they belong."
            raise DataError(msg, hint=f"return the column {PARTITION!r} too, or run one partition at a time.")
        obj = obj.with_columns(pl.lit(keys[0]).alias(PARTITION))
    obj.sink_parquet(file, compression="lz4", row_group_size=ROWS_OF_A_GROUP)
    return {column: str(dtype) for column, dtype in schema.items() if column != PARTITION}


def _named(context: dg.InputContext) -> str:
    return f"the input {context.asset_key.to_user_string()}"


WAREHOUSE = WarehouseResource()
IO_MANAGER = TableIOManager()
RESOURCES = {WAREHOUSE_KEY: WAREHOUSE, IO_MANAGER_KEY: IO_MANAGER}  # the same objects for every pipeline of a project
