"""Tree ensembles as flat arrays, and the compiled kernels that evaluate them bit for bit as their library does.

Start with `ensembles.py` (the form every ensemble is read into), then `arrays.py`, `kernels.py` and `proof.py` (how a compiled
form is proven equal before it is used).
"""
