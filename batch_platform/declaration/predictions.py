"""The table of predictions, as it is declared: what its rows hold beside the scores, where they are kept, and when they are updated."""

from typing import Literal, Self

from pydantic import Field, model_validator

from batch_platform.declaration.deciding import Decide
from batch_platform.declaration.deliveries import Delivery
from batch_platform.declaration.errors import listed
from batch_platform.declaration.notation import (
    Block,
    Coverage,
    Cron,
    ImportPath,
)
from batch_platform.declaration.reasons import Reasons

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
