"""What must happen under faults: one case for each way of injecting a fault, named by the number of the fault.

Each module holds related cases in its `CASES`; `test_faults.py` runs them all and checks that no number is left out.
"""

from collections.abc import Callable
from pathlib import Path

Case = Callable[[Path], None]
"""Injects one fault below an empty folder and asserts what must happen."""
