"""What `batch-platform new` proposes for a table that nobody has described yet.

Start with `survey.py` (what the table holds), then `choices.py` (what is proposed) and `files.py` (what is written).
"""
