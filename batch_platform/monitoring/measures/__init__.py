"""The measures: of scored rows, of evaluated partitions, and one module for each that has much to say.

Imports `declaration`, `warehouse` and the arithmetic of `monitoring`. Start with `../measure.py`; `../catalogue.py` lists them.
"""
