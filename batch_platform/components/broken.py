"""A pipeline that cannot be loaded: definitions of its names that fail with its message, so that all others of the location load.

Where Dagster validates definitions (`dg check defs`), the error is raised instead.
"""

import logging
import os
import re
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from batch_platform.components.dagster_internals import (
    EXECUTES_RUNS,
    leaving_out,
    loaded_components,
    not_defined_elsewhere,
    stands_alone,
    without_component_pages,
)
from batch_platform.components.held import held, hold
from batch_platform.components.resources import BROKEN_METADATA, RESOURCES
from batch_platform.components.stand_in import build_stand_in, failing_asset
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.explaining import explained
from batch_platform.declaration.notation import name_of
from batch_platform.declaration.readable import Readable, read_what_is_right, readable_attributes
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES, TYPE, check_file, declared_in

_unasked: ContextVar[Collection[Path]] = ContextVar("folders_not_asked_for", default=())
VALIDATION_VARIABLE = "DAGSTER_IS_DEFS_VALIDATION_CLI"  # set by Dagster, as its documentation says
_heard: ContextVar[list["BrokenPipeline"] | None] = ContextVar("pipelines_set_apart", default=None)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrokenPipeline(dg.Component):
    """A pipeline that cannot be loaded."""

    name: str  # declared name, or that of the folder where no valid name is declared
    place: str  # its path below the folder of definitions
    error: BatchPlatformError
    readable: Readable = field(compare=False, repr=False)
    folder: Path = field(compare=False, repr=False)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets that show the error and fail with it."""
        if stands_alone(context):
            return failing_definitions(self, [], RESOURCES)
        return failing_definitions(self, named_in(context.component_tree), not_defined_elsewhere(context, RESOURCES))


def validating() -> bool:
    """Return whether Dagster validates the definitions, so that every error has to be raised."""
    return bool(os.environ.get(VALIDATION_VARIABLE))


def set_apart(
    error: Exception, path: Path, root: Path, key: int | str = 0, spec: PipelineSpec | None = None
) -> BrokenPipeline:
    """The pipeline whose loading raised an error; raises it again where Dagster validates the definitions.

    Args:
        error: What was raised.
        path: The folder of the pipeline, or its Python file.
        root: The folder of definitions.
        key: Position of the pipeline in its YAML file, or the name of its function in its Python file.
        spec: The declaration, if it is right.
    """
    if validating():
        raise error
    place = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    reason = explained(error)
    if str(path) not in reason.message:
        reason = type(reason)(f"{path}: {reason.message}", hint=reason.hint)
        reason.__cause__ = error
    folder = path if path.is_dir() else path.parent
    readable = Readable(spec, has_partitions=True) if spec else read_what_is_right(path, key, _name(path, key))
    broken = BrokenPipeline(readable.spec.name, f"{place}.{key}" if key else place, reason, readable, folder)
    if (heard := _heard.get()) is not None:
        heard.append(broken)
    return broken


def named_in(tree: dg.ComponentTree) -> list[str]:
    """The names of all pipelines of a project, broken ones included."""
    return [name for _, component in loaded_components(tree) if (name := getattr(component, "name", None))]


def failing_definitions(broken: BrokenPipeline, names: Sequence[str], resources: Mapping[str, Any]) -> dg.Definitions:
    """The definitions that stand for a broken pipeline: an asset with its error, and those of its own names.

    Args:
        broken: The pipeline.
        names: The names of all pipelines: what a name that several have stands for is left out.
        resources: Those that it would bring.
    """
    _log.error("The pipeline %s in %s cannot be loaded: %s", broken.name, broken.place, broken.error)
    key = [*(re.sub(r"\W", "_", part, flags=re.ASCII) for part in re.split(r"[/.]", broken.place)), "cannot_be_loaded"]

    description = f"The pipeline `{broken.name}` cannot be loaded.\n\n{broken.error}"
    metadata = hold(BROKEN_METADATA, broken.place, broken)

    def reason() -> str:
        return str(broken.error)

    first = failing_asset(dg.AssetKey(key), reason, group=broken.name, description=description, metadata=metadata)
    definitions = dg.Definitions(assets=[first], resources=dict(resources))
    if names.count(broken.name) > 1:
        return definitions
    stand_in = build_stand_in(
        Wiring(broken.readable.spec, broken.folder),
        reason,
        description=description,
        metadata=metadata,
        partitioned=broken.readable.has_partitions,
    )
    return dg.Definitions.merge(definitions, stand_in)


def broken_in(definitions: dg.Definitions) -> list[BrokenPipeline]:
    """The broken pipelines among loaded definitions."""
    things = (held(spec, BROKEN_METADATA) for spec in definitions.resolve_all_asset_specs())
    return [thing for thing in things if isinstance(thing, BrokenPipeline)]


class _UnaskedError(Exception):
    """A folder of definitions that nobody asked for."""


@contextmanager
def without_folders(folders: Collection[Path]) -> Generator[None]:
    """Load definitions without some folders, where a command needs only the others."""
    token = _unasked.set({*_unasked.get(), *folders})
    try:
        yield
    finally:
        _unasked.reset(token)


@contextmanager
def unreadable_left_out() -> Generator[list[BrokenPipeline]]:
    """Leave out the folders of definitions whose YAML file Dagster could not even parse; yields them once it has loaded.

    A component can only set itself apart once its file is read. No file is parsed by Dagster before it was checked.
    """
    broken: list[BrokenPipeline] = []

    def check(folder: Path) -> None:
        if folder in _unasked.get():
            raise _UnaskedError
        for file in (folder / name for name in FILE_NAMES):
            if file.is_file():
                check_file(file)

    def leave_out(folder: Path, root: Path, error: Exception) -> None:
        if not isinstance(error, _UnaskedError):
            broken.append(set_apart(_about_the_type(error, folder), folder, root))

    with leaving_out(check, leave_out):
        yield broken


def _about_the_type(error: Exception, folder: Path) -> Exception:
    """The error for a file whose `type` cannot be imported, made of Dagster's; any other error as it is."""
    if isinstance(explained(error), WrongUseError):  # about the file itself
        return error
    file = declared_in(folder)
    documents = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    types = [str(document["type"]) for document in documents if document["type"] != TYPE]
    if not types:
        return error
    reason = " ".join(str(error).split()).rstrip(" .")
    msg = f"{file}: type: {listed(map(repr, types))} cannot be loaded: {reason}."
    hint = next(filter(None, (did_you_mean(name, [TYPE]) for name in types)), f"the type of a pipeline is {TYPE}.")
    about = WrongUseError(msg, hint=hint)
    about.__cause__ = error
    return about


