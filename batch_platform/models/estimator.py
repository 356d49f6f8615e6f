"""The estimator that a pipeline declares, with the preprocessing that it needs in front.

The contract has already turned categories into codes and nulls into NaN. Histogram trees take that as it is; other
trees take the codes as numbers; linear models, networks and clusterings get scaling and one-hot columns. All that is
learned here is kept in the bundle.
"""

import inspect
from typing import Any

from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.functions import import_function
from batch_platform.declaration.spec import Model
from batch_platform.models.contract import Contract
from batch_platform.models.flavours.extras import installed, missing
from batch_platform.models.flavours.keras import prepare
from batch_platform.models.flavours.known import flavour_of
from batch_platform.models.signature import Task

SEED = 0


def make_estimator(model: Model, params: dict[str, Any], contract: Contract) -> Any:
    """Build the unfitted estimator for the columns of a contract.

    Raises:
        WrongUseError: The path does not import, is no estimator, or lacks a parameter.
    """
    estimator = _declared(model, params)
    return _with_preprocessing(estimator, len(contract.columns), _categorical(contract))


def check_estimator_exists(model: Model) -> None:
    """Import what the model names and try its parameters, without fitting.

    Raises:
        WrongUseError: The path does not import, is no estimator, or lacks a parameter.
    """
    _declared(model, model.params)


def task_of(estimator: Any, classes: int) -> Task:
    """What the estimator does.

    Raises:
        TrainingRefusedError: It is a classifier without probabilities, or none of the known kinds.
    """
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

    if is_classifier(estimator):
        if not hasattr(estimator, "predict_proba") and flavour_of(estimator) != "keras":
            msg = f"{name_of(estimator)} gives no probabilities."
            raise TrainingRefusedError(msg, hint="wrap it in sklearn.calibration.CalibratedClassifierCV with `build`.")
        return "binary" if classes <= 2 else "multiclass"  # noqa: PLR2004 - two classes are binary
    if is_regressor(estimator):
        return "regression"
    if is_clusterer(estimator) and hasattr(estimator, "predict"):
        return "clustering"
    if is_outlier_detector(estimator) and hasattr(estimator, "decision_function"):
        return "outliers"
    msg = f"{name_of(estimator)} is neither a classifier, a regressor nor a clustering or a finder of outliers that can predict."
    raise TrainingRefusedError(msg)


def name_of(estimator: Any) -> str:
    """The name of an estimator's class, without the preprocessing in front of it."""
    from sklearn.pipeline import Pipeline

    return type(estimator[-1] if isinstance(estimator, Pipeline) else estimator).__name__


def needs_labels(model: Model) -> bool:
    """Whether the declared estimator learns from labels."""
    from sklearn.base import is_clusterer, is_outlier_detector

    estimator = _declared(model, model.params)
    return not (is_clusterer(estimator) or is_outlier_detector(estimator))


def is_classification(model: Model) -> bool:
    """Whether the declared estimator learns classes."""
    from sklearn.base import is_classifier

    return is_classifier(_declared(model, model.params))


def fit_estimator(estimator: Any, matrix: Any, truth: Any, contract: Contract) -> None:
    """Fit what `make_estimator` made, on labels as its library takes them.

    LightGBM is told here which columns hold codes of categories; XGBoost takes classes by their position only.
    """
    name = flavour_of(estimator)
    if truth is not None and name == "xgboost" and task_of(estimator, 2) == "binary":
        truth = _positions(truth)
    arguments = {}
    if name == "lightgbm" and not hasattr(estimator, "named_steps") and (at := _categorical(contract)):
        arguments["categorical_feature"] = at
    estimator.fit(matrix, truth, **arguments)


def _positions(truth: Any) -> Any:
    import numpy as np

    return np.unique(truth, return_inverse=True)[1]


def _categorical(contract: Contract) -> list[int]:
    return [at for at, column in enumerate(contract.columns) if column.type == "category"]


def _declared(model: Model, params: dict[str, Any]) -> Any:
    if model.build is not None:
        return _built(model.build, params)
    return _constructed(model.estimator or "", params)


