"""Linear models as plain numbers, and the one order in which a row is added up whatever rows lie beside it.

Imports only the ground of `models`. Start with `arrays.py` (what is kept and how it is evaluated), then `estimators.py` (how a fitted
pipeline of scikit-learn is read, and compared with scikit-learn).
"""
