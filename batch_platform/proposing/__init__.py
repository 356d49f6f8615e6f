"""A first pipeline proposed for somebody's table: `survey.py` looks at it, `choices.py` chooses, `files.py` writes."""
