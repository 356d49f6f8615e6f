"""Mutations of the package, each a fault that a change could introduce, and a command that says which tier of the tests sees it.

`table.py` holds them as data; `python -m batch_platform_tests.mutations` runs the tests against each.
"""
