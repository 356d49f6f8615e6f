"""Make the reference profile of a version from rows, and profile scored rows in its bins.

A model that is fitted again afterwards has seen those rows, but gives new rows such scores as its first fit gave them, since labels
fix the scale of both. That does not hold if its scores have other values: those of a few small trees, which take few values, or anomaly
scores, which have no fixed scale. Then they fix the bins, but are no baseline: nobody knows what it gives for rows that it has not seen.
Scoring profiles its rows in the same bins.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.model import Task
from batch_platform.features.history import PARTITION_START
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import MAX_CATEGORIES, Contract, ContractColumn, Signature
from batch_platform.models.counting import counted_by_segment, counted_cells, counted_profile, numbered, sketched
from batch_platform.models.estimate_basis import basis_of, basis_places, basis_profile, basis_values
from batch_platform.monitoring.divergence import Moves, beyond_chance, divergences, usual_of, without_farthest
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.profiles import (
    LEAST_ROWS,
    MOST_COLUMNS,
    Bins,
    Categories,
    Components,
    Profile,
    Role,
    RowReference,
    RowSketch,
    category_bins,
    category_profile,
    number_bins,
    sketch_of,
)
from batch_platform.monitoring.reference import BySegment, ReferenceProfile
from batch_platform.monitoring.segments import Places, SegmentCounts, frequent_texts, named_texts

# Index up to which the scores of a model that was fitted again are like those of the first fit, on rows that only it has seen:
# these make labelled scores surer, by 0.05 to 0.33 for the trees of the flights. Scores of few values differ by 0.6 to 5.
REFITTED_ALIKE, OUTLIERS_ALIKE = 0.5, 0.02
# Partitions whose distance from their baselines is measured; of the prediction, whose distances are kept one by one, fewer.
MOST_OF_FEATURES, MOST_PARTITIONS = 1000, 100
LEAST_PARTITIONS = 7  # fewer partitions of training data do not tell what is usual of ranges, means and whole rows
IN_A_ROW = 25  # consecutive partitions among them, so that every weekday and every hour of a day occurs
ALIKE = 0.25  # population stability index up to which the bins of the version before are kept
_MOST_ROWS = 50_000  # rows from which it is learned how columns go together, evenly spaced
_SMALLEST = 0.05  # variance that is added to that of a component, so that what hardly varies does not decide
_CATEGORICAL = ("multiclass", "clustering")  # tasks whose prediction is one of a few names


def profiled(  # noqa: PLR0913 - rows, and how they are counted
    reference: ReferenceProfile,
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    raw: NDArray[Any] | None,
    signature: Signature,
    rejected: Mapping[str | None, int],
    segments: Sequence[str] = (),
    *,
    as_wholes: bool = False,
) -> tuple[tuple[Profile, ...], SegmentCounts, RowSketch]:
    """Profile scored rows in the bins of the reference, and in its order; last what performance is estimated from.

    `rows` satisfy the contract and have a score, and come with their encoding [n, columns]; `raw` is what the model returned for
    them, None without rows. `rejected` counts further rows, which were not scored, by column; None for a score that is not finite.
    The prediction and what performance is estimated from are also counted by each value of `segments`, columns of the rows.
    `as_wholes` looks at rows as wholes too.
    """
    sketch = sketched(rows[1], categories_of(signature.contract)) if as_wholes else RowSketch()
    bins = {profile.name: profile.bins for profile in reference.features}
    features = _features(signature.contract, rows, bins, rejected)
    profiles, places = features, dict[Role, Places]()
    if reference.prediction is not None:
        output = np.empty((0, max(1, len(signature.classes)))) if raw is None else raw
        bins_of_output, rejected_scores = reference.prediction.bins, rejected.get(None, 0)
        if segments:
            places["prediction"] = _places(output, signature, bins_of_output)
        known = places.get("prediction")
        profiles = (*profiles, _prediction(output, signature, bins_of_output, rejected_scores, known))
    if reference.basis is not None:
        values = basis_values(reference.basis, rows[1], raw)
        if segments:
            places["estimate"] = basis_places(reference.basis, values)
        profiles = (*profiles, basis_profile(reference.basis, values, places.get("estimate")))
    return profiles, counted_by_segment(rows[0].select(segments), places) if places else SegmentCounts(), sketch


def reference_of(
    contract: Contract,
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    former: ReferenceProfile | None,
    *,
    key: Sequence[str] = (),
    sampled: bool = False,
) -> ReferenceProfile:
    """The reference for features like these rows, which satisfy the contract and come with their encoding [n, columns].

    Of a text, only categories are named that are frequent by the columns of the key.

    Rows that are `sampled` do not tell which rows a partition has.

    A column keeps the bins of the version before as long as its values still resemble those that the bins were made for, so
    that partitions scored by different versions can be compared and merged.
    """
    keys = rows[0].select(name for name in key if name in rows[0].columns)
    frequent = {
        column.name: frequent_texts(rows[0][column.name], keys) for column in contract.columns if _is_text(column)
    }
    bins = {
        column.name: _bins_of_column(column, rows[1][:, at], frequent.get(column.name, ()))
        for at, column in enumerate(contract.columns)
    }
    features = _features(contract, rows, bins, {})
    if former is not None:
        before = {profile.name: profile for profile in former.features}
        kept = {
            profile.name: before[profile.name]
            for profile in features
            if profile.is_comparable(before.get(profile.name))
        }
        bins |= {name: _naming(profile.bins, frequent.get(name, ())) for name, profile in kept.items()}
        again = _features(contract, rows, bins, {})
        features = tuple(
            profile if profile.name in kept and _alike(profile, kept[profile.name]) else fresh
            for profile, fresh in zip(again, features, strict=True)
        )
    usual, moves = _usual(contract, rows, features)
    whole = row_reference(contract, rows[1], partition_starts(rows[0]), sampled=sampled)
    return ReferenceProfile(features, usual=usual, moves=moves, rows=whole)


def _usual(
    contract: Contract,
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    features: Sequence[Profile],
) -> tuple[tuple[float, ...], tuple[Moves | None, ...]]:
    """Measure how far a partition usually is from the others, feature by feature; empty if partitions cannot be compared.

    Second at most, by range and mean, if there are enough partitions for that; None for text.
    """
    frame, matrix = rows
    if (partitions := _partitions_of(partition_starts(frame), MOST_OF_FEATURES)) is None:
        return (), ()
    places = (
        _feature_places(column, profile.bins, matrix[:, at], frame[column.name])
        for at, (column, profile) in enumerate(zip(contract.columns, features, strict=True))
    )
    usual = tuple(usual_of(partitions.distances(column).values()) for column in places)
    if len(partitions.starts) < LEAST_PARTITIONS:
        return usual, ()
    moves = (
        None if _is_text(column) else partitions.moves(matrix[:, at], profile.bins)
        for at, (column, profile) in enumerate(zip(contract.columns, features, strict=True))
    )
    return usual, tuple(moves)


def partition_starts(rows: pl.DataFrame) -> NDArray[np.datetime64] | None:
    """The start of the partition of each row [n], in UTC; None if it is not known."""
    return rows[PARTITION_START].to_numpy() if PARTITION_START in rows.columns else None


@dataclass(frozen=True)
class _Partitions:
    """The partitions of some rows, and which of them are compared with the others."""

    starts: NDArray[np.datetime64]  # ascending
    of_rows: NDArray[np.int64]  # the position of each row's partition among them [n]
    compared: NDArray[np.int64]  # positions of the partitions that are compared

    def distances(self, places: Places) -> dict[str, float]:
        """Measure the distance of partitions from the others, by their start: the index beyond chance, given the cell of each row.

        The reference of a later partition does not hold its rows, so a partition is compared with the others.
        """
        of_rows, width = places
        cells = self.of_rows * width + of_rows
        counts = np.bincount(cells, minlength=len(self.starts) * width).reshape(-1, width)
        own = counts[self.compared]
        beyond = beyond_chance(own, counts.sum(axis=0) - own)
        return dict(zip(map(str, self.starts[self.compared]), beyond.tolist(), strict=True))

    def moves(self, values: NDArray[np.float64], bins: Bins) -> Moves | None:
        """Measure how far partitions are from the others at most by range, mean and spread, given a number of each row; NaN is left out.

        A value is outside if it is beyond the values of all other partitions, or beyond the cells. Mean and spread are those without
        the farthest value, as where partitions are judged: one absurd value of the training data would hide many later. None where
        means overflow.
        """
        known, count = ~np.isnan(values), len(self.starts)
        of_rows, values = self.of_rows[known], values[known]
        lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(lowest, of_rows, values)
        np.maximum.at(highest, of_rows, values)
        if not bins.edges or not len(values):
            return None
        low, high = np.full(count, max(lowest.min(), bins.edges[0])), np.full(count, min(highest.max(), bins.edges[-1]))
        low[lowest.argmin()] = max(np.partition(lowest, 1)[1], bins.edges[0])
        high[highest.argmax()] = min(np.partition(highest, -2)[-2], bins.edges[-1])
        outside = np.bincount(of_rows, (values < low[of_rows]) | (values > high[of_rows]), count)
        sums, rows = np.bincount(of_rows, values, count), np.bincount(of_rows, minlength=count)
        own = self.compared
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            share, means, others = outside / rows, sums / rows, (sums.sum() - sums) / (rows.sum() - rows)
            squares = np.bincount(of_rows, (values - means[of_rows]) ** 2, count)
            middle = others[own]
            of_own = (lowest[own], highest[own]), means[own], squares[own] / (rows[own] - 1), rows[own], middle
            trimmed, variances = without_farthest(*of_own)
            distances, spreads = np.abs(trimmed - middle), np.sqrt(variances)
            furthest = [float(np.nanmax(of, initial=0.0)) for of in (share, distances, spreads)]
        return Moves(*furthest) if np.isfinite(furthest).all() else None

    def distances_of_segments(self, column: pl.Series, places: Places) -> dict[str | None, dict[str, float]]:
        """Measure the distance of each segment of a partition from the same segment of the others, by value and start; see `distances`.

        Partitions without rows of a segment, or with all of them, are left out. Empty for a column with too many values.
        """
        if (values := numbered(column)) is None:
            return {}
        (numbers, segments), (of_rows, width), own = values, places, self.compared
        place = np.full(len(self.starts), len(own))  # partitions that are not compared count together
        place[own] = np.arange(len(own))
        shape = len(segments), len(own) + 1, width
        cells = (numbers * shape[1] + place[self.of_rows]) * width + of_rows
        counts = np.bincount(cells, minlength=shape[0] * shape[1] * width).reshape(shape)
        others = counts.sum(axis=1, keepdims=True) - counts
        held = (counts.any(axis=2) & others.any(axis=2))[:, :-1]
        beyond = beyond_chance(counts[:, :-1][held], others[:, :-1][held])
        distances: dict[str | None, dict[str, float]] = {}
        for segment, partition, distance in zip(*np.nonzero(held), beyond.tolist(), strict=True):
            distances.setdefault(segments[int(segment)], {})[str(self.starts[own[partition]])] = distance
        return distances


def _partitions_of(starts: NDArray[np.datetime64] | None, most: int = MOST_PARTITIONS) -> _Partitions | None:
    """The partitions of rows, of which about so many are compared, given the start of each row's [n]; None if it is not known, or if there are no two."""
    if starts is None:
        return None
    partitions, of_rows = np.unique(starts, return_inverse=True)
    if len(partitions) < 2:  # noqa: PLR2004 - with one there is nothing to compare it with
        return None
    every = ceil(len(partitions) / most)
    chosen = [place for place in range(len(partitions)) if place // IN_A_ROW % every == 0]
    return _Partitions(partitions, of_rows, np.array(chosen))


def _feature_places(column: ContractColumn, bins: Bins, values: NDArray[np.float64], stored: pl.Series) -> Places:
    """The cell of each value [n], as `_features` counts it; a cell for nulls and one for unknown categories follow."""
    missing = np.isnan(values)
    if not _is_text(column):
        return np.where(missing, bins.cells, counted_cells(values, bins)), bins.cells + 2
    at = {name: place for place, name in enumerate(bins.categories or ())}
    places = np.array([*(at.get(name, bins.cells - 1) for name in column.categories), bins.cells + 1])
    cells = places[np.where(missing, len(column.categories), values).astype(np.int64)]
    return np.where(stored.is_null().to_numpy(), bins.cells, cells), bins.cells + 2


def with_prediction(  # noqa: PLR0913 - a model, its rows, and what is known of the version before
    reference: ReferenceProfile,
    predictor: Predictor,
    signature: Signature,
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    segments: Sequence[str],
    former: ReferenceProfile | None,
    key: Sequence[str] = (),
) -> ReferenceProfile:
    """The reference of features with the profile of what a model predicts for rows that it has not learned from, and by their segments.

    How far the partitions of these rows are from each other is added to what the version before, of the reference `former`, has
    learned of theirs: one evaluation has too few partitions to tell what is usual. `rows` come with their encoding [n, columns].
    By the columns of the `key`, a segment is frequent enough to be named.
    """
    frame, matrix = rows
    if not len(matrix):
        return reference
    raw, finite = _predicted(predictor, matrix)
    profile = _prediction(raw, signature, _bins_of_output(raw, signature), 0)
    before = None if former is None else former.prediction
    if before is not None and before.is_comparable(profile):
        again = _prediction(raw, signature, before.bins, 0)
        profile = again if _alike(again, before) else profile

    starts = partition_starts(frame)
    places = _places(raw, signature, profile.bins)
    partitions = _partitions_of(None if starts is None else starts[finite])
    passed_on = former if former is not None and profile.is_comparable(before) else ReferenceProfile(())
    distances = passed_on.distances
    if partitions is not None:
        distances = _newest(distances, partitions.distances(places))
    by_segment, segment_distances = SegmentCounts(), dict[str, BySegment]()
    if names := [name for name in segments if name in frame.columns]:
        scored = frame.filter(finite)
        keys = scored.select(name for name in key if name in frame.columns)
        of_segments = scored.select(named_texts(scored[name], keys) for name in names)
        by_segment = counted_by_segment(of_segments, {"prediction": places})
        for column in of_segments.get_columns():
            known = passed_on.segment_distances.get(column.name, {})
            of_own = {} if partitions is None else partitions.distances_of_segments(column, places)
            segment_distances[column.name] = {
                segment: _newest(known.get(segment, {}), of_segment) for segment, of_segment in of_own.items()
            }
    return replace(
        reference,
        prediction=profile,
        prediction_is_baseline=True,
        distances=distances,
        segment_distances=segment_distances,
        by_segment=by_segment,
    )


def with_basis(
    reference: ReferenceProfile, outcomes: Outcomes | None, rows: pl.DataFrame, segments: Sequence[str]
) -> ReferenceProfile:
    """The reference with what estimates of performance are based on: the outcomes of rows that the model has not learned from."""
    of_segments = rows.select(name for name in segments if name in rows.columns)
    partitions = rows.select(name for name in [PARTITION_START] if name in rows.columns).get_columns()
    return replace(reference, basis=None if outcomes is None else basis_of(outcomes, of_segments, *partitions))


def _newest(known: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """The distances of the newest MOST_PARTITIONS partitions of both, by their start."""
    return dict(sorted({**known, **own}.items())[-MOST_PARTITIONS:])


def after_refit(
    reference: ReferenceProfile, predictor: Predictor, signature: Signature, matrix: NDArray[np.float64]
) -> ReferenceProfile:
    """The reference of a model that was fitted again on rows [n, columns], of which `reference` has the scores before."""
    judged = reference.prediction
    if judged is None or not len(matrix):
        return reference
    raw, _ = _predicted(predictor, matrix)
    if signature.task == "clustering":  # a second fit may number its clusters in another way
        prediction = _prediction(raw, signature, _bins_of_output(raw, signature), 0)
        return replace(reference, prediction=prediction, by_segment=SegmentCounts())
    (divergence,) = divergences([(_prediction(raw, signature, judged.bins, 0), judged)])
    alike = OUTLIERS_ALIKE if signature.task == "outliers" else REFITTED_ALIKE
    if divergence is not None and divergence.psi <= alike:  # both describe the same rows, so that nothing is chance
        return replace(reference, apart=divergence.psi)
    fresh = _prediction(raw, signature, _bins_of_output(raw, signature), 0)
    return replace(reference, prediction=fresh, prediction_is_baseline=False, by_segment=SegmentCounts())


def _predicted(predictor: Predictor, matrix: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The output of a model for rows without those whose score is not finite, and a mask of the kept rows [n]."""
    with np.errstate(over="ignore", invalid="ignore"), one_thread():
        raw = predictor.predict(matrix)
    finite = np.asarray(np.isfinite(raw).reshape(len(raw), -1).all(axis=1))
    return raw[finite], finite


def predicted_column(task: Task) -> str:
    """The column of the predictions that is profiled: the score, where there is one for each row."""
    return "score" if task in ("binary", "outliers") else "prediction"


def _alike(profile: Profile, before: Profile) -> bool:
    (divergence,) = divergences([(profile, before)])
    return divergence is not None and divergence.psi <= ALIKE


def _is_text(column: ContractColumn) -> bool:
    return column.type == "category"


def _bins_of_column(column: ContractColumn, values: NDArray[np.float64], frequent: Collection[str]) -> Bins:
    if not _is_text(column):
        return number_bins(values)
    codes = values[~np.isnan(values)].astype(np.int64)
    counts = np.bincount(codes, minlength=len(column.categories)).tolist()
    of_frequent = {name: count for name, count in zip(column.categories, counts, strict=True) if name in frequent}
    return category_bins(of_frequent)


def _naming(bins: Bins, frequent: Collection[str]) -> Bins:
    """The bins of the version before, without a cell for a category that is no longer frequent."""
    if bins.categories is None:
        return bins
    return Bins(categories=tuple(name for name in bins.categories if name in frequent))


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


def _prediction(
    raw: NDArray[Any], signature: Signature, bins: Bins, rejected: int, places: Places | None = None
) -> Profile:
    """The profile of the score of a row, or else of its class, cluster or value; `places` are their cells if they are known."""
    name = predicted_column(signature.task)
    if signature.task in _CATEGORICAL:
        known, codes = _codes(raw, signature, bins)
        return category_profile(name, "prediction", bins, codes, known, nulls=0, rejected=rejected)
    cells = None if places is None else places[0]
    return counted_profile(name, "prediction", bins, _numbers(raw, signature), rejected=rejected, cells=cells)


def _places(raw: NDArray[Any], signature: Signature, bins: Bins) -> Places:
    """The cell of what a model returned for each row, as `_prediction` counts it; a last cell is for unknown categories."""
    if signature.task not in _CATEGORICAL:
        return counted_cells(_numbers(raw, signature), bins), bins.cells + 1
    known, codes = _codes(raw, signature, bins)
    at = {name: place for place, name in enumerate(bins.categories or ())}
    places = np.array([*(at.get(name, bins.cells - 1) for name in known), bins.cells])
    return places[np.nan_to_num(codes, nan=len(known)).astype(np.int64)], bins.cells + 1


def _numbers(raw: NDArray[Any], signature: Signature) -> NDArray[np.float64]:
    """The score or value of each row."""
    if signature.task == "binary":
        return np.ascontiguousarray(raw[:, -1])
    return np.asarray(raw, dtype=np.float64).reshape(len(raw))


def _codes(raw: NDArray[Any], signature: Signature, bins: Bins) -> tuple[list[str], NDArray[np.float64]]:
    """The known classes or clusters, ascending, and the position of each row's among them; NaN for another."""
    if signature.task == "multiclass":
        return [str(label) for label in signature.classes], raw.argmax(axis=1).astype(np.float64)
    known = sorted(map(int, bins.categories or ()))
    places = {number: float(at) for at, number in enumerate(known)}
    numbers, inverse = np.unique(raw.reshape(len(raw)), return_inverse=True)
    codes = np.array([places.get(int(number), np.nan) for number in numbers.tolist()], dtype=np.float64)
    return [str(number) for number in known], codes[inverse] if len(codes) else np.empty(0)


def _bins_of_output(raw: NDArray[Any], signature: Signature) -> Bins:
    if signature.task not in _CATEGORICAL:
        return number_bins(_numbers(raw, signature))
    if signature.task == "multiclass":
        counts = np.bincount(raw.argmax(axis=1), minlength=len(signature.classes)).tolist()
        return category_bins({str(label): count for label, count in zip(signature.classes, counts, strict=True)})
    numbers, counts = (of.tolist() for of in np.unique(raw, return_counts=True))
    of_clusters = {str(int(number)): count for number, count in zip(numbers, counts, strict=True)}
    return category_bins(of_clusters, most=MAX_CATEGORIES)


def categories_of(contract: Contract) -> Categories:
    """The categories of each column of a contract; None for a number."""
    return {column.name: column.categories if column.type == "category" else None for column in contract.columns}


def row_reference(
    contract: Contract, matrix: NDArray[np.float64], starts: NDArray[np.datetime64] | None, *, sampled: bool
) -> RowReference:
    """The reference for whole rows like these encoded ones [n, columns], given the start of the partition of each if it is known.

    Rows that are `sampled` do not tell which of them a partition repeats.
    """
    components = _components(matrix[:: -(-len(matrix) // _MOST_ROWS) or 1, :MOST_COLUMNS])
    if starts is None:
        return RowReference(components)
    columns, partitions = categories_of(contract), np.unique(starts)[-MOST_PARTITIONS:]
    sketches = [sketch_of(matrix[starts == start], columns) for start in partitions]
    large = [sketch for sketch in sketches if sketch.rows >= LEAST_ROWS]
    if len(large) < LEAST_PARTITIONS:
        return RowReference(components)
    loose = [components.looseness(sketch) for sketch in large] if components else []
    logs = np.log([value for value in loose if value])
    middle = float(np.median(logs)) if len(logs) >= LEAST_PARTITIONS else None
    same = any(before.identity == after.identity for before, after in pairwise(sketches))
    return RowReference(
        components,
        None if middle is None else float(np.exp(middle)),
        None if middle is None else float(np.exp(np.abs(logs - middle).max())),
        None if sampled else max(sketch.repeated for sketch in large),
        None if sampled else same,
    )


def _components(matrix: NDArray[np.float64]) -> Components | None:
    """The principal components of rows [n, columns]; None with fewer than two columns that vary, or too few rows."""
    from sklearn.decomposition import PCA

    with np.errstate(over="ignore", invalid="ignore"):
        known = ~np.isnan(matrix)
        counts = np.maximum(1, known.sum(axis=0))
        middle = np.where(known, matrix, 0.0).sum(axis=0) / counts
        scale = np.sqrt(np.where(known, np.square(matrix - middle), 0.0).sum(axis=0) / counts)
    usable = np.isfinite(middle) & np.isfinite(scale) & (scale > 0)
    if usable.sum() < 2 or len(matrix) < max(LEAST_ROWS, 5 * matrix.shape[1]):  # noqa: PLR2004 - nothing goes together otherwise
        return None
    plain = Components(tuple(np.where(usable, middle, 0.0).tolist()), tuple(np.where(usable, scale, 0.0).tolist()), ())
    with one_thread():
        fitted = PCA().fit(plain.standardised(matrix))
    axes = fitted.components_ / np.sqrt(fitted.explained_variance_ + _SMALLEST)[:, None]
    return Components(plain.middle, plain.scale, tuple(map(tuple, axes.tolist())))
