"""Columns that hold one value in every row, as Arrow keeps them at the cost of almost nothing.

They are made of plain buffers: Arrow's own ways from Python values first import pandas, wherever it is installed.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def repeated_text(text: str, rows: int) -> pa.DictionaryArray:
    """A text, kept once."""
    encoded = text.encode()
    bounds = np.array([0, len(encoded)], np.int32)
    once = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(bounds), pa.py_buffer(encoded)])
    places = pa.Array.from_buffers(pa.int32(), rows, [None, pa.py_buffer(np.zeros(rows, np.int32))])
    return pa.DictionaryArray.from_arrays(places, once)


def repeated_time(moment: datetime, rows: int) -> pa.Array:
    """A time with its zone, as microseconds in UTC."""
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    return pa.Array.from_buffers(
        pa.timestamp("us", "UTC"), rows, [None, pa.py_buffer(np.full(rows, microseconds, np.int64))]
    )
