"""The transformers in front of a model of another library: kept with skops beside it, applied before it.

A pipeline of scikit-learn whose last step is a booster or a network is two things on disk, each in its own format.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.flavours import sklearn as sklearn_flavour

STEPS_FILE = "preprocessing.skops"
Transform = Callable[[NDArray[np.float64]], NDArray[Any]]


def last_of(model: Any) -> Any:
    """A model without the transformers in front of it."""
    return model.steps[-1][1] if hasattr(model, "named_steps") else model


def has_steps(model: Any) -> bool:
    """Whether there are transformers in front of it, which are kept apart."""
    return hasattr(model, "named_steps") and len(model.steps) > 1


def save_steps(model: Any, folder: Path) -> list[str]:
    """Write the transformers in front of a model; gives the names of the files, none if there are none.

    Raises:
        TrainingRefusedError: They hold a type that would not be trusted when they are loaded.
    """
    if not has_steps(model):
        return []
    (folder / STEPS_FILE).write_bytes(sklearn_flavour.dumped(model[:-1]))
    return [STEPS_FILE]


def load_steps(files: Mapping[str, bytes]) -> Transform | None:
    """What to do with a matrix before the model gets it; None for nothing."""
    if STEPS_FILE not in files:
        return None
    return sklearn_flavour.constructed(files[STEPS_FILE], STEPS_FILE).transform
