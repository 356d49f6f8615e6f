"""The table of predictions as it is declared: its columns, reasons, decisions and deliveries, where it is kept, and when it is updated."""

import json
import math
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema, field_validator, model_validator

from batch_platform.declaration.databases import DeliveredTable
from batch_platform.declaration.errors import listed, number
from batch_platform.declaration.extensions import SINKS
from batch_platform.declaration.inputs import KINDS_IN_STORES, IcebergTable, require_object, scheme_of
from batch_platform.declaration.notation import (
    Block,
    Coverage,
    Cron,
    ImportPath,
    Name,
    Share,
    as_share,
    with_guess,
)


class Reasons(Block):
    """The columns that moved a score most, and the rows that are given them."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "integer"]})

    count: int = Field(ge=1, description="Number of columns.", examples=[3])
    above: float | None = Field(
        default=None,
        description="Only rows that score higher have reasons. Left out: all rows.",
        examples=[0.5],
    )
    of: Literal["rows", "decisions"] = Field(
        default="rows", description="decisions: only rows that `decide` selects.", examples=["decisions"]
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: object) -> object:
        return {"count": data} if isinstance(data, int) and not isinstance(data, bool) else data

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.above is not None and self.of == "decisions":
            msg = "give one of `above` and `of`: either says which rows have reasons"
            raise ValueError(msg)
        return self


DECISION = "decision"  # the column that a rule adds
_WRONG = ("false_positive", "false_negative")
_RULES = ("threshold", "costs", "benefit", "top")
_DIGITS = 9  # a share of a number of rows is rounded to so many, since 0.29 of 100 rows is 28.999999999999996


def _by_text(value: object) -> object:
    """Write classes as text, as a model writes them: YAML reads some as numbers or truth values."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): _by_text(cost) for key, cost in value.items()}


Costs = Annotated[
    dict[str, float | dict[str, float]],
    BeforeValidator(_by_text),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["number", "object"]}}),
]


