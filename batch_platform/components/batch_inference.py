"""The component: turns a pipeline declared in `defs.yaml` or in Python into Dagster definitions."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Self

import dagster as dg
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from batch_platform.components import checks
from batch_platform.components.alerts import build_sensors
from batch_platform.components.assets import build_assets
from batch_platform.components.broken import BrokenPipeline, set_apart, validating
from batch_platform.components.dagster_internals import (
    is_valid_cron_string,
    key_in_file,
    loaded_components,
    not_defined_elsewhere,
    stands_alone,
    with_positions,
    without_beta_warnings,
)
from batch_platform.components.jobs import build_jobs, build_whole_job
from batch_platform.components.old_runs import build_old_runs
from batch_platform.components.reporting import build_reporting
from batch_platform.components.resources import RESOURCES
from batch_platform.components.schedules import build_schedules
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import WrongUseError, listed
from batch_platform.declaration.notation import name_of, rendered
from batch_platform.declaration.redaction import protect
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES, check_file, declared_in
from batch_platform.models.declared_model import check_flavours, unknown_flavours


class WrongDeclaration(BaseModel):
    """Stand-in that Dagster passes on for a declaration that is not valid."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    error: ValidationError


def _errors_kept(data: object, validate: ValidatorFunctionWrapHandler) -> BaseModel:
    """Keep the errors for `BatchInference.load`, which sets the pipeline apart from the others of its location."""
    try:
        return validate(data)
    except ValidationError as error:
        if validating():
            raise
        return WrongDeclaration(error=error)


class DeclaredPipeline(PipelineSpec):
    """A pipeline as YAML declares it. Flavours and schedules are checked here, so that Dagster names file and line of a wrong one."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> Any:  # noqa: ANN401 - pydantic exports no type for it
        """Validate with all validators, and keep their errors."""
        return WrapValidator(_errors_kept).__get_pydantic_core_schema__(source, handler)

    @model_validator(mode="after")
    def _understood(self) -> Self:
        if wrong := {**unknown_flavours(self), **_wrong_schedules(self)}:
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    {"type": "value_error", "loc": path, "input": None, "ctx": {"error": error}}
                    for path, error in wrong.items()
                ],
            )
        return self


def _wrong_schedules(spec: PipelineSpec) -> dict[tuple[str | int, ...], ValueError]:
    """The declared schedules that Dagster does not take, by the path of their key."""
    wrong = {path: cron for path, cron in spec.cron_schedules.items() if not is_valid_cron_string(cron)}
    return {
        (*path, "schedule"): ValueError(f"{cron!r} is not a cron expression that Dagster takes")
        for path, cron in wrong.items()
    }


_PLACEHOLDER = "my_pipeline"  # the name in the files of `scaffold`


class BatchInferenceScaffolder(dg.Scaffolder):
    """Writes a commented `defs.yaml` and its SQL files: what `dg scaffold defs batch_platform.components.BatchInference` does."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write the files into the requested folder; a WrongUseError if Python code or appending is requested."""
        if request.scaffold_format != "yaml" or request.append:
            msg = "a pipeline can only be scaffolded as a folder with its own defs.yaml."
            hint = "leave --format and --append out; in Python, write BatchInference(name=…, …)."
            raise WrongUseError(msg, hint=hint)
        name = name_of(request.target_path.name) or _PLACEHOLDER
        for file in (Path(__file__).parent / "scaffold").iterdir():
            text = file.read_text(encoding="utf-8").replace(_PLACEHOLDER, name)
            (request.target_path / file.name).write_text(text, encoding="utf-8")


