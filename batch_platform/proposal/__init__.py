"""The proposal of `batch-platform new` for a table that nobody has described yet.

Start with `survey.py` (what the table holds), then `columns.py` and `choices.py` (the role of each column, with reasons),
`trial.py` (what its past says for each of them), `files.py` (what is written) and `summary.py` (what is said).
"""
