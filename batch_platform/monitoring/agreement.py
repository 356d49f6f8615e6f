"""Agreement of two models on the same rows: by how they rank the rows, and by what they decide.

Mergeable: the agreement on a whole is the merge of the agreements on its parts, bit for bit, whatever the parts. Memory
is bounded: of a whole of very many rows, evenly spaced ones are ranked, fewer of them the more score columns there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    places: tuple[NDArray[np.int64], ...] = ()  # position of each ranked row in the whole
    scores: tuple[NDArray[np.float64], ...] = ()  # scores of both models for the ranked rows [2, n, columns]

    @classmethod
    def of(  # noqa: PLR0913 - the outputs of two models, and their place in the whole
        cls,
        places: NDArray[np.int64],
        first: NDArray[np.float64],
        second: NDArray[np.float64],
        flipped: NDArray[np.bool_] | None,
        whole: int,
        most_scores: int = MOST_SCORES,
    ) -> "Agreement":
        """Take the scores [n, columns] of both models for some rows of a whole of so many, and where their decisions differ [n]."""
        ranked = places % max(1, -(-whole * first.shape[1] // most_scores)) == 0
        count = None if flipped is None else int(flipped.sum())
        return cls(len(places), count, (places[ranked],), (np.stack([first[ranked], second[ranked]]),))

    def __add__(self, further: "Agreement") -> "Agreement":
        """The agreement on the rows of both, in either order."""
        flipped = [count for count in (self.flipped, further.flipped) if count is not None]
        places, scores = self.places + further.places, self.scores + further.scores
        return Agreement(self.rows + further.rows, sum(flipped) if flipped else None, places, scores)

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


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Pearson's coefficient of the ranks (Spearman, The Proof and Measurement of Association, 1904); None without order."""
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    ranks = [pl.Series(values).rank("average").to_numpy() for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])
