"""A table or a query of a database, as a source or a delivery declares it."""

from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote

from pydantic import Field, field_serializer, model_validator

from batch_platform.declaration.errors import listed
from batch_platform.declaration.notation import Block, Sql, with_guess
from batch_platform.declaration.redaction import SAYS_SECRET, protect_value

DRIVERS = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "sqlite": "sqlite",
    "snowflake": "snowflake",
    "bigquery": "bigquery",
    **dict.fromkeys(("grpc", "grpc+tls", "grpc+tcp"), "flightsql"),
}
"""The ADBC driver for the scheme of a URI."""


class Database(Block):
    """A database, by an address that may hold a password."""

    uri: str = Field(
        repr=False,
        description="Address of the database, from an environment variable: it is never shown. `sqlite:///` and a path for a file.",
        examples=["{{ env.SHOP_URI }}", "sqlite:///shop.sqlite"],
    )

    @model_validator(mode="after")
    def _known_driver(self) -> Self:
        if "{{" in self.uri:  # is rendered later
            return self
        if self.scheme not in DRIVERS:
            msg = f"uri must begin with one of {listed(f'{scheme}://' for scheme in DRIVERS)}"
            raise ValueError(with_guess(msg, self.scheme, DRIVERS) if self.scheme else msg)
        for secret in self.secrets:
            protect_value("password", secret)
        return self

    @property
    def secrets(self) -> list[str]:
        """The whole URI if it holds a password, and the password."""
        if self.driver == "sqlite":
            return []
        whole = self.uri.partition("://")[2]
        rest, _, options = whole.partition("?")
        user = (rest if "@" in rest else whole).rpartition("@")[0]
        password = user.partition(":")[2]
        found = [password, *(value for name, value in parse_qsl(options) if SAYS_SECRET.search(name))]
        forms = {form for secret in found for form in (secret, unquote(secret)) if form}
        return [self.uri, *forms] if forms else []

    @property
    def scheme(self) -> str:
        """The part of the URI before `://`; empty if it has none."""
        scheme, separator, _ = self.uri.partition("://")
        return scheme.lower() if separator else ""

    @property
    def driver(self) -> str:
        """The name of the ADBC driver."""
        return DRIVERS[self.scheme]

    @property
    def address(self) -> str:
        """The URI without user, password and options, for people; as declared until it is rendered."""
        if "{{" in self.uri:
            return self.uri
        rest, _, options = self.uri.partition("://")[2].partition("?")
        if "@" in options and "@" not in rest:  # a question mark in the password, perhaps
            return f"{self.scheme}://…"
        return f"{self.scheme}://{rest if self.scheme == 'sqlite' else rest.rpartition('@')[2]}"

    def file_in(self, folder: Path) -> Path:
        """The file of an SQLite database, whose relative path starts at a folder."""
        return folder / unquote(self.uri.partition("://")[2].removeprefix("/"))

    @field_serializer("uri", when_used="json")
    def _without_secrets(self, _uri: str) -> str:
        return self.address


class DatabaseTable(Database):
    """A table of a database, or the rows of a query that the database runs."""

    table: str | None = Field(
        default=None, min_length=1, description="Table or view that is read whole.", examples=["sales.orders"]
    )
    query: Sql | None = Field(
        default=None,
        description="One SELECT in the dialect of the database, or the file that holds it, relative to this file. It may use $partition_start, "
        "$partition_end and $partition_key, so that only the rows of a partition are read.",
        examples=["orders.sql"],
    )
    version: str | None = Field(
        default=None,
        min_length=1,
        description="SELECT whose result changes when rows change; may use the same parameters. Left out: any change of the database "
        "lets the rows be compared.",
        examples=["SELECT max(updated_at), count(*) FROM sales.orders"],
    )

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if (self.table is None) == (self.query is None):
            msg = f"give either `table` or `query`; found {'none' if self.table is None else 'both'}"
            raise ValueError(msg)
        return self

    def __str__(self) -> str:
        """Say what is read, and from where."""
        return f"{self.table or self.query} in {self.address}"


class DeliveredTable(Database):
    """A table of PostgreSQL or SQLite that gets rows."""

    table: str = Field(
        pattern=r"^[^.]+(\.[^.]+)?$",
        description="Table, with or without its schema. Created with types and comments if it does not exist.",
        examples=["sales.late_flights"],
    )

    @model_validator(mode="after")
    def _writable(self) -> Self:
        if "{{" not in self.uri and self.driver not in ("postgresql", "sqlite"):
            msg = f"rows are delivered to PostgreSQL and SQLite, not to {self.driver}"
            raise ValueError(msg)
        if "{{" not in self.uri and self.driver == "sqlite" and "." in self.table:
            msg = f"SQLite has no schemas: {self.table!r} must be the name of a table"
            raise ValueError(msg)
        return self

    @property
    def name(self) -> str:
        """The table without its schema."""
        return self.table.rpartition(".")[2]

    def __str__(self) -> str:
        """Say where rows are written."""
        return f"{self.table} in {self.address}"
