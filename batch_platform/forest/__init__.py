"""Tree ensembles as flat arrays, evaluated by compiled kernels to the very bits that the library gives that grew them.

`estimators` and `boosters` read fitted models as `ensembles` says, `arrays` lays their trees out as `layout` says, `kernels`
evaluates them. Knows nothing of bundles or of how rows were encoded; numba is imported when a forest is evaluated, not before.
"""
