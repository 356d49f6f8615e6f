"""The search for the parameters of an estimator, inside the rows to learn from: the evaluation rows are never seen.

scikit-learn draws the trials and divides the rows. Each fold of a window in time is scored by a model of the partitions before
it; a fold of snapshots holds other entities than its model has learned from. Each trial is fitted once for every fold. The declared
parameters are one of the trials, and stay unless the best trial is better than they are beyond chance on the rows of all folds.
"""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError
from batch_platform.declaration.model import Model
from batch_platform.declaration.threads import threads
from batch_platform.features.training_data import ENTITY, PARTITION_START, SEED, TrainingData, known_at
from batch_platform.kernels.native_threads import one_thread, one_thread_here
from batch_platform.models.contract import Signature
from batch_platform.models.declared_model import check_search, make_estimator
from batch_platform.models.estimator_fit import EncodedRows, fitted_predictor, refusals_explained
from batch_platform.models.flavours.known import flavour_of
from batch_platform.monitoring.comparison import Difference, Verdict, paired_difference
from batch_platform.monitoring.metrics import default_metric, is_worse, measure
from batch_platform.monitoring.outcomes import CLASSIFICATION, PARTITION, Outcomes
from batch_platform.monitoring.outcomes import ENTITY as ENTITY_UNIT

FOLDS = 3
DECLARED = "the declared parameters"
LEAST_PARTITIONS = 3  # fewer would leave only one to be scored


@dataclass(frozen=True)
class Fold:
    """Masks of the rows to learn from, and of the rows to score [n]."""

    learned: NDArray[np.bool_]
    scored: NDArray[np.bool_]


@dataclass(frozen=True)
class Trial:
    """Parameters that were tried."""

    params: dict[str, Any]
    score: float  # mean over the folds
    folds: list[float]


@dataclass(frozen=True)
class Searched:
    """The result of a search."""

    metric: str
    best: dict[str, Any]  # the parameters to use beside the declared ones: those of the best trial, or of the first
    trials: list[Trial]  # the declared parameters first
    remark: str = ""  # why the declared parameters stay; empty if they do not

    @property
    def remarks(self) -> tuple[str, ...]:
        """The remark, if there is one."""
        return (self.remark,) if self.remark else ()


def search(  # noqa: PLR0913 - what is declared, and the rows
    model: Model,
    params: dict[str, Any],
    data: TrainingData,
    kept: pl.DataFrame,
    signature: Signature,
    rows: EncodedRows,
) -> Searched | None:
    """Try the declared values of the parameters that are not among `params`, on all cores; None if there is nothing to try.

    `kept` are the rows to learn from that keep the contract, and `rows` the same, encoded.

    Raises:
        TrainingRefusedError: The rows cannot be divided, the metric is not defined in any fold, or a trial cannot be fitted.
        WrongUseError: The estimator does not take a value.
    """
    if model.search is None or not (values := {n: v for n, v in model.search.params.items() if n not in params}):
        return None
    from sklearn.model_selection import ParameterGrid, ParameterSampler

    check_search(model)
    metric = model.promote.metric or default_metric(signature.task)
    folds = folds_of(kept, by_entity=data.by_entity, apart=bool(model.train.group), known_from=data.known_from)

    units = {PARTITION: kept[PARTITION_START].rank("dense").to_numpy(), ENTITY_UNIT: kept[ENTITY].to_numpy()}
    if data.by_entity:
        del units[PARTITION]

    one_at_a_time = Lock()

    def score(trial: dict[str, Any], fold: Fold) -> tuple[float | None, Outcomes | None]:
        """The metric in one fold, and the scores; None where it is not defined, or a class or nothing would be learned."""
        learned, scored = rows.at(fold.learned), rows.at(fold.scored)
        classes = signature.classes if signature.task in CLASSIFICATION else [None]
        known = [None] if learned.truth is None else np.unique(learned.truth)
        if len(known) < len(classes) or not len(learned.matrix):
            return None, None
        estimator = make_estimator(model, {**params, **trial}, signature.contract)
        one_job = {name: 1 for name in estimator.get_params() if name.rpartition("__")[2] == "n_jobs"}
        alone = one_at_a_time if _draws_from_shared_state(estimator) else nullcontext()
        with alone, refusals_explained(estimator, signature.contract, f" with {trial}"):
            predictor = fitted_predictor(flavour_of(estimator), estimator.set_params(**one_job), signature, learned)
            predicted = predictor.predict(scored.matrix)
        by_unit = {name: numbers[fold.scored] for name, numbers in units.items()}
        outcomes = Outcomes(signature.task, predicted, scored.truth, signature.classes, scored.matrix, by_unit)
        outcomes = replace(outcomes, weights=scored.weights)
        value = measure(outcomes, only=[metric]).get(metric)
        return value, None if value is None else replace(outcomes, matrix=None)  # or all trials would hold all rows

    count = min(model.search.trials, len(ParameterGrid(values)))
    drawn = [dict(trial) for trial in ParameterSampler(values, count, random_state=SEED)]
    declared = _declared_trial(model, params, values, signature)
    trials = [declared, *(trial for trial in drawn if trial != declared)]
    with one_thread(), warnings.catch_warnings(), ThreadPoolExecutor(threads(), initializer=one_thread_here) as pool:
        warnings.simplefilter("ignore")  # the fit that follows says what there is to say
        fits = [pool.submit(score, trial, fold) for trial, fold in product(trials, folds)]
        try:
            tried = [fit.result() for fit in fits]
        finally:
            pool.shutdown(cancel_futures=True)
    scores = np.array([value for value, _ in tried], dtype=np.float64).reshape(len(trials), -1)
    counted = np.flatnonzero(np.isfinite(scores).all(axis=0))
    scores = scores[:, counted]
    if not scores.size:
        msg = f"model.search: {metric} cannot be measured in any of the {len(folds)} folds of the training window."
        raise TrainingRefusedError(msg, hint="train a later serving period, or leave model.search out.")
    results = [Trial(trial, float(row.mean()), row.tolist()) for trial, row in zip(trials, scores, strict=True)]
    best = results[0]
    for result in results:
        best = result if is_worse(metric, best.score, result.score) else best
    first = results.index(best) * len(folds)
    pairs = [(new, old) for at in counted if (new := tried[first + at][1]) and (old := tried[at][1])]
    remark = _objection(metric, best, results[0], pairs, entities_recur=not data.by_entity)
    return Searched(metric, declared if remark else best.params, results, remark)


