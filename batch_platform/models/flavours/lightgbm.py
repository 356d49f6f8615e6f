"""The LightGBM flavour: boosters in their own text format, evaluated by LightGBM on one thread a call, or compiled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError
from batch_platform.models.flavours.boosted import codes, parts_of
from batch_platform.models.flavours.extras import needed
from batch_platform.models.flavours.outputs import as_scores
from batch_platform.models.flavours.steps import Transform, last_of, load_steps, save_steps
from batch_platform.models.forest.boosters import read_lightgbm
from batch_platform.models.forest.compiled import Parts
from batch_platform.models.signature import Found, Input, Signature, Task

FLAVOUR = "lightgbm"
MODEL_FILE = "model.txt"
LIBRARIES = ("lightgbm", "numpy")
UNPICKLES: tuple[str, ...] = ()
DETAILS: Mapping[str, Any] = {"precision": "float64"}
_UNNAMED = "Column_"
_TASKS: dict[str, Task] = {"binary": "binary", "multiclass": "multiclass", "multiclassova": "multiclass"}
_NUMBERS = ("regression", "huber", "fair", "poisson", "quantile", "mape", "gamma", "tweedie", "cross_entropy")


@dataclass(frozen=True)
class LightgbmPredictor:
    """A booster, and the transformers in front of it."""

    booster: Any
    transform: Transform | None
    signature: Signature

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Give class probabilities [n, classes], else values [n]."""
        given = matrix if self.transform is None else self.transform(matrix)
        return as_scores(self.booster.predict(given, num_threads=1), len(matrix), self.signature)

    def parts(self) -> Parts:
        """What it does, where its trees are of a known kind."""
        ensemble = read_lightgbm(self.booster.model_to_string(), codes(self.transform, self.signature))
        return parts_of(ensemble, self.transform, self.signature)


def save(model: Any, folder: Path) -> list[str]:
    """Write a fitted estimator of LightGBM, or a booster; gives the names of the files."""
    last = last_of(model)
    booster = getattr(last, "booster_", last)
    (folder / MODEL_FILE).write_text(booster.model_to_string(), encoding="utf-8")
    return [MODEL_FILE, *save_steps(model, folder)]


def load(files: Mapping[str, bytes], signature: Signature) -> LightgbmPredictor:
    """Read a booster.

    Raises:
        WrongUseError: LightGBM is not installed.
    """
    return LightgbmPredictor(_booster(files[MODEL_FILE].decode()), load_steps(files), signature)


def read(reference: str, params: Mapping[str, Any]) -> Found:  # noqa: ARG001 - a file has no parameters
    """Read a file that LightGBM wrote.

    Raises:
        DataError: It is none, or gives neither probabilities nor values.
        WrongUseError: LightGBM is not installed.
    """
    booster = _booster(Path(reference).read_text(encoding="utf-8", errors="replace"))
    objective = str(booster.params.get("objective", ""))
    count = int(booster.params.get("num_class", 1))
    if objective not in _TASKS and not objective.startswith(_NUMBERS):
        msg = f"{reference}: its objective is {objective or 'unknown'!r}, which gives neither probabilities nor values."
        raise DataError(msg, hint="train it with one of LightGBM's own objectives for classes or numbers.")
    task = _TASKS.get(objective, "regression")
    classes = [] if task == "regression" else list(range(max(count, 2)))
    return Found(booster, _inputs(booster), task, classes, {"objective": objective})


def parameters() -> set[str]:
    """The names of all parameters that LightGBM knows, aliases included."""
    with needed("lightgbm", extra=FLAVOUR):
        from lightgbm.basic import _ConfigAliases

    known = _ConfigAliases._get_all_param_aliases()  # noqa: SLF001 - the only way to ask; its release is bounded
    return {name for names in known.values() for name in names} | set(known)


def _booster(text: str) -> Any:
    with needed("lightgbm", extra=FLAVOUR):
        import lightgbm
    hint = "give a file that Booster.save_model wrote."
    if not text.startswith("tree"):  # LightGBM would print its complaint on standard output
        msg = "LightGBM cannot read the model: it does not begin as its text files do."
        raise DataError(msg, hint=hint)
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        msg = f"LightGBM cannot read the model: {' '.join(str(error).split())}."
        raise DataError(msg, hint=hint) from error


def _inputs(booster: Any) -> list[Input]:
    """Columns made of pandas categories come with their categories; other codes are numbers to us."""
    names = booster.feature_name()
    unnamed = all(name == f"{_UNNAMED}{at}" for at, name in enumerate(names))
    coded = booster.params.get("categorical_feature") or []
    known = dict(zip(sorted(coded), booster.pandas_categorical or [], strict=False))
    return [
        Input("" if unnamed else name, "code" if at in coded else "number", tuple(map(str, known.get(at, ()))))
        for at, name in enumerate(names)
    ]
