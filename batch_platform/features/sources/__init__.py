"""The raw tables of a pipeline, as DuckDB views and Polars frames, and the version of each.

Imports `declaration` and `warehouse.sql`. Start with `opening.py`.
"""
