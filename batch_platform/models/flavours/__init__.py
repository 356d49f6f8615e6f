"""Flavours, the kinds of models: one module for each, which imports its own library late and no other.

Start with `flavour.py` (the record that each module fills in) and `known.py` (the table of records), then `sklearn.py`.
"""