class Decide(Block):
    """The rule by which each scored row gets a decision. Exactly one of `threshold`, `costs`, `benefit` and `top`."""

    threshold: Share | None = Field(
        default=None, description="Act from this probability of the positive class on.", examples=[0.3]
    )
    costs: Costs | None = Field(
        default=None,
        description="Cost of each wrong decision: `false_positive` and `false_negative`; of several classes, under each true one, of each other.",
        examples=[{"false_positive": 1, "false_negative": 8}],
    )
    benefit: float | None = Field(default=None, gt=0, description="What acting on a positive row earns.", examples=[40])
    cost: float | None = Field(
        default=None, gt=0, description="What acting on a row costs. Goes with `benefit`.", examples=[2]
    )
    top: int | str | None = Field(
        default=None,
        description="Act on so many rows of a partition, those with the highest scores: a number or a share.",
        examples=[500, "5%"],
    )

    @field_validator("threshold")
    @classmethod
    def _probability(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            meant = value / 100 if 2 <= value < 100 else 0.99 if value >= 1 else 0.01  # noqa: PLR2004 - percent
            msg = f"{value:g} is not a probability above 0 and below 1; did you mean {meant:g}?"
            raise ValueError(msg)
        return value

    @field_validator("costs")
    @classmethod
    def _costs(cls, value: dict[str, float | dict[str, float]] | None) -> dict[str, float | dict[str, float]] | None:
        rows = {} if value is None else value
        numbers = {name: cost for name, cost in rows.items() if not isinstance(cost, dict)}
        if value is not None and (numbers or not rows) and not set(rows) == set(numbers) == set(_WRONG):
            strange = next((name for name in numbers if name not in _WRONG), "")
            msg = f"has {listed(map(repr, rows)) or 'no costs'}; give a number as {' and '.join(_WRONG)}, or for each true class the cost of each other class"
            raise ValueError(with_guess(msg, strange, _WRONG))
        pairs = {
            f"{true}.{name}": cost for true, of in rows.items() if isinstance(of, dict) for name, cost in of.items()
        }
        if low := [f"{name} ({cost:g})" for name, cost in {**numbers, **pairs}.items() if cost <= 0]:
            msg = f"{listed(low)} must be above 0; a right decision costs nothing and is left out"
            raise ValueError(msg)
        return value

    @field_validator("top", mode="before")
    @classmethod
    def _rows(cls, value: object) -> object:
        share, meant = as_share(value), "5%"
        allowed = value is None
        if isinstance(value, int) and not isinstance(value, bool):
            allowed, meant = value > 0, "1"
        elif isinstance(value, str) and isinstance(share, float):
            allowed, meant = 0 < share <= 1, "100%" if share > 1 else meant
        if allowed:
            return value
        msg = f"{value!r} is neither a number of rows above 0 nor a share above 0% and at most 100%; write for example {meant}"
        raise ValueError(msg)

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        declared = [key for key in _RULES if getattr(self, key) is not None]
        if len(declared) != 1:
            msg = f"give exactly one of `threshold`, `costs`, `benefit` (with `cost`) and `top`; there are {listed(declared) or 'none'}"
            raise ValueError(msg)
        if (self.benefit is None) != (self.cost is None):
            msg = "`benefit` and `cost` belong together: what acting on a positive row earns, and what acting on any row costs"
            raise ValueError(msg)
        if self.benefit is not None and self.cost is not None and self.cost >= self.benefit:
            msg = f"acting on a row would never pay: `cost` ({self.cost:g}) must be below `benefit` ({self.benefit:g})"
            raise ValueError(msg)
        return self

    @property
    def by_class(self) -> dict[str, dict[str, float]] | None:
        """The cost of deciding a class where another is true, by true and decided class; None for any other rule."""
        rows = {name: row for name, row in (self.costs or {}).items() if isinstance(row, dict)}
        return rows or None

    @property
    def of_errors(self) -> tuple[float, float] | None:
        """The costs of a false positive and of a false negative; None for any other rule."""
        if self.costs is None or self.by_class:
            return None
        positive, negative = (self.costs[name] for name in _WRONG)
        return (positive, negative) if isinstance(positive, float) and isinstance(negative, float) else None

    @property
    def probability(self) -> float | None:
        """The probability of the positive class from which a row is acted on; None for `top`, and for costs by class."""
        if self.benefit is not None and self.cost is not None:
            return self.cost / self.benefit
        return self.threshold if self.of_errors is None else self.of_errors[0] / sum(self.of_errors)

    def most(self, rows: int) -> int:
        """The number of rows that `top` acts on in a partition of so many."""
        share = as_share(self.top)
        return min(rows, share if isinstance(share, int) else math.floor(round(float(str(share)) * rows, _DIGITS)))

    def __str__(self) -> str:
        """The rule in words."""
        if self.probability is not None:
            return f"act on a row from a probability of {number(self.probability)} on"
        if self.by_class:
            return "decide the class of lowest expected cost"
        return f"act on the {self.top} {'' if isinstance(self.top, str) else 'rows '}of each partition with the highest scores"


def rule_text(declared: Decide | None) -> str | None:
    """A rule as JSON, by which the ledger tells rules apart; None without one."""
    return None if declared is None else json.dumps(declared.model_dump(exclude_none=True), sort_keys=True)


def rule_in(text: str | None) -> Decide | None:
    """The rule that the ledger holds as JSON; None without one."""
    return None if text is None else Decide.model_validate_json(text)


PREFIX = "delivered_"  # start of the name of a delivery's asset


class Delivery(Block):
    """Rows for a receiver outside the home, one partition at a time; exactly one of the kinds.

    A kind from outside this package has no field here: its key is allowed once it is in SINKS.
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
        return list(dict.fromkeys([*super().allowed_keys(), *SINKS]))

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_kind(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        kinds, own = [kind for kind in SINKS if kind in data], super().allowed_keys()
        outside = [kind for kind in kinds if kind not in own]
        read = {kind: TypeAdapter(SINKS[kind].value_type).validate_python(data[kind]) for kind in outside}
        return ({"name": kinds[0]} if kinds else {"name": "none"}) | data | read

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in SINKS if getattr(self, kind, None) is not None]
        if len(kinds) != 1 or not getattr(self, kinds[0]):
            msg = f"give exactly one of {listed(SINKS)}; found {listed(kinds) or 'none'}"
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
        return next(kind for kind in SINKS if getattr(self, kind, None) is not None)

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


DUCKDB, PARQUET = "duckdb", "parquet"  # places in which a partition of predictions is kept
ENDS = ("prediction_low", "prediction_high")  # columns with the ends of intervals


class Predictions(Block):
    """The table that users read, and when it is updated."""

    keep: list[str] = Field(
        default_factory=list,
        description="Feature columns to store with the predictions. A DECIMAL that the model reads is stored as DOUBLE; with features.columns.<name>.feature: false it keeps its type.",
        examples=[["country"]],
    )
    decide: Decide | None = Field(
        default=None,
        description="Rule that adds the column `decision`.",
        examples=[{"costs": {"false_positive": 1, "false_negative": 8}}],
    )
    schedule: Cron | None = Field(
        default=None,
        description="Cron expression of the schedule, in the pipeline's time zone. Left out: once per partition.",
        examples=["0 5 * * *"],
    )
    store: Literal["duckdb", "parquet"] = Field(
        default=DUCKDB,
        description="Where predictions and challengers' scores are kept: `duckdb` copies the rows of a partition into the database, `parquet` publishes the files that scoring wrote. Both are read as one table. It holds for partitions that are scored from now on.",
    )
    interval: Coverage | None = Field(
        default=None,
        description="Share of a regression's true values between `prediction_low` and `prediction_high`, two further columns.",
        examples=["90%"],
    )
    refine: list[ImportPath] = Field(
        default_factory=list,
        description="Refinements of your own, as module.NAME, in order: they change the model's output or add columns.",
        examples=[["shop.pricing.rounded"]],
    )
    rescore: Literal["when_stale", "never"] = Field(
        default="when_stale", description="Whether the schedule scores partitions again whose predictions are stale."
    )
    limit: int = Field(
        default=400, ge=1, description="Maximum number of partitions a schedule requests per tick.", examples=[400]
    )
    reasons: Reasons | None = Field(
        default=None,
        description="Adds the columns that moved each score most, with their values and contributions. `3` is short for `{count: 3}`.",
        examples=[3, {"count": 3, "above": 0.5}],
    )
    deliver: list[Delivery] = Field(
        default_factory=list,
        description="Receivers outside the home that get every scored partition, and again when it is scored again.",
        examples=[[{"parquet": "out/late"}, {"delta": "lake/late", "columns": {"flight_id": "id", "score": "risk"}}]],
    )

    @property
    def explains_decisions(self) -> bool:
        """True if only the rows that a rule selects have reasons."""
        return self.reasons is not None and self.reasons.of == "decisions"

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if self.explains_decisions and self.decide is None:
            msg = "`reasons.of: decisions` needs `decide`, the rule that selects the rows"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _delivered_apart(self) -> Self:
        for key, values in (
            ("name", [(delivery.name, delivery.name) for delivery in self.deliver]),
            ("receiver", [(delivery.receiver, f"{delivery.kind}: {delivery.to}") for delivery in self.deliver]),
        ):
            identities = [identity for identity, _ in values]
            if shared := {shown for identity, shown in values if identities.count(identity) > 1}:
                msg = f"`deliver`: more than one delivery has the {key} {listed(map(repr, shared))}"
                raise ValueError(msg)
        return self

    @property
    def in_files(self) -> bool:
        """True if the files that scoring writes are published as they are."""
        return self.store == PARQUET
