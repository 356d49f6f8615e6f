"""Numbers as people read them: without exponents, and with no more digits than they look at."""

import math
from typing import Any

_LARGE = 1000  # smallest number without decimals


def number(value: Any, form: str = ".4g") -> str:  # noqa: ANN401 - a cell of any table
    """Format a number with thousands separators and, if it is small, four digits; None becomes a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        text, sign = format(value, form), "+" if form.startswith("+") else ""
        if abs(value) >= _LARGE or "e+" in text:
            return format(value, f"{sign},.0f")
        return format(value, f"{sign}.{3 - math.floor(math.log10(abs(value)))}f") if "e-" in text else text
    return str(value)
