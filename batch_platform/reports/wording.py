"""Numbers and names in the wording of the report."""

import math
from typing import Any

_LARGE = 1000  # smallest number without decimals


def number(value: Any, form: str = ".4g") -> str:  # noqa: ANN401 - a cell of any table
    """Format a number with thousands separators and, if it is small, four digits; None becomes a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return format(value, ",.0f" if abs(value) >= _LARGE else form)
    return str(value)


def words(name: str) -> str:
    """Write the name of a column or metric as words."""
    return name.replace("_", " ")
