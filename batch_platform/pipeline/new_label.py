"""A label of another type than versions predict: they retire, and what they scored goes with the first commit of the new type."""

from contextlib import suppress
from dataclasses import dataclass

from batch_platform.declaration.errors import BatchPlatformError, counted
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.declared_model import is_classification
from batch_platform.models.registry import Promotion, Version
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.state import State

_NUMBERS = "TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER UBIGINT FLOAT DOUBLE"
_CLASSES = {  # the keys are types of labels in DuckDB
    "BOOLEAN": "truth values",
    "VARCHAR": "texts",
    "ENUM": "texts",
    **dict.fromkeys(_NUMBERS.split(), "numbered classes"),
}
_OF_VALUE = {bool: "truth values", str: "texts", int: "numbered classes", float: "numbered classes"}
_WITHOUT_CLASSES = {"regression": "quantities", "clustering": "groups"}


@dataclass(frozen=True)
class NewLabel:
    """Say why the predictions of a pipeline start anew."""

    versions: list[Version]  # versions that predict another type of label and are not retired yet
    partitions: list[str]  # keys of partitions whose predictions cannot stay
    reason: str

    def __str__(self) -> str:
        """Say what becomes of the predictions."""
        deleted = (
            f" The first commit of new predictions deletes the old ones of {counted(len(self.partitions), 'partition')}, with "
            "what was measured of them; until then they can be read."
        )
        return f"{self.reason}. Predictions start anew, with new models.{deleted if self.partitions else ''}"


def new_label(pipeline: Pipeline, state: State) -> NewLabel | None:
    """Find what cannot stay because another type of label is declared; None where all can.

    A model that is imported says itself what it predicts, and labels that cannot be read decide nothing.
    """
    registry, differing = state.registry, dict[str, str]()
    present = [version for version in registry.versions if version.version not in registry.retired]
    if pipeline.spec.model.import_ is None and present:
        with suppress(BatchPlatformError):
            classes = _classes(pipeline, state)
            made = ((version.version, _another(pipeline, version, classes)) for version in present)
            differing = {version: kind for version, kind in made if kind is not None}
    others = [version for version in present if version.version in differing]
    gone = differing.keys() | registry.retired
    partitions = [key for key, run in state.scores.items() if run.model_version in gone]
    if others:
        then = " and ".join(sorted({_predicted(version) or "" for version in others}))
        reason = f"{pipeline.spec.name}: its models predict {then}, but they are to predict {differing[others[-1].version]} now"
        return NewLabel(others, partitions, reason)
    if partitions and (decision := registry.last_decision(state.scores[partitions[-1]].model_version)) is not None:
        return NewLabel([], partitions, decision.reason)
    return None


def retire(pipeline: Pipeline, state: State, change: NewLabel, actor: str, stamp: Stamp) -> None:
    """Let the versions of another type of label serve no more; what they scored stays until the next commit."""
    decisions = [
        Promotion(it.pipeline, it.version, "retired", change.reason, "{}", actor, stamp.now(), stamp.run_id)
        for it in change.versions
    ]
    if decisions:
        pipeline.decide(decisions[0], state, *decisions[1:])


def _classes(pipeline: Pipeline, state: State) -> str | None:
    """The classes that the declared label would have; None if that is not known."""
    measured = [key for key, run in state.evaluations.items() if run.rows_labelled]
    if pipeline.spec.labels is None or not (keys := sorted(measured or state.features)):
        return None
    with pipeline.builder.session() as session:
        label_type = session.label_type(pipeline.spec.partitions.calendar.named(keys[-1])) or ""
    return _CLASSES.get(label_type.partition("(")[0])


def _predicted(version: Version) -> str | None:
    """The type of label that a version predicts; None if that is not known."""
    classes = version.class_labels
    return _WITHOUT_CLASSES.get(version.task) or (_OF_VALUE.get(type(classes[0])) if classes else None)


def _another(pipeline: Pipeline, version: Version, classes: str | None) -> str | None:
    """The type of label that is declared, if a version predicts another one."""
    model, predicted = pipeline.spec.model, _predicted(version)
    is_declared = version.estimator == redact(model.estimator or model.build or "")
    if predicted is None or (is_declared and version.task in _WITHOUT_CLASSES):
        return None
    if pipeline.spec.labels is None:
        return None if version.task in ("clustering", "outliers") else "groups"
    if not is_declared and not (predicted == classes and classes in ("truth values", "texts")):  # spares an import
        classes = classes if is_classification(model) else "quantities"
    return None if predicted == classes else classes
