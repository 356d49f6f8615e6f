"""What the flavours of boosters have in common when they tell what they do."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.flavours.outputs import as_scores
from batch_platform.models.flavours.steps import Transform
from batch_platform.models.forest.compiled import Parts
from batch_platform.models.forest.ensembles import Ensemble, Finish
from batch_platform.models.forest.links import Link
from batch_platform.models.signature import Signature


def codes(transform: Transform | None, signature: Signature) -> dict[int, int]:
    """How many codes a categorical column of the trees has: known where they get the features as they are."""
    if transform is not None:
        return {}
    columns = enumerate(signature.contract.columns)
    return {at: len(column.categories) for at, column in columns if column.type == "category"}


def parts_of(ensemble: Ensemble, transform: Transform | None, signature: Signature) -> Parts:
    """Transformers, trees, and an end in the form that scoring takes."""
    finish = ensemble.finish
    if isinstance(finish, Link) and finish.name == "probability" and signature.task == "binary":
        finish = replace(finish, name="probabilities")
    elif not isinstance(finish, Link) or finish.name == "values":
        finish = _Scores(finish, signature)
    steps = [] if transform is None else [transform]
    return Parts(steps, len(signature.contract.columns), replace(ensemble, finish=finish))


@dataclass(frozen=True)
class _Scores:
    """What a library makes of sums, as scores."""

    finish: Finish
    signature: Signature

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[Any]:
        """Give the scores."""
        return as_scores(self.finish(sums), len(sums), self.signature)