@contextmanager
def quietly() -> Generator[list[BrokenPipeline]]:
    """Load without logging what is broken, for a caller who reports it; yields that, also where loading fails later."""
    heard = list[BrokenPipeline]()
    token = _heard.set(heard)
    _log.disabled = True
    try:
        yield heard
    finally:
        _log.disabled = False
        _heard.reset(token)


def load_from_defs_folder(*, path_within_project: Path) -> dg.Definitions:
    """Load a project like Dagster's function of this name, and what can be loaded if a YAML file cannot be read."""
    with without_component_pages() if EXECUTES_RUNS else nullcontext(), unreadable_left_out() as broken:
        definitions = dg.load_from_defs_folder(path_within_project=path_within_project)
    if not broken:
        return definitions
    names = [*(named_in(definitions.component_tree) if definitions.component_tree else ()), *(it.name for it in broken)]
    missing = {key: resource for key, resource in RESOURCES.items() if key not in (definitions.resources or {})}
    return dg.Definitions.merge(definitions, *(failing_definitions(item, names, missing) for item in broken))


def _name(folder: Path, key: int | str) -> str:
    """The declared name of a pipeline, or a name made of that of its folder."""
    declared = readable_attributes(folder, key).get("name")
    if isinstance(declared, str) and name_of(declared) == declared:
        return declared
    return name_of(folder.name) or "pipeline"
