"""The Dagster project that the command line serves: the one of a folder, or the shipped one."""

import importlib
import importlib.util
import os
import sys
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.components.dagster_internals import LazyDefinitions, object_held
from batch_platform.components.wiring import SPEC_METADATA, Wiring
from batch_platform.declaration.errors import WrongUseError, did_you_mean, listed
from batch_platform.declaration.yaml_file import check_file, files_below
from batch_platform.warehouse.home import HOME_VARIABLE, Home

SHIPPED = "batch_platform.definitions"


@dataclass(frozen=True)
class Project:
    """A Dagster project.

    Args:
        root: Its folder; the current one for the shipped project.
        module: What Dagster loads: a module that holds definitions, or else the package with the folders of components.
        autoloaded: Whether it is the latter.
        location: The name under which Dagster shows it.
        declarations: The folder whose YAML files Dagster may parse; None where it cannot be told.
    """

    root: Path
    module: str
    autoloaded: bool = False
    location: str = SHIPPED
    declarations: Path | None = None

    @property
    def home(self) -> Home:
        """Where its data lie."""
        return Home.from_environment(self.root)

    @cached_property
    def definitions(self) -> dg.Definitions:
        """Its definitions, loaded.

        Raises:
            WrongUseError: The module holds none.
        """
        if self.autoloaded:
            return dg.load_from_defs_folder(path_within_project=self.root)
        module = importlib.import_module(self.module)
        for value in vars(module).values():
            if isinstance(value, LazyDefinitions):
                return value()
            if isinstance(value, dg.Definitions):
                return value
        msg = f"The module {self.module} holds no Dagster definitions."
        raise WrongUseError(msg, hint="define `defs` there with @dg.definitions.")

    @cached_property
    def pipelines(self) -> dict[str, Wiring]:
        """Its pipelines by name."""
        found: dict[str, Wiring] = {}
        for spec in self.definitions.resolve_all_asset_specs():
            wiring = object_held(spec.metadata.get(SPEC_METADATA))
            if isinstance(wiring, Wiring):
                found[wiring.spec.name] = wiring
        return dict(sorted(found.items()))

    def pipeline(self, name: str) -> Wiring:
        """The pipeline of that name.

        Raises:
            WrongUseError: There is none.
        """
        if (found := self.pipelines.get(name)) is not None:
            return found
        msg = f"There is no pipeline {name!r}; there are {listed(self.pipelines) or 'none'}."
        raise WrongUseError(msg, hint=did_you_mean(name, self.pipelines))


def find_project(folder: Path | None) -> Project:
    """The project of a folder or of one above it; the shipped one where there is none.

    Makes its modules importable and its home the one of this process and of those that it starts.

    Raises:
        WrongUseError: A folder was asked for and is none or has no `[tool.dg.project]`, or what that names is no module;
            or a YAML file of the project says what no declaration can mean.
    """
    start = (folder or Path.cwd()).absolute()
    if not os.path.isdir(start):  # noqa: PTH112 - a Path's own raises where a name is too long to be one
        msg = f"{start} is no folder."
        raise WrongUseError(msg, hint="--project names the folder of a Dagster project.")
    if (found := _around(start)) is not None:
        return _at_home(_declared(*found))
    if folder is None:
        return shipped_project()
    msg = f"{start} has no pyproject.toml with [tool.dg.project], nor has a folder above it."
    raise WrongUseError(msg, hint="name the folder of a Dagster project.")


def shipped_project() -> Project:
    """The pipelines that ship with this package, with their data in the current folder."""
    return _at_home(Project(Path.cwd(), SHIPPED, declarations=_folder_of("batch_platform.defs")))


def is_in_project(folder: Path) -> bool:
    """Whether a folder or one above it is that of a Dagster project."""
    return _around(folder.absolute()) is not None


def _around(start: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest folder of a project, with what its pyproject.toml says of it."""
    for candidate in (start, *start.parents):
        declared = _dg_project(candidate / "pyproject.toml")
        if declared is not None:
            return candidate, declared
    return None


def _at_home(project: Project) -> Project:
    """Check what Dagster is going to parse, here or in a process of its own, and name the home."""
    for file in [] if project.declarations is None else files_below(project.declarations):
        check_file(file)
    os.environ[HOME_VARIABLE] = str(project.home.root)
    return project


def _declared(root: Path, declared: dict[str, Any]) -> Project:
    for path in (root, root / "src"):
        if path.is_dir() and str(path) not in sys.path:
            sys.path.insert(0, str(path))
    package = declared["root_module"]
    location = declared.get("code_location_name") or root.name
    defs = declared.get("defs_module", f"{package}.defs")
    module = declared.get("code_location_target_module", f"{package}.definitions")
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        msg = f"{root / 'pyproject.toml'}: the module {module!r} cannot be imported ({error})."
        raise WrongUseError(msg, hint="correct tool.dg.project.root_module.") from error
    declarations = _folder_of(defs)
    if found is not None:
        return Project(root, module, location=location, declarations=declarations)
    return Project(root, defs, autoloaded=True, location=location, declarations=declarations)


def _folder_of(package: str) -> Path | None:
    """The folder of a package, which is not imported for it; None where there is none."""
    try:
        found = importlib.util.find_spec(package)
    except ImportError:
        return None
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) if places else None


def _dg_project(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}."
        raise WrongUseError(msg) from error
    declared = read.get("tool", {}).get("dg", {}).get("project")
    return declared if declared and "root_module" in declared else None
