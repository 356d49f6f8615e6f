"""The Python flavour: a class of the user's own with `predict(batch)`, kept by its name and the hash of its source.

The class stays where it is: the bundle holds no code. A changed source is refused until it is imported again; what the
source imports in its turn is not watched.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import IntegrityError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.functions import import_function, source_code
from batch_platform.models.flavours.outputs import as_scores
from batch_platform.models.native_threads import one_thread
from batch_platform.models.signature import Found, Signature, decoded

FLAVOUR = "python"
MODEL_FILE = "reference.json"
LIBRARIES = ("polars", "numpy")
UNPICKLES: tuple[str, ...] = ()  # it runs the project's own code, none of the bundle's
DETAILS: Mapping[str, Any] = {"evaluated": "by the class itself, one call at a time"}


@dataclass(frozen=True)
class PythonPredictor:
    """An instance of the class; it is not asked to be safe with threads."""

    model: Any
    signature: Signature
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values or segments [n]."""
        rows = decoded(matrix, self.signature.contract)
        with self._lock, one_thread():
            raw = self.model.predict(rows)
        return as_scores(raw, len(matrix), self.signature)


@dataclass(frozen=True)
class Reference:
    """A class by its name, what it is made of, and the hash of the modules it is written in."""

    path: str
    params: Mapping[str, Any]
    source_sha256: str


def save(model: Reference, folder: Path) -> list[str]:
    """Write the reference; gives the name of its file."""
    text = json.dumps(vars(model), indent=2, sort_keys=True, allow_nan=False)
    (folder / MODEL_FILE).write_text(text, encoding="utf-8")
    return [MODEL_FILE]


def load(files: Mapping[str, bytes], signature: Signature) -> PythonPredictor:
    """Make an instance of the class.

    Raises:
        IntegrityError: Its source is not the one that was imported.
        WrongUseError: It is not there, or cannot be made.
    """
    kept = Reference(**json.loads(files[MODEL_FILE]))
    if _source_sha256(kept.path) != kept.source_sha256:
        msg = f"The source of {kept.path} is not the one that was imported; it is not used."
        raise IntegrityError(msg, hint="materialize the model asset to import it as it is now, or undo the change.")
    return PythonPredictor(_made(kept.path, kept.params), signature)


def read(reference: str, params: Mapping[str, Any]) -> Found:
    """Look the class up.

    Raises:
        WrongUseError: It is not there, cannot be made, or has no `predict`.
    """
    _made(reference, params)
    return Found(Reference(reference, dict(params), _source_sha256(reference)), inputs=None)


def _source_sha256(reference: str) -> str:
    return sha256(source_code(reference, "model.import").encode()).hexdigest()


def _made(reference: str, params: Mapping[str, Any]) -> Any:
    made: Any = import_function(reference, "model.import")
    if not inspect.isclass(made):
        msg = f"model.import: {reference} is no class."
        raise WrongUseError(msg, hint="name a class with a method `predict(batch)`.")
    if not callable(getattr(made, "predict", None)):
        public = [name for name in dir(made) if not name.startswith("_")]
        msg = f"model.import: {reference} has no method `predict(batch)`; it has {listed(public) or 'none'}."
        raise WrongUseError(msg, hint=did_you_mean("predict", public) or "give it one that takes a Polars frame.")
    try:
        return made(**params)
    except Exception as error:  # a user's own code may raise anything
        msg = f"model.import: {reference} cannot be made of {listed(params) or 'no params'}: {type(error).__name__}: {error}"
        raise WrongUseError(msg.rstrip(".") + ".", hint="see the class and model.params.") from error
