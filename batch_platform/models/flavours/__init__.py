"""Flavours, the kinds of models: one module for each, which imports its own library late and no other.

Start with `flavour.py` (the class that each module extends) and `known.py` (which of them a model belongs to), then `sklearn.py`.
"""
