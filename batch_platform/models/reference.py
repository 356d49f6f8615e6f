"""The reference profile of a version: what its features and its prediction were like when it was trained, kept in its bundle.

Features are profiled over the rows that it was fitted on (of a balanced sample, over as many of each class as all rows have), the prediction over rows that it had not seen when it was judged.
A model that is fitted again afterwards may give other scores, and has seen those rows: if its scores for them differ, they fix
the bins, but are no baseline, since nobody knows what it gives for rows that it has not seen.
Scoring profiles its rows in the same bins.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.spec import Task
from batch_platform.features.history import PARTITION_START
from batch_platform.models.contract import MAX_CATEGORIES, Column, Contract, Predictor, Signature
from batch_platform.models.counting import counted_profile
from batch_platform.models.estimate_basis import EstimateBasis
from batch_platform.models.native_threads import one_thread
from batch_platform.monitoring.drift import divergences
from batch_platform.monitoring.profiles import (
    Bins,
    Profile,
    category_bins,
    category_profile,
    number_bins,
)

FORMAT = 1
REFITTED_ALIKE = 0.02  # index up to which the scores of a model that was fitted again are those of the first fit
MOST_PARTITIONS = 100  # of the training data whose distance from the whole is measured, evenly spaced
ALIKE = 0.25  # population stability index up to which the bins of the version before are kept


@dataclass(frozen=True)
class ReferenceProfile:
    """The profiles of the features, in the order of the contract, and of the prediction; None without rows to predict."""

    features: tuple[Profile, ...]
    prediction: Profile | None = None
    prediction_is_baseline: bool = True
    usual: tuple[float, ...] = ()  # of each feature, the highest index beyond chance of a partition; empty if unknown
    basis: EstimateBasis | None = None  # of estimates of its performance; None where it could not be learned

    @property
    def usual_by_feature(self) -> dict[str, float]:
        """How far the partitions of the training data are from the whole of it, by feature."""
        return {profile.name: usual for profile, usual in zip(self.features, self.usual, strict=False)}

    @property
    def baseline(self) -> tuple[Profile, ...]:
        """The profiles that those of other rows can be compared with."""
        return self.profiles if self.prediction_is_baseline else self.features

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles, that of the prediction last."""
        return self.features if self.prediction is None else (*self.features, self.prediction)

    def profiled(
        self,
        rows: tuple[pl.DataFrame, NDArray[np.float64]],
        raw: NDArray[Any] | None,
        signature: Signature,
        rejected: Mapping[str | None, int],
    ) -> tuple[Profile, ...]:
        """Profile scored rows in the bins of the reference, and in its order; last what performance is estimated from.

        Args:
            rows: The rows that satisfy the contract and have a score, and the same rows encoded [n, columns].
            raw: What the model returned for them; None without rows.
            signature: Of the model.
            rejected: Further rows, which were not scored, by column; None for a score that is not finite.
        """
        bins = {profile.name: profile.bins for profile in self.features}
        features = _features(signature.contract, rows, bins, rejected)
        of_estimates = () if self.basis is None else (self.basis.profiled(rows[1], raw),)
        if self.prediction is None:
            return (*features, *of_estimates)
        values = np.empty((0, max(1, len(signature.classes)))) if raw is None else raw
        bins_of_output = self.prediction.bins
        return (*features, _prediction(values, signature, bins_of_output, rejected.get(None, 0)), *of_estimates)

    def to_json(self) -> bytes:
        """Write the file of a bundle."""
        values = {
            "format": FORMAT,
            "features": [profile.to_json() for profile in self.features],
            "prediction": None if self.prediction is None else self.prediction.to_json(),
            "prediction_is_baseline": self.prediction_is_baseline,
            "usual": self.usual,
            "basis": None if self.basis is None else self.basis.to_json(),
        }
        return json.dumps(values, allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "ReferenceProfile":
        """Read the file of a bundle."""
        values = json.loads(text)
        prediction, basis = values["prediction"], values.get("basis")  # which earlier releases did not learn
        return cls(
            tuple(map(Profile.from_json, values["features"])),
            None if prediction is None else Profile.from_json(prediction),
            values["prediction_is_baseline"],
            tuple(values["usual"]),
            None if basis is None else EstimateBasis.from_json(basis),
        )


def reference_of(
    contract: Contract, rows: tuple[pl.DataFrame, NDArray[np.float64]], former: ReferenceProfile | None
) -> ReferenceProfile:
    """The reference for features like these rows, which satisfy the contract and come with their encoding [n, columns].

    A column keeps the bins of the version before as long as its values still resemble those that the bins were made for, so
    that partitions scored by different versions can be compared and merged.
    """
    bins = {column.name: _bins_of_column(column, rows[1][:, at]) for at, column in enumerate(contract.columns)}
    features = _features(contract, rows, bins, {})
    if former is not None:
        before = {profile.name: profile for profile in former.features}
        kept = {
            profile.name: before[profile.name]
            for profile in features
            if profile.is_comparable(before.get(profile.name))
        }
        again = _features(contract, rows, bins | {name: profile.bins for name, profile in kept.items()}, {})
        features = tuple(
            profile if profile.name in kept and _alike(profile, kept[profile.name]) else fresh
            for profile, fresh in zip(again, features, strict=True)
        )
    return ReferenceProfile(features, usual=_usual(contract, rows, features))


def _usual(
    contract: Contract, rows: tuple[pl.DataFrame, NDArray[np.float64]], features: Sequence[Profile]
) -> tuple[float, ...]:
    """Of each feature, the highest index beyond chance of a partition beside all rows; empty if the partitions are not known."""
    frame, matrix = rows
    if PARTITION_START not in frame.columns:
        return ()
    bins = {profile.name: profile.bins for profile in features}
    starts = frame[PARTITION_START].to_numpy()
    partitions = np.unique(starts)
    pairs: list[tuple[Profile, Profile]] = []
    for start in partitions[:: ceil(len(partitions) / MOST_PARTITIONS)]:
        members = starts == start
        of_partition = (frame.filter(pl.Series(members)), np.ascontiguousarray(matrix[members]))
        pairs += zip(_features(contract, of_partition, bins, {}), features, strict=True)
    beyond = [0.0 if divergence is None else divergence.beyond_chance for divergence in divergences(pairs)]
    return tuple(max(beyond[at :: len(features)], default=0.0) for at in range(len(features)))


def with_prediction(
    reference: ReferenceProfile,
    predictor: Predictor,
    signature: Signature,
    matrix: NDArray[np.float64],
    former: ReferenceProfile | None,
) -> ReferenceProfile:
    """The reference with the profile of what a model predicts for rows [n, columns] that it has not learned from."""
    if not len(matrix):
        return reference
    raw = _predicted(predictor, matrix)
    profile = _prediction(raw, signature, _bins_of_output(raw, signature), 0)
    before = None if former is None else former.prediction
    if before is not None and before.is_comparable(profile):
        again = _prediction(raw, signature, before.bins, 0)
        profile = again if _alike(again, before) else profile
    return replace(reference, prediction=profile, prediction_is_baseline=True)


def after_refit(
    reference: ReferenceProfile, predictor: Predictor, signature: Signature, matrix: NDArray[np.float64]
) -> ReferenceProfile:
    """The reference of a model that was fitted again on rows [n, columns], of which `reference` has the scores before."""
    judged = reference.prediction
    if judged is None or not len(matrix):
        return reference
    raw = _predicted(predictor, matrix)
    if signature.task == "clustering":  # a second fit may number its segments in another way
        return replace(reference, prediction=_prediction(raw, signature, _bins_of_output(raw, signature), 0))
    (divergence,) = divergences([(_prediction(raw, signature, judged.bins, 0), judged)])
    if divergence is not None and divergence.psi <= REFITTED_ALIKE:  # of the same rows, so that nothing is chance
        return reference
    fresh = _prediction(raw, signature, _bins_of_output(raw, signature), 0)
    return replace(reference, prediction=fresh, prediction_is_baseline=False)


def _predicted(predictor: Predictor, matrix: NDArray[np.float64]) -> NDArray[Any]:
    """What a model returns for rows, without those whose score is not finite."""
    with np.errstate(over="ignore", invalid="ignore"), one_thread():
        raw = predictor.predict(matrix)
    return raw[np.isfinite(raw).reshape(len(raw), -1).all(axis=1)]


def predicted_column(task: Task) -> str:
    """The column of the predictions that is profiled: the score, where there is one for each row."""
    return "score" if task in ("binary", "outliers") else "prediction"


def _alike(profile: Profile, before: Profile) -> bool:
    (divergence,) = divergences([(profile, before)])
    return divergence is not None and divergence.psi <= ALIKE


def _is_text(column: Column) -> bool:
    return column.type == "category"


def _bins_of_column(column: Column, values: NDArray[np.float64]) -> Bins:
    if not _is_text(column):
        return number_bins(values)
    codes = values[~np.isnan(values)].astype(np.int64)
    counts = np.bincount(codes, minlength=len(column.categories)).tolist()
    return category_bins(dict(zip(column.categories, counts, strict=True)))


def _features(
    contract: Contract,
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    bins: Mapping[str, Bins],
    rejected: Mapping[str | None, int],
) -> tuple[Profile, ...]:
    frame, matrix = rows
    return tuple(
        category_profile(
            column.name,
            "feature",
            bins[column.name],
            matrix[:, at],
            column.categories,
            nulls=frame[column.name].null_count(),
            rejected=rejected.get(column.name, 0),
        )
        if _is_text(column)
        else counted_profile(
            column.name, "feature", bins[column.name], matrix[:, at], rejected=rejected.get(column.name, 0)
        )
        for at, column in enumerate(contract.columns)
    )


def _prediction(raw: NDArray[Any], signature: Signature, bins: Bins, rejected: int) -> Profile:
    """The profile of the score of a row, or else of its class, segment or value."""
    name = predicted_column(signature.task)
    match signature.task:
        case "binary":
            return counted_profile(name, "prediction", bins, np.ascontiguousarray(raw[:, -1]), rejected=rejected)
        case "regression" | "outliers":
            values = np.asarray(raw, dtype=np.float64).reshape(len(raw))
            return counted_profile(name, "prediction", bins, values, rejected=rejected)
        case "multiclass":
            known, codes = [str(label) for label in signature.classes], raw.argmax(axis=1).astype(np.float64)
        case "clustering":
            known, codes = _segments(raw.reshape(len(raw)), bins.categories or ())
    return category_profile(name, "prediction", bins, codes, known, nulls=0, rejected=rejected)


def _segments(raw: NDArray[Any], names: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """The known segments, ascending, and the position of each row's segment among them; NaN for another."""
    known = sorted(map(int, names))
    places = {number: float(at) for at, number in enumerate(known)}
    numbers, inverse = np.unique(raw, return_inverse=True)
    codes = np.array([places.get(int(number), np.nan) for number in numbers.tolist()], dtype=np.float64)
    return [str(number) for number in known], codes[inverse] if len(codes) else np.empty(0)


def _bins_of_output(raw: NDArray[Any], signature: Signature) -> Bins:
    match signature.task:
        case "binary":
            return number_bins(raw[:, -1])
        case "regression" | "outliers":
            return number_bins(np.asarray(raw, dtype=np.float64).reshape(len(raw)))
        case "multiclass":
            counts = np.bincount(raw.argmax(axis=1), minlength=len(signature.classes)).tolist()
            return category_bins({str(label): count for label, count in zip(signature.classes, counts, strict=True)})
        case "clustering":
            segments, counts = np.unique(raw, return_counts=True)
            of_segments = {
                str(int(number)): count for number, count in zip(segments.tolist(), counts.tolist(), strict=True)
            }
            return category_bins(of_segments, most=MAX_CATEGORIES)
