"""The work of an operator beside the steps of a pipeline: back up, restore, erase, drop, export, archive, clean up, trace.

Start with `trace.py`, which says what made a score, and `backup.py`.
"""
