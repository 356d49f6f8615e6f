"""Refinements: what stands between the raw output of a model and its scores.

Imports the ground of `models` (`contract`), `monitoring` and `features`. Start with `refinement.py`, the record that each fills in.
"""
