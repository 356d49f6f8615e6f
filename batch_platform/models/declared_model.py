"""The model that a pipeline declares: an estimator with the preprocessing that it needs, or a model that was made elsewhere.

The contract has already turned categories into codes and nulls into NaN. Histogram trees and boosters take that as it is; other trees
take the codes as numbers; linear models, networks and clusterings get scaled numbers and one-hot columns. Everything that preprocessing
learns is saved in the bundle. A model made elsewhere states its task, its classes and the columns that it takes.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batch_platform.declaration.errors import (
    DataError,
    TrainingRefusedError,
    WrongUseError,
    did_you_mean,
    listed,
    nearest_names,
    shortened,
)
from batch_platform.declaration.importing import import_function, require_installed
from batch_platform.declaration.model import Model
from batch_platform.declaration.predictions import Decide, Predictions
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.contract import (
    BINARY,
    ClassLabel,
    Contract,
    ForeignModel,
    Signature,
    Task,
    classes_of_one_name,
    matched_contract,
)
from batch_platform.models.flavours.flavour import Flavour
from batch_platform.models.flavours.known import FLAVOURS, flavour, flavour_of, flavour_of_class, flavour_of_import
from batch_platform.models.flavours.sklearn import last_of
from batch_platform.models.refinements.interval import LIBRARY as INTERVALS
from batch_platform.monitoring.decisions import rule_of
from batch_platform.monitoring.metrics import METRICS
from batch_platform.monitoring.outcomes import CLASSIFICATION, Rule

SEED = 0


def make_estimator(model: Model, params: dict[str, Any], contract: Contract) -> Any:
    """Build the unfitted estimator for the columns of a contract; raises what `check_estimator_exists` raises."""
    return _with_preprocessing(_declared(model, params), contract)


def check_estimator_exists(model: Model) -> None:
    """Import the declared estimator and try its parameters, without fitting.

    Raises WrongUseError if the path cannot be imported or is not an estimator, or if a parameter does not exist.
    """
    _declared(model, model.tried_params)


def check_search(model: Model) -> None:
    """Try each value that is searched for, without fitting; raises WrongUseError for one that the estimator does not take."""
    for name, values in ({} if model.search is None else model.search.params).items():
        for value in values:
            try:
                _declared(model, {**model.tried_params, name: value})
            except WrongUseError as error:
                msg = error.message.replace("model.params", "model.search.params")
                raise WrongUseError(msg, hint=error.hint) from error


def task_of(estimator: Any, classes: int) -> Task:
    """The task of an estimator, given the number of classes in its labels.

    Raises TrainingRefusedError for a classifier without probabilities and for an estimator that does none of the known tasks.
    """
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

    if is_classifier(estimator):
        if flavour_of(estimator).calls_estimator and not hasattr(estimator, "predict_proba"):
            msg = f"{name_of(estimator)} does not return probabilities."
            raise TrainingRefusedError(msg, hint="wrap it in sklearn.calibration.CalibratedClassifierCV with `build`.")
        return "binary" if classes <= BINARY else "multiclass"
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


def is_classification(model: Model) -> bool:
    """Return whether the declared estimator learns classes."""
    from sklearn.base import is_classifier

    return is_classifier(_declared(model, model.tried_params))


def _declared(model: Model, params: dict[str, Any]) -> Any:
    estimator = _built(model.build, params) if model.build is not None else _constructed(model.estimator or "", params)
    last = last_of(estimator)
    if type(last).__name__ == "StackingClassifier" and last.final_estimator is None:
        from sklearn.linear_model import LogisticRegression

        last.set_params(final_estimator=LogisticRegression())  # its default, which it makes only when it is fitted
    return estimator


def _built(path: str, params: dict[str, Any]) -> Any:
    from sklearn.base import BaseEstimator

    for kind in FLAVOURS.values():  # the function may import any library
        kind.set_environment()
    build = import_function(path, "model.build")
    parameters = inspect.signature(build).parameters
    own = {name: value for name, value in params.items() if "__" not in name or name in parameters}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        own = params
    try:
        inspect.signature(build).bind(**own)
    except TypeError as error:
        accepted = list(parameters)
        guesses = nearest_names([name for name in params if name not in accepted], accepted)
        msg = f"model.params: {path} takes {listed(accepted) or 'no parameters'}, but got {listed(params) or 'none'}: {error}."
        raise WrongUseError(msg, hint=guesses or "name the function's own parameters.") from error
    try:
        estimator = build(**own)
    except Exception as error:  # a user's own code may raise anything
        msg = f"model.build: {path} raised {type(error).__name__}: {' '.join(str(error).split())}"
        raise WrongUseError(msg.rstrip(".") + ".", hint="check the function and model.params.") from error
    if not isinstance(estimator, BaseEstimator):
        msg = f"model.build: {path} returned {type(estimator).__name__}, which is not an estimator."
        raise WrongUseError(msg, hint="return an unfitted scikit-learn-compatible estimator.")
    nested, allowed = {name: params[name] for name in params if name not in own}, estimator.get_params()
    if unknown := [name for name in nested if name not in allowed]:
        msg = f"model.params: {type(estimator).__name__}, which {path} returns, has no parameter {listed(unknown)}."
        hint = (
            nearest_names(unknown, allowed) or "name a step of the pipeline and a parameter of it, as step__parameter."
        )
        raise WrongUseError(msg, hint=hint)
    return estimator.set_params(**nested) if nested else estimator


def _constructed(path: str, params: dict[str, Any]) -> Any:
    from sklearn.base import BaseEstimator

    _require_library(path)
    estimator_class = import_function(path, "model.estimator")
    if not (inspect.isclass(estimator_class) and issubclass(estimator_class, BaseEstimator)):
        msg = f"model.estimator: {path} is not a scikit-learn-compatible estimator."
        raise WrongUseError(msg, hint="name its class, or a function with `build`.")
    allowed = _parameters(estimator_class)
    if unknown := [name for name in params if name not in allowed]:
        msg = f"model.params: {estimator_class.__name__} has no parameter {listed(unknown)}; it has {listed(allowed)}."
        raise WrongUseError(msg, hint=nearest_names(unknown, allowed) or None)
    seeded = {"random_state": SEED} if "random_state" in allowed else {}
    try:
        estimator = estimator_class(**{**seeded, **params})
    except TypeError as error:
        msg = f"model.params: {estimator_class.__name__} cannot be built with {listed(params) or 'no parameters'}: {error}."
        raise WrongUseError(msg, hint="see its documentation, or build it in a function with `build`.") from error
    if estimator_class.__module__.startswith("sklearn.") and _allowed_instead(estimator) is not None:
        _refuse_values(estimator_class, params)
    return estimator


def _refuse_values(estimator_class: type, params: dict[str, Any]) -> None:
    """Refuse every declared parameter that scikit-learn does not accept beside the default values of the others."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(estimator_class).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    wrong = list[str]()
    for name, value in sorted(params.items()):
        if (allowed := _allowed_instead(estimator_class(**{**params, **defaults, name: value}))) is not None:
            refusal = f"{shortened(repr(value))} is not allowed; {estimator_class.__name__} takes {allowed}."
            wrong.append(f"model.params.{name}: {refusal}")
    if wrong:
        raise WrongUseError(" ".join(wrong), hint="correct the values as the documentation of the estimator says.")


