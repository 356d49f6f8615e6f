"""Fitting a model on the beginning of a training window, evaluating it on the end, and fitting it again on both.

Rows are in order of time and are never shuffled between the two parts. Nothing here knows where rows come from or where the model goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.declaration.spec import Features, Model, Predictions
from batch_platform.features.history import TrainingData, feature_columns
from batch_platform.features.training_data import class_counts, equal_shares
from batch_platform.kernels.forest.compiled import Proof, prove
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.baseline import AgainstBaseline, measured
from batch_platform.models.contract import (
    BINARY,
    OFFENDER,
    REASON,
    ClassLabel,
    Contract,
    Positive,
    Signature,
    classes_of_one_name,
    infer_contract,
)
from batch_platform.models.declared_model import make_estimator, name_of, task_of
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
from batch_platform.models.judged import JudgedScores, known_rows
from batch_platform.models.leaks import leaks_of
from batch_platform.models.reference import reference_of
from batch_platform.models.refinements.calibration import PRIOR, in_proportion
from batch_platform.models.refinements.known import Declared, Refinements, Refining
from batch_platform.models.search import Searched, search
from batch_platform.monitoring.leakage import SuspectedLeak
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
    fitted = Fitted(
        estimator=estimator,
        signature=signature,
        metrics=metrics,
        rows_fitted=kept.height,
        rows_evaluated=evaluated.kept.height,
        rows_rejected=rejected.height + evaluated.rejected.height + unseen.rejected.height,
        leaks=leaks_of(signature, (kept, matrix, truth), data, metrics, evaluated.kept),
        held_out=contract.encode(evaluated.kept) if judged is None else np.asarray(judged.outcomes.matrix),
        held_out_rows=evaluated.kept,
        flavour=kind,
        predictor=predictor,
        reference=_reference(signature, (kept, matrix), data.label, refinements, former, features),
        judged=judged,
        details=stopped_at(estimator),
        trivial=trivial,
        refinements=refinements,
        search=searched,
    )
    return replace(fitted, remarks=_remarks(fitted, remarks, kept, data, refinements))


def refit(model: Model, features: Features, whole: TrainingData, params: dict[str, Any], judged: Fitted) -> Fitted:
    """Fit the declared estimator again on all rows of a window, after it was judged on the end of it.

    The contract is learned from all rows too. The task and the classes stay those that were judged: rows of a class that is
    new in the end of the window are left out, and the next training learns it. The bins of the reference profile stay those
    of the first fit where they still suit. Raises what `fit` raises.
    """
    contract, kept, rejected = _checked(features, whole)
    kept = known_rows(judged.signature, kept, whole.label)
    signature = replace(judged.signature, contract=contract)
    estimator, rows = make_estimator(model, params, contract), EncodedRows.of(kept, contract, whole.label)
    held_out = contract.split(whole.evaluate).kept
    with refusals_explained(estimator, contract):
        predictor, remarks = fit_estimator(judged.flavour, estimator, signature, rows)
    refining = Refining(predictor, signature, whole, rows.matrix, kept.clear(), held_out, judged.flavour.single)
    share = judged.rows_fitted / max(1, kept.height)
    refinements = refining.learn(judged.refinements.declared, judged.refinements, share)
    reference = _reference(signature, (kept, rows.matrix), whole.label, refinements, judged.reference, features)
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
            features=reference.features,
            usual=reference.usual,
            moves=reference.moves,
            rows=reference.rows,
        ),
        remarks=_remarks(judged, remarks, kept, whole, refinements),
        refinements=refinements,
    )


def _reference(  # noqa: PLR0913 - rows, and how they are counted
    signature: Signature,
    learned: tuple[pl.DataFrame, NDArray[np.float64]],
    label: str | None,
    refinements: Refinements,
    former: ReferenceProfile | None,
    features: Features,
) -> ReferenceProfile:
    """The profile of the rows that a model learned from, each class in proportion."""
    rates = _rates(refinements)
    rows = in_proportion(learned, label, signature.classes, rates)
    return reference_of(signature.contract, rows, former, key=features.key, sampled=bool(rates))


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


def _remarks(
    fitted: Fitted, remarks: Sequence[str], kept: pl.DataFrame, data: TrainingData, refinements: Refinements
) -> tuple[str, ...]:
    """What a person should know of a fit to rows: what its library said of it, and what is noticed in the rows and the metrics."""
    noticed, classes = list(remarks), fitted.signature.classes
    own = fitted.metrics.get("log_loss")
    other = None if fitted.trivial is None else fitted.trivial.baseline.metrics.get("log_loss")
    if fitted.signature.task == "multiclass" and data.label is not None and own and other and own >= DIVERGED * other:
        rare = sum(count < FEW_OF_A_CLASS for count in class_counts(kept, data.label).values())
        if rare:
            noticed.append(
                f"its probabilities are worse than the shares of the classes (log_loss {own:.2f} against {other:.2f}), which boosted "
                f"trees run into where classes are rare ({rare} of {len(classes)} have fewer than {FEW_OF_A_CLASS} rows): "
                "try a smaller learning_rate, or join rare classes in labels.sql"
            )
    if not data.balanced and data.label is not None and data.fit.height != data.rows_before_cap:
        # a sample in proportion holds few rows of a class, where a balanced one would hold at least twice as many
        sampled, balanced = class_counts(data.fit, data.label), equal_shares(data.classes_before_cap, data.fit.height)
        for name, before in sorted(data.classes_before_cap.items()):
            if sampled[name] < FEW_OF_A_CLASS and balanced[name] >= 2 * sampled[name]:
                rows = f"the sample holds {sampled[name]:,} of {before:,} rows of the class {name}"
                noticed.append(f"{rows}; model.train.sample: balanced keeps {balanced[name]:,}")
    if data.rows_apart:
        groups = "earlier rows of the groups in the evaluation rows are left out of the fit that is judged"
        noticed.append(f"{data.rows_apart:,} {groups}")
    return (*noticed, *refinements.remarks, *(() if fitted.search is None else fitted.search.remarks))


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
