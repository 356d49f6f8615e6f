"""The source columns that each feature is made from, found in the text of the SQL.

Imports nothing else of this package. Start with `columns.py`.
"""