def _allowed_instead(estimator: Any) -> str | None:
    """Return what scikit-learn allows for a parameter whose value it refuses; None if it accepts all values.

    Fitting validates the parameters before it looks at the rows, of which there are none here. The class of its error is not
    public, but no other one is both a ValueError and a TypeError.
    """
    from sklearn.base import clone

    unfitted: Any = clone(estimator)
    try:
        unfitted.fit(np.empty((0, 1)), np.empty(0))
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) and isinstance(error, ValueError):
            return str(error).partition(" must be ")[2].rpartition(" Got ")[0].rstrip(".")
    return None


def _parameters(estimator_class: type) -> set[str]:
    """The parameters of a class of estimators. Boosters pass keywords that they do not name on to their library."""
    parameters = inspect.signature(estimator_class).parameters
    names = {name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    if len(names) == len(parameters):
        return names
    of_library = flavour_of_class(estimator_class).parameters()
    return names | set(estimator_class().get_params(deep=False)) | of_library


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
    if flavour_of(estimator).accept_codes(estimator, contract):
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


@dataclass(frozen=True)
class ImportedModel:
    """A model as its file and the declaration describe it."""

    flavour: Flavour
    source: ForeignModel
    task: Task
    classes: list[ClassLabel]

    def signature(self, contract: Contract) -> Signature:
        """Its signature on features with a contract; raises DataError if the model takes other columns."""
        inputs = self.source.inputs
        return Signature(self.task, self.classes, contract if inputs is None else matched_contract(contract, inputs))


def read_import(model: Model, folder: Path, params: Mapping[str, Any]) -> ImportedModel:
    """Read the model that a pipeline imports; paths are relative to `folder`, and `params` are for a model class in Python.

    Raises WrongUseError if it does not exist, does not state its task or classes, its library is missing, or it needs trust, and
    DataError if the file is not of its flavour or contradicts the declaration.
    """
    kind, reference = _located(model, folder)
    if params and not kind.takes_params:
        msg = f"model.params: {listed(params)} cannot be given to an imported {kind.name} model, which is already trained."
        raise WrongUseError(msg, hint="leave them out.")
    source = kind.read(reference, params)
    task = _agreed_task(model.task, source.task, reference)
    return ImportedModel(kind, source, task, _classes(model, source, task, reference))


def unknown_flavours(spec: PipelineSpec) -> dict[tuple[str | int, ...], WrongUseError]:
    """The declared flavours that do not exist, by the path of their key; a template is not looked up."""
    unknown: dict[tuple[str | int, ...], WrongUseError] = {}
    challengers = ((("challengers", at), challenger.flavour) for at, challenger in enumerate(spec.challengers))
    for path, name in ((("model",), spec.model.flavour), *challengers):
        try:
            _ = name and "{{" not in name and flavour(name)
        except WrongUseError as error:
            unknown[(*path, "flavour")] = error
    return unknown


def check_flavours(spec: PipelineSpec) -> None:
    """Check that the declared flavours of the model and of the challengers exist; raises WrongUseError."""
    for path, error in unknown_flavours(spec).items():
        msg = f"{spec.name}: {'.'.join(map(str, path))}: {error.message}"
        raise WrongUseError(msg, hint=error.hint) from error


def check_model(model: Model, folder: Path, predictions: Predictions | None = None) -> None:
    """Check, without data and without a server, that a model could be trained or imported and judged, and give the declared predictions.

    Raises:
        WrongUseError: It could not.
        TrainingRefusedError: Its estimator does none of the known tasks, or returns no probabilities, or the rule does not fit.
        DataError: The file of an import is not of its flavour.
    """
    predictions = predictions or Predictions()
    decide = predictions.decide
    _require_library_of_intervals(predictions)
    if model.import_ is None:
        check_search(model)
        estimator = _declared(model, model.tried_params)
        tasks: set[Task] = {task_of(estimator, classes) for classes in (BINARY, BINARY + 1)}
        _check_tasks(model, tasks, predictions)
        if not tasks & {*CLASSIFICATION}:  # the classes are known only once labels are
            require_rule(decide, min(tasks), ())
        return
    kind, reference = _located(model, folder)
    if not kind.is_remote(reference):
        imported = read_import(model, folder, model.params)
        _check_tasks(model, {imported.task}, predictions)
        require_rule(decide, imported.task, imported.classes)


def require_libraries(spec: PipelineSpec) -> None:
    """Raise WrongUseError, with the extra to install, if a library that training needs is not installed. Imports none."""
    for declared in (spec.model, *spec.challengers):
        if declared.estimator is not None:  # what functions build and imports need is known only when they are called
            _require_library(declared.estimator)
    _require_library_of_intervals(spec.predictions)


def _require_library(estimator: str) -> None:
    for kind in FLAVOURS.values():
        if kind.package == estimator.partition(".")[0]:
            require_installed(kind.libraries[0], extra=kind.name)


def _require_library_of_intervals(predictions: Predictions) -> None:
    if predictions.interval is not None:
        require_installed(INTERVALS, extra="interval")


def require_rule(decide: Decide | None, task: str, classes: Sequence[ClassLabel]) -> Rule | None:
    """A declared rule of decision for a model of a task, with its classes; raises TrainingRefusedError if it does not fit."""
    try:
        return None if decide is None else rule_of(decide, task, classes)
    except DataError as error:
        raise TrainingRefusedError(error.message, hint=error.hint) from error


def _check_tasks(model: Model, tasks: Collection[Task], predictions: Predictions) -> None:
    """Refuse a metric of the gate, a calibration, an interval and reasons that suit none of the tasks that the model may have."""
    above = predictions.reasons and predictions.reasons.above
    if above is not None and above >= 1 and {*tasks} <= {*CLASSIFICATION}:
        msg = (
            f"predictions.reasons.above: {above:g} is never exceeded, since the score of a classifier is a probability."
        )
        raise WrongUseError(msg, hint="write a number below 1, for example 0.5.")
    if predictions.interval is not None and "regression" not in tasks:
        msg = (
            f"predictions.interval: only a regression has intervals, and this is a {' or '.join(sorted(tasks))} model."
        )
        raise WrongUseError(msg, hint="leave predictions.interval out, or declare a regression.")
    if model.calibrate is not None and not {*tasks} & {*CLASSIFICATION}:
        msg = f"model.calibrate: {model.calibrate} is for the probabilities of classifiers, and this is a {listed(tasks)} model."
        raise WrongUseError(msg, hint="leave model.calibrate out, or declare a classifier.")
    metric = model.promote.metric
    allowed = sorted(known.name for known in METRICS.values() if {*known.tasks} & {*tasks})
    if metric is not None and metric not in allowed:
        what = " or ".join(sorted(tasks))
        msg = f"model.promote.metric: {metric!r} does not measure a {what} model; allowed are {', '.join(allowed)}."
        raise WrongUseError(msg, hint=did_you_mean(metric, allowed) or "left out, it is the default of the task.")


def _located(model: Model, folder: Path) -> tuple[Flavour, str]:
    reference = model.import_ or ""
    kind = flavour(model.flavour) if model.flavour else flavour_of_import(folder, reference)
    located = kind.locate(folder, reference)
    if kind.runs_code(located) and not model.allow_pickle:
        msg = f"model.import: loading {located} may run code stored in its files (pickle), which is not allowed."
        raise WrongUseError(msg, hint="if you trust its author, declare model.allow_pickle: true.")
    return kind, located


def _agreed_task(declared: Task | None, stated: Task | None, reference: str) -> Task:
    task = declared or stated
    if task is None:
        msg = f"model.import: {reference} does not state its task."
        raise WrongUseError(msg, hint="declare model.task: binary, multiclass, regression, clustering or outliers.")
    if stated not in (None, task):
        msg = f"model.task is {declared!r}, but {reference} is a {stated} model."
        raise DataError(msg, hint="leave model.task out, or import another model.")
    return task


def _classes(model: Model, source: ForeignModel, task: Task, reference: str) -> list[ClassLabel]:
    declared, stated = model.classes, source.classes
    if task not in ("binary", "multiclass"):
        if declared:
            msg = f"model.classes: a {task} model has no classes."
            raise WrongUseError(msg, hint="leave them out.")
        return []
    if declared is None and stated is None:
        msg = f"model.import: {reference} does not state its classes."
        raise WrongUseError(msg, hint="declare them in the order of its probabilities: model.classes: [false, true]")
    if declared is not None and stated is not None and len(declared) != len(stated):
        msg = f"model.classes lists {len(declared)} classes, but {reference} has {len(stated)}: {listed(stated)}."
        raise DataError(msg, hint="list all of them, in the order of its probabilities.")
    classes = list(declared or stated or [])
    if (len(classes) == BINARY) != (task == "binary"):
        msg = f"{reference}: a {task} model cannot have {len(classes)} classes ({listed(classes)})."
        raise DataError(msg, hint="check model.task and model.classes.")
    if task == "multiclass" and (alike := classes_of_one_name(classes)):
        msg = f"{reference}: the classes {listed(map(repr, alike))} differ only by case, so their score columns would have one name."
        raise DataError(msg, hint="give the classes other names in model.classes, in the order of its probabilities.")
    return classes
