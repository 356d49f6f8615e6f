"""The estimator that a pipeline declares, with the preprocessing that it needs in front of it.

The contract has already turned categories into codes and nulls into NaN. Histogram trees and boosters take that as it is; other trees
take the codes as numbers; linear models, networks and clusterings get scaled numbers and one-hot columns. Everything that is learned
here is saved in the bundle.
"""

import inspect
from typing import Any

from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.functions import import_function
from batch_platform.declaration.spec import Model
from batch_platform.models.contract import Contract
from batch_platform.models.flavours.flavour import installed, missing
from batch_platform.models.flavours.known import FLAVOURS, flavour_of, flavour_of_class
from batch_platform.models.flavours.steps import last_of
from batch_platform.models.signature import Task

SEED = 0


def make_estimator(model: Model, params: dict[str, Any], contract: Contract) -> Any:
    """Build the unfitted estimator for the columns of a contract.

    Raises:
        WrongUseError: The path cannot be imported, is not an estimator, or a parameter does not exist.
    """
    return _with_preprocessing(_declared(model, params), contract)


def check_estimator_exists(model: Model) -> None:
    """Import the declared estimator and try its parameters, without fitting.

    Raises:
        WrongUseError: The path cannot be imported, is not an estimator, or a parameter does not exist.
    """
    _declared(model, model.params)


def task_of(estimator: Any, classes: int) -> Task:
    """The task of an estimator, given the number of classes in its labels.

    Raises:
        TrainingRefusedError: It is a classifier without probabilities, or does none of the known tasks.
    """
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

    if is_classifier(estimator):
        scores_itself = flavour_of(estimator).training.predictor is not None
        if scores_itself and not hasattr(estimator, "predict_proba"):
            msg = f"{name_of(estimator)} does not return probabilities."
            raise TrainingRefusedError(msg, hint="wrap it in sklearn.calibration.CalibratedClassifierCV with `build`.")
        return "binary" if classes <= 2 else "multiclass"  # noqa: PLR2004 - two classes are binary
    if is_regressor(estimator):
        return "regression"
    if is_clusterer(estimator) and hasattr(estimator, "predict"):
        return "clustering"
    if is_outlier_detector(estimator) and hasattr(estimator, "decision_function"):
        return "outliers"
    msg = (
        f"{name_of(estimator)} is not a classifier, a regressor, or a clustering or outlier detector that can predict."
    )
    raise TrainingRefusedError(msg, hint="declare an estimator that predicts one of these.")


def name_of(estimator: Any) -> str:
    """The name of an estimator's class, without the preprocessing in front of it."""
    return type(last_of(estimator)).__name__


def needs_labels(model: Model) -> bool:
    """Whether the declared estimator learns from labels."""
    from sklearn.base import is_clusterer, is_outlier_detector

    estimator = _declared(model, model.params)
    return not (is_clusterer(estimator) or is_outlier_detector(estimator))


def is_classification(model: Model) -> bool:
    """Whether the declared estimator learns classes."""
    from sklearn.base import is_classifier

    return is_classifier(_declared(model, model.params))


def _declared(model: Model, params: dict[str, Any]) -> Any:
    if model.build is not None:
        return _built(model.build, params)
    return _constructed(model.estimator or "", params)


def _built(path: str, params: dict[str, Any]) -> Any:
    from sklearn.base import BaseEstimator

    for kind in FLAVOURS.values():  # the function may import any library
        kind.set_environment()
    build = import_function(path, "model.build")
    try:
        inspect.signature(build).bind(**params)
    except TypeError as error:
        accepted = list(inspect.signature(build).parameters)
        guesses = _guesses([name for name in params if name not in accepted], accepted)
        msg = f"model.params: {path} takes {listed(accepted) or 'no parameters'}, but got {listed(params) or 'none'}: {error}."
        raise WrongUseError(msg, hint=guesses or "name the function's own parameters.") from error
    try:
        estimator = build(**params)
    except Exception as error:  # a user's own code may raise anything
        msg = f"model.build: {path} raised {type(error).__name__}: {' '.join(str(error).split())}"
        raise WrongUseError(msg.rstrip(".") + ".", hint="check the function and model.params.") from error
    if not isinstance(estimator, BaseEstimator):
        msg = f"model.build: {path} returned {type(estimator).__name__}, which is not an estimator."
        raise WrongUseError(msg, hint="return an unfitted scikit-learn-compatible estimator.")
    return estimator


def _constructed(path: str, params: dict[str, Any]) -> Any:
    from sklearn.base import BaseEstimator

    for kind in FLAVOURS.values():
        if kind.training.package == path.partition(".")[0] and installed(kind.libraries[0]) is None:
            raise missing(kind.libraries[0], kind.name)
    estimator_class = import_function(path, "model.estimator")
    if not (inspect.isclass(estimator_class) and issubclass(estimator_class, BaseEstimator)):
        msg = f"model.estimator: {path} is not a scikit-learn-compatible estimator."
        raise WrongUseError(msg, hint="name its class, or a function with `build`.")
    allowed = _parameters(estimator_class)
    if unknown := [name for name in params if name not in allowed]:
        msg = f"model.params: {estimator_class.__name__} has no parameter {listed(unknown)}; it has {listed(allowed)}."
        raise WrongUseError(msg, hint=_guesses(unknown, allowed) or None)
    seeded = {"random_state": SEED} if "random_state" in allowed else {}
    try:
        return estimator_class(**{**seeded, **params})
    except TypeError as error:
        msg = f"model.params: {estimator_class.__name__} cannot be built with {listed(params) or 'no parameters'}: {error}."
        raise WrongUseError(msg, hint="see its documentation, or build it in a function with `build`.") from error


def _guesses(unknown: list[str], allowed: set[str] | list[str]) -> str:
    return " ".join(f"{name!r}: {guess}" for name in unknown if (guess := did_you_mean(name, allowed)))


def _parameters(estimator_class: type) -> set[str]:
    """The parameters of a class of estimators. Boosters pass keywords that they do not name on to their library."""
    parameters = inspect.signature(estimator_class).parameters
    names = {name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    if len(names) == len(parameters):
        return names
    return (
        names | set(estimator_class().get_params(deep=False)) | flavour_of_class(estimator_class).training.parameters()
    )


def _with_preprocessing(estimator: Any, contract: Contract) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    categorical = contract.categorical
    if isinstance(estimator, Pipeline):
        return estimator
    if isinstance(estimator, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        if categorical and estimator.get_params()["categorical_features"] == "from_dtype":
            estimator.set_params(categorical_features=categorical)
        return estimator
    if accept_codes := flavour_of(estimator).training.accept_codes:
        accept_codes(estimator, contract)
        return estimator
    if type(estimator).__module__.startswith(("sklearn.tree.", "sklearn.ensemble.")):
        # Trees split one column at a time: scale does not matter, and codes can stand for categories.
        takes_nan = estimator.__sklearn_tags__().input_tags.allow_nan
        return estimator if takes_nan else make_pipeline(SimpleImputer(keep_empty_features=True), estimator)
    imputer, scaler = SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()
    if not categorical:
        return make_pipeline(imputer, scaler, estimator)
    numeric = [at for at in range(len(contract.columns)) if at not in categorical]
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = [("scaled", make_pipeline(imputer, scaler), numeric), ("one_hot", one_hot, categorical)]
    return make_pipeline(ColumnTransformer(columns), estimator)
