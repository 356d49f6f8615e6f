"""From raw sources to one Parquet file of features per partition, and the recorded history with its labels.

Imports `declaration`, `warehouse` and `sources`. Start with `build.py` (one partition), then `row_checks.py` (what every row must satisfy), `lake.py` (the files) and `history.py` (what training reads).
"""
