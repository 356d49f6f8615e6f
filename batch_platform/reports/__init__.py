"""The report for people who decide things: one HTML file, made of the published tables alone.

Imports every room up to `pipeline`. Start with `figures.py` (every number, read by SQL), then `report.py` and `charts.py` (how they are shown).
"""
