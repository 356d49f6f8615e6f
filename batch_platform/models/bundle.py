"""A trained model on disk: a folder with a manifest and the files it lists, each with its hash.

`FORMAT` is the version of this layout. To change the layout: raise it, keep reading the older ones here, and say in
`open_bundle` what to do with a newer one. Format 2 added `compiled` and what is told of imports, of pickle and of other
flavours; a bundle of format 1 is served natively. Format 3 added the file of trees. A bundle is hashed before it is
parsed: the registry holds the SHA-256 of the manifest, the manifest those of the other files, so one changed byte
anywhere is refused.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import IntegrityError, WrongUseError, listed
from batch_platform.models.contract import Contract
from batch_platform.models.flavours.extras import installed, missing
from batch_platform.models.flavours.known import Flavour, flavour
from batch_platform.models.forest.compiled import WORTH_COMPILING, CompilablePredictor
from batch_platform.models.forest.ensembles import NotCompilableError
from batch_platform.models.forest.kept import TREES_FILE
from batch_platform.models.forest.proof import NEVER_TRIED, Compiled, proven_kept, proven_predictor
from batch_platform.models.signature import ClassLabel, Predictor, Signature, Task

FORMAT = 3
MANIFEST = "manifest.json"
ALLOW_VARIABLE = "BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """The data that a model was made from; all times are ISO 8601 in UTC."""

    start: str
    end: str
    partitions: int
    rows: int
    rows_rejected: int  # rows that could not be learned from: NaN, infinite or out of declared bounds
    features_sha256: str  # over the partition keys and hashes of the feature files
    label_sources: str = ""  # over the versions of the files of labels; empty where not each partition has its own


@dataclass(frozen=True)
class Sampled:
    """A model that was fitted on a part of its window's rows."""

    max_rows: int  # as declared
    rows_before: int
    rows_after: int
    stratified: bool  # whether each class kept its share
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """How a model did on the end of its window, which it was not fitted on."""

    start: str
    end: str
    rows: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """Everything there is to know of a bundle without loading its model."""

    pipeline: str
    serving_period: str
    serving_start: str  # ISO 8601 in UTC
    flavour: str
    task: Task
    classes: list[ClassLabel]
    estimator: str
    params: dict[str, Any]
    contract: list[dict[str, Any]]
    training: Window
    evaluation: Evaluation
    features_code_version: str
    libraries: dict[str, str]
    created_at: str
    run_id: str
    compiled: Compiled
    files: dict[str, str] = field(default_factory=dict[str, str])
    format: int = FORMAT
    sampled: Sampled | None = None  # None where it was fitted on all rows
    imported_from: str = ""  # where a model that was made elsewhere came from; empty if it was trained here
    pickle: bool = False  # whether loading it may run code that its files hold
    details: dict[str, Any] = field(default_factory=dict[str, Any])  # what its flavour says of it


class Native:
    """The library's own predictor, loaded when it is first asked for; several threads may ask at once."""

    def __init__(self, load: Callable[[], Predictor]) -> None:
        """Load nothing yet."""
        self._load, self._lock = load, Lock()
        self._loaded: Predictor | None = None

    def loaded(self) -> Predictor:
        """The predictor; raises what loading raises."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
        return self._loaded

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give what the library gives."""
        return self.loaded().predict(matrix)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose hashes were found right."""

    version: str
    sha256: str
    manifest: Manifest
    contract: Contract
    native: Native
    other_libraries: str = ""  # than in training, where the user allowed it: which, then and now
    trees: bytes = b""  # the file that keeps them; empty where there is none

    @property
    def predictor(self) -> Predictor:
        """The library's own; the first one to ask for it may have to wait until the library is loaded."""
        return self.native.loaded()

    def for_rows(self, rows: int) -> Predictor:
        """The quickest way to score so many rows; the predictions are the same bits whichever it is.

        Compiled trees serve where the bundle's proof and another one on this machine hold, and where they are kept beside
        the model or the rows are worth loading both; safe to call from several threads at once, as is what it gives.
        """
        proof = self.manifest.compiled
        if proof.kernel is None or (not self.trees and rows * proof.trees < WORTH_COMPILING):
            return self.predictor
        return self.predictor if isinstance(self._compiled, str) else self._compiled

    @property
    def not_compiled(self) -> str:
        """Why rows that were worth it were not scored by compiled trees, although the proof in training held.

        Empty where they were, and where nobody has asked yet.
        """
        tried = vars(self).get("_compiled")
        return tried if isinstance(tried, str) else ""

    @cached_property
    def _compiled(self) -> Predictor | str:
        """The compiled form, or why it does not serve here."""
        if self.trees:
            # This machine may round otherwise than that of the training did, and still agree with itself.
            with suppress(NotCompilableError):
                return proven_kept(self.trees, self.native)
        try:
            return proven_predictor(self.predictor) if isinstance(self.predictor, CompilablePredictor) else "no trees"
        except NotCompilableError as error:
            _log.warning("%s is scored by its library's own code on this machine: %s.", self.version, error)
            return str(error)


