"""The Python flavour: a class of the user's own with `predict(batch)`, stored as its import path and a hash of its source.

The bundle holds no code. If the source of the class changes, the model is refused until it is imported again; modules that the
source imports are not watched.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from batch_platform.declaration.errors import IntegrityError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.importing import import_function, source_code
from batch_platform.declaration.notation import DOTTED
from batch_platform.models.contract import ForeignModel, Signature, decoded
from batch_platform.models.flavours.flavour import Flavour, PredictorInTurns

MODEL_FILE = "reference.json"


@dataclass(frozen=True)
class Reference:
    """A class: its import path, the arguments it is built with, and a hash of the module it is defined in."""

    path: str
    params: Mapping[str, Any]
    source_sha256: str


def _source_sha256(path: str) -> str:
    return sha256(source_code(path, "model.import").encode()).hexdigest()


def _built(path: str, params: Mapping[str, Any]) -> Any:
    model_class: Any = import_function(path, "model.import")
    if not inspect.isclass(model_class):
        msg = f"model.import: {path} is not a class."
        raise WrongUseError(msg, hint="name a class with a method `predict(batch)`.")
    if not callable(getattr(model_class, "predict", None)):
        public = [name for name in dir(model_class) if not name.startswith("_")]
        msg = f"model.import: {path} has no method `predict(batch)`; it has {listed(public) or 'none'}."
        raise WrongUseError(msg, hint=did_you_mean("predict", public) or "add one that takes a Polars frame.")
    try:
        return model_class(**params)
    except Exception as error:  # a user's own code may raise anything
        msg = f"model.import: {path} cannot be built with {listed(params) or 'no parameters'}: {type(error).__name__}: {error}"
        raise WrongUseError(msg.rstrip(".") + ".", hint="check the class and model.params.") from error


class _PythonClass(Flavour):
    name = "python"
    libraries = ("polars", "numpy")
    details: ClassVar[Mapping[str, Any]] = {"evaluated": "by the class itself, one call at a time"}
    takes_params = True

    def save(self, model: Reference) -> dict[str, bytes]:
        return {MODEL_FILE: json.dumps(vars(model), indent=2, sort_keys=True, allow_nan=False).encode()}

    def load(self, files: Mapping[str, bytes], signature: Signature) -> PredictorInTurns:
        reference = Reference(**json.loads(files[MODEL_FILE]))
        if _source_sha256(reference.path) != reference.source_sha256:
            msg = f"The source of {reference.path} has changed since it was imported; it is not used."
            raise IntegrityError(msg, hint="materialize the model asset to import the new source, or undo the change.")
        table = partial(decoded, contract=signature.contract)
        return PredictorInTurns(_built(reference.path, reference.params), table, signature)

    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        _built(reference, params)
        return ForeignModel(Reference(reference, dict(params), _source_sha256(reference)), inputs=None)

    def recognises(self, folder: Path, reference: str) -> bool:
        del folder
        return DOTTED.fullmatch(reference) is not None

    def locate(self, folder: Path, reference: str) -> str:
        del folder
        return reference


FLAVOUR = _PythonClass()
