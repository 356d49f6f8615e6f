"""The monitoring of the scored partitions of a pipeline, as declared under `monitoring`."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from batch_platform.declaration.errors import listed
from batch_platform.declaration.extensions import METRICS
from batch_platform.declaration.notation import Block, DeadlineText, DurationText, ImportPath


class DriftBounds(Block):
    """The index from which a column gives a warning or fails; what is left out is as for all columns."""

    warn: float | None = Field(default=None, gt=0, description="Index from which it gives a warning.", examples=[0.1])
    fail: float | None = Field(default=None, gt=0, description="Index from which it fails.", examples=[0.25])


class Drift(Block):
    """Bounds of the distance of features and predictions from the training data."""

    FORMER: ClassVar[Mapping[str, str]] = {
        "baseline": "partitions are compared with the training data alone: remove `baseline`, and name columns that grow with time under `ignore`"
    }

    warn: float = Field(
        default=0.05,
        gt=0,
        description="Population stability index, beyond what chance explains, from which a column gives a warning. 0.05: a shift of a normal feature by about 0.22 standard deviations.",
        examples=[0.1],
    )
    fail: float = Field(
        default=0.25, gt=0, description="Index from which the check fails instead. It never blocks.", examples=[0.25]
    )
    ignore: list[str] = Field(
        default_factory=list,
        description="Columns that are measured, but not judged, e.g. the month or the weekday.",
        examples=[["month"]],
    )
    columns: dict[str, DriftBounds] = Field(
        default_factory=dict,
        description="Other bounds for some features, or for the column of the predictions.",
        examples=[{"distance": {"warn": 0.2}}],
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (warn, fail) in {
            "": (self.warn, self.fail),
            **{name: self.bounds(name) for name in self.columns},
        }.items():
            if warn > fail:
                where = f"columns.{name}: " if name else ""
                msg = f"{where}warn ({warn:g}) is above fail ({fail:g})"
                raise ValueError(msg)
        return self

    def bounds(self, column: str) -> tuple[float, float]:
        """The index from which a column gives a warning, and the one from which it fails."""
        own = self.columns.get(column, DriftBounds())
        return (self.warn if own.warn is None else own.warn, self.fail if own.fail is None else own.fail)


class PerformanceRule(Block):
    """Bounds of the performance of a partition, beyond which it gives a warning."""

    warn_below: float = Field(
        description="Value of the gate's metric that is worth a warning when a partition does worse, beyond chance: when its whole 95% interval does.",
        examples=[0.6],
    )


class Monitoring(Block):
    """Monitoring of scored partitions."""

    performance: PerformanceRule | None = Field(
        default=None, description="When the performance of a partition gives a warning.", examples=[{"warn_below": 0.6}]
    )
    drift: Drift | None = Field(
        default=None,
        description="When features and predictions of a partition differ so much from the training data that it is worth a warning. Left out: drift is measured, and not judged.",
        examples=[{"warn": 0.1, "fail": 0.25, "ignore": ["month"]}],
    )
    metrics: list[ImportPath] = Field(
        default_factory=list,
        description="Further metrics, each a function, as module.function, of batch_platform.monitoring.metrics.Outcomes.",
        examples=[["shop.metrics.cost_per_order"]],
    )
    unit: str | None = Field(
        default=None,
        description="Rows that depend on each other, for every 95% interval: `row` (none do), `partition`, or a column of the key or of predictions.keep whose values share something, e.g. a household. Left out: the columns of model.train.group, otherwise the key without its times; beside it the partition, if several are measured together and vary by more than that explains.",
        examples=["household"],
    )
    segments: list[str] = Field(
        default_factory=list,
        description="Kept columns by whose values performance, its estimates and the scores are broken down.",
        examples=[["country"]],
    )
    rows: bool = Field(
        default=True,
        description="Whether rows are looked at as wholes: those of the partition before once more, repeated ones, and columns that no longer go together.",
        examples=[False],
    )
    allow_empty: bool | list[str] = Field(
        default=False,
        description="Whether a partition without rows is right: for all partitions, or a list of their keys. Any other partition without rows is a warning of the check `volume`, and `status` names it.",
        examples=[True, ["2024-12-25"]],
    )
    notify: list[str] = Field(
        default_factory=list,
        description="Addresses, as Apprise writes them, that are told when a run or a check fails, once per fault and day: chats, e-mail, pagers, webhooks. Keep their secrets in the environment.",
        examples=[["{{ env.ALERTS_URL }}"]],
    )
    notify_values: bool = Field(
        default=False,
        description="Whether messages name keys and values of rows, as errors do. Left out: they end before the first key.",
        examples=[True],
    )

    fresh_by: DeadlineText | None = Field(
        default=None,
        description="When a partition must be scored: a time of day in the pipeline's time zone, the first one after the partition is due, or how long after that. Left out: a warning once the next partition is due too.",
        examples=["07:00", "2 hours"],
    )
    max_champion_age: DurationText | None = Field(
        default=None,
        description="How long after the start of its serving period a model may score without a warning. Left out: twice model.train.every and at least 7 days, and any length without it.",
        examples=["90 days"],
    )

    def allows_empty(self, partition_key: str) -> bool:
        """Return whether a partition without rows is right."""
        return partition_key in self.allow_empty if isinstance(self.allow_empty, list) else self.allow_empty

    @field_validator("notify")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        if wrong := [str(at) for at, url in enumerate(value, start=1) if "://" not in url and "{{" not in url]:
            msg = f"address {listed(wrong)} of the list is none; write it as Apprise does, e.g. slack://… or json://host/path"
            raise ValueError(msg)
        return value

    @field_validator("metrics")
    @classmethod
    def _new(cls, value: list[str]) -> list[str]:
        names = [path.rpartition(".")[2] for path in value]
        if taken := [name for name in names if name in METRICS or name.startswith("label_") or names.count(name) > 1]:
            msg = f"{listed(map(repr, taken))} is the name of another metric; give the function another name"
            raise ValueError(msg)
        return value
