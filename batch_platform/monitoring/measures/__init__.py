"""One module per measure, each with the record of it.

Imports `declaration`, `warehouse` and the arithmetic of `monitoring`. Start with `../measure.py`; `../catalogue.py` lists them.
"""
