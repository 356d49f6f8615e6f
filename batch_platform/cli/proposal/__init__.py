"""What `batch-platform new` proposes for a table that nobody has described yet.

Start with `survey.py` (what the table holds), then `choices.py` (what is proposed), `course.py` (a simpler
model for a series, where it is as good) and `files.py` (what is written).
"""
