"""The known flavours, by name, and which of them a model belongs to."""

from pathlib import Path
from typing import Any

from batch_platform.declaration import extensions
from batch_platform.declaration.errors import WrongUseError, listed, named
from batch_platform.declaration.extensions import Registry
from batch_platform.models.flavours.flavour import Flavour
from batch_platform.models.flavours.sklearn import FLAVOUR as SKLEARN
from batch_platform.models.flavours.sklearn import last_of

FLAVOURS: Registry[Flavour] = extensions.FLAVOURS


def flavour(name: str) -> Flavour:
    """Look up a flavour by name; raises WrongUseError if there is none."""
    return named(name, FLAVOURS, f"{name!r} is not a flavour; allowed are", hint="upgrade batch-platform.")


def flavour_of(estimator: Any) -> Flavour:
    """The flavour of a fitted or unfitted estimator, whatever preprocessing is in front of it."""
    return flavour_of_class(type(last_of(estimator)))


def flavour_of_class(estimator_class: type) -> Flavour:
    """The flavour of a class of estimators: that of its library. Wrappers derive from scikit-learn, which comes last."""
    packages = {parent.__module__.partition(".")[0] for parent in estimator_class.__mro__}
    trained = (kind for kind in FLAVOURS.values() if kind is not SKLEARN and kind.package in packages)
    return next(trained, SKLEARN)


def flavour_of_import(folder: Path, reference: str) -> Flavour:
    """The flavour of a model made elsewhere, by its file ending or else by the form of its reference; raises WrongUseError."""
    for kind in FLAVOURS.values():
        if reference.lower().endswith(kind.endings):
            return kind
    for kind in FLAVOURS.values():
        if kind.recognises(folder, reference):
            return kind
    endings = listed(ending for kind in FLAVOURS.values() for ending in kind.endings)
    msg = f"model.import: {reference!r} does not show what kind of model it is. Known are files that end in {endings}, "
    msg += "MLflow folders, MLflow's models:/ and runs:/ URIs, and classes as package.module.Class."
    raise WrongUseError(msg, hint=f"set model.flavour to one of {listed(FLAVOURS)}.")
