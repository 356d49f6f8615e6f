"""Refinements: what stands between the raw output of a model and its scores, one module each.

Imports the ground of `models` (`contract`), `monitoring` and `features`. Start with `prior.py`, the correction for sampled classes.
"""
