"""Refinements of a classifier's probabilities: the correction for a sample of its training rows, then calibration.

A model that learned from a balanced sample takes a rare class for more frequent than it is. If class k was sampled at the rate
r_k and the rows within a class at random, Bayes' rule gives the probability under the shares of all rows:

    p_k = (q_k / r_k) / sum over j of (q_j / r_j)

where q is what the model returns. For two classes this shifts the log-odds by log(r_0 / r_1), the prior correction of King
and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 9 (2001), eq. 7; for any number of classes it is
eq. 4 of Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities", Neural
Computation 14 (2002). The order of rows by the score of a binary model stays the same.

Calibration makes probabilities come true as often as they say. `sigmoid` fits a logistic curve (Platt, "Probabilistic Outputs for
Support Vector Machines", 1999), `isotonic` a rising line of many pieces (Zadrozny and Elkan, "Transforming Classifier Scores into
Accurate Multiclass Probability Estimates", KDD 2002); of more than two classes each against the rest, scaled to a sum of 1.
scikit-learn fits both on rows that the model has not seen; its numbers are kept, and give the bits of its
`CalibratedClassifierCV(FrozenEstimator(estimator), method=…)`: from the decision function of a model that has one, otherwise from its
probabilities.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, counted, listed
from batch_platform.features.history import TrainingData
from batch_platform.kernels.forest.ensembles import c_exponentials
from batch_platform.kernels.predictor import Predictor, decisions
from batch_platform.models.contract import BINARY, ClassLabel
from batch_platform.models.refinements.refinement import (
    Check,
    Learned,
    NotAppliedError,
    Refined,
    Refinement,
    Unseen,
)
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.metrics import as_truth, measure
from batch_platform.monitoring.outcomes import CLASSIFICATION, UNKNOWN, Outcomes, weights_of

LEAST_OF_A_CLASS = 10  # rows; scikit-learn itself needs five
METRICS = ("brier", "log_loss", "calibration_error")
# Share of the serving fit's rows that the calibrated fit must have learned from; with fewer it scores too differently.
LEAST_SHARE = 1 / 3
JUDGED_BY = "brier"  # a proper score, and finite where a probability is 0
RELIABILITY = "calibration_error"
Values = NDArray[np.float64]


def _learned(method: str, unseen: Unseen) -> Learned:
    """Fit a calibrator for each class; of two classes, for the second."""
    signature, not_applied = unseen.signature, f"its probabilities are not calibrated (model.calibrate: {method})"
    if signature.task not in CLASSIFICATION or unseen.truth is None:
        what = "has no labels to learn from" if signature.task in CLASSIFICATION else f"is a {signature.task} model"
        msg = f"model.calibrate: only the probabilities of a classifier can be calibrated, and this {what}."
        raise TrainingRefusedError(msg, hint="leave model.calibrate out, or declare a classifier with `labels`.")
    positions = Outcomes(signature.task, unseen.raw, unseen.truth, signature.classes).true_positions
    counts = np.bincount(positions[positions != UNKNOWN], minlength=len(signature.classes)).tolist()
    if rare := [
        f"{name}: {rows}" for name, rows in zip(signature.classes, counts, strict=True) if rows < LEAST_OF_A_CLASS
    ]:
        rows = counted(unseen.rows.height, "row")
        few = f"the {rows} in the first half of the evaluation window hold too few of the classes {listed(rare)}"
        msg = f"{not_applied}: {few}; a longer model.train.evaluate has more"
        raise NotAppliedError(msg)
    decided = decisions(unseen.predictor, unseen.matrix)
    inputs = _inputs(unseen.raw if decided is None else decided, decides=decided is not None)
    known, weights = positions != UNKNOWN, weights_of(unseen.rows)
    inputs, positions, weights = inputs[known], positions[known], None if weights is None else weights[known]
    if not np.isfinite(inputs).all():
        msg = f"{not_applied}: some scores of the first half of the evaluation window are not finite"
        raise NotAppliedError(msg)
    single = unseen.single and decided is None and not isinstance(unseen.predictor, Refined)
    calibrators = _fitted(method, inputs.astype(np.float32) if single else inputs, positions, weights)
    return {
        "method": method,
        "decides": decided is not None,
        "single": single,
        "rows": len(inputs),
        "calibrators": [
            {"scores": each.X_thresholds_, "probabilities": each.y_thresholds_}
            if method == "isotonic"
            else {"slope": float(each.a_), "offset": float(each.b_)}
            for each in calibrators
        ],
    }


def _fitted(method: str, inputs: NDArray[Any], positions: NDArray[np.int64], weights: Values | None) -> list[Any]:
    """scikit-learn's calibrators for scores [rows, 1] of two classes or [rows, classes], which weigh what is declared."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Scored(ClassifierMixin, BaseEstimator):
        """A fitted classifier whose features are its scores."""

        def __init__(self) -> None:
            self.classes_ = np.unique(positions)

        def fit(self, X: Values, y: object) -> "Scored":  # noqa: ARG002, N803 - scikit-learn's names
            return self

        def decision_function(self, X: Values) -> Values:  # noqa: N803 - scikit-learn's name
            return X[:, 0] if X.shape[1] == 1 else X

        predict = decision_function  # scikit-learn asks for it, and does not call it

    calibrated: Any = CalibratedClassifierCV(FrozenEstimator(Scored()), method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that the weights reach the calibrators only, as they should
        calibrated.fit(inputs, positions, weights)
    return calibrated.calibrated_classifiers_[0].calibrators


def _inputs(values: NDArray[Any], *, decides: bool) -> Values:
    """The input of calibrators: the decision function, or the probability of the second of two classes, [rows, 1 or classes]."""
    if values.ndim == 1:
        return values[:, None]
    return values[:, 1:] if not decides and values.shape[1] == BINARY else values


def _calibrated(learned: Learned, predictor: Predictor, matrix: Values) -> Values:
    """Return calibrated probabilities [rows, classes]."""
    decides = learned["decides"]
    inputs = _inputs(np.asarray((decisions if decides else _predicted)(predictor, matrix)), decides=decides)
    if learned["single"]:
        inputs = inputs.astype(np.float32)
    apply = _CALIBRATORS[learned["method"]]
    columns = [apply(each, inputs[:, at]) for at, each in enumerate(learned["calibrators"])]
    if len(columns) == 1:
        probabilities = np.empty((len(columns[0]), 2))
        probabilities[:, 1] = columns[0]
        np.subtract(1.0, probabilities[:, 1], out=probabilities[:, 0])
    else:
        parts = np.column_stack(columns).astype(np.float64, copy=False)
        whole = np.sum(parts, axis=1)[:, None]
        uniform = np.full_like(parts, 1 / parts.shape[1])  # the answer for a row of which no class is probable
        probabilities = np.divide(parts, whole, out=uniform, where=whole != 0)
    if (above := probabilities > 1.0).any():
        probabilities[above & (probabilities <= 1.0 + 1e-5)] = 1.0  # scikit-learn rounds so
    return probabilities


def _predicted(predictor: Predictor, matrix: Values) -> NDArray[Any]:
    return predictor.predict(matrix)


def _isotonic(learned: Learned, scores: NDArray[Any]) -> NDArray[Any]:
    known, probabilities = learned["scores"], learned["probabilities"]
    if scores.dtype == np.float64 or len(known) == 1:
        return np.interp(scores, known, probabilities)
    # With 32 bits, SciPy's line through two neighbours is computed in them.
    known, probabilities = known.astype(np.float32), probabilities.astype(np.float32)
    scores = np.clip(scores, known[0], known[-1])
    high = np.searchsorted(known, scores).clip(1, len(known) - 1)
    slope = (probabilities[high] - probabilities[high - 1]) / (known[high] - known[high - 1])
    return slope * (scores - known[high - 1]) + probabilities[high - 1]


def _sigmoid(learned: Learned, scores: NDArray[Any]) -> NDArray[Any]:
    lines = learned["slope"] * scores.astype(np.float64, copy=False) + learned["offset"]
    return 1.0 / (1.0 + c_exponentials(lines[:, None])[:, 0])


_CALIBRATORS: dict[str, Callable[[Learned, NDArray[Any]], NDArray[Any]]] = {"isotonic": _isotonic, "sigmoid": _sigmoid}


def _measured(outcomes: Outcomes) -> dict[str, float]:
    """The metrics of probabilities; the calibration error of more than two classes is that of the most probable one."""
    known = outcomes.known
    metrics = measure(known, only=METRICS)
    if known.task == "multiclass" and len(known.predicted):
        best, surest = known.predicted.argmax(axis=1), known.predicted.max(axis=1)
        hit = Outcomes("binary", np.column_stack([1 - surest, surest]), best == known.true_positions, [False, True])
        metrics |= measure(hit, only=["calibration_error"])
    return metrics


def _checked(learned: Learned, before: Outcomes, after: Outcomes) -> Check:
    """Refuse a calibration that is worse than none, beyond chance, on rows that it has not learned from, and no more reliable.

    A rising line of steps ranks rows less finely than the scores it replaces, which the Brier score charges for. If probabilities come
    true more often as they say, that is what a calibration is declared for.
    """
    method, measured = learned["method"], {"before": _measured(before), "after": _measured(after)}
    verdict = Verdict.on(JUDGED_BY, after.known, before.known)
    reliable = measured["after"].get(RELIABILITY, np.inf) < measured["before"].get(RELIABILITY, np.inf)
    worse = verdict is not None and verdict.word == "worse" and not reliable
    facts: dict[str, Any] = {"method": method, "rows": learned["rows"], "applied": not worse}
    facts |= {f"{name}_{when}": values[name] for name in METRICS for when, values in measured.items() if name in values}
    if verdict is None or not worse:
        return Check(facts)
    errors = " against ".join(f"{measured[when][RELIABILITY]:.3f}" for when in ("after", "before") if measured[when])
    clause = f"its probabilities are not calibrated, since those with model.calibrate ({method}) are {verdict.beside('its own')}"
    return Check(facts, f"{clause}, with a calibration error of {errors}")


def _unsuited(method: str, share: float) -> str:
    """Refuse a calibration of the scores of a fit that has learned far less than the one that serves."""
    if share >= LEAST_SHARE:
        return ""
    return (
        f"its probabilities are not calibrated (model.calibrate: {method}): the fit that was judged learned from {share:.0%} of the "
        "rows of the one that serves, too few for its calibration to suit that"
    )


CALIBRATION = Refinement(
    "calibration",
    fit=_learned,
    refine=_calibrated,
    check=_checked,
    unsuited=_unsuited,
    declared=lambda spec: spec.model.calibrate,
    holds_out=True,
    retrains=False,  # `Learner.fingerprint` says when
)


def _rates_learned(_: object, unseen: Unseen) -> Learned | None:
    rates = sampling_rates(unseen.data, unseen.signature.classes)
    return {"rates": np.array(rates)} if rates else None


def _corrected(learned: Learned, predictor: Predictor, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities [rows, classes] under the shares of all rows."""
    probabilities: NDArray[np.float64] = predictor.predict(matrix)
    weighted = [probabilities[:, position] / rate for position, rate in enumerate(learned["rates"].tolist())]
    total = weighted[0]
    for column in weighted[1:]:  # each row is added in this order, however the matrix lies in memory
        total = total + column
    return np.column_stack([column / total for column in weighted])


# Declared by every pipeline: a sample is corrected for wherever it is not in proportion.
PRIOR = Refinement(
    "prior", fit=_rates_learned, refine=_corrected, declared=lambda spec: spec.model.train.sample, retrains=False
)


def sampling_rates(data: TrainingData, classes: Sequence[ClassLabel]) -> tuple[float, ...]:
    """The share of its rows with which each class is in a sample; empty if all classes were sampled alike or not at all."""
    if data.label is None or not data.balanced or not classes:
        return ()
    names, truth = data.fit[data.label].cast(pl.String), as_truth(data.fit[data.label])
    rates: list[float] = []
    for label in classes:
        kept = names.filter(pl.Series(truth == label))
        rates.append(len(kept) / sum(data.classes_before_cap[name] for name in kept.unique()))
    return tuple(rates) if min(rates) < 1 else ()


def in_proportion(
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    label: str | None,
    classes: Sequence[ClassLabel],
    rates: Sequence[float],
) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """Sampled rows and their encoding [n, columns], thinned out so that the classes have the shares that they have in all rows.

    Of a class, the rows are taken at equal distances; all of them without rates.
    """
    if label is None or not rates:
        return rows
    frame, matrix = rows
    truth, taken = as_truth(frame[label]), np.zeros(frame.height, dtype=np.bool_)
    for name, rate in zip(classes, rates, strict=True):
        members = np.flatnonzero(truth == name)
        count = max(1, round(len(members) * min(rates) / rate)) if len(members) else 0
        taken[members[np.arange(count) * len(members) // max(1, count)]] = True
    return frame.filter(pl.Series(taken)), matrix[taken]
