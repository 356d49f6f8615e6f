"""Generate the table: 20 numbers and 3 texts per row, one Parquet file per day, from one seed and in bounded memory.

There are three kinds of days: training days, whose labels are known; one small day, the first that the model serves; and
the measured days, up to yesterday. The labels of measured days are not known yet, as in practice: nothing is evaluated. Days without
rows lie between training days, so that the labels of those to learn from are known when the last ones begin, which judge.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS, TEXTS = [f"x{at:02}" for at in range(20)], [f"c{at}" for at in range(3)]
VALUES = 50  # distinct texts per column
TRAINING_DAYS, FIRST_DAY_ROWS = 4, 1000
TRAINING_ROWS = 100_000
LABEL_DELAY_DAYS = 60
SEED = 20_260_101
CHUNK = 131_072
GROUP_ROWS = 131_072

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("ts", pa.timestamp("us", "UTC")),
        *((name, pa.float64()) for name in NUMBERS),
        *((name, pa.string()) for name in TEXTS),
    ]
)
LABELS = pa.schema([("id", pa.int64()), ("ts", pa.timestamp("us", "UTC")), ("label", pa.bool_())])


@dataclass(frozen=True)
class Days:
    """The days of the table.

    Args:
        training: Days with labels; by the last one, or the last two if they are divided, models are judged.
        empty: Days without rows between them.
        evaluated: Length of the part of the training window that judges, in days.
        first: The first day that the model serves.
        measured: The days after it, with their numbers of rows.
    """

    training: list[date]
    empty: list[date]
    evaluated: int
    first: date
    measured: dict[date, int]

    @property
    def delay(self) -> timedelta:
        """Time after which labels are known: that between the last training day and the first day that the model serves."""
        return self.first - self.training[-1] - timedelta(days=1)

    @property
    def keys(self) -> list[str]:
        """The partition keys of the measured days."""
        return [day.isoformat() for day in self.measured]


def days_of(rows: Sequence[int], today: date, delay: int = LABEL_DELAY_DAYS, *, divided: bool = False) -> Days:
    """Lay out the days of a table; the measured days end yesterday and have the given numbers of rows.

    Labels are known after `delay` days, which must be more than there are measured days. `divided` days judge in two parts, of which
    the labels of the first are known when the second begins.
    """
    first = today - timedelta(days=len(rows) + 1)
    evaluated = 2 * (delay + 1) if divided else 1
    fitted = TRAINING_DAYS - (2 if divided else 1)
    known = [first - timedelta(days=delay + at) for at in range(max(fitted + delay, evaluated) + evaluated, 0, -1)]
    judging = [known[-delay - 2], known[-1]] if divided else [known[-1]]
    training = [*known[:fitted], *judging]
    empty = [day for day in known if day not in training]
    measured = {first + timedelta(days=at + 1): count for at, count in enumerate(rows)}
    return Days(training, empty, evaluated, first, measured)


def spread(rows: int, days: int) -> list[int]:
    """Distribute rows over days as evenly as possible."""
    return [rows // days + (at < rows % days) for at in range(days)]


def write_days(folder: Path, days: Days, training_rows: int = TRAINING_ROWS) -> None:
    """Write one Parquet file per day and one with the labels; creates the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = dict(zip(days.training, spread(training_rows, len(days.training)), strict=True))
    counts |= dict.fromkeys(days.empty, 0)
    counts |= {days.first: min(FIRST_DAY_ROWS, training_rows)} | days.measured
    last_id = 0
    with pq.ParquetWriter(folder / "labels.parquet", LABELS) as labels:
        for number, (day, count) in enumerate(counts.items()):
            with pq.ParquetWriter(folder / f"{day.isoformat()}.parquet", SCHEMA, compression="lz4") as file:
                for rows, label in _chunks(day, number, count, last_id):
                    file.write_table(rows, row_group_size=GROUP_ROWS)
                    if day in days.training:
                        labels.write_table(rows.select(["id", "ts"]).append_column("label", pa.array(label)))
            last_id += count


def _chunks(day: date, number: int, count: int, last_id: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Generate the rows of a day with their labels, the same on every call."""
    start = np.datetime64(datetime.combine(day, time(), UTC).replace(tzinfo=None), "us")
    names = [pa.array([f"{text}-{value:02}" for value in range(VALUES)]) for text in TEXTS]
    for begin in range(0, count, CHUNK):
        size = min(CHUNK, count - begin)
        random = np.random.default_rng([SEED, number, begin])
        numbers = random.standard_normal((len(NUMBERS), size))
        codes = random.integers(0, VALUES, (len(TEXTS), size))
        at = np.arange(begin, begin + size)
        moments = start + (at * (86_400_000_000 // count)).astype("timedelta64[us]")
        columns = [
            pa.array(at + last_id + 1),
            pa.array(moments).cast(SCHEMA.field("ts").type),
            *(pa.array(values) for values in numbers),
            *(names[which].take(pa.array(values)) for which, values in enumerate(codes)),
        ]
        yield pa.Table.from_arrays(columns, schema=SCHEMA), _labels(numbers, codes, random)


def _labels(numbers: np.ndarray, codes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noisy labels that depend on numbers and texts; trees learn them better than linear models do."""
    x = numbers
    logit = 1.2 * x[0] - 0.7 * x[1] + 0.9 * x[2] * x[3] + (x[4] > 0.5) - (np.abs(x[5]) > 1)
    logit += np.sin(codes).sum(axis=0)
    return random.random(len(logit)) < 1 / (1 + np.exp(-logit))
