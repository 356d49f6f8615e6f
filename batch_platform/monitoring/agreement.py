"""How far two models agree on the same rows: by the order in which they put them, and by what they decide.

Adds up batch by batch and keeps a bounded number of rows; the result depends on the rows and their order alone, not on
the batches. On plain arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

MOST_ROWS = 500_000  # of more, evenly taken ones are ranked; with so many the coefficient is known to about 0.002


@dataclass(frozen=True)
class Agreed:
    """How far two models agree.

    Args:
        rank_correlation: Spearman's coefficient between their scores, ties having their mean rank; of several classes,
            the mean over them. None where a model gives the same score to all rows, or scores have no order.
        decisions_flipped: Share of the rows for which they decide otherwise; None where nothing is decided.
    """

    rank_correlation: float | None = None
    decisions_flipped: float | None = None


class Agreement:
    """Adds up what two models gave for the same rows."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        """Nothing is known yet."""
        self._most = most_rows
        self._seen = self._kept = self._flipped = 0
        self._step = 1
        self._decides = False
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []

    def add(self, one: NDArray[np.float64], other: NDArray[np.float64], flipped: NDArray[np.bool_] | None) -> None:
        """Take further rows.

        Args:
            one: Scores of one model [n, columns]; no column where scores have no order.
            other: The same of the other model.
            flipped: Where they decide otherwise [n]; None where nothing is decided.
        """
        places = np.arange(self._seen, self._seen + len(one))
        self._seen += len(one)
        if flipped is not None:
            self._decides, self._flipped = True, self._flipped + int(flipped.sum())
        kept = places % self._step == 0
        self._parts.append((places[kept], one[kept], other[kept]))
        self._kept += int(kept.sum())
        while self._kept > self._most:
            self._step *= 2
            self._parts = [_thinned(part, self._step) for part in self._parts]
            self._kept = sum(len(places) for places, _, _ in self._parts)

    def result(self) -> Agreed:
        """How far they agree on all rows so far."""
        if not self._seen:
            return Agreed()
        one, other = (
            np.concatenate([part[1] for part in self._parts]),
            np.concatenate([part[2] for part in self._parts]),
        )
        found = [_spearman(one[:, at], other[:, at]) for at in range(one.shape[1])]
        known = [value for value in found if value is not None]
        return Agreed(
            rank_correlation=float(np.mean(known)) if known and len(known) == len(found) else None,
            decisions_flipped=self._flipped / self._seen if self._decides else None,
        )


def columns_of(frame: pl.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    """Some columns as a matrix [n, columns]."""
    return np.column_stack([frame[name].to_numpy() for name in columns]) if columns else np.empty((frame.height, 0))


def _thinned(part: tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]], step: int) -> Any:  # noqa: ANN401 - as it came
    kept = part[0] % step == 0
    return tuple(values[kept] for values in part)


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Pearson's coefficient of the ranks (Spearman, The Proof and Measurement of Association, 1904)."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:  # noqa: PLR2004 - one row has no order
        return None
    first, second = (pl.Series(values).rank("average").to_numpy() for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])
