"""What learns, as it is declared: the model of a pipeline and its challengers have this in common; frozen values, checked.

Knows nothing of when models are trained or what they must reach to serve.
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
    """An estimator to be trained here, or a model made elsewhere."""

    estimator: str | None = Field(
        default=None,
        description="Import path of a scikit-learn-compatible estimator.",
        examples=["sklearn.ensemble.HistGradientBoostingClassifier"],
    )
    build: str | None = Field(
        default=None,
        description="module.function that takes `params` and returns an estimator.",
        examples=["shop.networks.network"],
    )
    import_: str | None = Field(
        default=None,
        alias="import",
        description="A model made elsewhere: a file, MLflow's models:/ or runs:/ or folder, or package.module.Class.",
        examples=["churn.onnx", "models:/churn@champion", "shop.rules.Rules"],
    )
    flavour: str | None = Field(
        default=None,
        description="Kind of the imported model. Left out: recognised by its file ending or reference.",
        examples=["onnx"],
    )
    task: Task | None = Field(default=None, description="Of the import; left out where its file tells.")
    classes: list[bool | int | float | str] | None = Field(
        default=None,
        description="Of the import, in the order of its probabilities; left out where its file tells.",
        examples=[[False, True]],
    )
    allow_pickle: bool = Field(
        default=False,
        description="Trust the model's files to run code when they are loaded: needed by MLflow and pickle.",
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of the estimator.", examples=[{"max_iter": 200}]
    )

    @property
    def kinds(self) -> dict[str, str | None]:
        """The keys of which one is given, with what they hold."""
        return {"estimator": self.estimator, "build": self.build, "import": self.import_}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [key for key, value in self.kinds.items() if value is not None]
        if len(given) != 1:
            *names, last = [f"`{key}`" for key in self.kinds]
            msg = f"give one of {', '.join(names)} and {last}"
            raise ValueError(msg)
        apart = {"flavour": self.flavour, "task": self.task, "classes": self.classes}
        if self.import_ is None:
            for dotted in (self.estimator, self.build):
                if dotted is not None:
                    check_dotted(dotted)
            if told := [key for key, value in apart.items() if value is not None]:
                msg = f"{listed(map(repr, told))} tells of an import only; what is trained here is known"
                raise ValueError(msg)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            msg = f"`classes` names one more than once: {listed(map(repr, self.classes))}"
            raise ValueError(msg)
        return self

    @field_validator("params")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            try:
                json.dumps(given, sort_keys=True)
            except TypeError as error:
                msg = f"{name!r} is {given!r}, which is no plain value; a date or a time is written in quotes"
                raise ValueError(msg) from error
        return value


class Challenger(Learner):
    """A model that scores what the champion scores, beside it, and never serves until somebody promotes it."""

    name: str = Field(description="Under which its scores are stored; no other challenger has it.", examples=["linear"])
    version: str | None = Field(
        default=None,
        description="A version that is trained already: it scores, and nothing is trained.",
        examples=["2013-03-01-3f9c1a2b"],
    )

    @property
    def kinds(self) -> dict[str, str | None]:
        """The keys of which one is given, with what they hold."""
        return {**super().kinds, "version": self.version}

    @property
    def fingerprint(self) -> str:
        """Changes when another model would be trained under its name."""
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
            msg = f"`params` cannot be given to the version {self.version}, which is trained already"
            raise ValueError(msg)
        return self


def check_challengers(challengers: list[Challenger]) -> None:
    """Refuse names that are not told apart.

    Raises:
        ValueError: Two challengers have the same name.
    """
    names = [one.name for one in challengers]
    if twice := {name for name in names if names.count(name) > 1}:
        msg = f"more than one challenger is named {listed(map(repr, twice))}"
        raise ValueError(msg)
