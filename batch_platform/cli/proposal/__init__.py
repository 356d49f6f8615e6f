"""The proposal of `batch-platform new` for a table that nobody has described yet.

Start with `survey.py` (what the table holds), then `columns.py` and `choices.py` (the role of each column, with reasons),
`course.py` (a simpler model for a series, where it is as good), `files.py` (what is written) and `summary.py` (what is said).
"""
