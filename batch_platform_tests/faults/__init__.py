"""What must happen under faults: one case for each way of injecting each of them, named by its number.

A module holds cases of one kind in its `CASES`; `test_faults.py` runs them all and holds that no number is left out.
"""

from collections.abc import Callable
from pathlib import Path

Case = Callable[[Path], None]
"""Injects one fault below an empty folder and asserts what must happen."""
