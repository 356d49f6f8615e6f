"""How numbers and names read in the report."""

import math
from typing import Any

_LARGE = 1000  # from which a number has no decimals


def number(value: Any, form: str = ".4g") -> str:  # noqa: ANN401 - a cell of any table
    """A number for people, with thousands separators; small ones have four digits. A dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return format(value, ",.0f" if abs(value) >= _LARGE else form)
    return str(value)


def words(name: str) -> str:
    """A name of a column or metric as words."""
    return name.replace("_", " ")
