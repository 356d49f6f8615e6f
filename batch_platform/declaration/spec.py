"""A pipeline as it is declared, in YAML or in Python: frozen and checked values without behaviour.

The field names are the keys of the YAML. A wrong key, type or name is refused with its path, what is allowed and the
nearest match. What a pipeline reads (partitions, sources, features and labels) is
declared in `inputs.py`, its model in `model.py` and its table of predictions in `predictions.py`.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from batch_platform.declaration.calendar import LONGEST, Duration, shifts_by_whole_hours
from batch_platform.declaration.engine import SPARK, DeclaredEngine
from batch_platform.declaration.errors import did_you_mean, listed
from batch_platform.declaration.inputs import Features, Labels, Partitions, Source, starts_around
from batch_platform.declaration.model import Challenger, Model
from batch_platform.declaration.monitored import Monitoring
from batch_platform.declaration.notation import (
    Block,
    Name,
    check_name,
    with_guess,
)
from batch_platform.declaration.operating import Execution, Report, Retention
from batch_platform.declaration.periods import Periods
from batch_platform.declaration.predictions import DECISION, ENDS, Predictions

ASSETS = ("features", "model", "predictions", "performance", "drift", "report")
ADDED_COLUMNS = ("prediction", "score", "partition_key", "model_version", "scored_at", "run_id")


class PipelineSpec(Block):
    """One pipeline."""

    name: Name = Field(
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
        description="Models that score the champion's rows too; one serves only if promoted.",
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
    report: Report | None = Field(
        default=None,
        description="A report for people who never open Dagster, written on a schedule. Left out: `batch-platform report` alone writes it.",
        examples=[{"every": "month"}],
    )
    retention: Retention | None = Field(
        default=None,
        description="How long rows are kept; `gc` removes older ones.",
        examples=[{"predictions": "3 years"}],
    )
    automation: Literal["on_arrival"] | None = Field(
        default=None,
        description="`on_arrival`: assets follow what they are made of, beside the schedules.",
        examples=["on_arrival"],
    )
    dagster: Execution = Field(
        default_factory=Execution,
        description="How Dagster runs the steps. Group, tags and automation conditions are set by Dagster's `post_processing`.",
        examples=[{"pool": "warehouse", "max_partitions_per_run": 31}],
    )
    engine: DeclaredEngine = Field(
        default_factory=DeclaredEngine,
        description="Where scoring runs: `local`, or a cluster. Predictions are the same.",
        examples=["local", {"spark": {"master": "spark://host:7077"}}],
    )

    @property
    def periods(self) -> Periods:
        """Its serving periods, training windows and the maturity of labels, derived once."""
        periods = vars(self).get("_periods")
        if periods is None or periods.spec is not self:  # a copy takes over what its original has derived
            periods = vars(self)["_periods"] = Periods(self)
        return periods

    @property
    def column_descriptions(self) -> dict[str, str]:
        """The declared descriptions of columns of the features, by name."""
        return {name: rule.description for name, rule in self.features.columns.items() if rule.description}

    @property
    def positive(self) -> bool | int | float | str | None:
        """The declared positive class."""
        return None if self.labels is None else self.labels.positive

    @property
    def cron_schedules(self) -> dict[tuple[str, ...], str]:
        """The declared cron expressions, by the path of their block."""
        schedules = {
            ("model", "train"): self.model.train.schedule,
            ("predictions",): self.predictions.schedule,
            ("report",): self.report and self.report.schedule,
        }
        return {path: cron for path, cron in schedules.items() if cron}

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
    def _distinct(cls, value: list[Challenger]) -> list[Challenger]:
        names = [challenger.name for challenger in value]
        if duplicates := {name for name in names if names.count(name) > 1}:
            msg = f"more than one challenger is named {listed(map(repr, duplicates))}"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_assets()
        self._check_columns()
        self._check_cluster()
        self._check_refinements()
        self._check_snapshot()
        self._check_lengths()
        return self

    def _check_assets(self) -> None:
        """Refuse a pipeline that reads what it makes, or that makes two assets of one name."""
        delivered = [delivery.asset for delivery in self.predictions.deliver]
        if shared := self.sources.keys() & {*delivered}:
            msg = f"sources: {listed(map(repr, shared))} is the asset of a delivery of this pipeline; rename the source"
            raise ValueError(msg)
        own = {f"{self.name}/{asset}" for asset in (*ASSETS, *delivered)}
        if circular := {source.asset for source in self.sources.values() if source.asset in own}:
            msg = (
                f"sources: {listed(map(repr, circular))} is an asset of this pipeline, which cannot read what it makes"
            )
            raise ValueError(msg)

    def _check_columns(self) -> None:
        stored = {*self.features.key_and_time, *self.predictions.keep}
        added = {*ADDED_COLUMNS, *(["challenger"] if self.challengers else [])}
        added |= {"reasons"} if self.predictions.reasons else set()
        added |= {*(ENDS if self.predictions.interval is not None else [])}
        added |= {DECISION} if self.predictions.decide else set()
        if taken := {name for name in stored if name.lower() in added}:
            msg = f"{listed(map(repr, taken))} cannot be a key, the time or a kept column: scoring adds a column of that name"
            raise ValueError(msg)
        if self.labels is not None and (taken := {*self.features.key} & {"outcome", "outcome_value", "outcome_weight"}):
            msg = f"{listed(map(repr, taken))} cannot be a key: evaluation adds a column of that name"
            raise ValueError(msg)
        for at, name in enumerate([] if self.labels is None else self.labels.too_late):
            if name in {*stored, *self.features.columns}:
                what = "the column known only with the label," if at else "the label"
                msg = (
                    f"{what} {name!r} cannot be a feature, a key or a kept column: it is not known when a row is scored"
                )
                raise ValueError(msg)
        unit = {self.monitoring.unit or "row": "unit"}
        needed = dict.fromkeys(self.monitoring.segments, "segments") | unit
        known = [*self.predictions.keep, *(name for name in ("row", "partition", *self.features.key) if name in unit)]
        if unkept := [name for name in needed if name not in known]:
            advice = did_you_mean(unkept[0], self.predictions.keep) or "add it there"
            msg = f"monitoring.{needed[unkept[0]]}: {listed(map(repr, unkept))} is not in predictions.keep; {advice}"
            raise ValueError(msg)
        driving = self.features.driving
        if driving is not None and driving.source not in self.sources:
            msg = f"features.driving.source: there is no source {driving.source!r}; there are {listed(self.sources)}"
            raise ValueError(with_guess(msg, driving.source, self.sources))

    def _check_cluster(self) -> None:
        """Refuse what needs a cluster without one, and what a cluster could not do."""
        if self.features.spark_sql is not None and self.engine.name != SPARK:
            msg = "features.spark_sql runs on the cluster that `engine: {spark: {master: …}}` declares, "
            msg += f"and this pipeline declares the engine {self.engine.name!r}"
            raise ValueError(msg)
        on_spark = [name for name, source in self.sources.items() if source.kind == "spark_table"]
        if self.features.spark_sql is not None and self.engine.on_spark.staging is not None:
            msg = "features.spark_sql: the cluster writes its rows into the home, so every machine must see the home; leave engine.spark.staging out"
            raise ValueError(msg)
        if on_spark and self.features.spark_sql is None:
            msg = f"sources.{on_spark[0]}.spark_table: only `features.spark_sql` reads a table of Spark's catalog; "
            msg += "declare the folder of the table instead, as `parquet` or `delta`"
            raise ValueError(msg)

    def _check_refinements(self) -> None:
        """Refuse refinements that cannot be learned from what is declared."""
        calibrated = {
            "model": self.model.calibrate,
            **{f"challengers.{at.name}": at.calibrate for at in self.challengers},
        }
        if self.labels is None and (keys := [f"{key}.calibrate" for key, value in calibrated.items() if value]):
            msg = f"{listed(keys)}: a calibration is learned from labels, and this pipeline has no `labels`"
            raise ValueError(msg)
        if self.labels is None and self.predictions.interval is not None:
            msg = "predictions.interval: an interval is learned from labels, and this pipeline has no `labels`"
            raise ValueError(msg)

    def _check_snapshot(self) -> None:
        """Refuse keys that have no meaning for a snapshot, and those that have one only there."""
        train = self.model.train
        if not self.partitions.snapshot:
            if misplaced := _not_default(train, "held_out"):
                msg = f"model.train: {listed(misplaced)} needs partitions.snapshot: other pipelines evaluate on the newest partitions"
                raise ValueError(msg)
            return
        misplaced = [
            *(f"partitions.{key}" for key in _not_default(self.partitions, "end_offset")),
            *(f"sources.{name}.{key}" for name, of in self.sources.items() for key in _not_default(of, "time", "late")),
            *(f"features.{key}" for key in _not_default(self.features, "time", "driving")),
            *(f"labels.{key}" for key in (_not_default(self.labels, "delay") if self.labels else ())),
            *(f"model.train.{key}" for key in _not_default(train, "start", "window", "evaluate")),
        ]
        if misplaced:
            msg = f"{listed(misplaced)} has no meaning with partitions.snapshot: each partition holds all rows, whatever their time"
            raise ValueError(msg)
        if unknown := [name for name in train.group if name not in self.features.key]:
            msg = f"model.train.group: {listed(map(repr, unknown))} is not in features.key"
            raise ValueError(with_guess(msg, unknown[0], self.features.key))

    def _check_lengths(self) -> None:
        """Refuse windows with which no model could ever be trained or approved."""
        if self.model.import_ is not None or self.partitions.snapshot:
            return  # nothing is trained, or without a window
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
        self._check_delay(delay)
        calendar = self.partitions.calendar
        if train.every == "hour" and not shifts_by_whole_hours(calendar.zone, calendar.start, calendar.end):
            msg = f"model.train.every: clocks in {self.partitions.timezone} change by part of an hour; use 'day'"
            raise ValueError(msg)
        self._check_train_start()

    def _check_delay(self, delay: Duration) -> None:
        """Refuse windows that hold no rows whose labels are known before the rows by which a model is judged begin."""
        train, halves = self.model.train, self.model.calibrate or self.predictions.interval
        evaluation, partition = train.evaluation_length.nominal, LONGEST[self.partitions.every].nominal
        if train.window_length is not None and train.window_length.nominal < evaluation + 2 * delay.nominal + partition:
            msg = f"model.train.window ({train.window}) must hold evaluate ({train.evaluate}), twice labels.delay ({delay}) "
            msg += (
                "and a partition: labels must be known when the evaluation rows begin, and those when the model serves"
            )
            raise ValueError(msg)
        half, least = evaluation // partition // 2, -(-delay.nominal // partition) + 1
        if halves and 0 < half < least:
            key = "model.calibrate" if self.model.calibrate else "predictions.interval"
            msg = f"{key} learns on the first half of model.train.evaluate ({train.evaluate}), whose labels must be known when the "
            msg += f"second half begins: with labels.delay ({delay}) evaluate must hold at least {2 * least} partitions"
            raise ValueError(msg)

    def _check_train_start(self) -> None:
        """Refuse a first serving period that does not begin where a period of its length does."""
        train, calendar = self.model.train, self.partitions.calendar
        if train.every is None or train.start is None:
            return
        periods = replace(calendar, every=train.every, start=datetime.fromisoformat(train.start), end=None)
        instant = periods.start.replace(tzinfo=calendar.zone).astimezone(UTC)
        if periods.first_start != instant:
            use = starts_around(periods, instant)
            msg = f"model.train.start ({train.start}) is not the start of a serving period of one {train.every}; use {use}"
            raise ValueError(msg)


def _not_default(block: Block, *keys: str) -> list[str]:
    """Those of some keys of a block whose value is not the default."""
    return [
        key
        for key in keys
        if getattr(block, key) != type(block).model_fields[key].get_default(call_default_factory=True)
    ]