def _built(dotted: str, params: dict[str, Any]) -> Any:
    from sklearn.base import BaseEstimator

    prepare()  # the function may bring a network
    build = import_function(dotted, "model.build")
    try:
        inspect.signature(build).bind(**params)
    except TypeError as error:
        taken = list(inspect.signature(build).parameters)
        guesses = [
            f"{name!r}: {guess}" for name in params if name not in taken and (guess := did_you_mean(name, taken))
        ]
        msg = f"model.params: {dotted} takes {listed(taken) or 'no parameter'}, and is given {listed(params) or 'none'}: {error}."
        raise WrongUseError(msg, hint=" ".join(guesses) or "name the function's own parameters.") from error
    try:
        estimator = build(**params)
    except Exception as error:  # a user's own code may raise anything
        msg = f"model.build: {dotted} raised {type(error).__name__}: {' '.join(str(error).split())}"
        raise WrongUseError(msg.rstrip(".") + ".", hint="see the function and model.params.") from error
    if not isinstance(estimator, BaseEstimator):
        msg = f"model.build: {dotted} returned {type(estimator).__name__}, which is no estimator."
        raise WrongUseError(msg, hint="return an unfitted scikit-learn-compatible estimator.")
    return estimator


def _constructed(dotted: str, params: dict[str, Any]) -> Any:
    from sklearn.base import BaseEstimator

    library = dotted.partition(".")[0]
    if library in ("lightgbm", "xgboost") and installed(library) is None:
        raise missing(library, library)
    made = import_function(dotted, "model.estimator")
    if not (inspect.isclass(made) and issubclass(made, BaseEstimator)):
        msg = f"model.estimator: {dotted} is no scikit-learn-compatible estimator."
        raise WrongUseError(msg, hint="name its class, or a function with `build`.")
    allowed = _parameters(made)
    if unknown := [name for name in params if name not in allowed]:
        guesses = [f"{name!r}: {guess}" for name in unknown if (guess := did_you_mean(name, allowed))]
        msg = f"model.params: {made.__name__} has no parameter {listed(unknown)}; it has {listed(allowed)}."
        raise WrongUseError(msg, hint=" ".join(guesses) or None)
    seeded = {"random_state": SEED} if "random_state" in allowed else {}
    try:
        return made(**{**seeded, **params})
    except TypeError as error:
        msg = f"model.params: {made.__name__} cannot be made of {listed(params) or 'no parameters'}: {error}."
        raise WrongUseError(msg, hint="see its documentation, or make it in a function with `build`.") from error


def _parameters(made: type) -> set[str]:
    """What a class of estimators can be given; boosters hand on to their library what they do not name."""
    taken = inspect.signature(made).parameters
    names = {name for name, parameter in taken.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    if len(names) == len(taken):
        return names
    names |= set(made().get_params(deep=False))
    if made.__module__.startswith("lightgbm."):
        from batch_platform.models.flavours.lightgbm import parameters

        names |= parameters()
    return names


def _with_preprocessing(estimator: Any, columns: int, categorical: list[int]) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    if isinstance(estimator, Pipeline):
        return estimator
    if isinstance(estimator, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        if categorical and estimator.get_params()["categorical_features"] == "from_dtype":
            estimator.set_params(categorical_features=categorical)
        return estimator
    if flavour_of(estimator) in ("lightgbm", "xgboost"):
        if flavour_of(estimator) == "xgboost" and categorical:
            kinds = ["c" if at in categorical else "q" for at in range(columns)]
            estimator.set_params(enable_categorical=True, feature_types=kinds)
        return estimator
    if _is_tree(estimator):
        takes_nan = estimator.__sklearn_tags__().input_tags.allow_nan
        return estimator if takes_nan else make_pipeline(SimpleImputer(keep_empty_features=True), estimator)
    numeric = [at for at in range(columns) if at not in categorical]
    imputer, scaler = SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()
    if not categorical:
        return make_pipeline(imputer, scaler, estimator)
    scaled = make_pipeline(imputer, scaler)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(ColumnTransformer([("scaled", scaled, numeric), ("one_hot", one_hot, categorical)]), estimator)


def _is_tree(estimator: Any) -> bool:
    """Whether it splits on one column at a time, so that scale does not matter and codes may stand for categories."""
    return type(estimator).__module__.startswith(("sklearn.tree.", "sklearn.ensemble."))
