"""The kinds of models: how each is recognised, saved, loaded and asked for scores; one module per kind.

A module imports its own library late, and only its own. Start with `known.py` (the table of kinds), then `sklearn.py`.
"""
