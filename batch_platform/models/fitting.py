"""Fitting a model on the beginning of a training window, evaluating it on the end, and fitting it again on both.

Rows are in order of time and are never shuffled between the two parts. Nothing here knows where rows come from or where the model goes.
"""

import re
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import BatchPlatformError, TrainingRefusedError, first_few, listed
from batch_platform.declaration.spec import Features, Model
from batch_platform.features.history import ENTITY, GROUP, PARTITION_START, ROW, TrainingData, feature_columns
from batch_platform.features.sample import class_counts, equal_shares
from batch_platform.models.baseline import AgainstBaseline, against_baseline
from batch_platform.models.contract import (
    BINARY,
    ClassLabel,
    Contract,
    Predictor,
    Signature,
    Task,
    classes_of_one_name,
    infer_contract,
)
from batch_platform.models.declared_model import make_estimator, name_of, task_of
from batch_platform.models.flavours.flavour import BoosterPredictor, Flavour
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.flavours.sklearn import SklearnPredictor, last_of
from batch_platform.models.forest.compiled import Proof, prove
from batch_platform.models.judged import JudgedScores
from batch_platform.models.native_threads import no_more_threads, one_thread
from batch_platform.models.positive import Positive
from batch_platform.models.reference import reference_of
from batch_platform.models.refinements.prior import corrected, in_proportion, sampling_rates
from batch_platform.monitoring.leakage import (
    SuspectedLeak,
    nearly_perfect,
    null_with_the_label,
    of_known_entities,
    on_both_sides,
    suspected_leaks,
)
from batch_platform.monitoring.metrics import as_truth, default_metric, known_to, measure
from batch_platform.monitoring.outcomes import PARTITION, Outcomes
from batch_platform.monitoring.reference import ReferenceProfile

LEAST_ROWS = 20
FEW_OF_A_CLASS = 100  # rows
DIVERGED = 1.25  # times as large as that of class shares is a log loss of which chance is not to blame
MANY_ROWS = 50_000  # above, several threads are faster than one; on fewer rows they mostly wait
COMPARED_ROWS = 10_000  # rows for the comparison of a booster with its saved form
_PLACE_IN_LIBRARY = re.compile(
    r"^\[[\d:]+\] \S+:\d+: (Check failed: .*?: )?| at /\S+, line \d+ ?\.?$"
)  # names in XGBoost, LightGBM
ROUNDING = 1e-5  # relative and absolute; XGBoost computes with 24 bits


@dataclass(frozen=True)
class Fitted:
    """A fitted or imported model, what it takes, and how it did on rows that it had not seen.

    If the model was fitted again, the metrics are those of its first fit.
    """

    estimator: Any
    signature: Signature
    metrics: dict[str, float]
    rows_fitted: int
    rows_evaluated: int
    rows_rejected: int
    leaks: list[SuspectedLeak]  # suspected, in what it learned from
    held_out: NDArray[np.float64] = field(repr=False, compare=False)  # encoded rows, on which compiled trees are proven
    held_out_rows: pl.DataFrame = field(repr=False, compare=False)  # the same, not encoded
    flavour: Flavour
    predictor: Predictor
    reference: ReferenceProfile  # profile of the rows that the model learned from
    details: dict[str, Any] = field(default_factory=dict[str, Any])  # what an imported model states about itself
    judged: JudgedScores | None = None  # scores of the evaluation rows, by the fit that is judged
    trivial: AgainstBaseline | None = None  # beside the trivial model that is strongest by the gate's metric
    remarks: tuple[str, ...] = ()  # what a person should know of the fit: each a part of a sentence
    rates: tuple[float, ...] = ()  # sampling rate of each class; empty if all are alike

    @property
    def scorer(self) -> Predictor:
        """The predictor with what the sample calls for, as it will score."""
        return corrected(self.predictor, self.rates)

    @property
    def positive(self) -> ClassLabel | None:
        """The class whose probability is the score, or the label of outliers; None of any other task."""
        has_one = self.signature.task in ("binary", "outliers") and self.signature.classes
        return self.signature.classes[-1] if has_one else None

    @cached_property
    def proof(self) -> Proof:
        """The proof that the compiled form of the model, if it has one, gives the bits of its library."""
        return prove(self.predictor, self.held_out)


