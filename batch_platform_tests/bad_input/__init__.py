"""What must happen on bad input: one case for each kind of it, named by its number.

A module holds cases of one kind in its `CASES`; `test_bad_input.py` runs them all and holds that no number is left out.
"""

from collections.abc import Callable
from pathlib import Path

Case = Callable[[Path], None]
"""Feeds one kind of bad input below an empty folder and asserts what must happen."""
