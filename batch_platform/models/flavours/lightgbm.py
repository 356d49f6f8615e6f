"""The LightGBM flavour: boosters in their own text format, evaluated by LightGBM on one thread per call, or compiled."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.importing import needed
from batch_platform.kernels.forest.estimators import malformed, read_lightgbm
from batch_platform.models.contract import Contract, ForeignModel, Input, Signature, Task
from batch_platform.models.flavours.flavour import STOPPING, BoosterPredictor, Flavour, fit_booster
from batch_platform.models.flavours.sklearn import last_of, load_steps, saved_steps

MODEL_FILE = "model.txt"
_TASKS: dict[str, Task] = {"binary": "binary", "multiclass": "multiclass", "multiclassova": "multiclass"}
_NUMBERS = ("regression", "huber", "fair", "poisson", "quantile", "mape", "gamma", "tweedie", "cross_entropy")
_VERBOSITY = {"verbosity", "verbose"}
_HINT = "give a file that Booster.save_model wrote."


def _watching(matrix: Any, labels: Any, weights: Any) -> dict[str, Any]:
    return {"eval_X": matrix, "eval_y": labels, "eval_sample_weight": None if weights is None else [weights]}


def _booster(text: str) -> Any:
    with needed("lightgbm", extra="lightgbm"):
        import lightgbm
    if not text.startswith("tree"):  # LightGBM would print its complaint on standard output
        msg = "LightGBM cannot read the model: it does not start like one of its text files."
        raise DataError(msg, hint=_HINT)
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        msg = f"LightGBM cannot read the model: {' '.join(str(error).split())}."
        raise DataError(msg, hint=_HINT) from error


def _inputs(booster: Any) -> list[Input]:
    """The columns; pandas categories are stored with their names, other category codes count as numbers."""
    names = booster.feature_name()
    unnamed = all(name == f"Column_{at}" for at, name in enumerate(names))
    coded = booster.params.get("categorical_feature") or []
    categories = dict(zip(sorted(coded), booster.pandas_categorical or [], strict=False))
    return [
        Input("" if unnamed else name, "code" if at in coded else "number", tuple(map(str, categories.get(at, ()))))
        for at, name in enumerate(names)
    ]


class _LightGBM(Flavour):
    name = "lightgbm"
    libraries = ("lightgbm", "numpy")
    details: ClassVar[Mapping[str, Any]] = {"precision": "float64"}
    endings = (".txt", ".lgb")
    package = "lightgbm"

    def save(self, model: Any) -> dict[str, bytes]:
        last = last_of(model)
        return {MODEL_FILE: getattr(last, "booster_", last).model_to_string().encode(), **saved_steps(model)}

    def load(self, files: Mapping[str, bytes], signature: Signature) -> BoosterPredictor:
        booster = _booster(files[MODEL_FILE].decode())
        return BoosterPredictor(
            run=partial(booster.predict, num_threads=1),
            read=lambda categories: read_lightgbm(booster.model_to_string(), categories),
            transform=load_steps(files),
            signature=signature,
            margins=partial(booster.predict, num_threads=1, raw_score=True),
        )

    def read(self, reference: str, params: Mapping[str, Any]) -> ForeignModel:
        del params
        text = Path(reference).read_text(encoding="utf-8", errors="replace")
        if text.startswith("tree") and (problem := malformed(partial(read_lightgbm, text, {}))) is not None:
            msg = f"LightGBM cannot read the model: {reference} is damaged: {problem}."
            raise DataError(msg, hint=_HINT)
        booster = _booster(text)
        objective = str(booster.params.get("objective", ""))
        if objective not in _TASKS and not objective.startswith(_NUMBERS):
            msg = f"{reference}: its objective {objective or 'unknown'!r} returns neither probabilities nor values."
            raise DataError(msg, hint="train it with one of LightGBM's own objectives for classes or numbers.")
        task = _TASKS.get(objective, "regression")
        classes = [] if task == "regression" else list(range(max(int(booster.params.get("num_class", 1)), 2)))
        return ForeignModel(booster, _inputs(booster), task, classes, {"objective": objective})

    def fit(self, estimator: Any, matrix: Any, labels: Any, contract: Contract, weights: Any) -> None:
        """Tell LightGBM which columns hold category codes, unless preprocessing stands in front of it."""
        as_they_are = contract.categorical and not hasattr(estimator, "named_steps")
        codes = {"categorical_feature": contract.categorical} if as_they_are else {}
        params = last_of(estimator).get_params()
        if not _VERBOSITY & {name for name in params if params[name] is not None}:
            last_of(estimator).set_params(verbosity=-1)  # otherwise it prints what it does
        rounds = next((params[name] for name in STOPPING if params.get(name) is not None), 0)
        fit_booster(estimator, matrix, labels, codes, _watching if int(rounds) > 0 else None, weights)

    def accept_codes(self, estimator: Any, contract: Contract) -> bool:
        del estimator, contract
        return True  # without any setting

    def parameters(self) -> set[str]:
        """The names of all LightGBM parameters, aliases included."""
        with needed("lightgbm", extra="lightgbm"):
            from lightgbm.basic import _ConfigAliases

        aliases = _ConfigAliases._get_all_param_aliases()  # noqa: SLF001 - there is no public way to ask; the release is bounded
        return {name for names in aliases.values() for name in names} | set(aliases)


FLAVOUR = _LightGBM()
