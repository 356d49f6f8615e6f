"""The kinds of models by name, each a module that is imported when a model of its kind is met.

A flavour is a module with `save` and `load`, and with `read` where models made elsewhere can be imported. It names
itself, the libraries on which its predictions depend, and what the manifest is to say of every model of its kind.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from batch_platform.declaration.errors import WrongUseError, did_you_mean, listed
from batch_platform.declaration.spec import FLAVOURS
from batch_platform.models.flavours.steps import last_of
from batch_platform.models.signature import Found, Predictor, Signature

_MODULES = {name: f"batch_platform.models.flavours.{name}" for name in FLAVOURS}
_ENDINGS = {
    "sklearn": (".skops", ".pkl", ".pickle", ".joblib"),
    "onnx": (".onnx",),
    "lightgbm": (".txt", ".lgb"),
    "xgboost": (".ubj", ".json", ".xgb"),
    "keras": (".keras",),
}
_MLFLOW = re.compile(r"(models|runs|mlflow-artifacts):/.*|.*/")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class Flavour(Protocol):
    """What a module of a flavour offers."""

    FLAVOUR: str
    LIBRARIES: tuple[str, ...]  # as distributions are named; another minor version might score differently
    UNPICKLES: tuple[str, ...]  # files of it whose loading may run code that they hold
    DETAILS: Mapping[str, Any]  # for every manifest

    def save(self, model: object, folder: Path) -> Sequence[str]:
        """Write a model into a folder; gives the names of the files."""
        ...

    def load(self, files: Mapping[str, bytes], signature: Signature) -> Predictor:
        """Make a predictor from bytes that were found unchanged."""
        ...

    def read(self, reference: str, params: Mapping[str, Any]) -> Found:
        """Read a model that was made elsewhere."""
        ...


def flavour(name: str) -> Flavour:
    """The flavour of that name.

    Raises:
        WrongUseError: There is none.
    """
    if name not in _MODULES:
        guess = did_you_mean(name, FLAVOURS)
        msg = f"{name!r} is no flavour that this version knows; it knows {listed(FLAVOURS)}."
        raise WrongUseError(msg, hint=guess or "upgrade batch-platform.")
    return import_module(_MODULES[name])  # pyright: ignore[reportReturnType] - a test holds every module to the protocol


def flavour_of(estimator: object) -> str:
    """The flavour in which a fitted estimator is kept: that of its library, whatever stands in front of it."""
    libraries = {cls.__module__.partition(".")[0] for cls in type(last_of(estimator)).__mro__}
    return next((name for name in ("lightgbm", "xgboost", "keras") if name in libraries), "sklearn")


def flavour_of_reference(reference: str) -> str:
    """The flavour of a model made elsewhere, by the form in which it is named.

    Raises:
        WrongUseError: The form does not tell.
    """
    for name, endings in _ENDINGS.items():
        if reference.lower().endswith(endings):
            return name
    if _MLFLOW.fullmatch(reference) or (Path(reference) / "MLmodel").is_file():
        return "mlflow"
    if _DOTTED.fullmatch(reference):
        return "python"
    endings = listed(ending for known in _ENDINGS.values() for ending in known)
    msg = f"model.import: {reference!r} does not tell what kind of model it is; known are files in {endings}, "
    msg += "MLflow's models:/ and runs:/ and folders, and a class as package.module.Class."
    raise WrongUseError(msg, hint=f"say it with model.flavour: one of {listed(FLAVOURS)}.")


def predictor_of(name: str, model: object, signature: Signature) -> Predictor:
    """What would serve, were the model saved now: saved and loaded, so that what is evaluated is what will score."""
    made = flavour(name)
    with tempfile.TemporaryDirectory() as folder:
        names = made.save(model, Path(folder))
        files = {name: (Path(folder) / name).read_bytes() for name in names}
    return made.load(files, signature)
