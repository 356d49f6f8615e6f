"""Measures of scored partitions, and the arithmetic behind them on plain arrays and frames.

Imports `declaration` and `warehouse` only; no measure knows models or features. Start with `measure.py` (what a measure is) and
`catalogue.py` (every measure). The measures stand in `measures/`, metrics of performance in `metrics.py`, and beside them the
arithmetic of profiles, divergences, intervals and comparisons.
"""
