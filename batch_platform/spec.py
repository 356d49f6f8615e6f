"""A pipeline as it is declared, in YAML or in Python: frozen values, checked, without behaviour.

The field names are the keys of the YAML. A wrong key, type or name is refused with its path, what is allowed and the
nearest match. Keys whose behaviour does not exist yet are checked like the others and then refused by name.
"""

import re
from datetime import date, datetime, timedelta
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from batch_platform.errors import did_you_mean, listed
from batch_platform.partitions import Calendar, Duration, Every

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
RESERVED_NAMES = frozenset({"batch_platform", "main", "information_schema", "pg_catalog", "temp", "system"})
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_DURATION = re.compile(r"(\d+)\s*(minute|hour|day|week)s?")
_CRON_FIELDS = 5


def _iso(value: object) -> object:
    """YAML reads an unquoted 2013-01-01 as a date; take it as it was written."""
    return value.isoformat() if isinstance(value, date) else value


def _share(value: object) -> object:
    """Read '1%' as 0.01."""
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?\s*%", value):
        return float(value.rstrip("% ")) / 100
    return value


IsoTime = Annotated[str, BeforeValidator(_iso)]
Share = Annotated[float, BeforeValidator(_share)]


def parse_duration(text: str) -> Duration:
    """Read '1 day', '60 days', '6 hours' or '90 minutes'.

    Raises:
        ValueError: The text is none of these.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found:
        msg = f"{text!r} is not a duration; write for example '1 day', '60 days', '6 hours' or '2 weeks'"
        raise ValueError(msg)
    number, unit = int(found[1]), found[2]
    if unit == "week":
        return Duration(days=7 * number)
    return Duration(**{f"{unit}s": number})


class Block(BaseModel):
    """A part of the declaration: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:  # noqa: ANN401 - whatever the YAML holds
        check_keys(data, cls.model_fields)
        return data


def check_keys(data: object, allowed: dict[str, Any]) -> None:
    """Refuse keys that are not allowed, each with its nearest match.

    Raises:
        ValueError: `data` is a mapping with a key that is not allowed.
    """
    if not isinstance(data, dict):
        return
    unknown = [str(key) for key in data if key not in allowed]  # pyright: ignore[reportUnknownVariableType] - YAML
    if unknown:
        guesses = [guess for key in unknown if (guess := did_you_mean(key, allowed))]
        msg = f"unknown key {listed(repr(key) for key in unknown)}; allowed are {listed(allowed)}"
        raise ValueError("; ".join([msg, *guesses]))


def _not_yet(value: object, key: str) -> None:
    if value is not None:
        msg = f"{key!r} is not available yet; leave it out"
        raise ValueError(msg)


class Partitions(Block):
    """The time windows of a pipeline; each is scored on its own."""

    every: Every = Field(description="Length of one partition.", examples=["day"])
    start: IsoTime = Field(description="First partition, local date or time in `timezone`.", examples=["2013-01-01"])
    end: IsoTime | None = Field(default=None, description="No partition starts at or after this local date or time.")
    timezone: str = Field(default="UTC", description="IANA time zone in which partitions begin.")
    end_offset: int = Field(
        default=0,
        ge=0,
        le=1,
        description="1 makes a partition due when it starts, for rows that are all known by then; 0 when it has closed.",
    )

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        if value not in available_timezones():
            msg = f"{value!r} is not an IANA time zone"
            guess = did_you_mean(value, available_timezones())
            raise ValueError("; ".join(filter(None, [msg, guess])))
        return value

    @field_validator("start", "end")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        if value is not None and datetime.fromisoformat(value).tzinfo is not None:
            msg = f"{value!r} carries an offset; give the local time in `timezone`"
            raise ValueError(msg)
        return value

    @property
    def calendar(self) -> Calendar:
        """The windows that this declares."""
        return Calendar(
            every=self.every,
            zone=ZoneInfo(self.timezone),
            start=datetime.fromisoformat(self.start),
            end=None if self.end is None else datetime.fromisoformat(self.end),
            end_offset=self.end_offset,
        )


