"""What an operator does with a pipeline beside its steps: back up, restore, erase, drop, export, archive, clean up, trace.

Start with `trace.py`, which says what made a score, and `backup.py`.
"""
