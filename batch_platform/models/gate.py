"""The gate that a trained version must pass to serve: its declared rule, and verdicts on it beside a trivial model and the champion.

A verdict is better, worse or cannot tell, from one paired interval on the evaluation rows; see `Verdict`. Like is compared with
like: the fit of the version that ended before its evaluation rows with the fit by which the champion was judged, which its bundle
keeps beside the one that serves. Rows that only one of the two can score are the coverage of the version. A champion that can no longer be loaded, that was trained on other columns, or that could not score enough
of the rows to be published, must not keep a new model from serving: then the reason says why. Any other champion is never replaced
by a version that is worse, unless the gate declares by how much it may be. Records nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, time

import polars as pl

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError, counted, listed
from batch_platform.declaration.inputs import RejectedBudget
from batch_platform.declaration.model import Promote
from batch_platform.declaration.spec import Features
from batch_platform.features.history import ENTITY, FIRST_HALF, PARTITION_START, TrainingData
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.bundle import Bundle, Coverage, Manifest, OpenVersion, Window
from batch_platform.models.contract import Signature, Task
from batch_platform.models.fitting import Fitted
from batch_platform.models.judged import JudgedScores, not_comparable, scores_of, verdict_on_shared_rows
from batch_platform.models.registry import NOT_BETTER
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.metrics import CLASSIFICATION, default_metric, is_worse, known_to
from batch_platform.warehouse.ledger import Action, Version

MEETS = "meets the gate"  # begins the reason of each version that the gate does not refuse
BY_LESS = "but by less than the tolerance of "  # follows the verdict on a worse version that the tolerance lets pass
WAITS = "waits for promotion"
# Width of a 99% interval in that of a 95% one. Equal estimators that learned from different windows truly differ by a little:
# on a 95% interval, up to one in 16 of such pairs was refused.
SURE = 2.576 / 1.960
_UNSURE = "but not by the 99% interval that a refusal needs"
_INDEX = "__index"


@dataclass(frozen=True)
class ChampionComparison:
    """The judged fit of a version beside that of the champion, on the rows that both can score and neither has learned from."""

    champion: str
    # Where the data end that each fit learned from, in local time; None for an imported model, and for a table without a time.
    learned_until: str | None = None
    champion_learned_until: str | None = None
    verdict: Verdict | None = None
    coverage: Coverage | None = None  # evaluation rows that each can score; None if the champion cannot read them
    not_compared: str = ""  # the reason; empty if they were compared
    rows_seen: int = 0  # evaluation rows that are left out, because the champion learned from them


@dataclass(frozen=True)
class GateDecision:
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
    champion: Version | None,
    open_version: OpenVersion,
    *,
    learned_from: Window,
    champion_over_guessing: Verdict | None = None,
) -> GateDecision:
    """Judge a fitted model by the declared rule and, on the evaluation rows, against a trivial model and the champion.

    The champion is the version that serves where the model would; `learned_from` are the data of the fitted model, and
    `champion_over_guessing` is the verdict on the champion beside a trivial model when it was judged. A gate that leaves the decision to a person says that a trivial model or the champion is better, and refuses nothing for it, unless it declares a tolerance. A trivial model keeps no
    version from replacing a champion that is worse. A version with a suspected leak that is not allowed waits for a person too.
    """
    task, metric = fitted.signature.task, gate.metric or default_metric(fitted.signature.task)
    trivial = fitted.trivial if gate.baseline else None
    guessing, guesses = None if trivial is None else trivial.verdict, ""
    if trivial is not None and guessing is not None and guessing.word != "better":
        guesses = guessing.beside(f"guessing ({trivial.baseline.name})", unclear="not clearly better than")
    comparison = None
    if champion is not None:
        comparison = _compared(metric, features, fitted, data, champion, open_version, learned_from)
    beside, coverage = (None, None) if comparison is None else (comparison.verdict, comparison.coverage)
    evidence = {
        "metrics": fitted.metrics,
        "baseline": None if trivial is None else {**asdict(trivial), "word": guessing and guessing.word},
        NOT_BETTER: guesses,
        "comparison": None if comparison is None else {**asdict(comparison), "word": beside and beside.word},
        "suspected_leaks": [asdict(leak) for leak in fitted.leaks],
    }
    suspected = [f"a leak is suspected{' (allowed)' if leak.allowed else ''}: {leak}" for leak in fitted.leaks]

    def decision(action: Action, *reasons: str) -> GateDecision:
        return GateDecision(action, "; ".join(reasons), json.dumps(evidence), coverage)

    if refusal := judge(gate, task, fitted.metrics):
        return decision("refused", refusal, *suspected)
    reasons = [*_beside_champion(gate, comparison), *([guesses] if guesses else []), *suspected]
    fit = not (coverage and coverage.champion_is_unfit)
    lost = _lost_lead(champion_over_guessing, guessing) if fit and comparison is not None else ""
    worthless = bool(lost) or (guessing is not None and guessing.word == "worse")
    replaces_worse = beside is not None and beside.word == "better"
    is_worse_than_champion = fit and is_refused(gate, beside)
    if is_worse_than_champion or (worthless and not replaces_worse and not gate.manual):
        # What decides comes first; where it is the champion, it does already.
        first = [] if is_worse_than_champion else [lost or guesses]
        return decision("refused", *first, *(reason for reason in reasons if reason not in first))
    if gate.manual or not all(leak.allowed for leak in fitted.leaks):
        return decision("waiting", MEETS, *reasons, WAITS)
    return decision("approved", MEETS, *reasons)


def _lost_lead(then: Verdict | None, now: Verdict | None) -> str:
    """Say that a version is not better than guessing beyond chance though the champion was, by more than chance explains; else empty.

    Labels that are wrong on all evaluation rows are found in this way: they make every model look alike.
    """
    if then is None or now is None or then.metric != now.metric or then.word != "better" or now.word == "better":
        return ""
    if now.gain[1] >= then.gain[0]:
        return ""
    return f"labels or data may have changed: when the champion was judged, it was {then.beside('guessing')}"


def unjudged(gate: Promote, reason: str) -> GateDecision:
    """The decision on a model that no label can judge."""
    action, stated = ("waiting", f"{reason}; {WAITS}") if gate.manual else ("approved", reason)
    return GateDecision(action, stated, json.dumps({"metrics": {}, "comparison": None}))


def judge(gate: Promote, task: Task, metrics: Mapping[str, float]) -> str | None:
    """Reason why the metrics of a version on the evaluation rows rule it out, whatever else serves; None without one."""
    metric = gate.metric or default_metric(task)
    value = metrics.get(metric)
    if value is None:
        return f"{metric} cannot be measured on the evaluation rows (measured: {listed(metrics) or 'nothing'})"
    if gate.at_least is not None and is_worse(metric, value, gate.at_least):
        return f"{metric} {value:.4f} is worse than the required {gate.at_least:g}"
    return None


def is_refused(gate: Promote, beside: Verdict | None) -> bool:
    """Tell if a verdict beside the champion rules a version out: it is worse by a 99% interval, and may be so by more than the tolerance."""
    if beside is None or beside.word != "worse" or _is_unsure(beside):
        return False
    return not gate.manual if gate.tolerance is None else beside.gain[0] < -gate.tolerance


def _is_unsure(beside: Verdict) -> bool:
    """Tell if a 99% interval contains no difference, where that of 95% may not."""
    low, high = beside.gain
    return (low + high) / 2 + SURE * (high - low) / 2 >= 0


def _beside_champion(gate: Promote, comparison: ChampionComparison | None) -> list[str]:
    """The verdict beside the champion in words, with the ends of learning, that the champion is unfit, and the rows that only one can score."""
    if comparison is None:
        return []
    name, beside, coverage = comparison.champion, comparison.verdict, comparison.coverage
    reasons: list[str] = []
    if beside is not None:
        by = ""
        if beside.word == "worse" and _is_unsure(beside):
            by = f", {_UNSURE}"
        elif gate.tolerance and beside.word == "worse":
            by = (
                f", {'maybe by more than the tolerance of ' if is_refused(gate, beside) else BY_LESS}{gate.tolerance:g}"
            )
        reasons.append(beside.beside(f"champion {name}", worth=gate.tolerance) + by)
        reasons += _ends_of_learning(comparison)
    if coverage is not None and coverage.champion_is_unfit:
        faults = {
            "would reject": coverage.champion_rejects,
            "does not know the class of": coverage.champion_lacks_class,
        }
        told = " and ".join(f"{verb} {count:,}" for verb, count in faults.items() if count)
        reasons.append(f"the champion {name} is unfit: it {told} of the {coverage.rows:,} evaluation rows")
    if coverage is not None and (coverage.only_version or coverage.only_champion):
        counts = f"{coverage.only_version:,} only by this version, {coverage.only_champion:,} only by the champion"
        reasons.append(f"of {coverage.rows:,} evaluation rows {coverage.shared:,} can be scored by both, {counts}")
    if comparison.not_compared:
        reasons.append(f"the champion {name} was not compared: {comparison.not_compared}")
    return reasons


def _ends_of_learning(comparison: ChampionComparison) -> Iterator[str]:
    """The end of each judged fit's data, and the number of rows that the comparison leaves out."""
    own, other = comparison.learned_until, comparison.champion_learned_until
    texts = [f"this version's judged fit learned from data before {_day(own)}"] if own else []
    texts += [f"the champion's {'' if own else 'judged fit learned '}from data before {_day(other)}"] if other else []
    yield from [", ".join(texts)] if texts else []
    if comparison.rows_seen:
        yield f"{counted(comparison.rows_seen, 'evaluation row')} that the champion learned from, or whose group it knows, are left out"