class Source(Block):
    """A raw table, read under its name by the features and the labels; exactly one of the kinds."""

    python: str | None = Field(default=None, description="module.function returning a Polars frame or an Arrow table.")
    parquet: str | None = Field(default=None, description="Path or glob, relative to this file; {partition_key} allowed.")
    csv: str | None = Field(default=None, description="Path or glob, relative to this file; {partition_key} allowed.")
    duckdb: str | None = Field(default=None, description="Path of a DuckDB file, relative to this file.")
    postgres: str | None = Field(default=None, description="Not available yet.")
    table: str | None = Field(default=None, description="The table or view in the DuckDB file.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _not_yet(self.postgres, "postgres")
        kinds = [kind for kind in SOURCE_KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            msg = f"give exactly one of {listed(SOURCE_KINDS)}; found {listed(kinds) or 'none'}"
            raise ValueError(msg)
        if (self.duckdb is None) != (self.table is None):
            msg = "`duckdb` and `table` go together: the file, and the table in it"
            raise ValueError(msg)
        if self.python is not None:
            _check_dotted(self.python)
        return self

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(kind for kind in SOURCE_KINDS if getattr(self, kind) is not None)

    @property
    def by_partition(self) -> bool:
        """Whether each partition has a file of its own."""
        return "{partition_key}" in (self.parquet or self.csv or "")


SOURCE_KINDS = ("python", "parquet", "csv", "duckdb")
ColumnType = Literal["float", "integer", "boolean", "category"]


class ColumnRule(Block):
    """What is declared of one column; the rest is inferred when training."""

    type: ColumnType | None = Field(default=None, description="Type in the contract.")
    nullable: bool | None = Field(default=None, description="Whether a null is allowed.")
    min: float | None = Field(default=None, description="A smaller value is rejected.")
    max: float | None = Field(default=None, description="A larger value is rejected.")
    feature: bool = Field(default=True, description="false: the column is not given to the model.")


class Features(Block):
    """One row per thing to score, made for one partition from the sources."""

    sql: str | None = Field(default=None, description="DuckDB SQL file, relative to this file.")
    python: str | None = Field(default=None, description="module.function: Polars LazyFrames in, a LazyFrame out.")
    key: list[str] = Field(min_length=1, description="Columns that name a row; unique within a partition.")
    time: str | None = Field(default=None, description="Column with the row's time; outside the partition is an error.")
    columns: dict[str, ColumnRule] = Field(default_factory=dict, description="Overrides of what training infers.")
    max_rejected: Share = Field(default=0.0, ge=0, le=1, description="Share of rejected rows past which a run fails.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.sql is None) == (self.python is None):
            msg = "give either `sql` or `python`"
            raise ValueError(msg)
        if self.python is not None:
            _check_dotted(self.python)
        if self.time in self.columns or set(self.key) & set(self.columns):
            msg = "`columns` overrides feature columns; key and time are none"
            raise ValueError(msg)
        return self


class Labels(Block):
    """The true outcomes, and how long after the end of a partition they are known."""

    sql: str = Field(description="DuckDB SQL file giving the key columns and the label.")
    column: str = Field(description="The label among its columns.")
    delay: str = Field(default="0 days", description="From the end of a partition until its labels are known.")

    @field_validator("delay")
    @classmethod
    def _duration(cls, value: str) -> str:
        parse_duration(value)
        return value

    @property
    def maturity(self) -> Duration:
        """The delay, read."""
        return parse_duration(self.delay)


class Train(Block):
    """When models are trained, and on what."""

    every: Every | None = Field(default=None, description="One model per such period; left out: one model for all.")
    start: IsoTime | None = Field(default=None, description="First serving period; left out: as soon as data suffice.")
    window: str = Field(default="all", description="How far back training reads: 'all', or for example '60 days'.")
    evaluate: str = Field(default="14 days", description="The end of the window, kept out of training to evaluate on.")
    max_rows: int | None = Field(default=None, description="Not available yet.")
    schedule: str = Field(default="30 * * * *", description="Cron on which due models are looked for.")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        _not_yet(self.max_rows, "max_rows")
        _check_cron(self.schedule)
        held_out = parse_duration(self.evaluate)
        if self.window != "all" and not _longer(parse_duration(self.window), held_out):
            msg = f"window ({self.window}) must be longer than evaluate ({self.evaluate})"
            raise ValueError(msg)
        if self.start is not None and self.every is None:
            msg = "`start` needs `every`"
            raise ValueError(msg)
        return self

    @property
    def window_length(self) -> Duration | None:
        """How far back training reads; None for all history."""
        return None if self.window == "all" else parse_duration(self.window)

    @property
    def evaluation_length(self) -> Duration:
        """How much of the window's end is kept out of training."""
        return parse_duration(self.evaluate)


METRICS = ("roc_auc", "log_loss", "brier", "accuracy", "mae", "rmse", "r2", "silhouette")


class Promote(Block):
    """The gate between a trained version and the predictions."""

    metric: str | None = Field(default=None, description=f"One of {', '.join(METRICS)}; default by the kind of model.")
    at_least: float | None = Field(default=None, description="Worse than this is not approved (an error: not more).")
    tolerance: float | None = Field(default=None, ge=0, description="Worse than the champion by more is not approved.")

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in METRICS:
            msg = f"{value!r} is not a metric; allowed are {listed(METRICS)}"
            raise ValueError("; ".join(filter(None, [msg, did_you_mean(value, METRICS)])))
        return value


class Model(Block):
    """What learns, when, and when it may serve."""

    estimator: str | None = Field(default=None, description="Import path of a scikit-learn-compatible estimator.")
    build: str | None = Field(default=None, description="module.function that takes `params` and returns an estimator.")
    import_: str | None = Field(default=None, alias="import", description="Not available yet.")
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of the estimator.")
    train: Train = Field(default_factory=Train)
    promote: Promote = Field(default_factory=Promote)
    challengers: list[Any] | None = Field(default=None, description="Not available yet.")
    publish: str | None = Field(default=None, description="Not available yet.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _not_yet(self.import_, "import")
        _not_yet(self.challengers, "challengers")
        _not_yet(self.publish, "publish")
        if (self.estimator is None) == (self.build is None):
            msg = "give either `estimator` or `build`"
            raise ValueError(msg)
        _check_dotted(self.estimator or self.build or "")
        return self

    @field_validator("promote", mode="before")
    @classmethod
    def _by_the_gate(cls, value: object) -> object:
        _not_yet("manual" if value == "manual" else None, "promote: manual")
        return value


class Predictions(Block):
    """The table that users read, and when it is brought up to date."""

    keep: list[str] = Field(default_factory=list, description="Feature columns to carry along.")
    schedule: str | None = Field(default=None, description="Cron in the pipeline's time zone; default: each partition.")
    rescore: Literal["when_stale", "never"] = Field(
        default="when_stale", description="Whether the schedule re-scores what a newer model, input or code outdates."
    )
    limit: int = Field(default=400, ge=1, description="Most partitions that one tick of a schedule requests.")

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is not None:
            _check_cron(value)
        return value


class Psi(Block):
    """Bounds of the population stability index."""

    warn: float = Field(default=0.1, gt=0)
    fail: float = Field(default=0.25, gt=0)


class Drift(Block):
    """How far features may move from the training data."""

    psi: Psi = Field(default_factory=Psi)


class PerformanceRule(Block):
    """When a partition's performance is worth a warning."""

    warn_below: float = Field(description="The gate's metric worse than this gives a warning on the partition.")


class Monitoring(Block):
    """What is watched once a partition is scored."""

    drift: Drift | None = Field(default=None, description="Not available yet.")
    performance: PerformanceRule | None = None

    @model_validator(mode="after")
    def _available(self) -> Self:
        _not_yet(self.drift, "drift")
        return self


class Spark(Block):
    """A Spark cluster."""

    master: str


class Engine(Block):
    """Where scoring runs."""

    spark: Spark | None = None


class PipelineSpec(Block):
    """One pipeline."""

    name: str = Field(description="Schema of its tables and prefix of its assets.", examples=["flight_delays"])
    description: str = Field(default="", description="One sentence: what is predicted, for what.")
    owners: list[str] = Field(default_factory=list, description="Owners shown in the UI: an e-mail or 'team:…'.")
    partitions: Partitions
    sources: dict[str, Source] = Field(min_length=1, description="Raw tables by the name that the SQL uses.")
    features: Features
    labels: Labels | None = None
    model: Model
    predictions: Predictions = Field(default_factory=Predictions)
    monitoring: Monitoring = Field(default_factory=Monitoring)
    engine: Engine = Field(default_factory=Engine, description="'local'; a Spark cluster is not available yet.")

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
            if name in ASSETS:
                msg = f"a source cannot be named {name!r}: {listed(ASSETS)} are assets of every pipeline"
                raise ValueError(msg)
        return value

    @field_validator("engine", mode="before")
    @classmethod
    def _local(cls, value: object) -> object:
        return {} if value == "local" else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _not_yet(self.engine.spark, "engine: spark")
        if self.labels is not None:
            label = self.labels.column
            if label in {*self.features.key, *self.features.columns, *self.predictions.keep, self.features.time}:
                msg = f"the label {label!r} may not be a feature, a key or kept: it is not known when a row is scored"
                raise ValueError(msg)
        return self


ASSETS = ("features", "model", "predictions", "performance", "drift")


def check_name(value: str) -> None:
    """Refuse a name that could not be a schema, a folder and an asset key all at once.

    Raises:
        ValueError: The name is none.
    """
    if not NAME.fullmatch(value) or value in RESERVED_NAMES or PurePosixPath(value).name != value:
        msg = f"{value!r} is not a name: use small letters, digits and _ (at most 63), not {listed(RESERVED_NAMES)}"
        raise ValueError(msg)


def _check_dotted(value: str) -> None:
    if not _DOTTED.fullmatch(value):
        msg = f"{value!r} is not an import path such as 'package.module.function'"
        raise ValueError(msg)


def _check_cron(value: str) -> None:
    if len(value.split()) != _CRON_FIELDS:
        msg = f"{value!r} is not a cron expression of five fields such as '0 5 * * *'"
        raise ValueError(msg)


def _longer(one: Duration, other: Duration) -> bool:
    def length(d: Duration) -> timedelta:
        return timedelta(days=d.days, hours=d.hours, minutes=d.minutes)

    return length(one) > length(other)
