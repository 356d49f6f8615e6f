"""A pipeline as it is declared, in YAML or in Python: frozen and checked values without behaviour.

The field names are the keys of the YAML. A wrong key, type or name is refused with its path, what is allowed and the
nearest match. What a pipeline reads (partitions, sources, features and labels) is declared in `inputs.py`.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from batch_platform.declaration.calendar import LONGEST, Duration, Every, shifts_by_whole_hours
from batch_platform.declaration.deciding import DECISION, Decide
from batch_platform.declaration.engine import SPARK, DeclaredEngine
from batch_platform.declaration.errors import did_you_mean, listed
from batch_platform.declaration.execution import Execution
from batch_platform.declaration.inputs import Features, Labels, Partitions, Source
from batch_platform.declaration.monitored import METRICS, Monitoring
from batch_platform.declaration.notation import (
    Block,
    Coverage,
    Cron,
    DurationText,
    ImportPath,
    LocalTime,
    Name,
    Share,
    check_name,
    parse_duration,
    with_guess,
)
from batch_platform.declaration.reasons import Reasons
from batch_platform.declaration.reporting import Report
from batch_platform.declaration.search import Search, plain_parameters

Task = Literal["binary", "multiclass", "regression", "clustering", "outliers"]
DUCKDB, PARQUET = "duckdb", "parquet"  # places in which a partition of predictions is kept
ASSETS = ("features", "model", "predictions", "performance", "drift", "report")
ADDED_COLUMNS = ("prediction", "score", "partition_key", "model_version", "scored_at", "run_id")
ENDS = ("prediction_low", "prediction_high")  # columns with the ends of intervals
_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-[0-9]{2}:[0-9]{2}([+-][0-9]{4})?)?-[0-9a-f]{8}")


class Learner(Block):
    """An estimator to train, or a model made elsewhere."""

    estimator: ImportPath | None = Field(
        default=None,
        description="Import path of a scikit-learn-compatible estimator.",
        examples=["sklearn.ensemble.HistGradientBoostingClassifier"],
    )
    build: ImportPath | None = Field(
        default=None,
        description="Function, as module.function, that takes `params` and returns an unfitted estimator.",
        examples=["shop.networks.network"],
    )
    import_: str | None = Field(
        default=None,
        alias="import",
        description="Model made elsewhere: a file, an MLflow folder or models:/ or runs:/ URI, or a class as package.module.Class.",
        examples=["churn.onnx", "models:/churn@champion", "shop.rules.Rules"],
    )
    flavour: str | None = Field(
        default=None,
        description="Kind of the imported model. Left out: recognised by its file ending or reference.",
        examples=["onnx"],
    )
    task: Task | None = Field(
        default=None, description="Task of the imported model. Required if its file does not state it."
    )
    classes: list[bool | int | float | str] | None = Field(
        default=None,
        description="Classes of the imported model, in the order of its probabilities. Required if its file does not state them.",
        examples=[[False, True]],
    )
    allow_pickle: bool = Field(
        default=False,
        description="Trust the model's files to run code when they are loaded. Required for MLflow models and pickles.",
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of the estimator.", examples=[{"max_iter": 200}]
    )
    search: Search | None = Field(
        default=None,
        description="Further parameters, whose values are searched for within the rows to learn from.",
        examples=[{"params": {"learning_rate": [0.03, 0.1]}, "trials": 20}],
    )

    calibrate: Literal["isotonic", "sigmoid"] | None = Field(
        default=None,
        description="Calibration of a classifier's probabilities, learned on the first half of the evaluation window. Left out: none.",
        examples=["isotonic"],
    )

    @property
    def kinds(self) -> dict[str, str | None]:
        """The keys of which exactly one must be set, with their values."""
        return {"estimator": self.estimator, "build": self.build, "import": self.import_}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(value is not None for value in self.kinds.values()) != 1:
            *names, last = [f"`{key}`" for key in self.kinds]
            msg = f"give one of {', '.join(names)} and {last}"
            raise ValueError(msg)
        misplaced = [key for key in ("flavour", "task", "classes") if getattr(self, key) is not None]
        if self.search is not None and self.estimator is None and self.build is None:
            msg = "`search` needs an `estimator` or a `build` to train"
            raise ValueError(msg)
        if self.search is not None and (twice := {*self.params} & {*self.search.params}):
            msg = f"{listed(map(repr, twice))} is in `params` and in `search.params`; give it in one of them"
            raise ValueError(msg)
        if self.import_ is None and misplaced:
            msg = f"{listed(map(repr, misplaced))} can only describe an import"
            raise ValueError(msg)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            msg = f"`classes` has duplicates: {listed(map(repr, self.classes))}"
            raise ValueError(msg)
        return self

    @property
    def tried_params(self) -> dict[str, Any]:
        """The parameters, with the first value of each that is searched for."""
        return {**({} if self.search is None else self.search.first), **self.params}

    @property
    def fingerprint(self) -> str:
        """A hash that changes when another model would be trained."""
        undeclared = {name for name in ("calibrate", "search") if getattr(self, name) is None}
        left_out = {"allow_pickle", *undeclared}
        declared = self.model_dump(include={*Learner.model_fields} - left_out)
        return sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:12]

    @field_validator("params")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        return plain_parameters(value)


class Challenger(Learner):
    """A model that scores the same rows as the champion, beside it, and never serves until it is promoted."""

    name: Name = Field(description="Name under which its scores are stored. Must be unique.", examples=["linear"])
    version: str | None = Field(
        default=None,
        description="Version that is already trained: it scores, and nothing is trained.",
        examples=["2013-03-01-3f9c1a2b"],
    )

    @property
    def kinds(self) -> dict[str, str | None]:
        """The keys of which exactly one must be set, with their values."""
        return {**super().kinds, "version": self.version}

    @field_validator("version")
    @classmethod
    def _version(cls, value: str | None) -> str | None:
        if value is not None and not _VERSION.fullmatch(value):
            msg = f"{value!r} is not the name of a version such as '2013-03-01-3f9c1a2b'"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _finished(self) -> Self:
        if self.version is not None and (given := [key for key in ("params", "calibrate") if getattr(self, key)]):
            msg = f"`{given[0]}` cannot be given to the version {self.version}, which is already trained"
            raise ValueError(msg)
        return self


class Train(Block):
    """The times at which models are trained, and the data that they learn from."""

    every: Every | None = Field(
        default=None,
        description="How often a model is trained: one model per period. Left out: a single model, of all that is known when it is first trained.",
    )
    start: LocalTime | None = Field(
        default=None,
        description="Start of the first serving period, which must be the start of an `every`. Left out: the first one with enough data before it.",
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
    held_out: Share = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of the rows of a snapshot that is never learned from and used for evaluation, chosen by a hash of their key.",
        examples=["20%"],
    )
    group: list[str] = Field(
        default_factory=list,
        description="Columns of the key or, of tables with a time, of the features: rows that are equal in them are never on both sides of the evaluation. Left out: of a snapshot the whole key, otherwise rows are divided by time alone.",
        examples=[["patient_id"]],
    )
    max_rows: int | None = Field(
        default=None,
        ge=100,
        description="Maximum number of rows to train on. A larger window is sampled, as `sample` says.",
        examples=[1_000_000],
    )
    sample: Literal["proportional", "balanced"] = Field(
        default="proportional",
        description="How a classifier's rows are sampled. proportional: each class keeps its share. balanced: equally many rows of each class, as far as there are, and the probabilities are corrected for it; without max_rows, as many as the rarest class has.",
    )
    schedule: Cron = Field(
        default="30 * * * *",
        description="Cron expression of the schedule that trains due models.",
        examples=["30 * * * *"],
    )
    retrain: Literal["when_changed", "never"] = Field(
        default="when_changed",
        description="when_changed: the newest serving period is trained again when the estimator, its parameters or the features change, and any period whose model learned from labels that were not known yet, or was refused on a window that changed since. never: only `batch-platform train` trains again.",
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
        description="Metric to judge by, of those that the guide's page `monitoring` lists. Left out: the default of the task.",
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
        description="By how much a version may be worse than the champion and still be approved: the whole 95% interval of the difference must lie within it. Left out: not at all.",
        examples=[0.02],
    )
    baseline: bool = Field(
        default=True,
        description="Whether a version is refused that is worse, beyond chance, than the best trivial baseline: the mean or the class shares, of all rows or by season, or the last value.",
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
            raise ValueError(with_guess(msg, value, METRICS))
        return value


GateOrManual = Annotated[Promote, WithJsonSchema({"anyOf": [{"const": "manual"}, Promote.model_json_schema()]})]


class ModelCard(Block):
    """What only people know of a model, for its card."""

    intended_use: str = Field(
        default="",
        description="Who uses the scores, and for what.",
        examples=["The service desk calls customers who are likely to leave."],
    )
    limits: str = Field(
        default="",
        description="What the scores must not be used for, and where they are known to be poor.",
        examples=["Not for customers of less than three months."],
    )


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
    refit: bool = Field(
        default=True,
        description="Whether a version that the gate does not refuse is fitted again on the whole window, evaluation rows included.",
    )
    allow_suspected_leaks: list[str] = Field(
        default_factory=list,
        description="Features that tell the label suspiciously well and are known when a row is scored; '*': whatever is suspected. A version with others waits for `batch-platform models PIPELINE promote VERSION`.",
        examples=[["deposit_paid"], ["*"]],
    )
    card: ModelCard | None = Field(
        default=None,
        description="Texts for the card that `batch-platform models PIPELINE card VERSION` writes.",
        examples=[{"intended_use": "The service desk calls customers who are likely to leave."}],
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

    @property
    def in_files(self) -> bool:
        """True if the files that scoring writes are published as they are."""
        return self.store == PARQUET


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
    report: Report | None = Field(
        default=None,
        description="A report for people who never open Dagster, written on a schedule. Left out: `batch-platform report` alone writes it.",
        examples=[{"every": "month"}],
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
    def positive(self) -> bool | int | float | str | None:
        """The declared positive class."""
        return None if self.labels is None else self.labels.positive

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
        self._check_refinements()
        self._check_snapshot()
        self._check_lengths()
        return self

    def _check_assets(self) -> None:
        """Refuse a pipeline that reads what it makes."""
        own = {f"{self.name}/{asset}" for asset in ASSETS}
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
        drift = self.monitoring.drift
        if drift is not None and drift.baseline == "week_before" and self.partitions.every == "month":
            msg = "monitoring.drift.baseline: a month has no week before it; use 'previous'"
            raise ValueError(msg)
        unit = {self.monitoring.unit or "row": "unit"}
        needed = dict.fromkeys(self.monitoring.segments, "segments") | unit
        known = [*self.predictions.keep, *(name for name in ("row", "partition", *self.features.key) if name in unit)]
        if unkept := [name for name in needed if name not in known]:
            advice = did_you_mean(unkept[0], self.predictions.keep) or "add it there"
            msg = f"monitoring.{needed[unkept[0]]}: {listed(map(repr, unkept))} is not in predictions.keep; {advice}"
            raise ValueError(msg)
        if self.features.spark_sql is not None and self.engine.name != SPARK:
            msg = "features.spark_sql runs on the cluster that `engine: {spark: {master: …}}` declares, "
            msg += f"and this pipeline declares the engine {self.engine.name!r}"
            raise ValueError(msg)
        on_spark = [name for name, source in self.sources.items() if source.kind == "spark_table"]
        if on_spark and self.features.spark_sql is None:
            msg = f"sources.{on_spark[0]}.spark_table: only `features.spark_sql` reads a table of Spark's catalog; "
            msg += "declare the folder of the table instead, as `parquet` or `delta`"
            raise ValueError(msg)
        driving = self.features.driving
        if driving is not None and driving.source not in self.sources:
            msg = f"features.driving.source: there is no source {driving.source!r}; there are {listed(self.sources)}"
            raise ValueError(with_guess(msg, driving.source, self.sources))

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
        calendar = self.partitions.calendar
        if train.every == "hour" and not shifts_by_whole_hours(calendar.zone, calendar.start, calendar.end):
            msg = f"model.train.every: clocks in {self.partitions.timezone} change by part of an hour; use 'day'"
            raise ValueError(msg)
        self._check_train_start()

    def _check_train_start(self) -> None:
        """Refuse a first serving period that does not begin where a period of its length does."""
        train, calendar = self.model.train, self.partitions.calendar
        if train.every is None or train.start is None:
            return
        periods = replace(calendar, every=train.every, start=datetime.fromisoformat(train.start), end=None)
        instant = periods.start.replace(tzinfo=calendar.zone).astimezone(UTC)
        if periods.first_start != instant:
            before = periods.around(instant)
            form = "%Y-%m-%dT%H:%M" if train.every == "hour" else "%Y-%m-%d"
            use = " or ".join(f"{start.astimezone(calendar.zone):{form}}" for start in (before.start, before.end))
            msg = f"model.train.start ({train.start}) is not the start of a serving period of one {train.every}; use {use}"
            raise ValueError(msg)


def _not_default(block: Block, *keys: str) -> list[str]:
    """Those of some keys of a block whose value is not the default."""
    return [
        key
        for key in keys
        if getattr(block, key) != type(block).model_fields[key].get_default(call_default_factory=True)
    ]