def fit(  # noqa: PLR0913 - what is declared, and what is known of the version before
    model: Model,
    features: Features,
    data: TrainingData,
    params: dict[str, Any],
    positive: Positive | None = None,
    former: ReferenceProfile | None = None,
) -> Fitted:
    """Fit the declared estimator and evaluate it; `former` is the reference profile of the version before.

    Raises TrainingRefusedError for too few rows, a single class, or an estimator that cannot serve; DataError for a column that
    cannot be a feature; WrongUseError for an unknown estimator or parameter.
    """
    contract, kept, rejected = _checked(features, data)
    evaluated = contract.split(data.evaluate)
    if kept.height < LEAST_ROWS:
        msg = f"There are {kept.height} rows to learn from; at least {LEAST_ROWS} are needed."
        raise TrainingRefusedError(msg, hint="train a later serving period, or declare a longer model.train.window.")
    matrix = contract.encode(kept)
    truth = None if data.label is None else as_truth(kept[data.label])
    estimator = make_estimator(model, params, contract)
    kind = flavour_of(estimator)
    classes = _classes(estimator, truth)
    task = task_of(estimator, len(classes))
    if task not in ("clustering", "outliers") and truth is None:
        msg = f"{name_of(estimator)} learns from labels, but the pipeline declares none."
        raise TrainingRefusedError(msg, hint="add `labels` to its YAML.")
    if task == "regression" and truth is not None and len(np.unique(truth)) == 1:
        msg = f"All labels to learn from are {truth[0]!r}; a regression needs values that differ."
        raise TrainingRefusedError(msg, hint="train a later serving period, or check labels.sql.")
    positive = positive or Positive()
    if truth is not None and task in ("binary", "outliers"):
        classes = positive.last(classes, truth) if task == "binary" else positive.of_outliers(truth)
    signature = Signature(task, classes, contract)
    empty = [name for name in _without_values(contract) if data.evaluate[name].is_null().all()]
    if empty and kind.name == "sklearn":
        msg = f"{name_of(estimator)} cannot learn from {listed(empty)}: no row of the window has a value there."
        raise TrainingRefusedError(msg, hint=_hint(contract, "check model.params"))
    rates = sampling_rates(data, classes)
    with _refusals_explained(estimator, contract):
        predictor, remarks = _learn(kind, estimator, signature, matrix, truth)
        scorer = corrected(predictor, rates)
        judged, metrics, trivial = measured(model, scorer, signature, (kept, evaluated.kept), data.label, rates)
    return Fitted(
        estimator=estimator,
        signature=signature,
        metrics=metrics,
        rows_fitted=kept.height,
        rows_evaluated=evaluated.kept.height,
        rows_rejected=rejected + evaluated.rejected.height,
        leaks=_leaks(signature, (kept, matrix, truth), data, metrics, evaluated.kept),
        held_out=contract.encode(evaluated.kept) if judged is None else np.asarray(judged.outcomes.matrix),
        held_out_rows=evaluated.kept,
        flavour=kind,
        predictor=predictor,
        reference=reference_of(contract, in_proportion((kept, matrix), data.label, classes, rates), former),
        judged=judged,
        details=_stopped_at(estimator),
        trivial=trivial,
        remarks=(*remarks, *_diverged(signature, metrics, trivial, kept, data.label), *_few_of_a_class(data)),
        rates=rates,
    )


def refit(model: Model, features: Features, whole: TrainingData, params: dict[str, Any], judged: Fitted) -> Fitted:
    """Fit the declared estimator again on all rows of a window, after it was judged on the end of it.

    The contract is learned from all rows too. The task and the classes stay those that were judged: rows of a class that is
    new in the end of the window are left out, and the next training learns it. The bins of the reference profile stay those
    of the first fit where they still suit. Raises what `fit` raises.
    """
    contract, kept, rejected = _checked(features, whole)
    kept = _known(judged.signature, kept, whole.label)
    signature = replace(judged.signature, contract=contract)
    estimator, matrix = make_estimator(model, params, contract), contract.encode(kept)
    held_out = contract.split(whole.evaluate).kept
    with _refusals_explained(estimator, contract):
        truth = None if whole.label is None else as_truth(kept[whole.label])
        predictor, remarks = _learn(judged.flavour, estimator, signature, matrix, truth)
    rates = sampling_rates(whole, signature.classes)
    learned = in_proportion((kept, matrix), whole.label, signature.classes, rates)
    whole_reference = reference_of(contract, learned, judged.reference)
    return replace(
        judged,
        estimator=estimator,
        signature=signature,
        rows_fitted=kept.height,
        rows_rejected=rejected,
        held_out=contract.encode(held_out),
        held_out_rows=held_out,
        predictor=predictor,
        details=_stopped_at(estimator),
        reference=replace(
            judged.reference,
            features=whole_reference.features,
            usual=whole_reference.usual,
            moves=whole_reference.moves,
        ),
        remarks=(
            *remarks,
            *_diverged(signature, judged.metrics, judged.trivial, kept, whole.label),
            *_few_of_a_class(whole),
        ),
        rates=rates,
    )


