"""Tree ensembles as flat arrays, and the compiled kernels that evaluate them with the same bits as their library.

Start with `ensembles.py` (the form that every ensemble is read into, by `estimators.py`), then `compiled.py` (how the trees are
proven equal before they are used), `arrays.py` and `kernels.py`.
"""
