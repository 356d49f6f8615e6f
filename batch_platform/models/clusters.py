"""Numbers of clusters that last: the clusters of a new version take the numbers of the nearest clusters of the version before.

The first version numbers its clusters by size, the largest one 0: the order in which k-means finds them differs between processors.
Centres are compared in the space in which the version before tells clusters apart, behind its own preprocessing. Its own
centres are exact there, and the centre of a new cluster is the mean of the rows that the new model puts into it: so the two
may differ in preprocessing, in features and in the number of clusters.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError, listed
from batch_platform.models.bundle import OpenVersion
from batch_platform.models.fitting import Fitted
from batch_platform.models.flavours.sklearn import SklearnPredictor, last_of
from batch_platform.warehouse.ledger import Version

_NUMBER = "__number"


@dataclass(frozen=True)
class Former:
    """The version whose clusters keep their numbers, and how to open it."""

    version: Version
    open: OpenVersion


def keep_numbers(fitted: Fitted, rows: pl.DataFrame, former: Former | None) -> Fitted:
    """Renumber the clusters of a fitted estimator in place, by the rows that it learned from, and remark on it.

    Nothing is done to a model without cluster centres, as k-means has them, or where that of the version before has none.
    """
    if not _has_centres(fitted.estimator):
        return fitted
    own, clusters = fitted.signature.contract, last_of(fitted.estimator)
    if former is None or former.version.task != "clustering":
        sizes = np.bincount(_numbers(fitted, own.split(rows).kept), minlength=len(clusters.cluster_centers_))
        _renumber(clusters, np.argsort(np.argsort(-sizes, kind="stable")).tolist())
        return fitted
    name = former.version.version
    refusal = f"its clusters are not numbered as those of {name}"
    try:
        bundle = former.open(former.version)
        before = bundle.predictor
        if not isinstance(before, SklearnPredictor) or not _has_centres(before.estimator):
            return fitted
        if lacking := bundle.contract.lacking(rows.columns):
            return _remarked(fitted, f"{refusal}: the features lack {listed(lacking)}")
        kept = own.split(rows).kept
        numbers = pl.Series(_NUMBER, _numbers(fitted, kept))
        common = bundle.contract.split(kept.with_columns(numbers)).kept
        points = _preprocessed(before.estimator, bundle.contract.encode(common))
    except (DataError, IntegrityError, WrongUseError) as error:
        return _remarked(fitted, f"{refusal}: {error.message.rstrip('.')}")
    centres = last_of(before.estimator).cluster_centers_
    means = _means(points, common[_NUMBER].to_numpy(), len(clusters.cluster_centers_))
    matching = _matching(means, np.asarray(centres, dtype=np.float64))
    _renumber(clusters, matching.numbers)
    return _remarked(fitted, matching.remark(name))


def _numbers(fitted: Fitted, kept: pl.DataFrame) -> NDArray[np.int64]:
    """The cluster of each row [n] that keeps the contract."""
    return fitted.predictor.predict(fitted.signature.contract.encode(kept)).astype(np.int64)


def _remarked(fitted: Fitted, remark: str) -> Fitted:
    return replace(fitted, remarks=(*fitted.remarks, remark))


def _preprocessed(estimator: Any, matrix: NDArray[np.float64]) -> Any:
    """The points that the clusters of an estimator are made of [n, dimensions]; raises DataError without any."""
    if not len(matrix):
        msg = "no row to learn from keeps its contract"
        raise DataError(msg)
    return estimator[:-1].transform(matrix) if len(getattr(estimator, "steps", ())) > 1 else matrix


def _has_centres(estimator: Any) -> bool:
    """Return whether an estimator, or the end of a pipeline, numbers its clusters by the order of its centres and by nothing else."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    return isinstance(last_of(estimator), KMeans | MiniBatchKMeans)


def _means(points: Any, numbers: NDArray[Any], count: int) -> NDArray[np.float64]:
    """The mean of the points of each number [count, dimensions], NaN for a number that no point has."""
    means = np.full((count, points.shape[1]), np.nan)
    for number in set(numbers.tolist()):
        means[number] = np.asarray(points[numbers == number].mean(axis=0)).ravel()
    return means


@dataclass(frozen=True)
class _Matching:
    """The number of each cluster, and the former cluster that it continues."""

    numbers: list[int]  # number of each cluster
    continued: dict[int, int]  # the former number, by new number
    former: int  # number of former clusters

    def remark(self, name: str) -> str:
        """The remark for a person, as a part of a sentence."""
        fresh = sorted(set(self.numbers) - set(self.continued))
        gone = sorted(set(range(self.former)) - set(self.continued.values()))
        moved = [f"{old} of it is now {new}" for new, old in sorted(self.continued.items()) if new != old]
        parts = [f"its clusters are numbered as those of {name}", *moved]
        parts += [f"new: {', '.join(map(str, fresh))}"] if fresh else []
        return ", ".join(parts + ([f"vanished: {', '.join(map(str, gone))}"] if gone else []))


def _matching(own: NDArray[np.float64], former: NDArray[np.float64]) -> _Matching:
    """Match clusters one to one so that the sum of the distances of their centres is least.

    A cluster continues the former one that it is matched with if its centre is nearer to that of the former one than half
    of the way from there to the next former centre: the former version would have put it there too. A cluster that
    continues none takes a free number.
    """
    from scipy.optimize import linear_sum_assignment

    distances = np.linalg.norm(own[:, None] - former[None], axis=2)
    placed = np.flatnonzero(~np.isnan(distances).any(axis=1))
    between = np.linalg.norm(former[:, None] - former[None], axis=2)
    np.fill_diagonal(between, np.inf)
    reach = between.min(axis=1) / 2
    rows, columns = cast("tuple[NDArray[np.int64], NDArray[np.int64]]", linear_sum_assignment(distances[placed]))
    matched = dict(zip(placed[rows].tolist(), columns.tolist(), strict=True))
    numbers = {cluster: old for cluster, old in matched.items() if old < len(own)}
    free = iter(sorted({*range(len(own))} - {*numbers.values()}))
    numbers |= {cluster: next(free) for cluster in range(len(own)) if cluster not in numbers}
    continued = {numbers[cluster]: old for cluster, old in matched.items() if distances[cluster, old] < reach[old]}
    return _Matching([numbers[cluster] for cluster in range(len(own))], continued, len(former))


def _renumber(clusters: Any, numbers: list[int]) -> None:
    """Give each cluster its number: the place of its centre."""
    clusters.cluster_centers_ = clusters.cluster_centers_[np.argsort(numbers)]
    if hasattr(clusters, "labels_"):
        clusters.labels_ = np.array(numbers, dtype=clusters.labels_.dtype)[clusters.labels_]
