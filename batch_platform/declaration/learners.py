"""What the model of a pipeline and its challengers declare in common, as frozen, validated blocks.

When models are trained, and what they must reach to serve, is declared in `spec`.
"""

import json
import re
from hashlib import sha256
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from batch_platform.declaration.errors import listed
from batch_platform.declaration.notation import Block, check_dotted, check_name

Task = Literal["binary", "multiclass", "regression", "clustering", "outliers"]
_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-[0-9]{2}:[0-9]{2}([+-][0-9]{4})?)?-[0-9a-f]{8}")


class Learner(Block):
    """An estimator to train, or a model made elsewhere."""

    estimator: str | None = Field(
        default=None,
        description="Import path of a scikit-learn-compatible estimator.",
        examples=["sklearn.ensemble.HistGradientBoostingClassifier"],
    )
    build: str | None = Field(
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
        if self.import_ is None:
            for path in (self.estimator, self.build):
                if path is not None:
                    check_dotted(path)
            if misplaced := [key for key in ("flavour", "task", "classes") if getattr(self, key) is not None]:
                msg = f"{listed(map(repr, misplaced))} can only describe an import"
                raise ValueError(msg)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            msg = f"`classes` has duplicates: {listed(map(repr, self.classes))}"
            raise ValueError(msg)
        return self

    @field_validator("params")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, parameter in value.items():
            try:
                json.dumps(parameter, sort_keys=True)
            except TypeError as error:
                msg = f"{name!r} is {parameter!r}, which is not a plain value; put dates and times in quotes"
                raise ValueError(msg) from error
        return value


class Challenger(Learner):
    """A model that scores the same rows as the champion, beside it, and never serves until it is promoted."""

    name: str = Field(description="Name under which its scores are stored. Must be unique.", examples=["linear"])
    version: str | None = Field(
        default=None,
        description="Version that is already trained: it scores, and nothing is trained.",
        examples=["2013-03-01-3f9c1a2b"],
    )

    @property
    def kinds(self) -> dict[str, str | None]:
        """The keys of which exactly one must be set, with their values."""
        return {**super().kinds, "version": self.version}

    @property
    def fingerprint(self) -> str:
        """A hash that changes when another model would be trained under this name."""
        return sha256(self.model_dump_json(exclude={"name", "allow_pickle"}).encode()).hexdigest()[:12]

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        check_name(value)
        return value

    @field_validator("version")
    @classmethod
    def _version(cls, value: str | None) -> str | None:
        if value is not None and not _VERSION.fullmatch(value):
            msg = f"{value!r} is not the name of a version such as '2013-03-01-3f9c1a2b'"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _finished(self) -> Self:
        if self.version is not None and self.params:
            msg = f"`params` cannot be given to the version {self.version}, which is already trained"
            raise ValueError(msg)
        return self


def check_challengers(challengers: list[Challenger]) -> None:
    """Refuse duplicate names.

    Raises:
        ValueError: Two challengers have the same name.
    """
    names = [challenger.name for challenger in challengers]
    if duplicates := {name for name in names if names.count(name) > 1}:
        msg = f"more than one challenger is named {listed(map(repr, duplicates))}"
        raise ValueError(msg)
