"""The gate that a trained version must pass to serve: its declared rule, a comparison with a trivial model, and one with the champion.

Each is measured on the evaluation rows. A version and the champion are compared on those that both can score and that the
champion has not learned from; the rows that only one of them can score are its coverage. If there are none, because the
champion was trained for the same serving period, the metrics count that its own gate recorded before it was refitted. A
champion that can no longer be loaded, that was trained on other columns, or that could not score enough of the rows to be
published, must not keep a new model from serving: then the verdict says why. Any other champion is never replaced by a version
that is worse beyond chance, unless the gate declares by how much it may be. Records nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from math import isclose
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError, listed
from batch_platform.declaration.inputs import RejectedBudget
from batch_platform.declaration.spec import Features, Promote
from batch_platform.features.history import PARTITION_START, TrainingData
from batch_platform.models.baseline import AgainstBaseline
from batch_platform.models.bundle import Coverage, Manifest, OpenVersion
from batch_platform.models.contract import BINARY, ClassLabel, Predictor, Signature, Task
from batch_platform.models.fitting import Fitted, outcomes_of
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.comparison import ROUNDING, Difference, paired_difference
from batch_platform.monitoring.metrics import (
    CLASSIFICATION,
    default_metric,
    is_worse,
    known_to,
    lower_is_better,
    measure,
)
from batch_platform.warehouse.ledger import Action, Version

MEETS = "meets the gate"  # begins the reason of each version that the gate does not refuse
_ROW = "__row"


@dataclass(frozen=True)
class ChampionComparison:
    """Metrics of a version and of the champion on the rows that both can score."""

    champion: str
    metrics: dict[str, float]  # the version's metrics; empty where nothing was compared
    champion_metrics: dict[str, float]
    difference: Difference | None  # version minus champion, in the gate's metric; None if it was not measured here
    coverage: Coverage | None = None  # evaluation rows that each can score; None if the champion cannot read them
    not_compared: str = ""  # the reason; empty if they were compared
    recorded: bool = False  # whether the champion's metrics are those that its own gate recorded
    # Its metric minus that of its own trivial baseline, when it was judged; None if it was no better, or if that is not known.
    champion_lead: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The gate's decision on a version."""

    action: Action
    reason: str
    evidence: str  # JSON
    coverage: Coverage | None = None  # beside the champion


def pass_gate(  # noqa: PLR0913 - a model, its rows, and what it is held against
    gate: Promote,
    features: Features,
    fitted: Fitted,
    data: TrainingData,
    serving_period: str,
    champion: Version | None,
    open_version: OpenVersion,
) -> Verdict:
    """Judge a fitted model by the declared rule and, on the evaluation rows, against a trivial model and the champion.

    The champion is the version that serves where the model would. A gate that leaves the decision to a person says that a
    trivial model or the champion is better, and refuses nothing for it, unless it declares a tolerance. A trivial model keeps no
    version from replacing a champion that is worse. A version with a suspected leak that is not allowed waits for a person too.
    """
    task, trivial = fitted.signature.task, fitted.trivial
    metric = gate.metric or default_metric(task)
    comparison = None
    if champion is not None:
        comparison = _compared(metric, features, fitted, data, serving_period, champion, open_version)
    evidence = {
        "metrics": fitted.metrics,
        "baseline": None if trivial is None else asdict(trivial),
        "comparison": None if comparison is None else asdict(comparison),
        "suspected_leaks": [asdict(leak) for leak in fitted.leaks],
    }
    suspected = [f"a leak is suspected{' (allowed)' if leak.allowed else ''}: {leak}" for leak in fitted.leaks]
    coverage = None if comparison is None else comparison.coverage

    def verdict(refusal: str) -> Verdict:
        return Verdict("refused", "; ".join([refusal, *suspected]), json.dumps(evidence), coverage)

    if refusal := judge(gate, task, fitted.metrics):
        return verdict(refusal)
    reasons = [MEETS]
    if comparison is not None:
        beside, remarks = beside_champion(gate, metric, comparison), _remarks(metric, comparison)
        fit = not (coverage and coverage.champion_is_unfit)
        if beside is not None and beside.refuses and fit:
            return verdict("; ".join([beside.reason, *remarks]))
        reasons += [*([] if beside is None else [beside.reason]), *remarks]
        if gate.baseline and (lost := _lost_lead(metric, fitted, comparison)):
            if fit and not gate.manual:
                return verdict("; ".join([lost, *reasons[1:]]))
            reasons.append(lost)
    beaten = beaten_by_baseline(metric, fitted.metrics, trivial) if gate.baseline else None
    if beaten is not None:
        replaced = comparison is not None and _is_better_than_champion(metric, comparison)
        if beaten.clearly and not gate.manual and not replaced:
            return verdict(beaten.reason)
        note = "" if beaten.clearly else ", which may be chance"
        reasons.append(f"{beaten.reason}{', but the champion is worse still' if replaced else note}")
    held_back = gate.manual or not all(leak.allowed for leak in fitted.leaks)
    gate = gate.model_copy(update={"manual": held_back})
    return replace(accepted(gate, "; ".join([*reasons, *suspected]), evidence), coverage=coverage)


