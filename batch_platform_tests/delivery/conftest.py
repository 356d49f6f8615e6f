"""A PostgreSQL and a store that receive, one of each for a module."""

from collections.abc import Iterator

import pytest

from batch_platform_tests.delivery.receivers import POSTGRESQL, execute
from batch_platform_tests.harness.object_store import own_store, shared_store, store  # noqa: F401 - fixtures
from batch_platform_tests.harness.postgres_server import Server, postgres_server

SECRET = "geh:ei@m/1"  # a URL writes it:
QUOTED = "geh%3Aei%40m%2F1"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with a user `reader`, who may only read and insert."""
    with postgres_server() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv(POSTGRESQL, running.address.replace("+psycopg2", ""))
        execute(f"CREATE ROLE reader LOGIN PASSWORD '{SECRET}'")
        yield running


@pytest.fixture
def postgresql(server, monkeypatch) -> Server:
    """The server with an empty schema, and its address in the environment."""
    monkeypatch.setenv(POSTGRESQL, server.address.replace("+psycopg2", ""))
    execute(
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
        "GRANT USAGE ON SCHEMA public TO reader",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT ON TABLES TO reader",
    )
    return server
