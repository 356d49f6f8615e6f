"""The warehouse as a Dagster resource, for users' own assets and ops."""

from collections.abc import Generator
from contextlib import contextmanager

import duckdb
from dagster_duckdb import DuckDBResource
from pydantic import Field

from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published


class WarehouseResource(DuckDBResource):
    """The project's DuckDB file, opened under its lock; keep the connection for a moment only.

    To read, open `published` instead: it is never locked.
    """

    database: str = Field(default="", description="Left empty: the warehouse of BATCH_PLATFORM_HOME.")

    @contextmanager
    def get_connection(self) -> Generator[duckdb.DuckDBPyConnection]:
        """The live warehouse, held alone.

        Raises:
            WarehouseBusyError: Another process kept it for longer than the time-out.
        """
        with Warehouse(Home.from_environment()).open() as con:
            yield con

    @contextmanager
    def published(self) -> Generator[duckdb.DuckDBPyConnection]:
        """The readers' copy as of the last run, read-only.

        Raises:
            NothingPublishedError: Nothing is published yet.
            WarehouseError: The copy cannot be read.
        """
        with open_published(Home.from_environment()) as con:
            yield con


WAREHOUSE_KEY = "batch_platform_warehouse"
WAREHOUSE = WarehouseResource()
