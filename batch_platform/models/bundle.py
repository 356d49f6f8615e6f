"""A trained model on disk: a folder with a manifest and the files that it lists, each with its hash.

`FORMAT` is the version of this layout. A bundle is hashed before it is parsed: the registry holds the SHA-256 of the manifest, and the
manifest those of the other files, so one changed byte anywhere is refused.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from hashlib import sha256 as sha256_of
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import IntegrityError, WrongUseError, listed
from batch_platform.declaration.importing import installed, missing
from batch_platform.kernels.forest.compiled import (
    NOT_TREES,
    WORTH_COMPILING,
    CompilablePredictor,
    Compilation,
    is_few,
    predictor_from_file,
    proven_predictor,
)
from batch_platform.kernels.forest.ensembles import TREES_FILE, NotCompilableError
from batch_platform.kernels.native_threads import hold_loaded_libraries, libraries_loaded
from batch_platform.kernels.predictor import Predictor, decisions
from batch_platform.models.baseline import Baseline
from batch_platform.models.contract import ClassLabel, Contract, Signature, Task
from batch_platform.models.flavours.flavour import Flavour
from batch_platform.models.flavours.known import FLAVOURS, flavour
from batch_platform.models.flavours.sklearn import STEPS_FILE
from batch_platform.models.judged import SCORES_FILE, JudgedScores
from batch_platform.models.refinements.known import refinement_named
from batch_platform.models.refinements.refinement import (
    REFINEMENTS_FILE,
    Applied,
    read_refinements,
    refined,
    refinements_file,
)
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.monitoring.reference import ReferenceProfile
from batch_platform.warehouse.ledger import Version

FORMAT = 6  # greater than every number that a build has used: numbers only grow
WITHOUT_JUDGED_FIT = 5  # read too: a version that was fitted again lacks the fit that was judged
WITHOUT_PRIOR = 4  # read too, unless the version corrects its probabilities for a balanced sample
MANIFEST = "manifest.json"
REFERENCE_FILE = "profile.json"
LEARNED_FILE = "learned_rows.bin"  # of a snapshot: hashes of the rows that the fit that serves learned from
JUDGED = "judged_"  # begins the names of the files of the judged fit, where another fit serves
NO_FILES: Mapping[str, bytes] = {}
ALLOW_VARIABLE = "BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """The data that a model was fitted on; all times are ISO 8601 in UTC."""

    start: str
    end: str
    partitions: int
    rows: int
    rows_rejected: int  # rows that could not be learned from: NaN, infinite or out of declared bounds
    features_sha256: str  # over the partition keys and hashes of the feature files
    label_sources: str = ""  # digest of the label files and their labels; empty unless each partition has a label file

    @property
    def days(self) -> float:
        """Its length."""
        return (datetime.fromisoformat(self.end) - datetime.fromisoformat(self.start)) / timedelta(days=1)


@dataclass(frozen=True)
class Sampled:
    """The sampling of a model that was fitted on part of its window."""

    max_rows: int | None  # declared maximum
    rows_before: int
    rows_after: int
    stratified: bool  # whether each class kept its share
    seed: int


@dataclass(frozen=True)
class Coverage:
    """Numbers of evaluation rows that a version and the champion of that time could score.

    A model can score a row that keeps its contract and is of a class that it knows.
    """

    rows: int
    shared: int  # scored by both, and by only one of them
    only_version: int
    only_champion: int
    champion_rejects: int
    champion_lacks_class: int  # rows that the champion accepts, but whose class it does not know
    champion_is_unfit: bool  # it fails on more than features.max_rejected of the rows, and on more than the version


@dataclass(frozen=True)
class Evaluation:
    """The metrics on the end of the window, of a model that was not fitted on it.

    Where a refinement learns from rows that the model has not seen, it is the second part of that end, and `start` is its start.
    A model that was refitted has the metrics of the fit that the gate judged.
    """

    start: str
    end: str
    rows: int
    metrics: dict[str, float]
    baseline: Baseline | None = None  # None if the task has none, or there is nothing to learn it from
    coverage: Coverage | None = None  # None if there was no champion that could read the rows
    rows_refined: int = 0  # rows of the first part, which refinements learned from
    rows_not_known: int = 0  # earlier rows that were left out, because their labels were not known when it began


@dataclass(frozen=True)
class JudgedFit:
    """The fit that the gate judged, of a version that was fitted again: what it learned from, and the columns that it takes."""

    training: Window
    contract: list[dict[str, Any]]


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a bundle without loading its model."""

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
    created_at: str
    run_id: str
    compiled: Compilation = NOT_TREES.compiled  # set when it is written
    sampled: Sampled | None = None  # None if it was fitted on all rows
    refit: bool = False  # whether it was fitted again on the whole window after its evaluation
    judged_fit: JudgedFit | None = (
        None  # None if the fit that serves was judged, or if an earlier build made the bundle
    )
    # Class whose probability `score` is, or label of the outliers; None in other tasks.
    positive: ClassLabel | None = None
    suspected_leaks: list[SuspectedLeak] = field(default_factory=list[SuspectedLeak])
    remarks: list[str] = field(default_factory=list[str])  # remarks on the fit, e.g. that it did not converge
    # Facts on the refinements of the judged fit, applied or not, by name.
    refinements: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    search: dict[str, Any] = field(default_factory=dict[str, Any])  # the search for its parameters; empty without one
    imported_from: str = ""  # origin of an imported model; empty if it was trained here
    details: dict[str, Any] = field(default_factory=dict[str, Any])  # what its flavour states about it
    libraries: dict[str, str] = field(default_factory=dict[str, str])  # this and the rest: set when it is written
    files: dict[str, str] = field(default_factory=dict[str, str])  # SHA-256 by name
    pickle: bool = False  # whether loading it may run code that its files contain
    format: int = FORMAT

    @property
    def lacks_judged_fit(self) -> bool:
        """True if an earlier build made the bundle, and kept only the fit that serves."""
        return self.refit and self.judged_fit is None

    @property
    def judged_training(self) -> Window:
        """The data that the judged fit learned from."""
        return self.training if self.judged_fit is None else self.judged_fit.training


