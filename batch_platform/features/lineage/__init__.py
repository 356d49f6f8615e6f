"""Which source columns each feature is made from, read off the SQL alone.

Imports nothing of this package. Start with `columns.py`.
"""
