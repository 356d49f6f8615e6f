"""The gate that a trained version must pass to serve: its declared rule, and a comparison with the champion on the same rows.

A champion that can no longer be loaded, or that was trained on other columns, must not keep a new model from serving: then the
verdict says why nothing was compared. Records nothing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError, listed
from batch_platform.declaration.spec import Promote
from batch_platform.features.history import TrainingData
from batch_platform.models.bundle import Bundle
from batch_platform.models.contract import Contract, Signature, Task
from batch_platform.models.fitting import Fitted, evaluate
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.comparison import Difference, paired_difference
from batch_platform.monitoring.metrics import Outcomes, as_truth, default_metric, is_worse, known_to, lower_is_better
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
    """Judge a fitted model by the declared rule and, on the evaluation rows, against the version that serves where it would."""
    task = fitted.signature.task
    metric = gate.metric or default_metric(task)
    comparison = None if champion is None else _compared(metric, fitted, data, champion, open_version)
    standing = comparison.champion_metrics if comparison and comparison.champion_metrics else None
    evidence = {"metrics": fitted.metrics, "comparison": None if comparison is None else asdict(comparison)}
    if refusal := judge(gate, task, fitted.metrics, standing):
        return Verdict("refused", refusal, json.dumps(evidence))
    reason = "meets the gate"
    if comparison is not None and comparison.not_compared:
        reason += f"; the champion {comparison.champion} was not compared: {comparison.not_compared}"
    return accepted(gate, reason, evidence)


def judge(gate: Promote, task: Task, metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> str | None:
    """Why a version may not serve; None if it may. Both sets of metrics are measured on the same evaluation rows."""
    metric = gate.metric or default_metric(task)
    value = metrics.get(metric)
    if value is None:
        return f"{metric} cannot be measured on the evaluation rows (measured: {listed(metrics) or 'nothing'})"
    if gate.at_least is not None and is_worse(metric, value, gate.at_least):
        return f"{metric} {value:.4f} is worse than the required {gate.at_least:g}"
    standing = None if champion is None else champion.get(metric)
    if gate.tolerance is not None and standing is not None:
        bound = standing + gate.tolerance if lower_is_better(metric) else standing - gate.tolerance
        if is_worse(metric, value, bound):
            return f"{metric} {value:.4f} is worse than the champion's {standing:.4f} by more than {gate.tolerance:g}"
    return None


def accepted(gate: Promote, reason: str, evidence: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a model that nothing speaks against; without evidence if no label can judge it."""
    text = json.dumps(evidence or {"metrics": {}, "comparison": None})
    if gate.manual:
        return Verdict("waiting", f"{reason}; waits for promotion", text)
    return Verdict("approved", reason, text)


def _compared(
    metric: str, fitted: Fitted, data: TrainingData, champion: Version, open_version: Callable[[Version], Bundle]
) -> ChampionComparison:
    try:
        bundle = open_version(champion)
        rows = _shared(data.evaluate, fitted.signature.contract, bundle.contract)
    except (DataError, IntegrityError, WrongUseError) as error:
        return ChampionComparison(champion.version, {}, {}, None, error.message)
    own, standing = fitted.signature, Signature(bundle.manifest.task, bundle.manifest.classes, bundle.contract)
    if standing.task != own.task:
        return ChampionComparison(champion.version, {}, {}, None, f"it is of another task, {standing.task}")
    models = ((fitted.predictor, own), (bundle.predictor, standing))
    metrics, champion_metrics = (
        evaluate(predictor, signature, signature.contract.split(rows).kept, data.label)
        for predictor, signature in models
    )
    difference = None
    known = rows.filter(known_to(own.classes, rows[data.label])) if data.label and own.classes else rows
    if data.label is not None and standing.classes == own.classes and known.height:
        with one_thread():
            predictions = [
                np.asarray(predictor.predict(signature.contract.encode(signature.contract.split(known).kept)))
                for predictor, signature in models
            ]
        truth = as_truth(known[data.label])
        outcomes = [Outcomes(own.task, predicted, truth, own.classes) for predicted in predictions]
        difference = paired_difference(metric, *outcomes)
    return ChampionComparison(champion.version, metrics, champion_metrics, difference)


def _shared(rows: pl.DataFrame, *contracts: Contract) -> pl.DataFrame:
    """The rows that satisfy every contract, unchanged."""
    numbered = rows.with_row_index(_ROW)
    for contract in contracts:
        kept = contract.split(numbered).kept.select(_ROW)
        numbered = numbered.join(kept, on=_ROW, how="semi", maintain_order="left")
    return numbered.drop(_ROW)