def _draws_from_shared_state(estimator: Any) -> bool:
    """Return whether fits at the same time would disturb each other: liblinear and libsvm draw from one random state per process."""
    parts = [estimator, *estimator.get_params().values()]
    return any(
        type(part).__module__.startswith("sklearn.svm") or (isinstance(part, str) and part == "liblinear")
        for part in parts
    )


def _objection(
    metric: str, best: Trial, declared: Trial, pairs: Sequence[tuple[Outcomes, Outcomes]], *, entities_recur: bool
) -> str:
    """Why the declared parameters stay, as a clause; empty if the best trial is better beyond chance.

    `pairs` are the scores of both in each fold. Folds differ in rows and partitions; if entities recur, their differences add up.
    """
    if best is declared:
        return f"{DECLARED} stay, since no trial of model.search scores better"
    # By fold, since the scores of different fits need not be of one scale; folds are scored on rows of their own.
    folds = [difference for pair in pairs if (difference := paired_difference(metric, *pair)) is not None]
    if len(folds) < len(pairs) or not folds:  # without an interval, every fold must say so
        better = all(is_worse(metric, old, new) for old, new in zip(declared.folds, best.folds, strict=True))
        return "" if better else f"{DECLARED} stay, since the best trial of model.search is not better in every fold"
    estimate = float(np.mean([fold.estimate for fold in folds]))
    alike = entities_recur and any(fold.resampled_by == ENTITY_UNIT for fold in folds)
    below, above = (
        float(np.mean(halves) if alike else np.hypot.reduce(halves) / len(folds))
        for halves in zip(*((fold.estimate - fold.low, fold.high - fold.estimate) for fold in folds), strict=True)
    )
    rows, groups = sum(fold.rows for fold in folds), (max if alike else sum)(fold.groups for fold in folds)
    difference = Difference(metric, estimate, estimate - below, estimate + above, rows, folds[0].resampled_by, groups)
    verdict = Verdict(metric, best.score, declared.score, rows, difference)
    if verdict.word == "better":
        return ""
    return f"{DECLARED} stay, since the best trial of model.search is {verdict.beside('they are')}"


def _declared_trial(
    model: Model, params: dict[str, Any], values: Mapping[str, list[Any]], signature: Signature
) -> dict[str, Any]:
    """The declared parameters as a trial, which adds none; the first value of each if the estimator cannot be built without them."""
    try:
        make_estimator(model, params, signature.contract)
    except WrongUseError:
        return {name: first for name, (first, *_) in values.items()}
    return {}


def folds_of(
    rows: pl.DataFrame, *, by_entity: bool, apart: bool, known_from: Mapping[datetime, datetime] | None = None
) -> list[Fold]:
    """Divide rows, which are in order of time, into folds.

    Args:
        rows: The rows to learn from, with ENTITY and PARTITION_START.
        by_entity: Whether a fold is made of entities, as it is of snapshots, instead of partitions.
        apart: Whether a model learns from no entity of the partitions that it is scored on.
        known_from: When the labels of partitions are known, by their start. A model learns from none that were not known when
            the partitions that it is scored on begin.

    Raises:
        TrainingRefusedError: There are too few partitions or entities.
    """
    from sklearn.model_selection import GroupKFold, TimeSeriesSplit

    unit, column = ("entities", ENTITY) if by_entity else ("partitions", PARTITION_START)
    numbers = rows[column].rank("dense").to_numpy().astype(np.int64) - 1
    count = int(numbers.max(initial=-1)) + 1
    if count < LEAST_PARTITIONS:
        msg = f"model.search needs at least {LEAST_PARTITIONS} {unit} with labels to learn from; there are {count}."
        raise TrainingRefusedError(msg, hint="train a later serving period, or leave model.search out.")
    if by_entity:
        splits = GroupKFold(FOLDS).split(numbers, groups=numbers)
        pairs = [(numbers[some], numbers[others]) for some, others in splits]
    else:
        pairs = list(TimeSeriesSplit(min(FOLDS, count - 1)).split(np.arange(count)))
    folds = [Fold(np.isin(numbers, before), np.isin(numbers, after)) for before, after in pairs]
    if not by_entity and known_from:
        begin = [min(rows[PARTITION_START].filter(fold.scored).unique()) for fold in folds]
        known = [known_at(instant, rows, known_from).to_numpy() for instant in begin]
        folds = [Fold(fold.learned & was, fold.scored) for fold, was in zip(folds, known, strict=True)]
    if apart:
        entities = rows[ENTITY].to_numpy()
        folds = [Fold(fold.learned & ~np.isin(entities, entities[fold.scored]), fold.scored) for fold in folds]
    return folds
