"""Tree ensembles as flat arrays, evaluated by compiled kernels to the very bits that scikit-learn gives.

`ensembles` reads fitted estimators, `arrays` lays their trees out as `layout` says, `kernels` evaluates them. Knows nothing of
bundles or of how rows were encoded; numba is imported when a forest is evaluated, not before.
"""
