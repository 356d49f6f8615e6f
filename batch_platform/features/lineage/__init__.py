"""The source columns that each feature is made from, found in the text of the SQL.

Imports nothing else of this package. Start with `records.py` (the result), then `columns.py` (how it is found).
"""
