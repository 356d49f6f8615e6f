"""A model that was made elsewhere: where it is, what kind it is, and what it tells about itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import DataError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.spec import Model
from batch_platform.models.contract import Contract
from batch_platform.models.estimator import check_estimator_exists
from batch_platform.models.flavours.known import flavour, flavour_of_reference
from batch_platform.models.flavours.sklearn import PICKLES
from batch_platform.models.signature import ClassLabel, Found, Signature, Task, held_against

_NO_FILES = ("mlflow", "python")


@dataclass(frozen=True)
class Import:
    """A model as it was read."""

    flavour: str
    found: Found
    task: Task
    classes: list[ClassLabel]

    def signature(self, contract: Contract) -> Signature:
        """What it reads and gives, where the features keep a contract.

        Raises:
            DataError: It asks for other columns.
        """
        asked = contract if self.found.inputs is None else held_against(contract, self.found.inputs)
        return Signature(self.task, self.classes, asked)


def read_import(model: Model, folder: Path, params: Mapping[str, Any]) -> Import:
    """Read the model that a pipeline imports.

    Args:
        model: As declared.
        folder: The folder of the declaration, from which paths count.
        params: For the class of a model in Python.

    Raises:
        WrongUseError: It is not there, it does not tell what it gives, its library is missing, or trust is needed.
        DataError: The file is not of its kind, or what is declared of it is not so.
    """
    reference = model.import_ or ""
    name = model.flavour or flavour_of_reference(reference)
    if params and name != "python":
        msg = f"model.params: {listed(params)} cannot be given to an imported {name} model, which is finished."
        raise WrongUseError(msg, hint="leave them out.")
    if name not in _NO_FILES:
        reference = str(_existing(folder, reference))
    elif name == "mlflow" and (folder / reference).is_dir():
        reference = str(folder / reference)
    kind = flavour(name)
    if name == "mlflow" or reference.lower().endswith(PICKLES):
        require_trust(model, reference)
    found = kind.read(reference, params)
    task = _agreed("task", model.task, found.task, reference)
    return Import(name, found, task, _classes(model, found, task, reference))


def check_model(model: Model, folder: Path) -> None:
    """Check, without data and without a server, that a pipeline's model could be trained or imported.

    Raises:
        WrongUseError: It could not.
        DataError: The file of an import is not of its kind.
    """
    if model.import_ is None:
        check_estimator_exists(model)
    elif model.flavour == "mlflow" or model.import_.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        require_trust(model, model.import_)
    else:
        read_import(model, folder, model.params)


def require_trust(model: Model, reference: str) -> None:
    """Check that the declaration allows to run code that a model's files hold.

    Raises:
        WrongUseError: It does not.
    """
    if not model.allow_pickle:
        msg = f"model.import: loading {reference} may run code that its files hold (pickle), and that is not allowed."
        raise WrongUseError(msg, hint="if you trust whoever made it, declare model.allow_pickle: true.")


def _existing(folder: Path, reference: str) -> Path:
    path = folder / reference
    if not path.is_file():
        near = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        msg = f"model.import: there is no file {path}."
        raise WrongUseError(msg, hint=did_you_mean(path.name, near) or "a path counts from the folder of the YAML.")
    return path


def _agreed(key: str, declared: Any, told: Any, reference: str) -> Any:
    if declared is None and told is None:
        msg = f"model.import: {reference} does not tell its {key}."
        raise WrongUseError(msg, hint=f"declare model.{key}: binary, multiclass, regression, clustering or outliers.")
    if declared is not None and told is not None and declared != told:
        msg = f"model.{key} is {declared!r}, but {reference} is a {told} model."
        raise DataError(msg, hint=f"leave model.{key} out, or import another model.")
    return declared or told


def _classes(model: Model, found: Found, task: Task, reference: str) -> list[ClassLabel]:
    if task not in ("binary", "multiclass"):
        if model.classes:
            msg = f"model.classes: a {task} model has none."
            raise WrongUseError(msg, hint="leave them out.")
        return []
    declared, told = model.classes, found.classes
    if declared is None and told is None:
        msg = f"model.import: {reference} does not tell its classes."
        raise WrongUseError(msg, hint="declare them in the order of its probabilities: model.classes: [false, true]")
    if declared is not None and told is not None and len(declared) != len(told):
        msg = f"model.classes names {len(declared)}, but {reference} tells {len(told)} apart: {listed(told)}."
        raise DataError(msg, hint="name them all, in the order of its probabilities.")
    classes = list(declared or told or [])
    if (len(classes) == 2) != (task == "binary"):  # noqa: PLR2004 - two classes are binary
        msg = f"{reference}: a {task} model cannot have {len(classes)} classes ({listed(classes)})."
        raise DataError(msg, hint="see model.task and model.classes.")
    return classes
