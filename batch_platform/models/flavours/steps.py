"""Preprocessing in front of a model of another library: saved beside the model with skops, applied before it.

A scikit-learn pipeline that ends in a booster or a network becomes two files, each in its library's own format.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.flavours.sklearn import loads, saved

STEPS_FILE = "preprocessing.skops"
Transform = Callable[[NDArray[np.float64]], NDArray[Any]]


def last_of(model: Any) -> Any:
    """The last step of a pipeline; a model without preprocessing as it is."""
    return model.steps[-1][1] if hasattr(model, "named_steps") else model


def save_steps(model: Any, folder: Path) -> list[str]:
    """Write the preprocessing of a model and return the names of the files; none if there is no preprocessing.

    Raises:
        TrainingRefusedError: It holds a type that would not be trusted on loading.
    """
    if not hasattr(model, "named_steps") or len(model.steps) == 1:
        return []
    (folder / STEPS_FILE).write_bytes(saved(model[:-1]))
    return [STEPS_FILE]


def load_steps(files: Mapping[str, bytes]) -> Transform | None:
    """Load the preprocessing of a model; None if it has none."""
    return loads(files[STEPS_FILE], STEPS_FILE).transform if STEPS_FILE in files else None
