"""The declared inputs of a pipeline: its partitions, sources, features and labels, as frozen and validated values."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import ConfigDict, Field, TypeAdapter, WrapValidator, model_validator

from batch_platform.declaration.calendar import Calendar, Duration, Every, shifts_by_whole_hours
from batch_platform.declaration.databases import DatabaseTable
from batch_platform.declaration.errors import counted, listed
from batch_platform.declaration.extensions import SOURCES
from batch_platform.declaration.notation import (
    AssetPath,
    Block,
    DurationText,
    ImportPath,
    Lateness,
    LocalTime,
    Share,
    Sql,
    Timezone,
    parse_duration,
)

STORES = {"s3": "s3", "gs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""The stores of objects by the scheme of their addresses, with the extra that reads each."""
KINDS_IN_STORES = ("parquet", "csv", "json", "arrow", "delta")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_OBJECT = re.compile(r"\w+://[\w.-]+(@[\w.-]+)?/+[^/]")  # a container of Azure may name its account
Encoding = Literal["utf-8", "utf-16", "latin-1"]  # encodings of CSV files
WEIGHT = "__weight"  # column with the weight of a row, where `labels.weight` declares one
NUMBERED_KINDS = ("parquet", "csv", "json")  # kinds of files that DuckDB names and reads in order
_KEYS_OF_KINDS = {
    **dict.fromkeys(("delimiter", "decimal", "encoding"), ("csv",)),
    "types": ("csv", "json"),
    "wait": ("duckdb",),
    "version": ("delta",),
    "number_rows": NUMBERED_KINDS,
}
FILE, ROW_IN_FILE = "file", "row_in_file"  # columns of a source that numbers its rows
PLACEHOLDERS: dict[str, Callable[[str], str]] = {
    "{partition_key}": lambda key: key,
    "{partition_date}": lambda key: key[:10].replace("-", ""),
    "{partition_month}": lambda key: key[:7],
}
"""Placeholders for a partition in a path, with the text of a key: such as 2026-01-31, 20260131 and 2026-01."""
ColumnType = Literal["float", "integer", "boolean", "category"]
_ONLY_SHARE = TypeAdapter(Annotated[Share, Field(ge=0, le=1)], config=ConfigDict(strict=True, allow_inf_nan=False))


def varies(path: str) -> bool:
    """Tell whether a path differs between partitions."""
    return any(placeholder in path for placeholder in PLACEHOLDERS)


def scheme_of(location: str) -> str | None:
    """The scheme of an address, such as s3; None for a path."""
    scheme = _SCHEME.match(location)
    return scheme[1] if scheme else None


def require_object(kind: str, address: str) -> None:
    """Raise ValueError unless an address is that of objects, from which sources of a kind are read."""
    if (scheme := scheme_of(address)) not in STORES:
        stores = listed(f"{store}://" for store in STORES)
        msg = f"{kind} is an address that begins with {scheme}://; give a path, or an address with {stores}"
        raise ValueError(msg)
    if kind not in KINDS_IN_STORES:
        msg = f"{kind} names a file of this machine; only {listed(KINDS_IN_STORES)} may be an address"
        raise ValueError(msg)
    if not _OBJECT.match(address):
        msg = f"{kind} must name a bucket and an object or folder in it, such as {scheme}://lake/orders, and no credentials"
        raise ValueError(msg)


def starts_around(calendar: Calendar, instant: datetime) -> str:
    """The starts of windows before and after an instant, as a declaration writes them."""
    window, written = calendar.around(instant), "%Y-%m-%dT%H:%M" if calendar.every == "hour" else "%Y-%m-%d"
    return " or ".join(f"{start.astimezone(calendar.zone):{written}}" for start in (window.start, window.end))


