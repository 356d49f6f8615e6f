"""What the flavours of boosters have in common when they tell what they do."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.forest.ensembles import Ensemble
from batch_platform.models.compiled import Parts
from batch_platform.models.outputs import as_scores
from batch_platform.models.signature import Signature
from batch_platform.models.steps import Transform


def codes(transform: Transform | None, signature: Signature) -> dict[int, int]:
    """How many codes a categorical column of the trees has: known where they get the features as they are."""
    if transform is not None:
        return {}
    columns = enumerate(signature.contract.columns)
    return {at: len(column.categories) for at, column in columns if column.type == "category"}


def parts_of(ensemble: Ensemble, transform: Transform | None, signature: Signature) -> Parts:
    """Transformers, trees, and an end in the form that scoring takes."""
    finish: Callable[[NDArray[np.float64]], NDArray[Any]] = ensemble.finish

    def scores(sums: NDArray[np.float64]) -> NDArray[Any]:
        return as_scores(finish(sums), len(sums), signature)

    steps = [] if transform is None else [transform]
    return Parts(steps, len(signature.contract.columns), replace(ensemble, finish=scores))
