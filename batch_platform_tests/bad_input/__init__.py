"""What must happen on bad input: the cases of each kind, named by the number of the kind.

Each module holds related cases in its `CASES`; `test_bad_input.py` runs them all and checks that no number is left out.
"""

from collections.abc import Callable
from pathlib import Path

Case = Callable[[Path], None]
"""Feeds one kind of bad input below an empty folder and asserts what must happen."""
