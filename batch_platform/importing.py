"""A model made elsewhere, brought into the form of a fitted one.

It skips training and nothing else: its contract is learnt from the features known before the serving period and held
against the model's own signature, and it is evaluated where labels are known by then.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from batch_platform.contract import Contract, infer_contract
from batch_platform.errors import TrainingRefusedError
from batch_platform.gate import Verdict
from batch_platform.history import History
from batch_platform.ledger import FeatureBuild
from batch_platform.models.flavours import predictor_of
from batch_platform.models.imports import read_import
from batch_platform.partitions import Partition
from batch_platform.plan import evaluation_start, matures
from batch_platform.scoring import Stamp
from batch_platform.spec import Promote
from batch_platform.training import Fitted, TrainingData, compiled_form, declared_columns, evaluate, feature_columns

UNJUDGED = "imported, no labels to judge by"
_TRIAL_ROWS = 1_000


def import_model(  # noqa: PLR0913 - each is one fact of the import
    history: History,
    builds: Mapping[str, FeatureBuild],
    window: Sequence[Partition],
    period: Partition,
    *,
    params: dict[str, Any],
    stamp: Stamp,
) -> tuple[Fitted, TrainingData | None]:
    """Read the model that a pipeline imports and hold it against the features.

    Args:
        history: Of the pipeline.
        builds: Its features, by partition key.
        window: The partitions before the serving period.
        period: The serving period.
        params: For the class of a model in Python.
        stamp: Of the run.

    Returns:
        The model, and the labelled rows to judge it by; None where no label is known.

    Raises:
        TrainingRefusedError: There is no row of features from which a contract could be learnt.
        DataError: The model and the features do not go together.
        WrongUseError: The model is not there, or cannot be used as it is declared.
        IntegrityError: A feature file is not what was recorded.
    """
    spec = history.spec
    seen = history.rows(builds, window)
    if not seen.height:
        msg = "There is no row of features before it from which the contract of the import could be learnt."
        raise TrainingRefusedError(msg, hint="import it for a later serving period.")
    read = read_import(spec.model, history.builder.sources.folder, params)
    signature = read.signature(_contract(history, seen))
    predictor, contract = predictor_of(read.flavour, read.found.model, signature), signature.contract
    trial = contract.split(seen.tail(_TRIAL_ROWS)).kept
    if trial.height:  # what the model gives must be what it is declared to give
        predictor.predict(contract.encode(trial))
    data = _labelled(history, builds, window, period, stamp)
    rows = contract.split(seen.clear() if data is None else data.evaluate)
    classes, label = list(signature.classes), None if data is None else data.label
    metrics: dict[str, float] = {}
    if data is not None:
        metrics = evaluate(
            predictor, task=signature.task, classes=classes, contract=contract, rows=rows.kept, label=label
        )
    fitted = Fitted(
        estimator=read.found.model,
        task=signature.task,
        classes=classes,
        contract=contract,
        metrics=metrics,
        rows_fitted=0,
        rows_evaluated=rows.kept.height,
        rows_rejected=rows.rejected.height,
        suspicious=[],
        proof=compiled_form(predictor, contract, trial),
        flavour=read.flavour,
        predictor=predictor,
        preprocessed=False,
        details=read.found.details,
    )
    return fitted, data if metrics else None


def unjudged(gate: Promote) -> Verdict:
    """What the gate says of an import that no label can judge."""
    if gate.manual:
        return Verdict("waiting", f"{UNJUDGED}; waits to be promoted", json.dumps({"metrics": {}, "comparison": None}))
    return Verdict("approved", UNJUDGED, json.dumps({"metrics": {}, "comparison": None}))


def _contract(history: History, seen: pl.DataFrame) -> Contract:
    features = history.spec.features
    rows = seen.select(feature_columns(features, seen.schema))
    return infer_contract(rows, declared_columns(features, rows), most_categories=None)


def _labelled(
    history: History, builds: Mapping[str, FeatureBuild], window: Sequence[Partition], period: Partition, stamp: Stamp
) -> TrainingData | None:
    """The end of the window whose labels are known at the start of the serving period; None if there is no label."""
    spec = history.spec
    known = [partition for partition in window if matures(spec, partition) <= period.start]
    if spec.labels is None or not known:
        return None
    boundary = evaluation_start(spec, known)
    held_out = [partition for partition in known if partition.start >= boundary] or known[-1:]
    return history.training_data(builds, held_out, held_out[0].start, stamp)