class Native:
    """The library's own predictor, loaded when it is first needed; safe to use from several threads at once."""

    def __init__(self, load: Callable[[], Predictor]) -> None:
        """Load nothing yet."""
        self._load, self._lock = load, Lock()
        self._loaded: Predictor | None = None

    def loaded(self) -> Predictor:
        """Return the predictor; the first call raises what loading raises."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
                libraries_loaded()
        return self._loaded

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Predict with the library."""
        predictor = self.loaded()
        hold_loaded_libraries()  # another thread may have loaded them
        return predictor.predict(matrix)

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Evaluate the library's decision function; None if it has none."""
        predictor = self.loaded()
        hold_loaded_libraries()
        return decisions(predictor, matrix)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose hashes were checked, but for those of its judged fit and its scores, which are read when they are needed."""

    folder: Path
    sha256: str
    manifest: Manifest
    contract: Contract
    native: Native
    reference: ReferenceProfile
    other_libraries: str = ""  # libraries that differ from training, which the user allowed; with both versions
    trees: bytes = b""  # the file of its trees; empty if there is none
    refinements: tuple[Applied, ...] = ()  # order of application

    @property
    def version(self) -> str:
        """Its name in the registry."""
        return self.folder.name

    @property
    def judged(self) -> JudgedScores | None:
        """The scores that its judged fit gave the evaluation rows; see `read_judged`."""
        return read_judged(self.folder, self.manifest)

    @property
    def judged_fit(self) -> tuple[Predictor, Signature]:
        """The fit that the gate judged, with its refinements: another one than serves, if the model was fitted again.

        Raises IntegrityError if a file of it is not the one that was registered.
        """
        recorded = self.manifest.judged_fit
        if recorded is None:
            return self.predictor, self.signature
        files = {
            name.removeprefix(JUDGED): _file(self.folder, name, self.manifest)
            for name in self.manifest.files
            if name.startswith(JUDGED)
        }
        signature = replace(self.signature, contract=Contract.from_json(recorded.contract))
        refinements = read_refinements(files.pop(REFINEMENTS_FILE, b""), refinement_named)
        native = Native(partial(flavour(self.manifest.flavour).load, files, signature))
        return refined(native.loaded(), refinements), signature

    @property
    def signature(self) -> Signature:
        """Columns that the model takes, and its results."""
        return Signature(self.manifest.task, self.manifest.classes, self.contract)

    @property
    def predictor(self) -> Predictor:
        """The library's own predictor, refined; the first call may wait until the library is loaded."""
        return refined(self.native.loaded(), self.refinements)

    def for_rows(self, rows: int) -> Predictor:
        """The fastest predictor for a number of rows; all of them return the same bits.

        Compiled trees score if the proof in the bundle and a second one on this machine hold, and if the trees are stored beside
        the model or the rows are worth loading both. Safe to call from several threads at once, as is the predictor.
        """
        compilation = self.manifest.compiled
        if compilation.kernel is None or (not self.trees and rows * compilation.trees < WORTH_COMPILING):
            return self.predictor
        if self.trees and is_few(rows, compilation.trees) and self._plain is not None:
            return refined(self._plain, self.refinements)
        return self.predictor if isinstance(self._compiled, str) else refined(self._compiled, self.refinements)

    @property
    def not_compiled(self) -> str:
        """Reason why compiled trees did not score rows that were worth it, although the proof in training held.

        Empty if they did, or if `for_rows` has not tried yet.
        """
        tried = vars(self).get("_compiled")
        return tried if isinstance(tried, str) else ""

    @cached_property
    def _plain(self) -> Predictor | None:
        """The form of the stored trees for few rows; None if it cannot be used here."""
        with suppress(NotCompilableError):
            return predictor_from_file(self.trees, self.native, compiled=False)
        return None

    @cached_property
    def _compiled(self) -> Predictor | str:
        """The compiled form, or why it cannot be used here."""
        if self.trees:
            # This machine may round differently from the one that trained, and still agree with itself.
            with suppress(NotCompilableError):
                return predictor_from_file(self.trees, self.native, compiled=True)
        try:
            native = self.native.loaded()
            return proven_predictor(native) if isinstance(native, CompilablePredictor) else "no trees"
        except NotCompilableError as error:
            _log.warning("%s is scored by its library's own code on this machine: %s.", self.version, error)
            return str(error)


