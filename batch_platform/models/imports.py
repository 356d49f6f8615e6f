"""A model that was made elsewhere: its flavour, its task and classes, and the columns that it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import DataError, WrongUseError, listed
from batch_platform.declaration.spec import Model, PipelineSpec
from batch_platform.models.contract import Contract
from batch_platform.models.estimator import check_estimator_exists
from batch_platform.models.flavours.flavour import Flavour
from batch_platform.models.flavours.known import flavour, flavour_of_import
from batch_platform.models.signature import (
    ClassLabel,
    ForeignModel,
    Signature,
    Task,
    classes_of_one_name,
    matched_contract,
)


@dataclass(frozen=True)
class ImportedModel:
    """A model as its file and the declaration describe it."""

    flavour: Flavour
    source: ForeignModel
    task: Task
    classes: list[ClassLabel]

    def signature(self, contract: Contract) -> Signature:
        """Its signature, on features with a given contract.

        Raises:
            DataError: It takes other columns.
        """
        inputs = self.source.inputs
        return Signature(self.task, self.classes, contract if inputs is None else matched_contract(contract, inputs))


def read_import(model: Model, folder: Path, params: Mapping[str, Any]) -> ImportedModel:
    """Read the model that a pipeline imports.

    Args:
        model: As declared.
        folder: The folder of the declaration; paths are relative to it.
        params: Arguments for a model class in Python.

    Raises:
        WrongUseError: It does not exist, does not state its task or classes, its library is missing, or it needs trust.
        DataError: The file is not of its flavour, or contradicts the declaration.
    """
    kind, reference = _located(model, folder)
    if params and not kind.takes_params:
        msg = f"model.params: {listed(params)} cannot be given to an imported {kind.name} model, which is already trained."
        raise WrongUseError(msg, hint="leave them out.")
    if kind.runs_code(reference):
        _require_trust(model, reference)
    source = kind.read(reference, params)
    task = _agreed_task(model.task, source.task, reference)
    return ImportedModel(kind, source, task, _classes(model, source, task, reference))


def unknown_flavours(spec: PipelineSpec) -> dict[tuple[str | int, ...], WrongUseError]:
    """The declared flavours that do not exist, by the path of their key; a template is not looked up."""
    names: dict[tuple[str | int, ...], str | None] = {("model", "flavour"): spec.model.flavour}
    names |= {("challengers", at, "flavour"): challenger.flavour for at, challenger in enumerate(spec.challengers)}
    unknown: dict[tuple[str | int, ...], WrongUseError] = {}
    for path, name in names.items():
        try:
            _ = name and "{{" not in name and flavour(name)
        except WrongUseError as error:
            unknown[path] = error
    return unknown


def check_flavours(spec: PipelineSpec) -> None:
    """Check the declared flavours of the model and of the challengers by name.

    Raises:
        WrongUseError: There is no flavour of that name.
    """
    for path, error in unknown_flavours(spec).items():
        msg = f"{spec.name}: {'.'.join(map(str, path))}: {error.message}"
        raise WrongUseError(msg, hint=error.hint) from error


def check_model(model: Model, folder: Path) -> None:
    """Check, without data and without a server, that a pipeline's model could be trained or imported.

    Raises:
        WrongUseError: It could not.
        DataError: The file of an import is not of its flavour.
    """
    if model.import_ is None:
        check_estimator_exists(model)
        return
    kind, reference = _located(model, folder)
    if not kind.is_remote(reference):
        read_import(model, folder, model.params)
    elif kind.runs_code(reference):
        _require_trust(model, reference)


def _located(model: Model, folder: Path) -> tuple[Flavour, str]:
    reference = model.import_ or ""
    kind = flavour(model.flavour) if model.flavour else flavour_of_import(folder, reference)
    return kind, kind.locate(folder, reference)


def _require_trust(model: Model, reference: str) -> None:
    if not model.allow_pickle:
        msg = f"model.import: loading {reference} may run code stored in its files (pickle), which is not allowed."
        raise WrongUseError(msg, hint="if you trust its author, declare model.allow_pickle: true.")


def _agreed_task(declared: Task | None, stated: Task | None, reference: str) -> Task:
    task = declared or stated
    if task is None:
        msg = f"model.import: {reference} does not state its task."
        raise WrongUseError(msg, hint="declare model.task: binary, multiclass, regression, clustering or outliers.")
    if stated not in (None, task):
        msg = f"model.task is {declared!r}, but {reference} is a {stated} model."
        raise DataError(msg, hint="leave model.task out, or import another model.")
    return task


def _classes(model: Model, source: ForeignModel, task: Task, reference: str) -> list[ClassLabel]:
    declared, stated = model.classes, source.classes
    if task not in ("binary", "multiclass"):
        if declared:
            msg = f"model.classes: a {task} model has no classes."
            raise WrongUseError(msg, hint="leave them out.")
        return []
    if declared is None and stated is None:
        msg = f"model.import: {reference} does not state its classes."
        raise WrongUseError(msg, hint="declare them in the order of its probabilities: model.classes: [false, true]")
    if declared is not None and stated is not None and len(declared) != len(stated):
        msg = f"model.classes lists {len(declared)} classes, but {reference} has {len(stated)}: {listed(stated)}."
        raise DataError(msg, hint="list all of them, in the order of its probabilities.")
    classes = list(declared or stated or [])
    if (len(classes) == 2) != (task == "binary"):  # noqa: PLR2004 - two classes are binary
        msg = f"{reference}: a {task} model cannot have {len(classes)} classes ({listed(classes)})."
        raise DataError(msg, hint="check model.task and model.classes.")
    if task == "multiclass" and (alike := classes_of_one_name(classes)):
        msg = f"{reference}: the classes {listed(map(repr, alike))} differ only by case, so their score columns would have one name."
        raise DataError(msg, hint="give the classes other names in model.classes, in the order of its probabilities.")
    return classes
