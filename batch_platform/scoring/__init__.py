"""Scores and rejected rows from features and a bundle: one batch, one partition, one run, and the challengers beside it.

Imports every room but `pipeline`, `components` and `cli`; fits nothing. Start with `batch.py`, then `run.py` and `engines/`.
"""
