"""Measures on plain arrays and frames (performance, agreement, leakage, score distributions).

Imports `declaration` and `warehouse.sql` only; no measure knows where its data come from. Start with `measure.py` (what a
measure is) and `catalogue.py` (every measure); `metrics.py` holds the metrics of `performance.py`.
"""
