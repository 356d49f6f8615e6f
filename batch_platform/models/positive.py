"""The choice of the positive class of two, and of the label of outliers: the last of a model's classes."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, listed
from batch_platform.models.contract import BINARY, ClassLabel, Signature
from batch_platform.monitoring.metrics import as_truth


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
            write = " or ".join(f"positive: {json.dumps(label)}" for label in classes)
            read = "; yes and no in a CSV file are read as truth values" if isinstance(chosen, bool) else ""
            raise TrainingRefusedError(msg, hint=f"write {write}{read}.")
        return [*(label for label in classes if label != chosen), chosen]

    def of_outliers(self, truth: NDArray[Any]) -> list[ClassLabel]:
        """The labels with that of the outliers last; none if there are not two, and none is declared."""
        labels: list[ClassLabel] = np.unique(truth).tolist()
        return self.last(labels, truth) if labels and (self.declared is not None or len(labels) == BINARY) else []

    def of_import(self, signature: Signature, labels: pl.Series | None) -> Signature:
        """The signature of an imported model, with the labels of outliers if any labels are known.

        Raises TrainingRefusedError if a score of two classes is for another class than declared.
        """
        if signature.task == "binary" and self.declared not in (None, signature.classes[-1]):
            msg = f"labels.positive is {self.declared!r}, but the imported model scores {signature.classes[-1]!r}."
            raise TrainingRefusedError(msg, hint="leave labels.positive out: model.classes says what an import scores.")
        if signature.task != "outliers" or labels is None:
            return signature
        return replace(signature, classes=self.of_outliers(as_truth(labels)))
