"""Measures of scored partitions, and the arithmetic behind them on plain arrays and frames.

Imports `declaration` and `warehouse` only; no measure knows models or features. Start with `measure.py` (what a measure is) and
`catalogue.py` (every measure); the measures stand in `measures/`, the arithmetic of profiles, divergences and intervals beside it, and `metrics.py` the metrics of performance.
"""
