"""A pipeline as it is declared, in YAML or in Python: frozen and checked values without behaviour.

The field names are the keys of the YAML. A wrong key, type or name is refused with its path, what is allowed and the
nearest match. Keys whose behaviour does not exist yet are checked like the others and then refused by name.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from batch_platform.declaration.calendar import LONGEST, Duration, Every, shifts_by_whole_hours
from batch_platform.declaration.errors import did_you_mean, listed
from batch_platform.declaration.inputs import ColumnRule, Features, Labels, Partitions, Source
from batch_platform.declaration.learners import Challenger, Learner, Task, check_challengers
from batch_platform.declaration.notation import (
    Block,
    Cron,
    DurationText,
    LocalTime,
    check_name,
    parse_duration,
    refuse_for_now,
)

__all__ = [
    "Challenger",
    "ColumnRule",
    "Features",
    "Labels",
    "Model",
    "Partitions",
    "PipelineSpec",
    "Promote",
    "Source",
    "Task",
    "Train",
]
METRICS = ("roc_auc", "log_loss", "brier", "accuracy", "mae", "rmse", "r2", "silhouette", "outlier_share")
ASSETS = ("features", "model", "predictions", "performance", "drift")
ADDED_COLUMNS = ("prediction", "score", "partition_key", "model_version", "scored_at", "run_id")


class Train(Block):
    """When models are trained, and on which data."""

    every: Every | None = Field(
        default=None, description="How often a model is trained: one model per period. Left out: a single model."
    )
    start: LocalTime | None = Field(
        default=None,
        description="First serving period. Left out: the first one with enough data before it.",
        examples=["2013-03-01"],
    )
    window: str = Field(
        default="all",
        description="How far back training data go: 'all', or for example '60 days'.",
        examples=["60 days"],
    )
    evaluate: DurationText = Field(
        default="14 days",
        description="Length of the end of the window that is kept out of training and used for evaluation.",
        examples=["14 days"],
    )
    max_rows: int | None = Field(
        default=None,
        ge=100,
        description="Maximum number of rows to train on. A larger window is sampled, each class in proportion.",
        examples=[1_000_000],
    )
    schedule: Cron = Field(
        default="30 * * * *",
        description="Cron expression of the schedule that trains due models.",
        examples=["30 * * * *"],
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.window != "all":
            parse_duration(self.window)
        if self.start is not None and self.every is None:
            msg = "`start` needs `every`"
            raise ValueError(msg)
        return self

    @property
    def window_length(self) -> Duration | None:
        """Length of the training window; None for all history."""
        return None if self.window == "all" else parse_duration(self.window)

    @property
    def evaluation_length(self) -> Duration:
        """Length of the end of the window that is kept out of training."""
        return parse_duration(self.evaluate)


class Promote(Block):
    """The gate that a trained version must pass to serve."""

    metric: str | None = Field(
        default=None,
        description=f"Metric to judge by: {', '.join(METRICS)}. Left out: the default of the task.",
        examples=[*METRICS],
    )
    at_least: float | None = Field(
        default=None,
        description="Worst value that is approved: a minimum for scores such as roc_auc, a maximum for errors such as mae.",
        examples=[0.6],
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        description="How much worse than the champion a version may be and still be approved.",
        examples=[0.02],
    )
    manual: bool = Field(
        default=False,
        description="Whether a version that passes waits for `batch-platform models PIPELINE promote VERSION`.",
    )

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in METRICS:
            msg = f"{value!r} is not a metric; allowed are {listed(METRICS)}"
            raise ValueError("; ".join(filter(None, [msg, did_you_mean(value, METRICS)])))
        return value


GateOrManual = Annotated[Promote, WithJsonSchema({"anyOf": [{"const": "manual"}, Promote.model_json_schema()]})]


class Model(Learner):
    """The model: its estimator, when it is trained, and what it must reach to serve."""

    train: Train = Field(
        default_factory=Train,
        description="When the model is trained, and on how much history.",
        examples=[{"every": "month", "window": "all", "evaluate": "14 days"}],
    )
    promote: GateOrManual = Field(
        default_factory=Promote,
        description="The gate. 'manual': every version waits until someone promotes it.",
        examples=[{"metric": "roc_auc", "at_least": 0.6, "tolerance": 0.02}, "manual"],
    )
    publish: Literal["mlflow"] | None = Field(
        default=None, description="Where each version is also registered: MLflow, at MLFLOW_TRACKING_URI."
    )

    @field_validator("promote", mode="before")
    @classmethod
    def _by_hand(cls, value: object) -> object:
        return {"manual": True} if value == "manual" else value


class Predictions(Block):
    """The table that users read, and when it is updated."""

    keep: list[str] = Field(
        default_factory=list, description="Feature columns to store with the predictions.", examples=[["country"]]
    )
    schedule: Cron | None = Field(
        default=None,
        description="Cron expression of the schedule, in the pipeline's time zone. Left out: once per partition.",
        examples=["0 5 * * *"],
    )
    rescore: Literal["when_stale", "never"] = Field(
        default="when_stale", description="Whether the schedule scores partitions again whose predictions are stale."
    )
    limit: int = Field(
        default=400, ge=1, description="Maximum number of partitions a schedule requests per tick.", examples=[400]
    )


class Psi(Block):
    """Bounds of the population stability index."""

    warn: float = Field(default=0.1, gt=0, description="Value from which a feature gives a warning.")
    fail: float = Field(default=0.25, gt=0, description="Value from which a feature gives a failure.")


class Drift(Block):
    """How far features may move from the training data."""

    psi: Psi = Field(default_factory=Psi, description="Bounds of the population stability index, for every feature.")


class PerformanceRule(Block):
    """When the performance of a partition gives a warning."""

    warn_below: float = Field(
        description="Value of the gate's metric that is worth a warning when a partition does worse.", examples=[0.6]
    )


class Monitoring(Block):
    """Monitoring of scored partitions."""

    drift: Drift | None = Field(default=None, description="Not available yet.")
    performance: PerformanceRule | None = Field(
        default=None, description="When the performance of a partition gives a warning.", examples=[{"warn_below": 0.6}]
    )

    @model_validator(mode="after")
    def _available(self) -> Self:
        refuse_for_now(self.drift, "drift")
        return self


class Spark(Block):
    """A Spark cluster."""

    master: str = Field(description="URL of the Spark master.", examples=["spark://host:7077"])


ENGINES = ["local"]  # names that `engine` accepts; the room of scoring has an engine for each


class Engine(Block):
    """Where scoring runs."""

    name: str = Field(default="local", description="Name of the engine.", examples=["local"])
    spark: Spark | None = Field(default=None, description="Not available yet.")


LocalOrEngine = Annotated[Engine, WithJsonSchema({"anyOf": [{"const": "local"}, {"type": "object"}]})]


class PipelineSpec(Block):
    """One pipeline."""

    name: str = Field(
        description="Name of the pipeline: the schema of its tables and the prefix of its assets.",
        examples=["flight_delays"],
    )
    description: str = Field(
        default="",
        description="One sentence that says what is predicted and what for.",
        examples=["Probability that a customer leaves within a month."],
    )
    owners: list[str] = Field(
        default_factory=list,
        description="Owners shown in the UI: e-mail addresses or 'team:NAME'.",
        examples=[["team:operations"]],
    )
    partitions: Partitions = Field(
        description="Time windows. Each window is one partition and is scored on its own.",
        examples=[{"every": "day", "start": "2026-01-01", "timezone": "Europe/Berlin"}],
    )
    sources: dict[str, Source] = Field(
        min_length=1,
        description="Raw tables, by the name under which the SQL reads them.",
        examples=[{"orders": {"parquet": "orders/*.parquet"}}],
    )
    features: Features = Field(
        description="Features of each row to score, computed from the sources.",
        examples=[{"sql": "features.sql", "key": ["order_id"], "time": "ordered_at"}],
    )
    labels: Labels | None = Field(
        default=None,
        description="True outcomes. Left out for clustering and outlier detection.",
        examples=[{"sql": "labels.sql", "column": "returned", "delay": "14 days"}],
    )
    model: Model = Field(
        description="The model, when it is trained, and what it must reach to serve.",
        examples=[{"estimator": "sklearn.ensemble.HistGradientBoostingClassifier", "train": {"every": "month"}}],
    )
    challengers: list[Challenger] = Field(
        default_factory=list,
        description="Models that score the same rows as the champion, for comparison. They never serve.",
        examples=[[{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}]],
    )
    predictions: Predictions = Field(
        default_factory=Predictions,
        description="The table of predictions and its schedule.",
        examples=[{"keep": ["country"], "schedule": "0 5 * * *"}],
    )
    monitoring: Monitoring = Field(
        default_factory=Monitoring,
        description="What is monitored once a partition is scored.",
        examples=[{"performance": {"warn_below": 0.6}}],
    )
    engine: LocalOrEngine = Field(
        default_factory=Engine, description="Where scoring runs. Only 'local' is available yet.", examples=["local"]
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        check_name(value)
        return value

    @field_validator("sources")
    @classmethod
    def _names(cls, value: dict[str, Source]) -> dict[str, Source]:
        for name in value:
            check_name(name)
            if name == "partition":
                msg = "a source cannot be named 'partition': Python functions receive the partition under that name"
                raise ValueError(msg)
            if name in ASSETS:
                msg = f"a source cannot be named {name!r}: {listed(ASSETS)} are assets of every pipeline"
                raise ValueError(msg)
        return value

    @field_validator("challengers")
    @classmethod
    def _told_apart(cls, value: list[Challenger]) -> list[Challenger]:
        check_challengers(value)
        return value

    @field_validator("engine", mode="before")
    @classmethod
    def _local(cls, value: object) -> object:
        refuse_for_now("spark" if value == "spark" else None, "engine: spark")
        block = {"name": value} if isinstance(value, str) else value
        name = block.get("name") if isinstance(block, dict) else None
        if isinstance(name, str) and name not in ENGINES:
            msg = f"{name!r} is not an engine; allowed is {listed(map(repr, ENGINES))}"
            raise ValueError("; ".join(filter(None, [msg, did_you_mean(name, ENGINES)])))
        return block

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_for_now(self.engine.spark, "engine: spark")
        self._check_columns()
        self._check_lengths()
        return self

    def _check_columns(self) -> None:
        stored = {*self.features.key, *self.predictions.keep}
        stored |= {self.features.time} if self.features.time is not None else set()
        added = {*ADDED_COLUMNS, *(["challenger"] if self.challengers else [])}
        if taken := {name for name in stored if name.lower() in added}:
            msg = f"{listed(map(repr, taken))} cannot be a key, the time or a kept column: scoring adds a column of that name"
            raise ValueError(msg)
        for at, name in enumerate([] if self.labels is None else self.labels.too_late):
            if name in {*stored, *self.features.columns}:
                what = "the column known only with the label," if at else "the label"
                msg = (
                    f"{what} {name!r} cannot be a feature, a key or a kept column: it is not known when a row is scored"
                )
                raise ValueError(msg)
        driving = self.features.driving
        if driving is not None and driving.source not in self.sources:
            msg = f"features.driving.source: there is no source {driving.source!r}; there are {listed(self.sources)}"
            raise ValueError("; ".join(filter(None, [msg, did_you_mean(driving.source, self.sources)])))

    def _check_lengths(self) -> None:
        """Refuse windows with which no model could ever be trained or approved."""
        if self.model.import_ is not None:
            return  # nothing is trained
        train, partition = self.model.train, LONGEST[self.partitions.every]
        if train.evaluation_length.nominal < partition.nominal:
            msg = f"model.train.evaluate ({train.evaluate}) must be at least one partition long ({partition})"
            raise ValueError(msg)
        delay = Duration() if self.labels is None else self.labels.maturity
        least = 2 * train.evaluation_length.nominal + delay.nominal
        if train.window_length is not None and train.window_length.nominal < least:
            msg = f"model.train.window ({train.window}) must be at least twice as long as evaluate ({train.evaluate})"
            msg += f" plus labels.delay ({delay})" if self.labels is not None else ""
            raise ValueError(msg)
        if train.every == "hour" and not shifts_by_whole_hours(self.partitions.calendar.zone, range(2000, 2050)):
            msg = f"model.train.every: clocks in {self.partitions.timezone} change by part of an hour; use 'day'"
            raise ValueError(msg)