def _compared(  # noqa: PLR0913 - two models and their rows
    metric: str,
    features: Features,
    fitted: Fitted,
    data: TrainingData,
    champion: Version,
    open_version: OpenVersion,
    learned_from: Window,
) -> ChampionComparison:
    comparison = ChampionComparison(champion.version)
    try:
        bundle = open_version(champion)
        manifest, contract = bundle.manifest, bundle.contract.under(features.columns)
        own, standing = fitted.signature, Signature(manifest.task, manifest.classes, contract)
        if reason := not_comparable((own.task, own.classes), (standing.task, standing.classes)):
            return replace(comparison, not_compared=reason)
        scored = [_scored(data.evaluate, signature, data.label) for signature in (own, standing)]
        comparison = replace(comparison, coverage=_coverage(features.rejected_budget, *scored))
        unseen = _not_seen(data, manifest)
        comparison = replace(comparison, rows_seen=data.evaluate.height - unseen.height)
        verdict = _verdict(metric, features, fitted.judged, bundle, unseen, data.label)
    except (DataError, IntegrityError, WrongUseError) as error:
        return replace(comparison, not_compared=f"{error.message[:1].lower()}{error.message[1:].rstrip('.')}")
    if isinstance(verdict, str):
        return replace(comparison, not_compared=verdict)
    if not data.by_entity:
        own_end = _local(learned_from.end, data) if fitted.rows_fitted else None
        other_end = None if manifest.imported_from else _local(manifest.judged_training.end, data)
        comparison = replace(comparison, learned_until=own_end, champion_learned_until=other_end)
    return replace(comparison, verdict=verdict)