def measured(  # noqa: PLR0913 - a model and its rows
    model: Model,
    predictor: Predictor,
    signature: Signature,
    rows: tuple[pl.DataFrame, pl.DataFrame],
    label: str | None,
    rates: Sequence[float] = (),
) -> tuple[JudgedScores | None, dict[str, float], AgainstBaseline | None]:
    """The scores and the metrics of a model on evaluation rows, and the trivial model that is strongest by the gate's metric beside it.

    `rows` are those that a trivial model learns from and those that both are evaluated on; `rates` are those at which the rows
    of each class were sampled.
    """
    earlier, later = _known(signature, rows[0], label), rows[1]
    judged = scores_of(predictor, signature, later, label)
    if judged is None:
        return None, {}, None
    metric, outcomes = model.promote.metric or default_metric(signature.task), judged.outcomes
    with one_thread():
        trivial = None if label is None else against_baseline(metric, outcomes, earlier, later, label, rates)
        return judged, measure(outcomes), trivial


def _checked(features: Features, data: TrainingData) -> tuple[Contract, pl.DataFrame, int]:
    """The contract of the rows to fit on, the rows that keep it, and the number of those that do not."""
    names = feature_columns(features, data.fit.schema if data.label is None else data.fit.drop(data.label).schema)
    contract = infer_contract(data.fit.select(names), features.columns)
    if not names:
        msg = "There is no feature column to learn from: the features hold only the key, the time and excluded columns."
        raise TrainingRefusedError(msg, hint="add columns to the features.")
    split = contract.split(data.fit)
    return contract, split.kept, split.rejected.height


def _learn(
    kind: Flavour, estimator: Any, signature: Signature, matrix: NDArray[np.float64], truth: NDArray[Any] | None
) -> tuple[Predictor, tuple[str, ...]]:
    """Fit an estimator; returns its predictor, and what it says of the fit.

    If its own order of two classes is another, it learns their positions.
    """
    if truth is not None and signature.task == "binary" and signature.classes != np.unique(truth).tolist():
        positions = {label: at for at, label in enumerate(signature.classes)}
        truth = np.array([positions[label] for label in truth.tolist()])
        for name, weights in estimator.get_params().items():
            if name.endswith("class_weight") and isinstance(weights, dict):
                estimator.set_params(**{name: {positions.get(label, label): weights[label] for label in weights}})
    with one_thread() if len(matrix) < MANY_ROWS else no_more_threads(), _convergence_recorded() as remarks:
        kind.fit(estimator, matrix, truth, signature.contract)
    if kind.predictor is not None:
        return kind.predictor(estimator, signature), tuple(remarks)
    predictor = kind.reloaded(estimator, signature)
    if isinstance(predictor, BoosterPredictor):
        _require_own_scores(estimator, predictor, signature, matrix)
    return predictor, tuple(remarks)


def _diverged(
    signature: Signature,
    metrics: Mapping[str, float],
    trivial: AgainstBaseline | None,
    kept: pl.DataFrame,
    label: str | None,
) -> Iterator[str]:
    """The remark that probabilities of many classes, some of them rare, are far worse than the shares of the classes."""
    own, other = metrics.get("log_loss"), None if trivial is None else trivial.baseline.metrics.get("log_loss")
    if signature.task != "multiclass" or label is None or own is None or other is None or own < DIVERGED * other:
        return
    rare = sum(count < FEW_OF_A_CLASS for count in class_counts(kept, label).values())
    if rare:
        yield (
            f"its probabilities are worse than the shares of the classes (log_loss {own:.2f} against {other:.2f}), which boosted "
            f"trees run into where classes are rare ({rare} of {len(signature.classes)} have fewer than {FEW_OF_A_CLASS} rows): "
            "try a smaller learning_rate, or join rare classes in labels.sql"
        )


