"""The warehouse as a Dagster resource, for users' own assets and ops."""

from collections.abc import Generator
from contextlib import contextmanager

import duckdb
from dagster_duckdb import DuckDBResource
from pydantic import Field

from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home


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
            WarehouseError: Nothing is published yet.
        """
        home = Home.from_environment()
        if not home.published.exists():
            msg = f"Nothing is published in {home.root} yet."
            raise WarehouseError(msg, hint="run a pipeline first.")
        with duckdb.connect(str(home.published.resolve()), read_only=True) as con:
            yield con


WAREHOUSE_KEY = "batch_platform_warehouse"
WAREHOUSE = WarehouseResource()
