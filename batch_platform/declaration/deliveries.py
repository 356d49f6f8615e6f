"""The declared deliveries of a pipeline: where its rows go outside the home, and which columns."""

from hashlib import sha256
from typing import Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from batch_platform.declaration.databases import DeliveredTable
from batch_platform.declaration.errors import listed
from batch_platform.declaration.inputs import KINDS_IN_STORES, IcebergTable, require_object, scheme_of
from batch_platform.declaration.notation import Block, Name

SINK_KEYS: dict[str, type] = {
    **dict.fromkeys(("parquet", "csv", "delta"), str),
    "iceberg": IcebergTable,
    "sql": DeliveredTable,
}
"""The YAML key of every kind of sink, and the type of its value. `delivery` writes to them."""
PREFIX = "delivered_"  # start of the name of a delivery's asset


class Delivery(Block):
    """Rows for a receiver outside the home, one partition at a time; exactly one of the kinds.

    A kind from outside this package has no field here: its key is allowed once it is in SINK_KEYS.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    parquet: str | None = Field(
        default=None,
        description="Folder that gets one Parquet file per partition, in `partition_key=…/`; relative to this file, or its address such as s3://….",
        examples=["out/late", "s3://lake/late"],
    )
    csv: str | None = Field(
        default=None,
        description="Folder that gets one CSV file per partition, in `partition_key=…/`; relative to this file, or its address such as s3://….",
        examples=["out/late", "s3://lake/late"],
    )
    delta: str | None = Field(
        default=None,
        description="Folder of a Delta table, relative to this file, or its address such as s3://…. Needs the extra `delta`.",
        examples=["lake/late", "s3://lake/late"],
    )
    iceberg: IcebergTable | None = Field(
        default=None,
        description="Table of an Iceberg catalog, created if it does not exist. Needs the extra `iceberg`.",
        examples=[{"catalog": "lake", "table": "sales.late_flights"}],
    )
    sql: DeliveredTable | None = Field(
        default=None,
        description="Table of PostgreSQL or SQLite. Needs the extra `sql`.",
        examples=[{"uri": "{{ env.CRM_URI }}", "table": "sales.late_flights"}],
    )
    name: Name = Field(
        default="",
        description="Name of the delivery: its asset is `delivered_<name>`. Left out: the kind.",
        examples=["late"],
    )
    of: Literal["predictions", "challengers", "rejected_rows"] = Field(
        default="predictions", description="Rows to deliver."
    )
    columns: list[str] | dict[str, str] = Field(
        default_factory=list[str],
        description="Columns to deliver, in order, or the name that each gets there. Left out: all columns. The partition key "
        "is always delivered.",
        examples=[["flight_id", "score"], {"flight_id": "id", "score": "risk"}],
    )

    @classmethod
    def allowed_keys(cls) -> list[str]:
        """The keys that the block allows."""
        return list(dict.fromkeys([*super().allowed_keys(), *SINK_KEYS]))

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_kind(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        kinds, own = [kind for kind in SINK_KEYS if kind in data], super().allowed_keys()
        read = {kind: TypeAdapter(SINK_KEYS[kind]).validate_python(data[kind]) for kind in kinds if kind not in own}
        return ({"name": kinds[0]} if kinds else {"name": "none"}) | data | read

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in SINK_KEYS if getattr(self, kind, None) is not None]
        if len(kinds) != 1 or not getattr(self, kinds[0]):
            msg = f"give exactly one of {listed(SINK_KEYS)}; found {listed(kinds) or 'none'}"
            raise ValueError(msg)
        if self.kind in KINDS_IN_STORES and scheme_of(str(self.to)) is not None:
            require_object(self.kind, str(self.to))
        if len(set(self.renamed.values())) < len(self.renamed) or not all(self.renamed.values()):
            msg = f"columns: every column needs a name of its own; found {list(self.renamed.values())}"
            raise ValueError(msg)
        return self

    @property
    def kind(self) -> str:
        """The kind, which is also its YAML key."""
        return next(kind for kind in SINK_KEYS if getattr(self, kind, None) is not None)

    @property
    def to(self) -> object:
        """The receiver, as declared under the key of the kind."""
        return getattr(self, self.kind)

    @property
    def receiver(self) -> str:
        """What tells the receiver from others, without secrets; of an address that is a template, the template."""
        return self.model_dump_json(include={self.kind})

    @property
    def digest(self) -> str:
        """A hash of the declaration."""
        return sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def asset(self) -> str:
        """Name of the asset."""
        return f"{PREFIX}{self.name}"

    @property
    def renamed(self) -> dict[str, str]:
        """The declared columns in order, each with its name at the receiver; empty for all columns as they are."""
        return self.columns if isinstance(self.columns, dict) else {name: name for name in self.columns}

    @property
    def partition_column(self) -> str:
        """Name of the column with the partition key at the receiver."""
        return self.renamed.get("partition_key", "partition_key")