def write_bundle(
    manifest: Manifest, model: object, staging: Path, models: Path, trees: bytes = b""
) -> tuple[str, str, Manifest]:
    """Write a bundle below the folder of its pipeline's models, wholly or not at all.

    Args:
        manifest: But for the hashes of the files.
        model: What the flavour saves.
        staging: An empty folder on the same disk; what a killed run leaves there is swept.
        models: The folder of the pipeline's models; made if missing.
        trees: The file that keeps the model's trees, if they can be kept.

    Returns:
        The version, the bundle's SHA-256, and the manifest as written.

    Raises:
        TrainingRefusedError: The model holds a type that would not be trusted when it is loaded.
    """
    models.mkdir(parents=True, exist_ok=True)
    aside = staging / "bundle"
    aside.mkdir()
    made = flavour(manifest.flavour)
    names = list(made.save(model, aside))
    if trees:
        (aside / TREES_FILE).write_bytes(trees)
        names.append(TREES_FILE)
    hashes = {name: hashlib.sha256((aside / name).read_bytes()).hexdigest() for name in names}
    details = {**made.DETAILS, **manifest.details}
    complete = replace(manifest, files=hashes, pickle=_unpickled(made, hashes), details=details)
    text = json.dumps(asdict(complete), indent=2, allow_nan=False).encode()
    sha256 = hashlib.sha256(text).hexdigest()
    (aside / MANIFEST).write_bytes(text)
    version = f"{manifest.serving_period}-{sha256[:8]}"
    aside.replace(models / version)
    return version, sha256, complete


