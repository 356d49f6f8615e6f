"""Fitting a model on the beginning of a training window, evaluating it on the end, and fitting it again on both.

Rows are in order of time and are never shuffled between the two parts. Nothing here knows where rows come from or where the model goes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.declaration.spec import Features, Model, Predictions
from batch_platform.features.history import ENTITY, GROUP, PARTITION_START, TrainingData, feature_columns
from batch_platform.features.training_data import class_counts, equal_shares
from batch_platform.kernels.forest.compiled import Proof, prove
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.baseline import AgainstBaseline, against_baseline
from batch_platform.models.contract import (
    BINARY,
    OFFENDER,
    REASON,
    ClassLabel,
    Contract,
    Positive,
    Signature,
    Task,
    classes_of_one_name,
    infer_contract,
)
from batch_platform.models.declared_model import make_estimator, name_of, require_rule, task_of
from batch_platform.models.estimator_fit import (
    EncodedRows,
    draws_by_class,
    fit_estimator,
    refusals_explained,
    stopped_at,
    what_may_keep_it,
    without_values,
)
from batch_platform.models.flavours.known import Flavour, flavour_of
from batch_platform.models.judged import JudgedScores, scores_of
from batch_platform.models.reference import reference_of
from batch_platform.models.refinements.learning import Declared, Refinements, Refining
from batch_platform.models.refinements.prior import PRIOR, in_proportion
from batch_platform.models.search import Searched, search
from batch_platform.monitoring.leakage import (
    SuspectedLeak,
    nearly_perfect,
    null_with_the_label,
    of_known_entities,
    on_both_sides,
    suspected_leaks,
)
from batch_platform.monitoring.metrics import default_metric, known_to, measure
from batch_platform.monitoring.reference import ReferenceProfile

LEAST_ROWS = 20
FEW_OF_A_CLASS = 100  # rows
DIVERGED = 1.25  # times as large as that of class shares is a log loss of which chance is not to blame


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
    refinements: Refinements = field(default_factory=Refinements)
    search: Searched | None = None  # how the parameters were found; None if no search is declared

    @property
    def scorer(self) -> Predictor:
        """The predictor with its refinements, as it will score."""
        return self.refinements.around(self.predictor)

    @property
    def positive(self) -> ClassLabel | None:
        """The class whose probability is the score, or the label of outliers; None of any other task."""
        has_one = self.signature.task in ("binary", "outliers") and self.signature.classes
        return self.signature.classes[-1] if has_one else None

    @cached_property
    def proof(self) -> Proof:
        """The proof that the compiled form of the model, if it has one, gives the bits of its library."""
        decides = any(each.learned.get("decides") for each in self.refinements.applied)
        return prove(self.predictor, self.held_out, decides=decides)


def fit(  # noqa: PLR0913 - what is declared, and what is known of the version before
    model: Model,
    features: Features,
    data: TrainingData,
    params: dict[str, Any],
    positive: Positive | None = None,
    former: ReferenceProfile | None = None,
    declared: Sequence[Declared] = (Declared(PRIOR, "proportional"),),
    predictions: Predictions | None = None,
) -> Fitted:
    """Fit the declared estimator and its declared refinements, and evaluate them.

    `former` is the reference profile of the version before. If a refinement learns from rows that the model has not seen, the data
    are to be divided; see `TrainingData.divided`.

    Raises TrainingRefusedError for too few rows, a single class, or an estimator that cannot serve; DataError for a column that
    cannot be a feature; WrongUseError for an unknown estimator or parameter.
    """
    contract, kept, rejected = _checked(features, data)
    evaluated, unseen = contract.split(data.evaluate), contract.split(data.unseen)
    _require_enough(kept, rejected, data)
    rows = EncodedRows.of(kept, contract, data.label)
    matrix, truth = rows.matrix, rows.truth
    estimator = make_estimator(model, {**model.tried_params, **params}, contract)
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
    drawn = model.search is not None or draws_by_class(estimator, kept.height + evaluated.kept.height)
    if truth is not None and task == "multiclass" and drawn:
        classes = list(dict.fromkeys(truth.tolist()))  # the order in which they first occur, whatever their names
    signature = Signature(task, classes, contract)
    empty = [name for name in without_values(contract) if data.undivided().evaluate[name].is_null().all()]
    if empty and kind.name == "sklearn":
        msg = f"{name_of(estimator)} cannot learn from {listed(empty)}: no row of the window has a value there."
        raise TrainingRefusedError(msg, hint=what_may_keep_it(contract, "check model.params"))
    searched = search(model, params, data, kept, signature, rows)
    if searched is not None:
        estimator = make_estimator(model, {**params, **searched.best}, contract)
    with refusals_explained(estimator, contract):
        predictor, remarks = fit_estimator(kind, estimator, signature, rows)
        refining = Refining(predictor, signature, data, matrix, unseen.kept, evaluated.kept, kind.single)
        refinements = refining.learn(declared)
        rates, scorer = _rates(refinements), refinements.around(predictor)
        judged, metrics, trivial = measured(
            model, scorer, signature, (kept, evaluated.kept), data.label, rates, predictions
        )
    return Fitted(
        estimator=estimator,
        signature=signature,
        metrics=metrics,
        rows_fitted=kept.height,
        rows_evaluated=evaluated.kept.height,
        rows_rejected=rejected.height + evaluated.rejected.height + unseen.rejected.height,
        leaks=_leaks(signature, (kept, matrix, truth), data, metrics, evaluated.kept),
        held_out=contract.encode(evaluated.kept) if judged is None else np.asarray(judged.outcomes.matrix),
        held_out_rows=evaluated.kept,
        flavour=kind,
        predictor=predictor,
        reference=reference_of(
            contract,
            in_proportion((kept, matrix), data.label, classes, rates),
            former,
            key=features.key,
            sampled=bool(rates),
        ),
        judged=judged,
        details=stopped_at(estimator),
        trivial=trivial,
        remarks=(
            *remarks,
            *_diverged(signature, metrics, trivial, kept, data.label),
            *_few_of_a_class(data),
            *_apart(data),
            *refinements.remarks,
            *(() if searched is None else searched.remarks),
        ),
        refinements=refinements,
        search=searched,
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
    estimator, rows = make_estimator(model, params, contract), EncodedRows.of(kept, contract, whole.label)
    held_out = contract.split(whole.evaluate).kept
    with refusals_explained(estimator, contract):
        predictor, remarks = fit_estimator(judged.flavour, estimator, signature, rows)
    refining = Refining(predictor, signature, whole, rows.matrix, kept.clear(), held_out, judged.flavour.single)
    share = judged.rows_fitted / max(1, kept.height)
    refinements = refining.learn(judged.refinements.declared, judged.refinements, share)
    learned = in_proportion((kept, rows.matrix), whole.label, signature.classes, _rates(refinements))
    whole_reference = reference_of(
        contract,
        learned,
        judged.reference,
        key=features.key,
        sampled=bool(_rates(refinements)),
    )
    return replace(
        judged,
        estimator=estimator,
        signature=signature,
        rows_fitted=kept.height,
        rows_rejected=rejected.height,
        held_out=contract.encode(held_out),
        held_out_rows=held_out,
        predictor=predictor,
        details=stopped_at(estimator),
        reference=replace(
            judged.reference,
            features=whole_reference.features,
            usual=whole_reference.usual,
            moves=whole_reference.moves,
            rows=whole_reference.rows,
        ),
        remarks=(
            *remarks,
            *_diverged(signature, judged.metrics, judged.trivial, kept, whole.label),
            *_few_of_a_class(whole),
            *_apart(whole),
            *refinements.remarks,
            *(() if judged.search is None else judged.search.remarks),
        ),
        refinements=refinements,
    )


def measured(  # noqa: PLR0913 - a model and its rows
    model: Model,
    predictor: Predictor,
    signature: Signature,
    rows: tuple[pl.DataFrame, pl.DataFrame],
    label: str | None,
    rates: Sequence[float] = (),
    predictions: Predictions | None = None,
) -> tuple[JudgedScores | None, dict[str, float], AgainstBaseline | None]:
    """The scores and the metrics of a model on evaluation rows, and the trivial model that is strongest by the gate's metric beside it.

    `rows` are those that a trivial model learns from and those that both are evaluated on; `rates` are those at which the rows
    of each class were sampled. Metrics of decisions are those of the rule, if one is declared.
    """
    rule = require_rule(predictions and predictions.decide, signature.task, signature.classes)
    earlier, later = _known(signature, rows[0], label), rows[1]
    judged = scores_of(predictor, signature, later, label)
    if judged is None:
        return None, {}, None
    metric, outcomes = model.promote.metric or default_metric(signature.task), replace(judged.outcomes, rule=rule)
    judged = replace(judged, outcomes=outcomes)
    with one_thread():
        trivial = None if label is None else against_baseline(metric, outcomes, earlier, later, label, rates)
        return judged, measure(outcomes), trivial


def _rates(refinements: Refinements) -> list[float]:
    """The rate at which each class was sampled; empty if all are alike."""
    return list(refinements.of(PRIOR.name).get("rates", ()))


def _checked(features: Features, data: TrainingData) -> tuple[Contract, pl.DataFrame, pl.DataFrame]:
    """The contract of the rows to fit on, the rows that keep it, and those that do not, with the reasons."""
    names = feature_columns(features, data.fit.schema if data.label is None else data.fit.drop(data.label).schema)
    contract = infer_contract(data.fit.select(names), features.columns)
    if not names:
        msg = "There is no feature column to learn from: the features hold only the key, the time and excluded columns."
        raise TrainingRefusedError(msg, hint="add columns to the features.")
    split = contract.split(data.fit)
    return contract, split.kept, split.rejected


def _require_enough(kept: pl.DataFrame, rejected: pl.DataFrame, data: TrainingData) -> None:
    """Raise TrainingRefusedError if too few rows keep the contract; the message says which rows do not count, and why."""
    if kept.height >= LEAST_ROWS:
        return
    apart, hint = "", "train a later serving period, or declare a longer model.train.window."
    if data.rows_apart:
        apart = f", beside {data.rows_apart:,} of groups that are evaluated"
        hint = "declare a shorter model.train.evaluate, or leave model.train.group out if the same groups are scored again."
    if data.not_known is not None:
        apart += f", beside {data.not_known.before_cap:,} whose labels were not known when the evaluation rows began"
    if broken := rejected.group_by(OFFENDER, REASON).len().sort("len", OFFENDER, REASON).rows():
        column, reason, _ = broken[-1]
        apart += f", beside {rejected.height:,} that break the contract (most often {column}: {reason})"
        if kept.height + rejected.height >= LEAST_ROWS:
            hint = f"correct {column} in the features."
    msg = f"There are {kept.height} rows to learn from{apart}; at least {LEAST_ROWS} are needed."
    raise TrainingRefusedError(msg, hint=hint)


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


def _apart(data: TrainingData) -> Iterator[str]:
    """The number of rows that the judged fit did not learn from because their group is evaluated; nothing if there are none."""
    if data.rows_apart:
        yield f"{data.rows_apart:,} earlier rows of the groups in the evaluation rows are left out of the fit that is judged"


def _known(signature: Signature, rows: pl.DataFrame, label: str | None) -> pl.DataFrame:
    """The rows of the classes that a model knows; all rows for a model without classes."""
    if label is None or signature.task not in ("binary", "multiclass"):
        return rows
    return rows.filter(known_to(signature.classes, rows[label]))


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
    rows = evaluated.height if task == "regression" else min(evaluated[label].unique_counts().to_list())
    return nearly_perfect(metrics, rows)
