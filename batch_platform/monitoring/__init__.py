"""Measures of scored partitions, and the arithmetic behind them on plain arrays and frames.

Imports `declaration` and `warehouse` only; no measure knows models or features. Start with `measure.py` (what a measure is) and
`catalogue.py` (every measure); `measures/` has a module for each, and `metrics.py` the metrics of performance.
"""
