"""Versions of what models and evaluations are made from beside the features: the labels, and the declared rules of learning and measuring.

A training and an evaluation record the versions, and are due again once one differs. Records of earlier releases lack
them. It is not known what those were made from: taken for it is what was declared when they were first looked at, so that
an upgrade makes nothing due and a later change does; see `StateKeeper.conclude`.
"""

import json
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from batch_platform.declaration.importing import source_code
from batch_platform.declaration.model import Learner
from batch_platform.declaration.notation import DOTTED
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.features.build import NO_INPUTS, FeatureBuilder
from batch_platform.features.fingerprints import Fingerprints, ReadBy, Taken
from batch_platform.warehouse.ledger import EvaluationRun, ModelTraining

_LABELS, _MEASURES = "labels.sql", "monitoring.metrics"  # keys beside the names of sources, which hold no dot
_MODEL: tuple[ReadBy, str] = ("labels", "model")  # no source has these names
_PERFORMANCE: tuple[ReadBy, str] = ("labels", "performance")
_MARKS = ("-labels ", "-learning ")
_LEARNING = {"window", "evaluate", "held_out", "group", "max_rows", "sample"}
_LIBRARIES = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Inputs:
    """The versions as declared now, or as a training recorded them."""

    labels: str = ""  # labels.sql, its columns, and the declaration of the sources that it reads
    learning: str = ""  # the rows that a model learns from, the types of its columns, and its own code
    measures: str = ""  # what is measured beside the metrics of the package, and over which segments and units

    @classmethod
    def declared(cls, builder: FeatureBuilder) -> Self:
        """The versions as a pipeline is declared now; raises SourceError if `labels.sql` cannot be read."""
        return cls(_labels(builder), _learning(builder.spec, builder.sources.folder), _measures(builder.spec))

    @property
    def text(self) -> str:
        """The end of what a training records as declared; `recorded` reads it."""
        return f"{_MARKS[0]}{self.labels}{_MARKS[1]}{self.learning}"

    @property
    def measured(self) -> dict[str, str]:
        """What an evaluation records beside the versions of its sources."""
        return {_LABELS: self.labels, _MEASURES: self.measures}

    @classmethod
    def recorded(cls, training: ModelTraining, taken: Taken) -> Self | None:
        """The versions that a training recorded, else those first looked at; None if neither is known."""
        _, mark, versions = training.declared.rpartition(_MARKS[0])
        if not mark and _MODEL in taken:
            versions = taken[_MODEL].version.removeprefix(_MARKS[0])
        elif not mark:
            return None
        labels, _, learning = versions.partition(_MARKS[1])
        return cls(labels, learning)

    def changes_since(self, training: ModelTraining, taken: Taken) -> list[str]:
        """Name what differs from the versions that a training recorded."""
        then = self.recorded(training, taken)
        if then is None:
            return []
        pairs = {"labels": (self.labels, then.labels), "training": (self.learning, then.learning)}
        return [name for name, (now, before) in pairs.items() if now != before]

    def recorded_by(self, evaluation: EvaluationRun, taken: Taken) -> dict[str, str]:
        """The versions of `measured` that an evaluation recorded, else those first looked at."""
        first = json.loads(taken[_PERFORMANCE].version) if _PERFORMANCE in taken else {}
        then = {**self.measured, **first, **json.loads(evaluation.label_sources)}
        return {name: then[name] for name in self.measured}

    def first_seen(self, trainings: Iterable[ModelTraining], evaluations: Iterable[EvaluationRun]) -> Taken:
        """What is to be taken for the versions of records that lack them; nothing where all have theirs."""
        seen = dict[tuple[ReadBy, str], str]()
        if any(_MARKS[0] not in training.declared for training in trainings):
            seen[_MODEL] = self.text
        if any(f'"{_LABELS}"' not in evaluation.label_sources for evaluation in evaluations):
            seen[_PERFORMANCE] = json.dumps(self.measured)
        return {of: Fingerprints(version, looks_back=False) for of, version in seen.items()}


def _hashed(*parts: object) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _labels(builder: FeatureBuilder) -> str:
    """A hash that changes when the same sources could give other labels; comments and white space in the SQL do not change it."""
    spec, query = builder.spec, builder.labels_query
    if query is None or spec.labels is None:
        return ""
    read, texts = {*builder.label_sources}, builder.sources.statements()
    sources = spec.model_dump(
        mode="json", include={"sources": read}, exclude={"sources": NO_INPUTS}, exclude_defaults=True
    )
    content = [texts[name] for name in builder.label_sources if name in texts]  # what databases are asked
    for name in builder.label_sources:
        if spec.sources[name].kind == "asset":
            content.append(spec.sources[name].location)
        elif (function := spec.sources[name].python) is not None:
            content.append(source_code(function, f"sources.{name}.python"))
    windows = spec.partitions.model_dump(mode="json", include={"every", "timezone"})
    return _hashed(
        query.statement, spec.features.key, spec.labels.column, spec.labels.weight, sources, content, windows
    )


def _learning(spec: PipelineSpec, folder: Path) -> str:
    """A hash that changes when a model would learn from other rows or by other code; estimator and parameters have their own."""
    model = spec.model
    train = model.train.model_dump(mode="json", include=_LEARNING, exclude_defaults=True)
    types = {name: rule.type for name, rule in spec.features.columns.items() if rule.type is not None}
    return _hashed(train, model.refit, types, _code(model, folder))


def _measures(spec: PipelineSpec) -> str:
    monitoring = spec.monitoring
    if not (monitoring.metrics or monitoring.segments or monitoring.unit):
        return ""
    functions = [_digest(_module(path)) for path in monitoring.metrics]
    return _hashed(monitoring.metrics, functions, monitoring.segments, monitoring.unit)


def _code(model: Learner, folder: Path) -> str:
    """A digest of the project's own code or file of a model; empty for one of a library, whose version its bundle records."""
    if model.import_ is not None:
        path = folder / model.import_
        if path.is_dir():
            path /= "MLmodel"  # names the model that MLflow saved there
        return _digest(path) or _digest(_module(model.import_))
    module = _module(model.build or model.estimator or "")
    own = model.build is not None or not any(module and module.is_relative_to(library) for library in _LIBRARIES)
    return _digest(module) if own else ""


def _module(dotted: str) -> Path | None:
    """The file of the module of `module.NAME`, which is not imported: its libraries may be slow."""
    if not DOTTED.fullmatch(dotted):
        return None
    package, *rest = dotted.rpartition(".")[0].split(".")
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # missing, as training says, or made by a program
        return None
    if spec is None or not rest:
        return None if spec is None or spec.origin is None else Path(spec.origin)
    places = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
    files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
    return next((file for file in files if file.is_file()), None)


def _digest(file: Path | None) -> str:
    if file is None or not file.is_file():
        return ""
    with file.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()
