"""The gate that a trained version must pass to serve: its declared rule, and a comparison with the champion on the same rows.

A champion that can no longer be loaded, or that was trained on other columns, must not keep a new model from serving: then the
verdict says why nothing was compared. Records nothing.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError
from batch_platform.declaration.spec import Promote
from batch_platform.features.labelled import TrainingData
from batch_platform.models.bundle import Bundle
from batch_platform.models.contract import Contract
from batch_platform.models.fitting import Fitted, evaluate, judge
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.comparison import Difference, paired_difference
from batch_platform.monitoring.metrics import Outcomes, as_truth, default_metric, known_to
from batch_platform.warehouse.ledger import Action, Version

_ROW = "__row"


@dataclass(frozen=True)
class ChampionComparison:
    """Metrics of a version and of the champion on the rows that both can score."""

    champion: str
    metrics: dict[str, float]  # of the version; empty where nothing was compared
    champion_metrics: dict[str, float]
    difference: Difference | None  # of the gate's metric, version minus champion
    not_compared: str = ""  # the reason; empty if they were compared


@dataclass(frozen=True)
class Verdict:
    """The gate's decision on a version."""

    action: Action
    reason: str
    evidence: str  # JSON


def pass_gate(
    gate: Promote,
    fitted: Fitted,
    data: TrainingData,
    champion: Version | None,
    open_version: Callable[[Version], Bundle],
) -> Verdict:
    """Judge a fitted model by the declared rule and against the champion.

    Args:
        gate: The declared rule.
        fitted: The model.
        data: The comparison is made on its evaluation rows.
        champion: The version that serves where the model would; None if there is none.
        open_version: Loads the champion.
    """
    metric = gate.metric or default_metric(fitted.task)
    comparison = None if champion is None else _compared(metric, fitted, data, champion, open_version)
    standing = comparison.champion_metrics if comparison and comparison.champion_metrics else None
    evidence = {"metrics": fitted.metrics, "comparison": None if comparison is None else asdict(comparison)}
    if refusal := judge(gate, fitted.task, fitted.metrics, standing):
        return Verdict("refused", refusal, json.dumps(evidence))
    reason = "meets the gate"
    if comparison is not None and comparison.not_compared:
        reason += f"; the champion {comparison.champion} was not compared: {comparison.not_compared}"
    return _passed(gate, reason, evidence)


def unjudged(gate: Promote, reason: str) -> Verdict:
    """The verdict on a model that no label can judge."""
    return _passed(gate, reason, {"metrics": {}, "comparison": None})


def _passed(gate: Promote, reason: str, evidence: dict[str, Any]) -> Verdict:
    if gate.manual:
        return Verdict("waiting", f"{reason}; waits for promotion", json.dumps(evidence))
    return Verdict("approved", reason, json.dumps(evidence))


def _compared(
    metric: str, fitted: Fitted, data: TrainingData, champion: Version, open_version: Callable[[Version], Bundle]
) -> ChampionComparison:
    try:
        bundle = open_version(champion)
        rows = _shared(data.evaluate, fitted.contract, bundle.contract)
    except (DataError, IntegrityError, WrongUseError) as error:
        return ChampionComparison(champion.version, {}, {}, None, error.message)
    manifest = bundle.manifest
    if manifest.task != fitted.task:
        return ChampionComparison(champion.version, {}, {}, None, f"it is of another task, {manifest.task}")
    metrics, champion_metrics = (
        evaluate(
            predictor,
            task=fitted.task,
            classes=classes,
            contract=contract,
            rows=contract.split(rows).kept,
            label=data.label,
        )
        for predictor, classes, contract in (
            (fitted.predictor, fitted.classes, fitted.contract),
            (bundle.predictor, manifest.classes, bundle.contract),
        )
    )
    difference = None
    known = rows.filter(known_to(fitted.classes, rows[data.label])) if data.label and fitted.classes else rows
    if data.label is not None and manifest.classes == fitted.classes and known.height:
        with one_thread():
            predictions = [
                np.asarray(predictor.predict(contract.encode(contract.split(known).kept)))
                for predictor, contract in ((fitted.predictor, fitted.contract), (bundle.predictor, bundle.contract))
            ]
        truth = as_truth(known[data.label])
        difference = paired_difference(
            metric, *(Outcomes(fitted.task, predicted, truth, fitted.classes) for predicted in predictions)
        )
    return ChampionComparison(champion.version, metrics, champion_metrics, difference)


def _shared(rows: pl.DataFrame, *contracts: Contract) -> pl.DataFrame:
    """The rows that satisfy every contract, unchanged.

    Raises:
        DataError: A column of a contract is missing.
    """
    numbered = rows.with_row_index(_ROW)
    for contract in contracts:
        kept = contract.split(numbered).kept.select(_ROW)
        numbered = numbered.join(kept, on=_ROW, how="semi", maintain_order="left")
    return numbered.drop(_ROW)
