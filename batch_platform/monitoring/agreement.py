"""Agreement of two models on the same rows: by how they rank the rows, and by what they decide.

Mergeable: the agreement on a whole is the merge of the agreements on its parts, bit for bit, whatever the parts. Memory
is bounded: of very many rows, evenly spaced rows are ranked, fewer of them the more score columns there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

MOST_SCORES = 500_000  # limit for a model over all score columns; with so many ranked rows the coefficient is known to about 0.002


@dataclass(frozen=True)
class Agreed:
    """The agreement of two models."""

    rank_correlation: float | None = None  # Spearman's, averaged over the score columns; None if a model ranks nothing
    decisions_flipped: float | None = None  # share of the rows whose decisions differ; None if nothing is decided


@dataclass(frozen=True, eq=False)
class Agreement:
    """The outputs of two models for some rows."""

    rows: int = 0
    flipped: int | None = None  # number of rows whose decisions differ; None if nothing is decided
    places: tuple[NDArray[np.int64], ...] = ()  # position of each ranked row in the whole, a multiple of `step`
    scores: tuple[NDArray[np.float64], ...] = ()  # scores of both models for the ranked rows [2, n, columns]
    step: int = 1  # distance between ranked rows, a power of two
    most_rows: int = MOST_SCORES  # maximum number of ranked rows

    @classmethod
    def of(
        cls,
        places: NDArray[np.int64],
        first: NDArray[np.float64],
        second: NDArray[np.float64],
        flipped: NDArray[np.bool_] | None,
        most_scores: int = MOST_SCORES,
    ) -> "Agreement":
        """Take the scores [n, columns] of both models for some rows, and where their decisions differ [n]."""
        most_rows = most_scores // max(1, first.shape[1])
        count = None if flipped is None else int(flipped.sum())
        agreement = cls(len(places), count, (places,), (np.stack([first, second]),), most_rows=most_rows)
        return agreement + cls(most_rows=most_rows)

    def __add__(self, further: "Agreement") -> "Agreement":
        """The agreement on the rows of both, in either order."""
        flipped = [count for count in (self.flipped, further.flipped) if count is not None]
        step = max(self.step, further.step)
        places, scores = self.places + further.places, self.scores + further.scores
        if self.step != further.step:
            places, scores = _thinned(places, scores, step)
        most_rows = min(self.most_rows, further.most_rows)
        while sum(map(len, places)) > most_rows:
            step *= 2
            places, scores = _thinned(places, scores, step)
        rows = self.rows + further.rows
        return Agreement(rows, sum(flipped) if flipped else None, places, scores, step, most_rows)

    def within(self, rows: int) -> "Agreement":
        """The agreement on these rows as a part of so many rows in all: without the rows that the whole will not rank.

        Memory for the parts of a whole is then bounded too. The whole ranks the same rows unless more than half of them have no
        score of either model.
        """
        step = self.step
        while rows // (2 * step) >= 2 * self.most_rows:
            step *= 2
        if step == self.step:
            return self
        places, scores = _thinned(self.places, self.scores, step)
        return replace(self, places=places, scores=scores, step=step)

    def result(self) -> Agreed:
        """The agreement on all of these rows."""
        if not self.rows:
            return Agreed()
        places, (first, second) = np.concatenate(self.places), np.concatenate(self.scores, axis=1)
        if (np.diff(places) < 0).any():  # sums depend on the order of the rows, by their last bit
            order = np.argsort(places)
            first, second = first[order], second[order]
        columns = [spearman(first[:, at], second[:, at]) for at in range(first.shape[1])]
        known = [value for value in columns if value is not None]
        return Agreed(
            rank_correlation=float(np.mean(known)) if known and len(known) == len(columns) else None,
            decisions_flipped=None if self.flipped is None else self.flipped / self.rows,
        )


def columns_of(frame: pl.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    """Some columns as a matrix [n, columns]."""
    return np.column_stack([frame[name].to_numpy() for name in columns]) if columns else np.empty((frame.height, 0))


def _thinned(
    places: tuple[NDArray[np.int64], ...], scores: tuple[NDArray[np.float64], ...], step: int
) -> tuple[tuple[NDArray[np.int64], ...], tuple[NDArray[np.float64], ...]]:
    kept = [part % step == 0 for part in places]
    return (
        tuple(part[keep] for part, keep in zip(places, kept, strict=True)),
        tuple(part[:, keep] for part, keep in zip(scores, kept, strict=True)),
    )


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Pearson's coefficient of the ranks (Spearman, The Proof and Measurement of Association, 1904); None without order."""
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    ranks = [pl.Series(values).rank("average").to_numpy() for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])
