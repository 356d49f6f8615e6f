"""The raw tables of a pipeline, read as DuckDB views and Polars frames, and the version of each.

Imports `declaration` and `warehouse`. Start with `kind.py` (what a kind of source offers), `known.py` (the kinds by name) and
`opening.py` (the connection that SQL runs on). To add a kind, write its class, and name it in `declaration/extensions.py`.
"""
