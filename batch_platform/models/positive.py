"""The choice of the positive class of two, and of the label of outliers: the last of a model's classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.models.contract import BINARY, ClassLabel


@dataclass(frozen=True)
class Positive:
    """The choice of the positive class of two; by default True or 1, else the last number or the rarer text."""

    declared: ClassLabel | None = None
    before: ClassLabel | None = None  # positive class of the version before: a score keeps its meaning

    def last(self, classes: list[ClassLabel], truth: NDArray[Any]) -> list[ClassLabel]:
        """The classes with the positive one last; raises TrainingRefusedError if the declared one is none of them."""
        rarer = min(reversed(classes), key=lambda label: int((truth == label).sum()))
        default = rarer if all(isinstance(label, str) for label in classes) else classes[-1]
        wanted = (label for name in (self.declared, self.before) for label in classes if label == name)
        chosen = next(wanted, default)
        if self.declared is not None and chosen != self.declared:
            msg = (
                f"labels.positive is {self.declared!r}, but the labels to learn from are {listed(map(repr, classes))}."
            )
            raise TrainingRefusedError(msg, hint="name one of them; a text such as 'yes' needs quotes in YAML.")
        return [*(label for label in classes if label != chosen), chosen]

    def of_outliers(self, truth: NDArray[Any]) -> list[ClassLabel]:
        """The labels with that of the outliers last; none if there are not two, and none is declared."""
        labels: list[ClassLabel] = np.unique(truth).tolist()
        return self.last(labels, truth) if labels and (self.declared is not None or len(labels) == BINARY) else []
