"""The model of a pipeline and its challengers, as they are declared: what is trained or imported, when, and what it must reach."""

import json
import re
from hashlib import sha256
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from batch_platform.declaration.calendar import Duration, Every
from batch_platform.declaration.errors import listed
from batch_platform.declaration.extensions import METRICS
from batch_platform.declaration.notation import (
    Block,
    Cron,
    ImportPath,
    LocalTime,
    Name,
    Share,
    WindowText,
    parse_window,
    with_guess,
)

Value = TypeVar("Value")
Task = Literal["binary", "multiclass", "regression", "clustering", "outliers"]
_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-[0-9]{2}:[0-9]{2}([+-][0-9]{4})?)?-[0-9a-f]{8}")


class Search(Block):
    """Values of parameters that training tries; the best ones are used."""

    params: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        min_length=1,
        description="Values to try, by parameter. A step of a pipeline that `build` returns is reached as step__parameter.",
        examples=[{"learning_rate": [0.03, 0.1], "max_leaf_nodes": [15, 31]}],
    )
    trials: int = Field(
        default=20,
        ge=1,
        description="Maximum number of combinations to try, drawn at random with a fixed seed. Fewer combinations are all tried.",
        examples=[20],
    )

    @field_validator("params")
    @classmethod
    def _plain(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return plain_parameters(value)

    @property
    def first(self) -> dict[str, Any]:
        """The first value of each parameter."""
        return {name: values[0] for name, values in self.params.items()}


def plain_parameters(parameters: dict[str, Value]) -> dict[str, Value]:
    """Return parameters of an estimator; raises ValueError for a value that JSON does not have, such as a date."""
    for name, parameter in parameters.items():
        try:
            json.dumps(parameter, sort_keys=True)
        except TypeError as error:
            msg = f"{name!r} is {parameter!r}, which is not a plain value; put dates and times in quotes"
            raise ValueError(msg) from error
    return parameters


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
        if self.version is not None and (changing := [key for key in ("params", "calibrate") if getattr(self, key)]):
            msg = f"`{changing[0]}` cannot be given to the version {self.version}, which is already trained"
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
        description="How far back training data go: 'all', or for example '60 days' or '2 years'.",
        examples=["60 days"],
    )
    evaluate: WindowText = Field(
        default="14 days",
        description="Length of the end of the window that is kept out of training and used for evaluation.",
        examples=["14 days"],
    )
    held_out: Share = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of the rows of a snapshot by which a fit on the others is judged, chosen by a hash of their key. With `refit`, the fit that serves then learns from all rows with a label.",
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
        description="when_changed: the newest serving period is trained again when the estimator, its parameters, the features, the labels or the rows to learn from change, and any period whose model learned from labels that were not known yet, or was refused on a window that changed since. never: only `batch-platform train` trains again.",
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.window != "all":
            parse_window(self.window)
        if self.start is not None and self.every is None:
            msg = "`start` needs `every`"
            raise ValueError(msg)
        return self

    @property
    def window_length(self) -> Duration | None:
        """Length of the training window; None for all history."""
        return None if self.window == "all" else parse_window(self.window)

    @property
    def evaluation_length(self) -> Duration:
        """Length of the end of the window that is kept out of training."""
        return parse_window(self.evaluate)


class Promote(Block):
    """The gate that a trained version must pass to serve."""

    metric: str | None = Field(
        default=None,
        description="Metric to judge by, of those that the guide's page `monitoring` lists. Left out: the default of the task.",
        examples=["roc_auc", *METRICS.own],
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
    """Texts of a model card that only people know."""

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
        description="Texts for the report and for the card that `batch-platform models PIPELINE card VERSION` writes.",
        examples=[{"intended_use": "The service desk calls customers who are likely to leave."}],
    )
    publish: Literal["mlflow"] | None = Field(
        default=None, description="Where each version is also registered: MLflow, at MLFLOW_TRACKING_URI."
    )

    @field_validator("promote", mode="before")
    @classmethod
    def _by_hand(cls, value: object) -> object:
        return {"manual": True} if value == "manual" else value
