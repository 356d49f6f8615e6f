"""The gate that a trained version must pass to serve: its declared rule, a comparison with a trivial model, and one with the champion.

Each is measured on the evaluation rows. The champion is measured on those that it has not learned from. If there are none,
because it was trained for the same serving period, the metrics count that its own gate recorded before it was refitted. A
champion that can no longer be loaded, or that was trained on other columns, must not keep a new model from serving: then the
verdict says why nothing was compared. Records nothing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from math import isclose
from typing import Any

import numpy as np
import polars as pl

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError, listed
from batch_platform.declaration.spec import Promote
from batch_platform.features.history import PARTITION_START, TrainingData
from batch_platform.models.baseline import AgainstBaseline
from batch_platform.models.bundle import Bundle, Manifest
from batch_platform.models.contract import Contract, Signature, Task
from batch_platform.models.fitting import Fitted, evaluate
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.comparison import Difference, paired_difference
from batch_platform.monitoring.metrics import Outcomes, as_truth, default_metric, is_worse, known_to, lower_is_better
from batch_platform.warehouse.ledger import Action, Version

_ROW = "__row"
_ROUNDING = 1e-9  # relative and absolute: two ways to compute the same number may differ by as much


@dataclass(frozen=True)
class ChampionComparison:
    """Metrics of a version and of the champion on the rows that both can score."""

    champion: str
    metrics: dict[str, float]  # of the version; empty where nothing was compared
    champion_metrics: dict[str, float]
    difference: Difference | None  # of the gate's metric, version minus champion; None if it was not measured here
    not_compared: str = ""  # the reason; empty if they were compared
    recorded: bool = False  # whether the champion's metrics are those that its own gate recorded


@dataclass(frozen=True)
class Verdict:
    """The gate's decision on a version."""

    action: Action
    reason: str
    evidence: str  # JSON


def pass_gate(  # noqa: PLR0913 - a model, its rows, and what it is held against
    gate: Promote,
    fitted: Fitted,
    data: TrainingData,
    serving_period: str,
    champion: Version | None,
    open_version: Callable[[Version], Bundle],
) -> Verdict:
    """Judge a fitted model by the declared rule and, on the evaluation rows, against a trivial model and the champion.

    The champion is the version that serves where the model would. A gate that leaves the decision to a person is told
    that a trivial model is better, and refuses nothing for it.
    """
    task, trivial = fitted.signature.task, fitted.trivial
    metric = gate.metric or default_metric(task)
    comparison = None
    if champion is not None:
        comparison = _compared(metric, fitted, data, serving_period, champion, open_version)
    standing = comparison.champion_metrics if comparison and comparison.champion_metrics else None
    evidence = {
        "metrics": fitted.metrics,
        "baseline": None if trivial is None else asdict(trivial),
        "comparison": None if comparison is None else asdict(comparison),
    }
    if refusal := judge(gate, task, fitted.metrics, standing):
        return Verdict("refused", refusal, json.dumps(evidence))
    reason = "meets the gate"
    beaten = beaten_by_baseline(metric, fitted.metrics, trivial) if gate.baseline else None
    if beaten is not None:
        if beaten.certain and not gate.manual:
            return Verdict("refused", beaten.reason, json.dumps(evidence))
        reason += f"; {beaten.reason}{'' if beaten.certain else ', which may be chance'}"
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


@dataclass(frozen=True)
class Beaten:
    """A trivial model is better."""

    reason: str
    certain: bool  # whether the difference is more than chance


def beaten_by_baseline(metric: str, metrics: Mapping[str, float], trivial: AgainstBaseline | None) -> Beaten | None:
    """By how much the trivial baseline is better than a model on the evaluation rows; None if it is not, or is not known.

    It is certain if the whole interval of a paired bootstrap of the difference is on the wrong side: on few rows it is
    wide, and no model is refused by chance.
    """
    if trivial is None or metric not in metrics or metric not in trivial.baseline.metrics:
        return None
    value, bound, difference = metrics[metric], trivial.baseline.metrics[metric], trivial.difference
    if not is_worse(metric, value, bound) or isclose(value, bound, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        return None
    reason = f"{metric} {_shown(value)} is worse than the trivial baseline's {_shown(bound)} ({trivial.baseline.name})"
    certain = difference is not None and is_worse(
        metric, difference.low if lower_is_better(metric) else difference.high, 0.0
    )
    return Beaten(reason, certain)


def _shown(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def accepted(gate: Promote, reason: str, evidence: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a model that nothing speaks against; without evidence if no label can judge it."""
    text = json.dumps(evidence or {"metrics": {}, "comparison": None})
    if gate.manual:
        return Verdict("waiting", f"{reason}; waits for promotion", text)
    return Verdict("approved", reason, text)


def _compared(  # noqa: PLR0913 - two models and their rows
    metric: str,
    fitted: Fitted,
    data: TrainingData,
    serving_period: str,
    champion: Version,
    open_version: Callable[[Version], Bundle],
) -> ChampionComparison:
    try:
        bundle = open_version(champion)
        own, standing = fitted.signature, Signature(bundle.manifest.task, bundle.manifest.classes, bundle.contract)
        if standing.task != own.task:
            return ChampionComparison(champion.version, {}, {}, None, f"it is of another task, {standing.task}")
        unseen = _not_learned_from(data.evaluate, bundle.manifest)
        if data.evaluate.height and not unseen.height:
            if champion.serving_period == serving_period:
                return ChampionComparison(
                    champion.version, fitted.metrics, bundle.manifest.evaluation.metrics, None, recorded=True
                )
            return ChampionComparison(champion.version, {}, {}, None, "it has learned from the evaluation rows")
        rows = _shared(unseen, own.contract, bundle.contract)
    except (DataError, IntegrityError, WrongUseError) as error:
        return ChampionComparison(champion.version, {}, {}, None, error.message)
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


def _not_learned_from(rows: pl.DataFrame, manifest: Manifest) -> pl.DataFrame:
    """The rows of partitions that a model has not learned from."""
    if manifest.imported_from or PARTITION_START not in rows.columns:
        return rows
    until = datetime.fromisoformat(manifest.training.end)
    if not manifest.refit:  # earlier versions recorded the end of the whole window
        until = min(until, datetime.fromisoformat(manifest.evaluation.start))
    return rows.filter(pl.col(PARTITION_START) >= until)


def _shared(rows: pl.DataFrame, *contracts: Contract) -> pl.DataFrame:
    """The rows that satisfy every contract, unchanged."""
    numbered = rows.with_row_index(_ROW)
    for contract in contracts:
        kept = contract.split(numbered).kept.select(_ROW)
        numbered = numbered.join(kept, on=_ROW, how="semi", maintain_order="left")
    return numbered.drop(_ROW)