OpenVersion = Callable[[Version], Bundle]


def write_bundle(  # noqa: PLR0913 - the parts of a bundle, and where it goes
    manifest: Manifest,
    model: object,
    staging: Path,
    models: Path,
    reference: ReferenceProfile,
    trees: bytes = b"",
    read_later: Mapping[str, bytes] = NO_FILES,
    refinements: Sequence[Applied] = (),
    judged_fit: tuple[object, Sequence[Applied]] | None = None,
) -> tuple[str, str, Manifest]:
    """Write a bundle into the folder of its pipeline's models, wholly or not at all.

    `staging` is an empty folder on the same disk; what a killed run leaves there is swept. `read_later` are files that no
    scoring reads; `judged_fit` is the model that was judged and its refinements, unless it is the one that serves. Returns the version, the bundle's
    SHA-256, and the manifest with what is known only now: libraries, hashes, pickle. Raises TrainingRefusedError if the model
    holds a type that would not be trusted on loading, and WrongUseError if a library that it depends on is not installed.
    """
    models.mkdir(parents=True, exist_ok=True)
    kind = flavour(manifest.flavour)
    files = _model_files(kind, model, refinements)
    files |= {name: data for name, data in ((TREES_FILE, trees), *read_later.items()) if data}
    files[REFERENCE_FILE] = reference.to_json()
    if judged_fit is not None:
        files |= {f"{JUDGED}{name}": data for name, data in _model_files(kind, *judged_fit).items()}
    complete = replace(
        manifest,
        details={**kind.details, **manifest.details},
        libraries=libraries(kind, files),
        files={name: sha256_of(data).hexdigest() for name, data in files.items()},
        pickle=_may_run_code(kind, files),
    )
    text = json.dumps(asdict(complete), indent=2, allow_nan=False).encode()
    sha256 = sha256_of(text).hexdigest()
    bundle = staging / "bundle"
    bundle.mkdir()
    for name, data in {**files, MANIFEST: text}.items():
        (bundle / name).write_bytes(data)
    version = f"{manifest.serving_period}-{sha256[:8]}"
    bundle.replace(models / version)
    return version, sha256, complete


