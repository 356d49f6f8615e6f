"""Scoring: predictions and rejected rows from features and a model, for one batch, one partition and one run.

Fits nothing. May import every room except `pipeline`, `components` and `cli`. Start with `batch.py`, then read `partition.py`,
`engines/` and `run.py`.
"""