@dg.scaffold_with(BatchInferenceScaffolder)
class BatchInference(dg.Component, PipelineSpec, dg.Resolvable):
    """Periodic batch inference: features, a trained model and partitioned predictions from one YAML and one SQL file."""

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Let the specification itself read the YAML: its errors name the key, what is allowed and the nearest match."""
        return DeclaredPipeline

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self | BrokenPipeline:  # pyright: ignore[reportIncompatibleMethodOverride] - Dagster takes any component
        """Load a declaration, or set it apart from the others of its location if it is wrong."""
        try:
            return cls._load(attributes, context)
        except Exception as error:  # noqa: BLE001 - of this pipeline, whatever it is: it is shown, and others load
            return set_apart(error, Path(context.path), context.defs_module_path, key_in_file(context))

    @classmethod
    def _load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Refuse what Dagster's parser silently accepts, then load."""
        for file in (Path(context.path) / name for name in FILE_NAMES):
            if file.is_file():
                check_file(file)
        if isinstance(attributes, WrongDeclaration):
            with with_positions(context):
                raise attributes.error
        return super().load(attributes, context)

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Render templates such as `{{ env.NAME }}`, keep their values secret from now on, and check again."""
        declared = model.model_dump(exclude_unset=True, by_alias=True)
        protect(declared)

        def render(text: str, path: tuple[str | int, ...]) -> object:
            return reduce(dg.ResolutionContext.at_path, path, context).resolve_value(text)

        return cls.model_validate(rendered(declared, render))

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """Describe this component for lists of components."""
        return dg.ComponentTypeSpec(
            description="Periodic batch inference from one YAML and one SQL file.",
            tags=["machine learning", "batch inference"],
            produces=["asset", "asset_check", "job", "schedule", "sensor", "resource"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the assets, checks, jobs, schedules and sensors of the pipeline."""
        path = Path(context.path)
        if stands_alone(context):
            return build_definitions(self, path)
        resources = not_defined_elsewhere(context, RESOURCES)
        try:
            self._refuse_a_shared_name(context.component_tree)
            return _definitions(self, path, resources)
        except Exception as error:  # noqa: BLE001 - of this pipeline, whatever it is: it is shown, and others load
            return set_apart(error, path, context.defs_module_path, key_in_file(context), self).build_defs(context)

    def _refuse_a_shared_name(self, tree: dg.ComponentTree) -> None:
        """Refuse every pipeline of a name that several declare: each would write to the tables of the other."""
        named_so = [
            declared_in(path)
            for path, component in loaded_components(tree)
            if isinstance(component, BatchInference) and component.name == self.name
        ]
        if len(named_so) > 1:
            msg = f"{len(named_so)} pipelines have the name {self.name!r}: {listed(set(named_so))}."
            hint = "give each a name of its own; what was scored so far belongs to the one that keeps this name."
            raise WrongUseError(msg, hint=hint)


def build_definitions(
    spec: PipelineSpec, path: Path | str, resources: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Build the definitions of a pipeline whose files lie in a folder, or beside a file, for a `dg.Definitions` in Python.

    Args:
        spec: The pipeline, such as a `BatchInference`.
        path: The folder or file; a relative one starts at the current folder.
        resources: Resources of the project's own, by key. They replace those that come with every pipeline.

    Raises:
        BatchPlatformError: The path does not exist, SQL, functions or the estimator cannot be read, or a flavour does not exist.
    """
    path = Path(path)
    if not path.exists():
        msg = f"The folder {path.absolute()} of the pipeline {spec.name!r} does not exist."
        raise WrongUseError(msg, hint="give build_definitions the folder with its SQL, such as Path(__file__).parent.")
    return _definitions(spec, path, {**RESOURCES, **(resources or {})})


def _definitions(spec: PipelineSpec, path: Path, resources: Mapping[str, Any]) -> dg.Definitions:
    check_flavours(spec)
    wiring = Wiring(spec, (path if path.is_dir() else path.parent).absolute())
    with without_beta_warnings():  # single-run backfills and observable sources
        jobs = build_jobs(wiring)
        pipeline = dg.Definitions(
            assets=build_assets(wiring),
            asset_checks=checks.build_standing(wiring),
            jobs=[build_whole_job(wiring), *jobs.values()],
            schedules=build_schedules(wiring, jobs),
            sensors=build_sensors(wiring),
            resources=dict(resources),
        )
        return dg.Definitions.merge(pipeline, build_reporting(wiring), build_old_runs(wiring))