def _model_files(kind: Flavour, model: object, refinements: Sequence[Applied]) -> dict[str, bytes]:
    """The files of a fit and of its refinements, by name."""
    applied = refinements_file(refinements)
    return kind.save(model) | ({REFINEMENTS_FILE: applied} if applied else {})


def _restore(folder: Path) -> str:
    period = folder.name.rpartition("-")[0]
    return f"restore {folder} from a backup, or train it again: batch-platform train {folder.parent.name} --period {period} --force"


def read_manifest(folder: Path, sha256: str) -> Manifest:
    """Read a manifest after checking its hash.

    Raises IntegrityError if it does not exist or is not the one that was registered, and WrongUseError for another format.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        msg = f"The bundle {folder.name} has no readable manifest in {folder} ({error.strerror})."
        raise IntegrityError(msg, hint=_restore(folder)) from error
    if sha256_of(text).hexdigest() != sha256:
        msg = f"The manifest of {folder.name} is not the one that was registered; the bundle is not loaded."
        raise IntegrityError(msg, hint=_restore(folder))
    values: dict[str, Any] = json.loads(text)
    if values["format"] == WITHOUT_PRIOR and not (values["sampled"] or {}).pop("rates", []):
        values["format"] = WITHOUT_JUDGED_FIT  # such a version has no refinements, and differs in nothing else
    if values["format"] == WITHOUT_JUDGED_FIT:
        values["format"] = FORMAT
    if values["format"] != FORMAT:
        msg = f"The bundle {folder.name} has format {values['format']}; this version reads format {FORMAT}."
        raise WrongUseError(msg, hint="use the version that wrote it, or train the serving period again.")
    if REFERENCE_FILE not in values["files"]:
        msg = (
            f"The bundle {folder.name} has no {REFERENCE_FILE}, the profile of what it learned from; it is not loaded."
        )
        raise IntegrityError(msg, hint=_restore(folder))
    values["compiled"] = Compilation(**values["compiled"])
    values["training"] = Window(**values["training"])
    if judged := values.get("judged_fit"):
        values["judged_fit"] = JudgedFit(Window(**judged["training"]), judged["contract"])
    for name, record in (("baseline", Baseline), ("coverage", Coverage)):
        recorded = values["evaluation"][name]
        values["evaluation"][name] = record(**recorded) if recorded else None
    values["evaluation"] = Evaluation(**values["evaluation"])
    values["suspected_leaks"] = [SuspectedLeak.from_json(leak) for leak in values["suspected_leaks"]]
    values["sampled"] = Sampled(**values["sampled"]) if values["sampled"] else None
    return Manifest(**values)


def open_bundle(folder: Path, sha256: str, *, allow_pickle: bool = False) -> Bundle:
    """Load a bundle after checking every byte of what is loaded. `allow_pickle`: whether the declaration trusts its files to run code.

    Raises IntegrityError if a byte differs from what was registered, and WrongUseError if a library is missing or differs from
    training (unless BATCH_PLATFORM_ALLOW_OTHER_LIBRARIES=1), the flavour is unknown, or loading may run code without permission.
    """
    manifest = read_manifest(folder, sha256)
    later = {name for name in manifest.files if name in (SCORES_FILE, LEARNED_FILE) or name.startswith(JUDGED)}
    files = {name: _file(folder, name, manifest) for name in manifest.files if name not in later}
    try:
        kind = flavour(manifest.flavour)
    except WrongUseError as error:
        msg = f"The bundle {folder.name} cannot be loaded: {error.message}"
        raise WrongUseError(msg, hint="upgrade batch-platform.") from error
    if _may_run_code(kind, manifest.files):
        risk = f"Loading the bundle {folder.name} of the flavour {kind.name!r} may run code that its files contain"
        if not allow_pickle:
            msg = f"{risk}; it is not loaded."
            raise WrongUseError(msg, hint="if you trust whoever made the model, declare model.allow_pickle: true.")
        _log.warning("%s: model.allow_pickle is set.", risk)
    others = _allowed_libraries(folder.name, manifest.flavour, manifest.libraries)
    contract = Contract.from_json(manifest.contract)
    trees = files.pop(TREES_FILE, b"")
    reference = ReferenceProfile.from_json(files.pop(REFERENCE_FILE))
    refinements = read_refinements(files.pop(REFINEMENTS_FILE, b""), refinement_named)
    native = Native(partial(kind.load, files, Signature(manifest.task, manifest.classes, contract)))
    if not trees:
        native.loaded()
    return Bundle(folder, sha256, manifest, contract, native, reference, others, trees, refinements)


def require_unchanged(folder: Path, sha256: str) -> None:
    """Raise IntegrityError if the manifest or a file of a bundle is not the one that was registered; nothing is loaded."""
    manifest = read_manifest(folder, sha256)
    for name in manifest.files:
        _file(folder, name, manifest)


def read_reference(folder: Path, sha256: str) -> ReferenceProfile:
    """Read the reference profile of a bundle without its model.

    Raises IntegrityError if the manifest or the file is not the one that was registered.
    """
    return ReferenceProfile.from_json(_file(folder, REFERENCE_FILE, read_manifest(folder, sha256)))


def read_judged(folder: Path, manifest: Manifest) -> JudgedScores | None:
    """Read the scores that the judged fit of a bundle gave the evaluation rows, without its model.

    None without labels, and in a bundle of an earlier build. Raises IntegrityError if the file is not the one that was registered.
    """
    if SCORES_FILE not in manifest.files:
        return None
    return JudgedScores.from_parquet(_file(folder, SCORES_FILE, manifest), manifest.task, manifest.classes)


def read_learned(folder: Path, manifest: Manifest) -> NDArray[np.uint64] | None:
    """Read the hashes of the rows of a snapshot that the fit that serves learned from; None if it learned from no row held out.

    Raises IntegrityError if the file is not the one that was registered.
    """
    if LEARNED_FILE not in manifest.files:
        return None
    return np.frombuffer(_file(folder, LEARNED_FILE, manifest), dtype="<u8")


def _file(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Read a file of a bundle; raises IntegrityError if a byte of it differs from what was trained."""
    path = folder / Path(name).name
    content = path.read_bytes() if path.is_file() else b""
    if sha256_of(content).hexdigest() != manifest.files[name]:
        msg = f"{name} of the bundle {folder.name} is not the one that was trained; the bundle is not loaded."
        raise IntegrityError(msg, hint=_restore(folder))
    return content