class Partitions(Block):
    """The time windows of a pipeline, each scored on its own."""

    every: Every = Field(description="Length of one partition.", examples=["day"])
    start: LocalTime = Field(
        description="Start of the first partition, as local date or time in `timezone`. Weeks begin on its weekday.",
        examples=["2013-01-01"],
    )
    end: LocalTime | None = Field(
        default=None,
        description="Local date or time at which the last partition ends. Left out: partitions go on for ever.",
        examples=["2014-01-01"],
    )
    timezone: Timezone = Field(
        default="UTC", description="IANA time zone that defines when a partition starts.", examples=["Europe/Berlin"]
    )
    end_offset: int = Field(
        default=0,
        ge=0,
        le=1,
        description="When a partition is due: 0 when it has ended; 1 when it starts, if all its rows are known by then.",
        examples=[1],
    )
    snapshot: bool = Field(
        default=False,
        description="Whether a partition is the whole table as it is when the partition starts, for rows without a time.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        calendar, end = self.calendar, self.calendar.end
        if self.every == "hour" and not shifts_by_whole_hours(calendar.zone, calendar.start, end):
            msg = f"clocks in {self.timezone} shift by part of an hour, so hours cannot be partitions; use timezone UTC"
            raise ValueError(msg)
        declared = calendar.start.replace(tzinfo=calendar.zone).astimezone(UTC)
        if calendar.first_start != declared:
            article = "an" if self.every == "hour" else "a"
            msg = f"start ({self.start}) is not the start of {article} {self.every}; use {starts_around(calendar, declared)}"
            raise ValueError(msg)
        if end is None or calendar.last_end is None:
            return self
        if calendar.last_end <= calendar.first_start:
            msg = f"no {self.every} lies between start ({self.start}) and end ({self.end})"
            raise ValueError(msg)
        boundary = calendar.last_end.astimezone(calendar.zone).replace(tzinfo=None)
        if boundary.date() != end.date() or (self.every == "hour" and boundary != end):
            msg = f"no {self.every} ends at {self.end}; the next one ends at {boundary.isoformat()}"
            raise ValueError(msg)
        return self

    @cached_property
    def calendar(self) -> Calendar:
        """The declared windows."""
        return Calendar(
            every=self.every,
            zone=ZoneInfo(self.timezone),
            start=datetime.fromisoformat(self.start),
            end=None if self.end is None else datetime.fromisoformat(self.end),
            end_offset=1 if self.snapshot else self.end_offset,
        )


class IcebergTable(Block):
    """A table of an Iceberg catalog."""

    catalog: str | dict[str, str] = Field(
        description="Name of a catalog in .pyiceberg.yaml or the environment, or its properties: `uri`, `warehouse`, `name` and others.",
        examples=["lake", {"uri": "sqlite:////srv/lake/catalog.db", "warehouse": "file:///srv/lake"}],
    )
    table: str = Field(
        pattern=r"^[^.{}]+(\.[^.{}]+)+$",
        description="Name of the table, with the names of its namespaces.",
        examples=["sales.orders"],
    )

    def __str__(self) -> str:
        """Return the name of the table."""
        return self.table


class IcebergSnapshot(IcebergTable):
    """One state of such a table."""

    snapshot: int | None = Field(
        default=None,
        description="ID of the snapshot that is always read. Left out: the current one.",
        examples=[5128427643241982011],
    )


class Source(Block):
    """A raw table, read under its name by the features and the labels; exactly one of the kinds.

    A kind from outside this package has no field here: its key is allowed once it is in SOURCES.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    python: ImportPath | None = Field(
        default=None,
        description="module.function that returns a Polars frame or an Arrow table. May take an argument `partition`.",
        examples=["shop.sources.orders"],
    )
    parquet: str | None = Field(
        default=None,
        description="Path or glob, relative to this file, or an address such as s3://…; {partition_key}, {partition_date} and {partition_month} allowed.",
        examples=["orders/*.parquet", "s3://lake/orders/{partition_key}.parquet"],
    )
    csv: str | None = Field(
        default=None,
        description="Path or glob, relative to this file, or an address such as s3://…; {partition_key}, {partition_date} and {partition_month} allowed.",
        examples=["orders/*.csv", "orders/{partition_key}.csv"],
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Character between the values of a CSV file. Left out: recognised in each file.",
        examples=[";", "\t"],
    )
    decimal: Literal[".", ","] | None = Field(
        default=None, description="Decimal separator of the numbers in a CSV file. Left out: a point."
    )
    encoding: Encoding | None = Field(default=None, description="Character encoding of a CSV file. Left out: UTF-8.")
    types: dict[str, str] | None = Field(
        default=None,
        description="DuckDB types of columns of CSV or JSON files. Left out: recognised in each file.",
        examples=[{"postcode": "VARCHAR", "price": "DOUBLE"}],
    )
    json_: str | None = Field(
        default=None,
        alias="json",
        description="Path, glob or address of JSON lines or arrays, as for `parquet`.",
        examples=["orders/*.jsonl", "orders/{partition_key}.json"],
    )
    arrow: str | None = Field(
        default=None,
        description="Path, glob or address of Arrow (Feather) files, as for `parquet`.",
        examples=["orders/*.feather", "orders/{partition_key}.arrow"],
    )
    duckdb: str | None = Field(
        default=None, description="Path of a DuckDB file, relative to this file.", examples=["shop.duckdb"]
    )
    table: str | None = Field(
        default=None,
        description="Table or view in the DuckDB file. With `asset` alone: the asset's table in the warehouse, if it is not named "
        "after the asset.",
        examples=["main.orders"],
    )
    wait: DurationText | None = Field(
        default=None,
        description="How long to wait for a process that writes to the DuckDB file. Left out: 2 minutes.",
        examples=["10 minutes"],
    )
    delta: str | None = Field(
        default=None,
        description="Folder of a Delta table, relative to this file, or its address such as s3://…. Needs the extra `delta`.",
        examples=["lake/orders"],
    )
    version: int | None = Field(
        default=None,
        ge=0,
        description="Version of the Delta table that is always read. Left out: the newest one.",
        examples=[12],
    )
    iceberg: IcebergSnapshot | None = Field(
        default=None,
        description="Table of an Iceberg catalog. Needs the extra `iceberg`.",
        examples=[{"catalog": "lake", "table": "sales.orders"}],
    )
    sql: DatabaseTable | None = Field(
        default=None,
        description="Table or query of a database. Needs the extra `sql`.",
        examples=[{"uri": "{{ env.SHOP_URI }}", "table": "sales.orders"}],
    )
    spark_table: str | None = Field(
        default=None,
        pattern=r"^[^.`{}]+(\.[^.`{}]+)*$",
        description="Table of the catalog of `engine.spark`, with or without the names of its catalog and its database. Only "
        "`features.spark_sql` reads it.",
        examples=["sales.orders"],
    )
    number_rows: bool = Field(
        default=False,
        description="Whether Parquet, CSV and JSON files get the columns `file` (below the folder of all files) and "
        "`row_in_file` (from 1): a key for rows that nothing else names.",
        examples=[True],
    )
    asset: AssetPath | None = Field(
        default=None,
        description="Key of a Dagster asset, its parts separated by slashes, that writes what the source reads. Alone: the table "
        "in which the project's IO manager keeps the asset. Left out: the source is an asset of the pipeline.",
        examples=["raw/orders"],
    )
    time: str | None = Field(
        default=None,
        description="Column, or SQL expression, with the time of a row. Left out: what the SQL compares with $partition_start "
        "and $partition_end.",
        examples=["ordered_at", "strptime(day, '%d.%m.%Y')"],
    )
    late: Lateness | None = Field(
        default=None,
        description="For how long after newer rows a row of one file or a glob may come or be corrected: the newest partitions "
        "of that length are compared with the source, or 'always' all, or 'never' any. Left out: 7 days if its rows have a time.",
        examples=["14 days", "always"],
    )

    @classmethod
    def allowed_keys(cls) -> list[str]:
        """The keys that the block allows."""
        return list(dict.fromkeys([*super().allowed_keys(), *SOURCES]))

    @model_validator(mode="before")
    @classmethod
    def _read_kinds_from_outside(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        outside = (SOURCES.keys() - super().allowed_keys()) & data.keys()
        return data | {kind: TypeAdapter(SOURCES[kind].value_type).validate_python(data[kind]) for kind in outside}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = self._kinds
        if len(kinds) != 1:
            msg = f"give exactly one of {', '.join(sorted(SOURCES))}; found {listed(kinds) or 'none'}"
            raise ValueError(msg)
        if not self._declared(kinds[0]):
            msg = f"{kinds[0]} is empty"
            raise ValueError(msg)
        for kind, what in (("duckdb", "file"), ("delta", "table"), ("sql", "table")):
            if varies(str(getattr(self, kind) or "")):
                msg = f"{kind} names one {what} for all partitions: {listed(PLACEHOLDERS)} are not replaced"
                raise ValueError(msg)
        if (self.duckdb is not None and self.table is None) or (
            self.table is not None and kinds[0] not in ("duckdb", "asset")
        ):
            msg = "`duckdb` and `table` go together: the file, and the table in it"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _in_a_known_store(self) -> Self:
        if self.kind in (*KINDS_IN_STORES, "duckdb") and scheme_of(self.location) is not None:
            require_object(self.kind, self.location)
        return self

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> Self:
        for key, kinds in _KEYS_OF_KINDS.items():
            if getattr(self, key) not in (None, False) and self.kind not in kinds:
                msg = f"{key!r} is a key of sources of kind {listed(kinds)}, but the source is of kind {self.kind}"
                raise ValueError(msg)
        if self.delimiter is not None and self.delimiter == self.decimal:
            msg = f"delimiter and decimal are both {self.decimal!r}"
            raise ValueError(msg)
        unseen = {"python": "a function", "spark_table": "a table of Spark's catalog"}
        if self.late is not None and (self.kind in unseen or self.by_partition):
            what = unseen.get(self.kind, "files that belong to one partition each")
            msg = f"'late' is about files of many partitions, but the source is {what}"
            raise ValueError(msg)
        return self

    @property
    def _kinds(self) -> list[str]:
        """The kinds that are declared; `asset` is one only if it stands alone."""
        declared = [kind for kind in (*SOURCES.own, *(self.model_extra or ())) if self._declared(kind) is not None]
        return [kind for kind in declared if kind != "asset"] or declared

    @property
    def kind(self) -> str:
        """The kind, which is also its YAML key."""
        return self._kinds[0]

    @property
    def location(self) -> str:
        """The place of the table, as declared under the key of the kind."""
        return str(self._declared(self.kind))

    def _declared(self, kind: str) -> object:
        return getattr(self, "json_" if kind == "json" else kind, None)

    @property
    def by_partition(self) -> bool:
        """True if each partition has a file of its own."""
        return varies(self.location)

    @property
    def lateness(self) -> timedelta | None:
        """The time after newer rows within which a row may come or be corrected; None for always, zero for never."""
        late = self.late or "7 days"
        if late == "always":
            return None
        return timedelta() if late == "never" else parse_duration(late).nominal


class ColumnRule(Block):
    """The rules of one column; what is left out is inferred in training."""

    FORMER: ClassVar[Mapping[str, str]] = {
        "formerly": "keep the column's name in the SQL instead of formerly, or train the models again"
    }

    type: ColumnType | None = Field(default=None, description="Type of the column in the contract.")
    nullable: bool | None = Field(default=None, description="Whether nulls are allowed.")
    min: float | None = Field(
        default=None, description="Minimum; rows with a smaller value are rejected.", examples=[0]
    )
    max: float | None = Field(
        default=None, description="Maximum; rows with a larger value are rejected.", examples=[100]
    )
    feature: bool = Field(default=True, description="Whether the model is given the column.")
    description: str | None = Field(
        default=None,
        min_length=1,
        description="What it holds, for Dagster, DuckDB's comments and the report.",
        examples=["Miles between the airports."],
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            msg = f"min ({self.min}) is above max ({self.max})"
            raise ValueError(msg)
        if self.type in ("boolean", "category") and not self.min is self.max is None:
            msg = f"min and max do not apply to a {self.type}"
            raise ValueError(msg)
        return self


class Driving(Block):
    """The source whose rows inside a partition must each give one row of features; no join may add or lose rows."""

    source: str = Field(description="Name of the source whose rows are counted.", examples=["orders"])
    time: str = Field(
        description="Time column of that source; it assigns a row to a partition.", examples=["ordered_at"]
    )


class RejectedBudget(Block):
    """Maximum of rejected rows of a partition: a share of them, or a number of rows if that is more."""

    share: Share = Field(default=0.0, ge=0, le=1, description="Share of the rows of a partition.", examples=["1%"])
    rows: int = Field(
        default=0, ge=0, description="Number of rows that is allowed even if it is a larger share.", examples=[5]
    )

    def is_exceeded(self, rejected: int, rows: int) -> bool:
        """Tell whether so many rejected rows are more than it allows."""
        # Divided, because 29 of 100 rows are 0.29, while 0.29 * 100 is not 29.
        return rejected > self.rows and rejected / rows > self.share

    def __str__(self) -> str:
        """Say what is allowed."""
        rows = f", or {counted(self.rows, 'row')} if that is more" if self.rows else ""
        return f"{self.share:.2%}{rows}"


def _share_or_budget(value: object, _: object) -> float | RejectedBudget:
    """Read either form, so that an error is about the form that is given."""
    if isinstance(value, RejectedBudget):
        return value
    return RejectedBudget.model_validate(value) if isinstance(value, dict) else _ONLY_SHARE.validate_python(value)


class Features(Block):
    """One row per item to score, built for a partition from the sources."""

    sql: Sql | None = Field(
        default=None,
        description="One SELECT in DuckDB's dialect, or its file, relative to this one.",
        examples=["features.sql"],
    )
    spark_sql: Sql | None = Field(
        default=None,
        description="One SELECT in Spark's dialect, or its file, relative to this one. The cluster of `engine.spark` runs it: for "
        "sources that are too large for one machine. Bounds are written :partition_start and :partition_end.",
        examples=["features.sql"],
    )
    python: ImportPath | None = Field(
        default=None,
        description="module.function that takes sources as Polars LazyFrames, by name, and returns a LazyFrame.",
        examples=["shop.features.of_orders"],
    )
    key: list[str] = Field(
        min_length=1, description="Columns that identify a row; unique within a partition.", examples=[["order_id"]]
    )
    time: str | None = Field(
        default=None,
        description="Column with the time of a row; a time outside the partition is an error.",
        examples=["ordered_at"],
    )
    driving: Driving | None = Field(
        default=None,
        description="Source that must have as many rows in a partition as the features have.",
        examples=[{"source": "orders", "time": "ordered_at"}],
    )
    columns: dict[str, ColumnRule] = Field(
        default_factory=dict,
        description="Rules of columns that override what training infers.",
        examples=[{"amount": {"min": 0}}],
    )
    max_rejected: Annotated[Share | RejectedBudget, WrapValidator(_share_or_budget)] = Field(
        default=0.0,
        description="Maximum share of rejected rows, and a number of rows that is allowed whatever the share; a partition "
        "with more is not published.",
        examples=["1%", {"share": "1%", "rows": 5}],
    )
    timeout: DurationText | None = Field(
        default=None,
        description="Longest time that the SQL of the features or of the labels may take for one partition; by default any.",
        examples=["10 minutes"],
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(made is not None for made in (self.sql, self.spark_sql, self.python)) != 1:
            msg = "give one of `sql`, `spark_sql` and `python`"
            raise ValueError(msg)
        if twice := {name for name in self.key if self.key.count(name) > 1}:
            msg = f"the key names {listed(map(repr, twice))} more than once"
            raise ValueError(msg)
        if named := {*self.key_and_time} & {*self.columns}:
            msg = f"`columns` overrides feature columns; {listed(map(repr, named))} is key or time"
            raise ValueError(msg)
        return self

    @property
    def rejected_budget(self) -> RejectedBudget:
        """The maximum of rejected rows, however it is declared."""
        most = self.max_rejected
        return most if isinstance(most, RejectedBudget) else RejectedBudget(share=most)

    @property
    def longest(self) -> Duration | None:
        """The longest time that the SQL may take; None: any."""
        return None if self.timeout is None else parse_duration(self.timeout)

    @property
    def key_and_time(self) -> list[str]:
        """The key columns and the time, each once: the time may be part of the key."""
        return list(dict.fromkeys([*self.key, *([self.time] if self.time is not None else [])]))


class Labels(Block):
    """The true outcomes, and how long after the end of a partition they become known."""

    sql: Sql = Field(
        description="One SELECT of the key columns and the label in DuckDB's dialect, or its file.",
        examples=["labels.sql"],
    )
    column: str = Field(description="Name of the label column.", examples=["returned"])
    delay: DurationText = Field(
        default="0 days", description="Time from the end of a partition until its labels are known.", examples=["1 day"]
    )
    positive: bool | int | float | str | None = Field(
        default=None,
        description="Class of two whose probability `score` is, and label of the outliers. Left out: that of the version before, else true, 1, or the rarer text.",
        examples=["left"],
    )
    weight: str | None = Field(
        default=None,
        description="Column of labels.sql with the weight of each row, 0 or more: in training, in metrics and in their intervals. Left out: all rows count alike.",
        examples=["exposure"],
    )
    outcomes: list[str] = Field(
        default_factory=list,
        description="Columns that become known with the label; like the label, they may not be features.",
        examples=[["returned_at"]],
    )

    @model_validator(mode="after")
    def _another_column(self) -> Self:
        if self.weight == self.column:
            msg = f"`weight` is {self.weight!r}, which is the label; name another column of labels.sql"
            raise ValueError(msg)
        return self

    @cached_property
    def maturity(self) -> Duration:
        """The delay as a duration."""
        return parse_duration(self.delay)

    @property
    def columns(self) -> list[str]:
        """The columns of labels.sql beside the key; the label is the last."""
        return [*([] if self.weight is None else [self.weight]), self.column]

    @property
    def too_late(self) -> list[str]:
        """The columns that are unknown when a row is scored: the label and the outcomes."""
        return [self.column, *self.outcomes]