def _few_of_a_class(data: TrainingData) -> Iterator[str]:
    """The classes of which a sample in proportion holds few rows, where a balanced one would hold at least twice as many."""
    if data.balanced or data.label is None or data.fit.height == data.rows_before_cap:
        return
    kept, balanced = class_counts(data.fit, data.label), equal_shares(data.classes_before_cap, data.fit.height)
    for name, before in sorted(data.classes_before_cap.items()):
        if kept[name] < FEW_OF_A_CLASS and balanced[name] >= 2 * kept[name]:
            rows = f"the sample holds {kept[name]:,} of {before:,} rows of the class {name}"
            yield f"{rows}; model.train.sample: balanced keeps {balanced[name]:,}"


@contextmanager
def _convergence_recorded() -> Generator[list[str]]:
    """Collect scikit-learn's warnings that an estimator did not converge, as one remark; other warnings are warned of."""
    from sklearn.exceptions import ConvergenceWarning

    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield remarks
    reasons: set[str] = set()
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            reasons.add(str(warning.message).strip().partition("\n")[0].partition(". ")[0].rstrip(" .:"))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if reasons:
        remarks.append(f"it did not converge: {listed(reasons)}")


def _require_own_scores(
    estimator: Any, predictor: BoosterPredictor, signature: Signature, matrix: NDArray[np.float64]
) -> None:
    """Refuse a booster whose file scores differently than its estimator: what only the estimator does would be lost."""
    sample = matrix[:: -(-len(matrix) // COMPARED_ROWS)]
    with one_thread():
        own, saved = SklearnPredictor(estimator, signature.task).predict(sample), predictor.predict(sample)
    same = own.shape == saved.shape and np.isclose(own, saved, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
    if not np.all(same):
        differing = (
            "" if own.shape != saved.shape else f" in {(~np.asarray(same)).reshape(len(own), -1).any(axis=1).sum()}"
        )
        msg = f"{name_of(estimator)} scores differently once it is saved{differing} of {len(sample)} rows."
        hint = "leave out of model.params what acts outside of the booster, and do it in the features' SQL."
        raise TrainingRefusedError(msg, hint=hint)


@contextmanager
def _refusals_explained(estimator: Any, contract: Contract) -> Generator[None]:
    """Say which estimator rejects the training data; other errors than its own and those of its library are raised as they are."""
    try:
        yield
    except Exception as error:
        own = type(error).__module__.partition(".")[0] == flavour_of(estimator).package
        if isinstance(error, BatchPlatformError) or not (own or isinstance(error, ValueError | TypeError)):
            raise
        text = " ".join(str(error).partition("Stack trace:")[0].split())
        msg = f"{name_of(estimator)} rejects the training data: {_PLACE_IN_LIBRARY.sub('', text)}"
        # A step that selects columns by name or type asks for dataframes.
        remedy = "select columns by their positions" if "dataframes" in text else "check model.params"
        raise TrainingRefusedError(msg.rstrip(" .") + ".", hint=_hint(contract, remedy)) from error


def _stopped_at(estimator: Any) -> dict[str, int]:
    """The iteration at which an estimator stopped early, from 1; empty for any other."""
    last = last_of(estimator)
    if best := getattr(last, "best_iteration_", 0):  # LightGBM
        return {"best_iteration": int(best)}
    if hasattr(last, "get_booster") and last.early_stopping_rounds:  # XGBoost, which counts from 0
        return {"best_iteration": int(last.best_iteration) + 1}
    if getattr(last, "do_early_stopping_", False):  # trees of scikit-learn, which keep those after the best one
        return {"last_iteration": int(last.n_iter_)}
    return {}


def _known(signature: Signature, rows: pl.DataFrame, label: str | None) -> pl.DataFrame:
    """The rows of the classes that a model knows; all rows for a model without classes."""
    if label is None or signature.task not in ("binary", "multiclass"):
        return rows
    return rows.filter(known_to(signature.classes, rows[label]))


def outcomes_of(predictor: Predictor, signature: Signature, rows: pl.DataFrame, label: str | None) -> Outcomes | None:
    """Predictions of a model for rows that keep its contract, with their truth; None without rows."""
    if not rows.height:
        return None
    matrix = signature.contract.encode(rows)
    with one_thread():
        predicted = predictor.predict(matrix)
    truth = None if label is None else as_truth(rows[label])
    return Outcomes(signature.task, predicted, truth, signature.classes, matrix, _units(rows))


def scores_of(predictor: Predictor, signature: Signature, rows: pl.DataFrame, label: str | None) -> JudgedScores | None:
    """The outcomes of a model for evaluation rows, which keep its contract, with the names of the rows; None without rows."""
    outcomes = outcomes_of(predictor, signature, rows, label)
    if outcomes is None:
        return None
    named = rows[ROW].to_numpy() if ROW in rows.columns else np.arange(rows.height, dtype=np.uint64)
    return JudgedScores(outcomes, named)


def _units(rows: pl.DataFrame) -> dict[str, NDArray[np.integer]]:
    """The number of each row's unit [n], by the name of the unit: the declared one, otherwise its entity and its partition."""
    columns = {"entity": ENTITY, PARTITION: PARTITION_START}
    if GROUP in rows.columns:  # a declared unit stands alone
        columns = {PARTITION if rows.schema[GROUP].is_temporal() else "group": GROUP}
    present = {name: column for name, column in columns.items() if column in rows.columns}
    return {name: rows[column].to_physical().to_numpy() for name, column in present.items()}


def _classes(estimator: Any, truth: NDArray[Any] | None) -> list[ClassLabel]:
    from sklearn.base import is_classifier

    if truth is None or not is_classifier(estimator):
        return []
    classes: list[ClassLabel] = np.unique(truth).tolist()
    if len(classes) == 1:
        msg = f"All labels to learn from are {classes[0]!r}; a classification needs two classes."
        raise TrainingRefusedError(msg, hint="train a later serving period, or check labels.sql.")
    if len(classes) > BINARY and (alike := classes_of_one_name(classes)):
        msg = f"The classes {listed(map(repr, alike))} differ only by case, so their score columns would have one name."
        raise TrainingRefusedError(msg, hint="write each class in one way, or rename one of them, in labels.sql.")
    return classes


def _without_values(contract: Contract) -> list[str]:
    """The numbers that are null in every row that is fitted."""
    return [column.name for column in contract.columns if column.type != "category" and column.lowest is None]


def _hint(contract: Contract, remedy: str) -> str:
    """Explain what may keep an estimator from learning: some cannot take a number that is always null; otherwise a remedy."""
    if not (empty := _without_values(contract)):
        columns = [
            f"{at} {column.name}{' (text)' if column.type == 'category' else ''}"
            for at, column in enumerate(contract.columns)
        ]
        return (
            f"{remedy}, or check the features and the labels. An estimator is given a float64 matrix without names, with the "
            f"columns {first_few(columns)}; text as the number of its category, null as NaN."
        )
    return (
        f"{listed(empty)} has no values: leave it out of the features, or set features.columns.<name>.feature: false."
    )


def _leaks(
    signature: Signature,
    learned: tuple[pl.DataFrame, NDArray[np.float64], NDArray[Any] | None],
    data: TrainingData,
    metrics: dict[str, float],
    evaluated: pl.DataFrame,
) -> list[SuspectedLeak]:
    """The suspected leaks of a model that `learned` from rows, also encoded, and from their labels."""
    (kept, matrix, truth), contract, task = learned, signature.contract, signature.task
    if truth is None or data.label is None or task in ("clustering", "outliers"):
        return []
    categorical = [column.type == "category" for column in contract.columns]
    filled = [name for name in contract.names if not data.fit[name].null_count() + data.evaluate[name].null_count()]
    apart = [kept[name].rank("dense").cast(pl.Int64).to_numpy() for name in (GROUP, PARTITION_START) if name in kept]
    entities = [kept[ENTITY].to_numpy()] if ENTITY in kept else []
    with one_thread():
        leaks = suspected_leaks(
            matrix,
            contract.names,
            categorical,
            truth,
            classes=task != "regression",
            blocks=next(iter(apart), None),
            entities=entities,
        )
    named = {name for leak in leaks for name in leak.columns}
    by_nulls = null_with_the_label(data.nulls_unlabelled, data.rows_unlabelled, filled)
    leaks += [leak for leak in by_nulls if not named & {*leak.columns}]
    leaks = leaks or suspiciously_good(metrics, evaluated, data.label, task)
    leaks += on_both_sides(kept, evaluated, contract.names, data.label)
    if PARTITION_START in kept and pl.concat([kept[PARTITION_START], evaluated[PARTITION_START]]).n_unique() == 1:
        leaks += of_known_entities(kept, evaluated, contract.names, data.label)  # a snapshot is divided by row
    return leaks


def suspiciously_good(
    metrics: dict[str, float], evaluated: pl.DataFrame, label: str | None, task: Task
) -> list[SuspectedLeak]:
    """The model itself as a suspected leak, if it is nearly perfect on its evaluation rows."""
    if label is None or not evaluated.height:
        return []
    rows = evaluated.height if task == "regression" else min(evaluated[label].value_counts()["count"].to_list())
    return nearly_perfect(metrics, rows)
