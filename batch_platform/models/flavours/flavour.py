"""What a flavour is: the record that each kind of model fills in, and how optional libraries are imported."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import WrongUseError, did_you_mean
from batch_platform.models.contract import Contract
from batch_platform.models.signature import ForeignModel, Predictor, Signature


def existing_file(folder: Path, reference: str) -> str:
    """Resolve the path of a model file, relative to the folder of the declaration.

    Raises:
        WrongUseError: The file does not exist.
    """
    path = folder / reference
    if not path.is_file():
        names = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        msg = f"model.import: there is no file {path}."
        raise WrongUseError(
            msg, hint=did_you_mean(path.name, names) or "give the path relative to the folder of the YAML file."
        )
    return str(path)


def plain_fit(estimator: Any, matrix: Any, labels: Any, contract: Contract) -> None:  # noqa: ARG001 - libraries that need the columns have a `fit` of their own
    """Fit an estimator the way scikit-learn defines it."""
    estimator.fit(matrix, labels)


@dataclass(frozen=True)
class Training:
    """How the estimators of a library are trained. The defaults suit an estimator that behaves like scikit-learn's.

    Args:
        package: Top-level package of the estimators, e.g. `lightgbm`; empty if the flavour is only imported.
        fit: Fits an estimator to a matrix and its labels (None: unsupervised).
        accept_codes: Sets an unfitted estimator up to read category codes and NaN as the contract encodes them. None: it
            gets scaled numbers and one-hot columns instead.
        parameters: Returns the names of parameters that the library accepts beyond those in the signature.
        predictor: Wraps a fitted estimator that scores exactly as it would after saving and loading. None: the model is
            saved and loaded before it is evaluated.
    """

    package: str = ""
    fit: Callable[[Any, Any, Any, Contract], None] = plain_fit
    accept_codes: Callable[[Any, Contract], None] | None = None
    parameters: Callable[[], set[str]] = set[str]
    predictor: Callable[[Any, Signature], Predictor] | None = None


@dataclass(frozen=True)
class Flavour:
    """A kind of model: how it is recognised, imported, saved and loaded.

    Args:
        name: As in `model.flavour` and in manifests.
        libraries: Distributions whose minor version may change predictions, the main one first.
        save: Writes a model into a folder and returns the names of its files. Raises TrainingRefusedError for a model that
            could not be loaded again.
        load: Makes a predictor from files whose hashes were checked.
        read: Reads a model made elsewhere, with the parameters declared for it. Like `load`, it raises IntegrityError for a
            file that is not to be trusted, DataError for one that it cannot use, WrongUseError without the library.
        details: Facts that every manifest of this flavour states.
        endings: Endings of the files that can be imported, in lower case.
        recognises: Whether an import without a known ending is of this flavour, given the folder of the declaration.
        locate: Resolves the declared reference to what `read` takes.
        is_remote: Whether reading what `locate` returned may need a server.
        runs_code: Whether reading what `locate` returned may run code that it contains.
        takes_params: Whether an import has parameters.
        pickle_files: Names of saved files that may run code when they are loaded.
        pickled: Returns what to save where the declaration allows pickle. None: pickle is never used.
        environment: Variables that the library reads when it is first imported; set unless they are set already.
        training: How its estimators are trained.
    """

    name: str
    libraries: tuple[str, ...]
    save: Callable[[Any, Path], Sequence[str]]
    load: Callable[[Mapping[str, bytes], Signature], Predictor]
    read: Callable[[str, Mapping[str, Any]], ForeignModel]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    endings: tuple[str, ...] = ()
    recognises: Callable[[Path, str], bool] = lambda _folder, _reference: False
    locate: Callable[[Path, str], str] = existing_file
    is_remote: Callable[[str], bool] = lambda _: False
    runs_code: Callable[[str], bool] = lambda _: False
    takes_params: bool = False
    pickle_files: tuple[str, ...] = ()
    pickled: Callable[[Any], Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    training: Training = field(default_factory=Training)

    def to_save(self, model: Any, *, allow_pickle: bool) -> Any:
        """Return what `save` takes for a fitted model: its pickle where that is needed and allowed."""
        return self.pickled(model) if self.pickled and allow_pickle else model

    def set_environment(self) -> None:
        """Set the variables that the library reads when it is first imported."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)


@contextmanager
def needed(library: str, *, extra: str) -> Generator[None]:
    """Import an optional library in this block.

    Raises:
        WrongUseError: It cannot be imported; the hint names the extra that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise missing(library, extra, str(error)) from error


def missing(library: str, extra: str, reason: str = "it is not installed") -> WrongUseError:
    """The error for an optional library that is not there."""
    msg = f"A model of the flavour {extra!r} needs {library}, which cannot be imported ({reason})."
    return WrongUseError(msg, hint=f"pip install 'batch-platform[{extra}]'")


def installed(library: str) -> str | None:
    """The installed version of a library or of its build for the CPU; None if neither is installed."""
    for distribution in (library, f"{library}-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