def _verdict(  # noqa: PLR0913 - two models and their rows
    metric: str,
    features: Features,
    judged: JudgedScores | None,
    champion: Bundle,
    unseen: pl.DataFrame,
    label: str | None,
) -> Verdict | str:
    """Hold the scores of a judged fit against those that the judged fit of the champion gives rows; or say why they cannot be compared."""
    if champion.manifest.lacks_judged_fit:
        return "an earlier release trained it and kept only the fit that serves, which learned from later rows"
    if judged is not None and not unseen.height:
        return "it learned from all evaluation rows, or knows their groups"
    predictor, signature = champion.judged_fit
    signature = replace(signature, contract=signature.contract.under(features.columns))
    other = scores_of(predictor, signature, signature.contract.split(unseen).kept, label)
    if judged is None or other is None:
        return "there is no evaluation row that both have scored"
    with one_thread():
        return verdict_on_shared_rows(metric, judged, other)


@dataclass(frozen=True)
class _Scored:
    """Masks of the rows [n] that keep a model's contract, and of those whose class it knows."""

    by_rules: pl.Series
    by_class: pl.Series


def _scored(rows: pl.DataFrame, signature: Signature, label: str | None) -> _Scored:
    numbered = rows.with_row_index(_INDEX)
    by_rules = numbered[_INDEX].is_in(signature.contract.split(numbered).kept[_INDEX].implode())
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


def _not_seen(data: TrainingData, manifest: Manifest) -> pl.DataFrame:
    """The evaluation rows that neither the judged fit of a champion nor its refinements learned from, nor from earlier rows of their group.

    Under one declaration these are all rows, but for groups: an evaluation window never begins before that of an earlier serving
    period, and a judged fit ends where its own begins. So a champion has seen rows only if `evaluate` or `delay` was
    shorter then, if it alone is calibrated, or if partitions were dropped since.
    """
    rows, refined = data.evaluate, manifest.evaluation.rows_refined > 0
    if data.by_entity:
        return rows.filter(~pl.col(FIRST_HALF)) if refined else rows
    ends = [] if manifest.imported_from else [manifest.judged_training.end]
    ends += [manifest.evaluation.start] if refined else []
    if not ends or PARTITION_START not in rows.columns:
        return rows
    end = max(map(datetime.fromisoformat, ends))
    if data.earlier is not None:
        earlier = [data.earlier, *([data.not_known.frame] if data.not_known else [])]
        learned = pl.concat(earlier, how="vertical_relaxed").filter(pl.col(PARTITION_START) < end)
        rows = rows.filter(~pl.col(ENTITY).is_in(learned[ENTITY].implode()))
    return rows.filter(pl.col(PARTITION_START) >= end)


def _local(text: str, data: TrainingData) -> str:
    """An instant of a manifest in the time zone of the pipeline, in ISO 8601."""
    instant = datetime.fromisoformat(text)
    return instant.isoformat() if data.calendar is None else instant.astimezone(data.calendar.zone).isoformat()


def _day(text: str) -> str:
    """A local instant in words; midnight is the day that it begins."""
    instant = datetime.fromisoformat(text)
    return f"{instant:%Y-%m-%d}" if instant.time() == time() else f"{instant:%Y-%m-%d %H:%M}"
