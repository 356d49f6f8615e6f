"""The warehouse as a Dagster resource, for users' own assets and ops."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource
from pydantic import Field

from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.user_tables import user_transaction

LONG_SECONDS = 5.0  # of holding the warehouse, after which the user is warned


class WarehouseResource(DuckDBResource):
    """The project's DuckDB file, for tables of your own. To read, use `published`, which waits for nobody."""

    database: str = Field(default="", description="Leave empty: the warehouse of BATCH_PLATFORM_HOME is used.")

    @contextmanager
    def get_connection(self) -> Generator[duckdb.DuckDBPyConnection]:
        """The live warehouse for one transaction: committed and published at the end, undone by any error.

        Every run that commits waits while the connection is open, for at most BATCH_PLATFORM_LOCK_TIMEOUT seconds
        (default: 120): compute first, then connect and write. A connection held for long is logged as a warning.

        Raises:
            WrongUseError: A table of the project was changed, or the transaction was ended by hand.
            WarehouseBusyError: Another process kept the warehouse for longer than the time-out.
        """
        home = Home.from_environment()
        with user_transaction(Warehouse(home)) as con:
            began = time.monotonic()
            yield con
            held = time.monotonic() - began
        if held > LONG_SECONDS:
            msg = f"The connection to the warehouse was open for {held:.0f} s, during which no run could commit. "
            dg.get_dagster_logger().warning(
                f"{msg}Hint: compute before you connect; read from `published`, which locks nothing."
            )
        publish(home)

    @contextmanager
    def published(self) -> Generator[duckdb.DuckDBPyConnection]:
        """The published copy as of the last run, read-only.

        Raises:
            NothingPublishedError: Nothing is published yet.
            WarehouseError: The copy cannot be read.
        """
        with open_published(Home.from_environment()) as con:
            yield con


WAREHOUSE_KEY = "batch_platform_warehouse"
WAREHOUSE = WarehouseResource()
