"""A trained model on disk: a folder with a manifest and the files it lists, each with its hash.

`FORMAT` is the version of this layout. To change the layout: raise it, keep reading the older ones here, and say in
`open_bundle` what to do with a newer one. Format 2 added `compiled`; a bundle of format 1 is served natively. A bundle is hashed before it is parsed: the registry holds the SHA-256 of
the manifest, the manifest those of the other files, so one changed byte anywhere is refused.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from batch_platform.contract import Contract
from batch_platform.errors import IntegrityError, WrongUseError, listed
from batch_platform.models import sklearn as sklearn_flavour
from batch_platform.models.compiled import WORTH_COMPILING
from batch_platform.models.proof import NEVER_TRIED, Compiled, proven_predictor

FORMAT = 2
MANIFEST = "manifest.json"
ALLOW_VARIABLE = "BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES"

Task = Literal["binary", "multiclass", "regression", "clustering"]
ClassLabel = bool | int | float | str


class Predictor(Protocol):
    """A loaded model: plain numbers in, plain numbers out; it fits nothing and keeps nothing between calls."""

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], values [n] of a regression, or segments [n] of a clustering."""
        ...


@dataclass(frozen=True)
class Window:
    """The data that a model was made from; all times are ISO 8601 in UTC."""

    start: str
    end: str
    partitions: int
    rows: int
    rows_rejected: int  # rows that could not be learnt from: NaN, infinite or out of declared bounds
    features_sha256: str  # over the partition keys and hashes of the feature files


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


@dataclass(frozen=True)
class Bundle:
    """A bundle whose hashes were found right."""

    version: str
    sha256: str
    manifest: Manifest
    contract: Contract
    predictor: Predictor  # the library's own
    other_libraries: str = ""  # than in training, where the user allowed it: which, then and now

    def for_rows(self, rows: int) -> Predictor:
        """The quickest way to score so many rows; the predictions are the same bits whichever it is.

        Compiled trees serve where the bundle's proof and another one on this machine hold, and where the rows are worth
        loading them; safe to call from several threads at once, as is what it gives.
        """
        proof = self.manifest.compiled
        if proof.kernel is None or rows * proof.trees < WORTH_COMPILING:
            return self.predictor
        return self._compiled or self.predictor

    @cached_property
    def _compiled(self) -> Predictor | None:
        native = self.predictor
        return proven_predictor(native) if isinstance(native, sklearn_flavour.SklearnPredictor) else None


def write_bundle(manifest: Manifest, model: object, staging: Path, models: Path) -> tuple[str, str, Manifest]:
    """Write a bundle below the folder of its pipeline's models, wholly or not at all.

    Args:
        manifest: But for the hashes of the files.
        model: What the flavour saves.
        staging: An empty folder on the same disk; what a killed run leaves there is swept.
        models: The folder of the pipeline's models; made if missing.

    Returns:
        The version, the bundle's SHA-256, and the manifest as written.

    Raises:
        TrainingRefusedError: The model holds a type that would not be trusted when it is loaded.
    """
    models.mkdir(parents=True, exist_ok=True)
    aside = staging / "bundle"
    aside.mkdir()
    names = sklearn_flavour.save(model, aside)
    hashes = {name: hashlib.sha256((aside / name).read_bytes()).hexdigest() for name in names}
    complete = replace(manifest, files=hashes)
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


def open_bundle(folder: Path, sha256: str) -> Bundle:
    """Load a bundle after checking every byte of it.

    Raises:
        IntegrityError: A byte differs from what was registered.
        WrongUseError: The libraries differ from those it was trained with, and BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES
            does not say 1; or the flavour is unknown.
    """
    manifest = read_manifest(folder, sha256)
    files: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        path = folder / Path(name).name
        files[name] = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(files[name]).hexdigest() != expected:
            msg = f"{name} of the bundle {folder.name} is not the one that was trained; the bundle is not loaded."
            raise IntegrityError(msg, hint="restore the folder from a backup, or train the serving period again.")
    if manifest.flavour != sklearn_flavour.FLAVOUR:
        msg = f"The bundle {folder.name} is of the unknown flavour {manifest.flavour!r}."
        raise WrongUseError(msg, hint="upgrade batch-platform.")
    others = _allowed_libraries(folder.name, manifest.libraries)
    return Bundle(
        version=folder.name,
        sha256=sha256,
        manifest=manifest,
        contract=Contract.from_json(manifest.contract),
        predictor=sklearn_flavour.load(files, manifest.task),
        other_libraries=others,
    )


def libraries() -> dict[str, str]:
    """The versions, now, of the libraries that a bundle depends on."""
    return {name: metadata.version(name) for name in sklearn_flavour.LIBRARIES}


def _allowed_libraries(version: str, trained_with: Mapping[str, str]) -> str:
    """Which libraries differ from those of the training, if the user allows that some do; else none may."""
    now = libraries()
    other = [
        f"{name} {trained_with.get(name)} (here {have})"
        for name, have in now.items()
        if _minor(trained_with.get(name, "")) != _minor(have)
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
