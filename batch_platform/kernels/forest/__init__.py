"""Tree ensembles as flat arrays, and the compiled kernels that evaluate them with the same bits as their library.

Imports only the ground of `models` (`contract`, `native_threads`). Start with `ensembles.py` (the form that every ensemble is read
into), then `compiled.py` (how a compiled form is proven equal before it is used), `arrays.py` and `kernels.py`.
"""
