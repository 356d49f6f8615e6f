"""Evaluate a booster's trees with one of the libraries made for it, on one thread.

    python kernel.py LIBRARY FAMILY MODEL MATRIX.npy SCORES.npy

The scores are the probabilities of the second class. Loading, compiling and a first call on few rows do not count. The last line that
is printed is JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

WARM_UP_ROWS = 1000


def lignum(family: str, model: str) -> Callable[[Any], Any]:
    """Lignum's interpreter."""
    import lignum

    loaded = lignum.load(model, format=family)
    return lambda matrix: loaded.predict(matrix, n_jobs=1)


def lignum_compiled(family: str, model: str) -> Callable[[Any], Any]:
    """Lignum's compiled trees."""
    import lignum

    loaded = lignum.load(model, format=family)
    loaded.compile()
    return lambda matrix: loaded.predict(matrix, n_jobs=1)


def lleaves(family: str, model: str) -> Callable[[Any], Any]:
    """Lleaves, which reads LightGBM only."""
    if family != "lightgbm":
        sys.exit("lleaves reads models of LightGBM only")
    import lleaves

    loaded = lleaves.Model(model_file=model)
    loaded.compile()
    return lambda matrix: loaded.predict(matrix, n_jobs=1)


def tl2cgen(family: str, model: str) -> Callable[[Any], Any]:
    """C code of Treelite's compiler."""
    import tl2cgen
    import treelite

    if family == "lightgbm":
        loaded, dtype = treelite.frontend.load_lightgbm_model(model), "float64"
    else:
        loaded, dtype = treelite.frontend.load_xgboost_model(model, format_choice="json"), "float32"
    library = f"{model}.tl2cgen.so"
    tl2cgen.export_lib(loaded, toolchain="gcc", libpath=library, params={"parallel_comp": os.cpu_count()})
    predictor = tl2cgen.Predictor(library, nthread=1)
    return lambda matrix: predictor.predict(tl2cgen.DMatrix(matrix.astype(dtype), dtype=dtype)).reshape(len(matrix))


def onnxruntime(family: str, model: str) -> Callable[[Any], Any]:
    """ONNX Runtime, which reads numbers of 32 bits."""
    import onnxmltools
    import onnxruntime
    from onnxmltools.convert.common.data_types import FloatTensorType

    if family == "lightgbm":
        import lightgbm

        booster = lightgbm.Booster(model_file=model)
        types = [("input", FloatTensorType([None, booster.num_feature()]))]
        converted = onnxmltools.convert_lightgbm(booster, initial_types=types, zipmap=False)
    else:
        import xgboost

        booster = xgboost.XGBClassifier()
        booster.load_model(model)
        types = [("input", FloatTensorType([None, booster.n_features_in_]))]
        converted = onnxmltools.convert_xgboost(booster, initial_types=types)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(converted.SerializeToString(), options)
    output = session.get_outputs()[1].name
    return lambda matrix: session.run([output], {"input": matrix.astype(np.float32)})[0][:, 1]


LIBRARIES = {load.__name__: load for load in (lignum, lignum_compiled, lleaves, tl2cgen, onnxruntime)}


def main(library: str, family: str, model: str, matrix: str, scores: str) -> None:
    """Evaluate all rows once, and print the time and how far the scores are from those of the booster's own code."""
    rows, expected = np.load(matrix), np.load(scores)
    predict = LIBRARIES[library](family, str(Path(model)))
    predict(rows[:WARM_UP_ROWS])
    began, used = time.perf_counter(), time.process_time()
    scored = predict(rows)
    cost = {"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - used}
    cost["distance"] = float(np.abs(np.asarray(scored, dtype=np.float64) - expected).max())
    print(json.dumps(cost))


if __name__ == "__main__":
    main(*sys.argv[1:])
