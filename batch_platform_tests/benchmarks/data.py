"""The generated table: 20 numbers and 3 texts a row, one Parquet file for each day, from one seed and in bounded memory.

Days are of three kinds: the first few to learn from, whose labels are known; then one small day that the model is made
for; then the days that are measured, up to yesterday. Their labels come later than today, as they do in practice where
scores are wanted: nothing is to be evaluated yet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS, TEXTS = [f"x{at:02}" for at in range(20)], [f"c{at}" for at in range(3)]
VALUES = 50  # different texts of each column
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
    """Which days the table has.

    Args:
        training: With labels.
        first: The first day that the model serves.
        measured: The days that follow it, and how many rows each one has.
    """

    training: list[date]
    first: date
    measured: dict[date, int]

    @property
    def keys(self) -> list[str]:
        """The partition keys of the measured days."""
        return [day.isoformat() for day in self.measured]


def days_of(rows: Sequence[int], today: date) -> Days:
    """The days of a table whose last measured days, up to yesterday, have so many rows each."""
    first = today - timedelta(days=len(rows) + 1)
    begin = first - timedelta(days=LABEL_DELAY_DAYS + TRAINING_DAYS)
    training = [begin + timedelta(days=at) for at in range(TRAINING_DAYS)]
    measured = {first + timedelta(days=at + 1): count for at, count in enumerate(rows)}
    return Days(training, first, measured)


def spread(rows: int, days: int) -> list[int]:
    """Rows over days, as evenly as it goes."""
    return [rows // days + (at < rows % days) for at in range(days)]


def write_days(folder: Path, days: Days, training_rows: int = TRAINING_ROWS) -> None:
    """Write a Parquet file for each day and one of the labels into a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = dict(zip(days.training, spread(training_rows, len(days.training)), strict=True))
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
    """The rows of a day with their labels; the same whenever they are asked for."""
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
    """Learnable by lines and better by trees, from numbers and texts, and noisy."""
    x = numbers
    logit = 1.2 * x[0] - 0.7 * x[1] + 0.9 * x[2] * x[3] + (x[4] > 0.5) - (np.abs(x[5]) > 1)
    logit += np.sin(codes).sum(axis=0)
    return random.random(len(logit)) < 1 / (1 + np.exp(-logit))
