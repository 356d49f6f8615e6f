"""Compiled predictions of trees and linear models: the fastest code that gives the bits of the model's own library.

Start with `forest/compiled.py`, which walks trees, then `linear.py`. The room knows nothing of pipelines or tables.
"""
