"""The home on disk: the lock, the DuckDB file, its ledger, atomic replacement of partitions, and the published copy.

Imports `declaration` only. Start with `database.py` (the transaction that replaces a partition), then `ledger.py` (its tables)
and `published.py` (the copy that readers open).
"""
