"""The table `drift_cells`: which values of a drifted column became more or less frequent, cell by cell, from the profiles."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import duckdb

from batch_platform.declaration.wording import number
from batch_platform.monitoring.profiles import Profile
from batch_platform.monitoring.segments import OTHERS
from batch_platform.warehouse.descriptions import MODEL_VERSION, OF_PARTITION, Description
from batch_platform.warehouse.ledger import ScoreRun, rows_of_partitions

CELLS = "drift_cells"
NULL, UNKNOWN = "null", "unknown"
DESCRIPTION = Description(
    "the share of a cell of a column that gives a drift alarm, before and after",
    {
        **OF_PARTITION,
        "column_name": "a feature, or the column of the predictions",
        "place": "number of the cell in its column",
        "category": "category; or null (no value), unknown (to the model), others (less frequent ones); empty for a range",
        "low": "start of a range of numbers; null where it is open",
        "high": "end of the range, which is not part of it; null where it is open",
        "baseline_share": "share of the rows of the baseline",
        "share": "share of the rows of the partition",
        "model_version": MODEL_VERSION,
    },
)


@dataclass(frozen=True)
class DriftCell:
    """A cell of a drifted column before and after; a row of the table `drift_cells`."""

    partition_key: str
    column_name: str
    place: int
    category: str
    low: float | None
    high: float | None
    baseline_share: float
    share: float
    model_version: str
    run_id: str


def moved_cells(run: ScoreRun, profile: Profile, base: Profile) -> Iterator[DriftCell]:
    """The cells that a profile and its baseline share, and those for nulls and unknown categories; empty ones are left out."""
    bins = profile.bins if profile.bins == base.bins else profile.bins.common(base.bins)
    if bins.categories is None:
        ends = (None, *bins.edges, None)
        names = [("", low, high) for low, high in pairwise(ends)]
    else:
        names = [(name, None, None) for name in (*bins.categories, OTHERS)]
    names += [(NULL, None, None), (UNKNOWN, None, None)]
    own, before = ([*part.bins.coarsened(part.histogram, bins), part.nulls, part.unknown] for part in (profile, base))
    for place, ((category, low, high), rows, earlier) in enumerate(zip(names, own, before, strict=True)):
        if rows or earlier:
            shares = earlier / base.rows, rows / profile.rows
            yield DriftCell(
                run.partition_key, profile.name, place, category, low, high, *shares, run.model_version, run.run_id
            )


def read_cells(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, dict[str, list[DriftCell]]]:
    """The cells of the drifted columns of some partitions, by partition key and column, in order."""
    by_partition = rows_of_partitions(
        con, DriftCell, pipeline, CELLS, partition_keys, order="partition_key, column_name, place"
    )
    cells = dict[str, dict[str, list[DriftCell]]]()
    for key, of_partition in by_partition.items():
        for cell in of_partition:
            cells.setdefault(key, {}).setdefault(cell.column_name, []).append(cell)
    return cells


def moved(cells: Sequence[DriftCell]) -> str:
    """The category or range whose share moved most and how far, e.g. `'WN' 12% → 31%` or `above 95,000 2% → 40%`; empty without any."""
    moves = [(cell.baseline_share, cell.share, _named(cell.category)) for cell in cells if cell.category]
    ranges = [cell for cell in cells if not cell.category]
    before, after = (
        list(accumulate(shares))
        for shares in ([cell.baseline_share for cell in ranges], [cell.share for cell in ranges])
    )
    for cell, below_before, below in zip(ranges[:-1], before, after, strict=False):
        if cell.high is not None:
            more = below > below_before
            shares = (below_before, below) if more else (before[-1] - below_before, after[-1] - below)
            moves.append((*shares, f"{'below' if more else 'from'} {number(cell.high, ',.6g')}"))
    earlier, now, name = max(moves, key=lambda move: abs(move[1] - move[0]), default=(0.0, 0.0, ""))
    return f"{name} {_percent(earlier)} → {_percent(now)}" if name else ""


def _named(category: str) -> str:
    return category if category in (NULL, UNKNOWN, OTHERS) else repr(category)


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.01 else f"{share:.0%}"  # noqa: PLR2004 - a share that would be shown as 0%