def compared(first: Manifest, second: Manifest, shared_rows: int | None = None) -> dict[str, tuple[Any, Any]]:
    """The facts in which two manifests differ, and their metrics and data windows in any case.

    Returns the values of both by name; None if a manifest has no fact of that name. If so many `shared_rows` are to be compared,
    and a version was evaluated on others too, the metrics of the baselines are left out: they cannot be computed for these.
    """
    left, right = _facts(first), _facts(second)
    if shared_rows is not None and {first.evaluation.rows, second.evaluation.rows} != {shared_rows}:
        left, right = (
            {name: fact for name, fact in facts.items() if not name.startswith("baseline.")} for facts in (left, right)
        )
    always = {name for name in left | right if name.startswith(("metrics.", "training.", "evaluation.", "judged_fit."))}
    return {
        name: (left.get(name), right.get(name))
        for name in dict.fromkeys([*left, *right])
        if name in always or left.get(name) != right.get(name)
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    """The facts of a manifest under flat names."""
    values = asdict(manifest)
    facts: dict[str, Any] = {"estimator": values["estimator"], "flavour": values["flavour"], "task": values["task"]}
    facts["positive"] = values["positive"]
    facts |= {f"metrics.{name}": value for name, value in sorted(values["evaluation"].pop("metrics").items())}
    if baseline := values["evaluation"].pop("baseline"):
        facts["baseline"] = baseline["name"]
        facts |= {f"baseline.{name}": value for name, value in sorted(baseline["metrics"].items())}
    coverage = values["evaluation"].pop("coverage") or {}
    facts |= {f"coverage.{name}": value for name, value in coverage.items()}
    facts["suspected_leaks"] = "; ".join(map(str, manifest.suspected_leaks))
    for name, recorded in values["refinements"].items():
        facts |= {f"refinements.{name}.{key}": value for key, value in recorded.items()}
    facts["refit"] = values["refit"]
    facts["remarks"] = "; ".join(values["remarks"])
    facts |= {f"params.{name}": value for name, value in sorted(values["params"].items())}
    windows = {"training": values["training"], "judged_fit": asdict(manifest.judged_training)}
    for window, recorded in (windows | {"evaluation": values["evaluation"]}).items():
        facts |= {f"{window}.{name}": value for name, value in recorded.items()}
    facts |= {f"features.{column['name']}": _column(column) for column in values["contract"]}
    facts["features_code_version"] = values["features_code_version"]
    return facts | {f"libraries.{name}": value for name, value in sorted(values["libraries"].items())}


def _column(column: Mapping[str, Any]) -> str:
    categories = f"{len(column['categories'])} categories" if column["categories"] else ""
    return ", ".join(filter(None, [column["type"], categories, "nullable" if column["nullable"] else ""]))


def libraries(kind: Flavour, files: Iterable[str]) -> dict[str, str]:
    """The installed versions of the libraries that a bundle depends on; raises WrongUseError if a library is missing."""
    steps = FLAVOURS["sklearn"].libraries if STEPS_FILE in files else ()
    return _installed(kind.name, (*kind.libraries, *steps))


def _installed(name: str, distributions: Iterable[str]) -> dict[str, str]:
    versions = {library: installed(library) for library in distributions}
    if absent := [library for library, version in versions.items() if version is None]:
        raise missing(listed(absent), name)
    return {library: version for library, version in versions.items() if version is not None}


def _may_run_code(kind: Flavour, files: Iterable[str]) -> bool:
    return any(name.removeprefix(JUDGED) in kind.pickle_files for name in files)


def _allowed_libraries(version: str, name: str, trained_with: Mapping[str, str]) -> str:
    """The libraries whose minor version differs from training; a difference is refused unless the user allows it."""
    different = [
        f"{library} {trained_with[library]} (here {here})"
        for library, here in _installed(name, trained_with).items()
        if trained_with[library].split(".")[:2] != here.split(".")[:2]
    ]
    allowed = os.environ.get(ALLOW_VARIABLE) or "0"
    if allowed not in ("0", "1"):
        msg = f"{ALLOW_VARIABLE} is {allowed!r}."
        raise WrongUseError(msg, hint="set it to 1 or 0.")
    if different and allowed == "0":
        msg = (
            f"The bundle {version} was trained with {listed(different)}; it could score differently and is not loaded."
        )
        hint = "install the versions it was trained with, or train the serving period again; "
        raise WrongUseError(msg, hint=f"{hint}{ALLOW_VARIABLE}=1 loads it all the same, and the ledger says so.")
    return listed(different)