def judge(gate: Promote, task: Task, metrics: Mapping[str, float]) -> str | None:
    """Reason why the metrics of a version on the evaluation rows rule it out, whatever else serves; None without one."""
    metric = gate.metric or default_metric(task)
    value = metrics.get(metric)
    if value is None:
        return f"{metric} cannot be measured on the evaluation rows (measured: {listed(metrics) or 'nothing'})"
    if gate.at_least is not None and is_worse(metric, value, gate.at_least):
        return f"{metric} {value:.4f} is worse than the required {gate.at_least:g}"
    return None


@dataclass(frozen=True)
class BesideChampion:
    """A version beside the champion, by the metric of the gate."""

    reason: str
    refuses: bool


def beside_champion(gate: Promote, metric: str, comparison: ChampionComparison) -> BesideChampion | None:
    """Return whether a version is better or worse than the champion beyond chance, and too much worse to serve; None if unknown.

    Where no interval can be computed, only a declared tolerance refuses.
    """
    value, standing = comparison.metrics.get(metric), comparison.champion_metrics.get(metric)
    if value is None or standing is None:
        return None
    difference, tolerance = comparison.difference, gate.tolerance or 0.0
    recorded = "recorded " if comparison.recorded else ""
    rows = f" on the same {difference.rows:,} rows" if difference and not recorded else ""
    evidence = f"{rows} ({difference or 'no interval can be computed, so it may be chance'})"
    champion = f"the champion's {recorded}{standing:.4f}"
    if value == standing or (difference is not None and not difference.is_clear):
        return BesideChampion(
            f"{metric} {value:.4f} shows no clear difference from {champion}{evidence}", refuses=False
        )
    if not is_worse(metric, value, standing):
        return BesideChampion(f"{metric} {value:.4f} is better than {champion}{evidence}", refuses=False)
    refuses = is_worse(metric, value, standing + tolerance if lower_is_better(metric) else standing - tolerance)
    by = f" by {'more than' if refuses else 'no more than the tolerance of'} {tolerance:g}" if tolerance else ""
    refuses = refuses and (gate.tolerance is not None or (difference is not None and not gate.manual))
    return BesideChampion(f"{metric} {value:.4f} is worse than {champion}{by}{evidence}", refuses)


def _lost_lead(metric: str, fitted: Fitted, comparison: ChampionComparison) -> str | None:
    """Say why a version no better than a trivial model must not replace a champion that was better than one; None if it may.

    The champion must have been better by more than chance explains on the evaluation rows. If it is worse than the version on
    these rows, it may be replaced. Labels that are wrong on all evaluation rows are found in this way: all models look alike.
    """
    lead, trivial = comparison.champion_lead, fitted.trivial
    if lead is None or trivial is None or (difference := trivial.difference) is None:
        return None
    value, bound = fitted.metrics[metric], trivial.baseline.metrics[metric]
    beats_baseline = difference.is_clear and is_worse(metric, bound, value)
    clear = comparison.difference is not None and comparison.difference.is_clear
    beats_champion = clear and _is_better_than_champion(metric, comparison)
    if beats_baseline or beats_champion or difference.low <= lead <= difference.high:
        return None
    return (
        f"{metric} {_shown(value)} is not better than the trivial baseline's {_shown(bound)} ({trivial.baseline.name}) beyond "
        f"chance, which the champion {comparison.champion} beat by {abs(lead):.4f} when it was judged: check the labels of the "
        "evaluation rows"
    )


def _is_better_than_champion(metric: str, comparison: ChampionComparison) -> bool:
    value, standing = comparison.metrics.get(metric), comparison.champion_metrics.get(metric)
    return value is not None and standing is not None and is_worse(metric, standing, value)