def read_manifest(folder: Path, sha256: str) -> Manifest:
    """Read a manifest after checking its hash.

    Raises:
        IntegrityError: It is not there, or not what was registered.
        WrongUseError: A newer version of this project wrote it.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        msg = f"The bundle {folder.name} has no readable manifest in {folder} ({error.strerror})."
        raise IntegrityError(
            msg, hint="restore the folder from a backup, or train the serving period again."
        ) from error
    if hashlib.sha256(text).hexdigest() != sha256:
        msg = f"The manifest of {folder.name} is not the one that was registered; the bundle is not loaded."
        raise IntegrityError(msg, hint="restore the folder from a backup, or train the serving period again.")
    values: dict[str, Any] = json.loads(text)
    if values["format"] > FORMAT:
        msg = f"The bundle {folder.name} has format {values['format']}; this version reads up to {FORMAT}."
        raise WrongUseError(msg, hint="upgrade batch-platform.")
    values["compiled"] = Compiled(**values["compiled"]) if "compiled" in values else NEVER_TRIED
    values["training"] = Window(**values["training"])
    values["evaluation"] = Evaluation(**values["evaluation"])
    values["sampled"] = Sampled(**values["sampled"]) if values.get("sampled") else None
    return Manifest(**values)


def open_bundle(folder: Path, sha256: str, *, allow_pickle: bool = False) -> Bundle:
    """Load a bundle after checking every byte of it.

    Args:
        folder: Of the bundle.
        sha256: As registered.
        allow_pickle: Whether whoever declared the pipeline trusts the files of the model to run code.

    Raises:
        IntegrityError: A byte differs from what was registered.
        WrongUseError: The libraries differ from those it was trained with, and BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES
            does not say 1; one is missing; the flavour is unknown; or loading it may run code, which is not allowed.
    """
    manifest = read_manifest(folder, sha256)
    files: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        path = folder / Path(name).name
        files[name] = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(files[name]).hexdigest() != expected:
            msg = f"{name} of the bundle {folder.name} is not the one that was trained; the bundle is not loaded."
            raise IntegrityError(msg, hint="restore the folder from a backup, or train the serving period again.")
    try:
        kind = flavour(manifest.flavour)
    except WrongUseError as error:
        msg = f"The bundle {folder.name} cannot be loaded: {error.message}"
        raise WrongUseError(msg, hint="upgrade batch-platform.") from error
    if _unpickled(kind, files):
        _require_trust(folder.name, manifest.flavour, allowed=allow_pickle)
    others = _allowed_libraries(folder.name, manifest.flavour, manifest.libraries)
    contract = Contract.from_json(manifest.contract)
    trees = files.pop(TREES_FILE, b"")
    native = Native(partial(kind.load, files, Signature(manifest.task, manifest.classes, contract)))
    if not trees:
        native.loaded()
    return Bundle(
        version=folder.name,
        sha256=sha256,
        manifest=manifest,
        contract=contract,
        native=native,
        other_libraries=others,
        trees=trees,
    )


def libraries(name: str = "sklearn", *, preprocessed: bool = False) -> dict[str, str]:
    """The versions, now, of the libraries that a bundle depends on.

    Args:
        name: Its flavour.
        preprocessed: Whether it holds transformers of scikit-learn in front of the model.

    Raises:
        WrongUseError: One is not installed.
    """
    needed = [*flavour(name).LIBRARIES, *(flavour("sklearn").LIBRARIES if preprocessed else ())]
    found = {library: installed(library) for library in needed}
    if absent := [library for library, version in found.items() if version is None]:
        raise missing(listed(absent), name)
    return {library: version for library, version in found.items() if version is not None}


def _unpickled(kind: Flavour, files: Mapping[str, object]) -> bool:
    return any(name in kind.UNPICKLES for name in files)


def _require_trust(version: str, name: str, *, allowed: bool) -> None:
    if not allowed:
        msg = (
            f"Loading the bundle {version} of the flavour {name!r} may run code that its files hold; it is not loaded."
        )
        raise WrongUseError(msg, hint="if you trust whoever made the model, declare model.allow_pickle: true.")
    _log.warning(
        "Loading %s of the flavour %r may run code that its files hold: model.allow_pickle is set.", version, name
    )


def _allowed_libraries(version: str, name: str, trained_with: Mapping[str, str]) -> str:
    """Which libraries differ from those of the training, if the user allows that some do; else none may."""
    now = {library: installed(library) for library in trained_with}
    if absent := [library for library, have in now.items() if have is None]:
        raise missing(listed(absent), name)
    other = [
        f"{library} {trained_with[library]} (here {have})"
        for library, have in now.items()
        if _minor(trained_with[library]) != _minor(have or "")
    ]
    allowed = os.environ.get(ALLOW_VARIABLE) or "0"
    if allowed not in ("0", "1"):
        msg = f"{ALLOW_VARIABLE} is {allowed!r}; it can be 1 or 0."
        raise WrongUseError(msg)
    if other and allowed == "0":
        msg = f"The bundle {version} was trained with {listed(other)}; it could score differently and is not loaded."
        hint = "install the versions it was trained with, or train the serving period again; "
        raise WrongUseError(msg, hint=f"{hint}{ALLOW_VARIABLE}=1 loads it all the same, and the ledger says so.")
    return listed(other)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
