"""Boosters of LightGBM and XGBoost: one predictor for both, whose trees can be compiled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.flavours.outputs import as_scores
from batch_platform.models.flavours.steps import Transform
from batch_platform.models.forest.ensembles import Ensemble, Finish, Link, Parts
from batch_platform.models.signature import Signature


@dataclass(frozen=True)
class BoosterPredictor:
    """A booster with the preprocessing in front of it.

    Args:
        run: The library's own prediction for a matrix, on one thread.
        read: Reads the booster's trees, given the number of categories by column; raises NotCompilableError.
        transform: The preprocessing; None if there is none.
        signature: What the model takes and returns.
    """

    run: Callable[[Any], Any]
    read: Callable[[Mapping[int, int]], Ensemble]
    transform: Transform | None
    signature: Signature

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes] or values [rows]."""
        inputs = matrix if self.transform is None else self.transform(matrix)
        return as_scores(self.run(inputs), len(matrix), self.signature)

    def parts(self) -> Parts:
        """Return preprocessing and trees, with a finish that returns scores.

        Raises:
            NotCompilableError: The booster has something that compiled trees do not know.
        """
        columns = self.signature.contract.columns
        direct = self.transform is None  # only then are the columns of the trees those of the contract
        categories = {at: len(columns[at].categories) for at in self.signature.contract.categorical if direct}
        ensemble = self.read(categories)
        finish = ensemble.finish
        if isinstance(finish, Link) and finish.name == "probability" and self.signature.task == "binary":
            finish = replace(finish, name="probabilities")
        elif not isinstance(finish, Link) or finish.name == "values":
            finish = _AsScores(finish, self.signature)
        steps = [] if self.transform is None else [self.transform]
        return Parts(steps, len(columns), replace(ensemble, finish=finish))


@dataclass(frozen=True)
class _AsScores:
    """A library's finish, with its result in the form of scores."""

    finish: Finish
    signature: Signature

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[Any]:
        return as_scores(self.finish(sums), len(sums), self.signature)