@dataclass(frozen=True)
class Beaten:
    """A trivial model is better."""

    reason: str
    clearly: bool  # beyond chance


def beaten_by_baseline(metric: str, metrics: Mapping[str, float], trivial: AgainstBaseline | None) -> Beaten | None:
    """Say that the trivial baseline is better than a model on the evaluation rows, and by how much; None if not, or if unknown.

    It is better beyond chance if the whole interval of the paired difference says so: on few rows it is wide.
    """
    if trivial is None or metric not in metrics or metric not in trivial.baseline.metrics:
        return None
    value, bound, difference = metrics[metric], trivial.baseline.metrics[metric], trivial.difference
    if not is_worse(metric, value, bound) or isclose(value, bound, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return None
    reason = f"{metric} {_shown(value)} is worse than the trivial baseline's {_shown(bound)} ({trivial.baseline.name})"
    return Beaten(reason, clearly=difference is not None and difference.is_clear)


def _shown(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def accepted(gate: Promote, reason: str, evidence: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a model that nothing speaks against; without evidence if no label can judge it."""
    text = json.dumps(evidence or {"metrics": {}, "comparison": None})
    if gate.manual:
        return Verdict("waiting", f"{reason}; waits for promotion", text)
    return Verdict("approved", reason, text)


def _remarks(metric: str, comparison: ChampionComparison) -> list[str]:
    """Remarks of a decision on the champion: that it is unfit, rows that only one of the two can score, what was not compared."""
    name, coverage, reason = comparison.champion, comparison.coverage, comparison.not_compared
    remarks: list[str] = []
    if coverage is not None and coverage.champion_is_unfit:
        faults = {
            "would reject": coverage.champion_rejects,
            "does not know the class of": coverage.champion_lacks_class,
        }
        told = " and ".join(f"{verb} {count:,}" for verb, count in faults.items() if count)
        remarks.append(f"the champion {name} is unfit: it {told} of the {coverage.rows:,} evaluation rows")
    if coverage is not None and (coverage.only_version or coverage.only_champion):
        counts = f"{coverage.only_version:,} only by this version, {coverage.only_champion:,} only by the champion"
        remarks.append(f"of {coverage.rows:,} evaluation rows {coverage.shared:,} can be scored by both, {counts}")
    if not reason and not {metric} <= comparison.metrics.keys() & comparison.champion_metrics.keys():
        reason = f"{metric} cannot be measured on the rows that both can score"
    return [*remarks, *([f"the champion {name} was not compared: {reason}"] if reason else [])]


def _compared(  # noqa: PLR0913 - two models and their rows
    metric: str,
    features: Features,
    fitted: Fitted,
    data: TrainingData,
    serving_period: str,
    champion: Version,
    open_version: OpenVersion,
) -> ChampionComparison:
    name, coverage, lead = champion.version, None, None

    def not_compared(reason: str) -> ChampionComparison:
        return ChampionComparison(name, {}, {}, None, coverage, reason, champion_lead=lead)

    try:
        bundle = open_version(champion)
        lead = _lead(metric, bundle.manifest)
        contract = bundle.contract.under(features.columns)
        own, standing = fitted.signature, Signature(bundle.manifest.task, bundle.manifest.classes, contract)
        if reason := _not_comparable(own, standing):
            return not_compared(reason)
        scored = [_scored(data.evaluate, signature, data.label) for signature in (own, standing)]
        coverage = _coverage(features.rejected_budget, *scored)
        unseen = _not_learned_from(data.evaluate, bundle.manifest)
        if data.evaluate.height and not unseen.height:
            if champion.serving_period == serving_period:
                recorded = bundle.manifest.evaluation.metrics
                difference = _from_recorded(metric, fitted, data, recorded.get(metric))
                return ChampionComparison(
                    name, fitted.metrics, recorded, difference, coverage, recorded=True, champion_lead=lead
                )
            return not_compared("it has learned from the evaluation rows")
        rows = data.evaluate.filter(scored[0].by_rules & scored[1].by_rules & scored[0].by_class & scored[1].by_class)
        rows = _not_learned_from(rows, bundle.manifest)
        models = [(fitted.scorer, own), (bundle.predictor, standing)]
    except (DataError, IntegrityError, WrongUseError) as error:
        return not_compared(error.message)
    if own.task in CLASSIFICATION and own.classes != standing.classes:
        models = [_among(_shared_classes(own, standing), *model) for model in models]
    first, second = (
        outcomes_of(predictor, signature, signature.contract.split(rows).kept, data.label)
        for predictor, signature in models
    )
    if first is None or second is None:
        return not_compared("there is no row that both can score")
    with one_thread():
        difference = None if first.truth is None else paired_difference(metric, first, second)
        return ChampionComparison(name, measure(first), measure(second), difference, coverage, champion_lead=lead)


def _from_recorded(metric: str, fitted: Fitted, data: TrainingData, recorded: float | None) -> Difference | None:
    """The difference of a version from the recorded metric of a champion that has learned from the evaluation rows."""
    rows = fitted.signature.contract.split(data.evaluate).kept
    outcomes = outcomes_of(fitted.scorer, fitted.signature, rows, data.label)
    if recorded is None or outcomes is None or outcomes.truth is None:
        return None
    with one_thread():
        return paired_difference(metric, outcomes, recorded)


def _lead(metric: str, manifest: Manifest) -> float | None:
    """The lead of a version over its trivial baseline when it was judged; None if it had none, or if unknown."""
    evaluation = manifest.evaluation
    value, bound = evaluation.metrics.get(metric), evaluation.baseline and evaluation.baseline.metrics.get(metric)
    return None if value is None or bound is None or not is_worse(metric, bound, value) else value - bound


def _not_comparable(own: Signature, standing: Signature) -> str:
    """Reason why a version and the champion have no rows in common; empty if they have some."""
    if own.task not in CLASSIFICATION or standing.task not in CLASSIFICATION:
        return "" if own.task == standing.task else f"it is of another task, {standing.task}"
    return "" if len(_shared_classes(own, standing)) >= BINARY else "it knows other classes"


def _shared_classes(own: Signature, standing: Signature) -> list[ClassLabel]:
    return [label for label in own.classes if label in standing.classes]


@dataclass(frozen=True)
class _Scored:
    """Masks of the rows [n] that keep a model's contract, and of those whose class it knows."""

    by_rules: pl.Series
    by_class: pl.Series


def _scored(rows: pl.DataFrame, signature: Signature, label: str | None) -> _Scored:
    numbered = rows.with_row_index(_ROW)
    by_rules = numbered[_ROW].is_in(signature.contract.split(numbered).kept[_ROW].implode())
    if label is None or signature.task not in CLASSIFICATION:
        return _Scored(by_rules, pl.repeat(value=True, n=rows.height, eager=True))
    return _Scored(by_rules, known_to(signature.classes, rows[label]))


def _coverage(budget: RejectedBudget, version: _Scored, champion: _Scored) -> Coverage:
    rows, own, standing = (
        len(version.by_rules),
        version.by_rules & version.by_class,
        champion.by_rules & champion.by_class,
    )
    lost = int((~standing).sum())
    return Coverage(
        rows=rows,
        shared=int((own & standing).sum()),
        only_version=int((own & ~standing).sum()),
        only_champion=int((standing & ~own).sum()),
        champion_rejects=int((~champion.by_rules).sum()),
        champion_lacks_class=int((champion.by_rules & ~champion.by_class).sum()),
        champion_is_unfit=bool(lost) and budget.is_exceeded(lost, rows) and int(own.sum()) > int(standing.sum()),
    )


@dataclass(frozen=True)
class _AmongClasses:
    """A classifier that is asked to tell only some of its classes apart: their probabilities, scaled to a sum of 1."""

    predictor: Predictor
    columns: list[int]

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        chosen = np.asarray(self.predictor.predict(matrix), dtype=np.float64)[:, self.columns]
        sums = chosen.sum(axis=1, keepdims=True)
        return np.divide(chosen, sums, out=np.full_like(chosen, 1 / len(self.columns)), where=sums > 0)


def _among(classes: list[ClassLabel], predictor: Predictor, signature: Signature) -> tuple[Predictor, Signature]:
    task = "binary" if len(classes) == BINARY else "multiclass"
    columns = [signature.classes.index(label) for label in classes]
    return _AmongClasses(predictor, columns), replace(signature, task=task, classes=classes)


def _not_learned_from(rows: pl.DataFrame, manifest: Manifest) -> pl.DataFrame:
    """The rows of partitions that a model has not learned from."""
    if manifest.imported_from or PARTITION_START not in rows.columns:
        return rows
    return rows.filter(pl.col(PARTITION_START) >= datetime.fromisoformat(manifest.training.end))
