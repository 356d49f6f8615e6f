"""The Dagster project that the command line serves: that of a folder, which `new` can create, or the shipped pipelines."""

import importlib
import importlib.util
import os
import sys
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError, all_of, listed, named
from batch_platform.declaration.explaining import explained as as_our_own
from batch_platform.declaration.spec import ASSETS, PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES
from batch_platform.pipeline.declared import loads_only_its_folder, read_declared
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.shipped import ask_for, to_load
from batch_platform.warehouse.home import HOME_VARIABLE, Home

if TYPE_CHECKING:  # it takes as long to import as most reports take
    import dagster as dg

    from batch_platform.components.broken import BrokenPipeline
    from batch_platform.components.dagster_internals import CodeLocation
    from batch_platform.components.wiring import Wiring

Named = TypeVar("Named")
SHIPPED = "batch_platform.definitions"
PACKAGE = "pipelines"  # root module of a project that `new` creates
_PYPROJECT = """\
[project]
name = "{package}"
version = "0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{package}"
"""
_DEFINITIONS = '''\
"""Definitions that Dagster loads: every pipeline in a folder below `defs`."""

from pathlib import Path

import dagster as dg

from batch_platform.components import load_from_defs_folder


@dg.definitions
def defs() -> dg.Definitions:
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
'''


@dataclass(frozen=True)
class Project:
    """A Dagster project."""

    root: Path  # the current folder for the shipped pipelines
    module: str  # what Dagster loads: a module with definitions, or a package with folders of components
    autoloaded: bool = False  # `module` is a package with folders of components
    location: str = SHIPPED  # the name under which Dagster shows the project
    declarations: Path | None = None  # the folder of definitions; None if unknown
    given: "Callable[[], dg.Definitions] | None" = None  # gives the definitions of a pipeline declared in Python
    only: str = ""  # the one pipeline to load, where the files leave no doubt about it; empty for all

    @property
    def is_shipped(self) -> bool:
        """Return whether these are the pipelines shipped with this package, because the folder lies in no project."""
        return self.module == SHIPPED

    @property
    def examples_note(self) -> str:
        """Note for the case that only the shipped pipelines are served."""
        return f"No Dagster project lies around {self.root}: this is the pipeline shipped as an example"

    @property
    def home(self) -> Home:
        """The home that holds its data."""
        return Home.from_environment(self.root)

    @property
    def definitions(self) -> "dg.Definitions":
        """Its Dagster definitions, loaded; a WrongUseError if the module has none."""
        return self._loaded[0]

    @property
    def code_location(self) -> "CodeLocation":
        """Its code location in Dagster."""
        from batch_platform.components.dagster_internals import CodeLocation

        return CodeLocation(self.location, self.module, self.autoloaded, self.root)

    @property
    def broken(self) -> "list[BrokenPipeline]":
        """Its pipelines that cannot be loaded."""
        return self._loaded[1] if self._plain is None else []

    @cached_property
    def _plain(self) -> dict[str, Pipeline] | None:
        """Its pipelines by name, read without Dagster; None where only Dagster can load them."""
        if self.is_shipped:
            return read_declared(*to_load(self.home))
        if self.declarations is None:
            return None
        if not self.autoloaded:
            spec = importlib.util.find_spec(self.module)
            if spec is None or spec.origin is None or not loads_only_its_folder(Path(spec.origin), self.root):
                return None
        return read_declared(self.declarations)

    @cached_property
    def _loaded(self) -> "tuple[dg.Definitions, list[BrokenPipeline]]":
        from batch_platform.components.broken import (
            broken_in,
            quietly,
            unreadable_left_out,
            without_folders,
        )
        from batch_platform.components.dagster_internals import without_component_pages

        files = self.declarations.rglob("*") if self.only and self.declarations else ()
        plain = self._plain if sum(file.name in FILE_NAMES for file in files) > 1 else None
        asked = None if plain is None else plain.get(self.only)
        others = {it.folder for it in plain.values()} - {asked.folder} if plain and asked else ()
        with quietly() as heard, without_component_pages(), without_folders(others), unreadable_left_out():
            try:
                definitions = self._load()
                heard.extend(broken_in(definitions))
            except Exception as error:
                if not heard:
                    raise
                raise all_of([*(item.error for item in heard), as_our_own(error)]) from error
        broken = {(item.name, str(item.error)): item for item in heard}
        return definitions, sorted(broken.values(), key=lambda item: (item.name, item.place))

    def _load(self) -> "dg.Definitions":
        import dagster as dg

        from batch_platform.components.broken import load_from_defs_folder

        if self.given is not None:
            return self.given()
        if self.autoloaded:
            return load_from_defs_folder(path_within_project=self.root)
        module = importlib.import_module(self.module)
        lazy: Any = type(dg.definitions(lambda: dg.Definitions()))  # noqa: PLW0108 - its signature counts; Dagster exports no name for the type
        for value in vars(module).values():
            if isinstance(value, lazy):
                return value()
            if isinstance(value, dg.Definitions):
                return value
        msg = f"The module {self.module} has no Dagster definitions."
        raise WrongUseError(msg, hint="define `defs` there with @dg.definitions.")

    @cached_property
    def pipelines(self) -> "dict[str, Wiring]":
        """Its pipelines by name, without those that cannot be loaded, as Dagster sees them."""
        from batch_platform.components.wiring import Wiring

        pipelines: dict[str, Wiring] = {}
        for spec in self.definitions.resolve_all_asset_specs():
            if (wiring := Wiring.of(spec)) is not None:
                pipelines[wiring.spec.name] = wiring
        return dict(sorted(pipelines.items()))

    @cached_property
    def declared(self) -> dict[str, Pipeline]:
        """The same pipelines, for commands that start no run: loaded without Dagster if possible."""
        if self._plain is not None:
            return self._plain
        return {name: wiring.pipeline() for name, wiring in self.pipelines.items()}

    def pipeline(self, name: str) -> "Wiring":
        """The pipeline with a name; a WrongUseError if there is none, and its own error if it cannot be loaded."""
        if self.is_shipped:
            ask_for(name)  # a demo is loaded by its name, before anything is
        wiring = self._named(name, self.pipelines, self._loaded[1])
        self.require_same_clocks(wiring.spec)
        return wiring

    def require_same_clocks(self, spec: PipelineSpec) -> None:
        """Raise WrongUseError if a pipeline reads an asset of one in another time zone: Dagster cannot join their partitions."""
        zone = spec.partitions.timezone
        for name, source in spec.sources.items():
            pipeline, _, asset = (source.asset or "").partition("/")
            other = self.declared.get(pipeline) if asset in ASSETS else None
            if other is not None and (its := other.spec.partitions.timezone) != zone:
                msg = f"sources.{name}: the partitions of {source.asset} begin on the clocks of {its}, and those of {spec.name} in {zone}."
                hint = f"give both the same partitions.timezone, or leave asset out of sources.{name}, which is read all the same."
                raise WrongUseError(msg, hint=hint)

    def declared_as(self, name: str) -> Pipeline:
        """The same pipeline, for commands that start no run."""
        if self.is_shipped:
            ask_for(name)  # a demo is loaded by its name, before anything is
        return self._named(name, self.declared, self.broken)

    def _named(self, name: str, pipelines: Mapping[str, Named], broken: "Sequence[BrokenPipeline]") -> Named:
        if name not in pipelines and (errors := [item.error for item in broken if item.name == name]):
            raise errors[0]
        refusal = f"There is no pipeline {name!r}; there are"
        if self.is_shipped:
            refusal = f"No Dagster project lies around {self.root}, and the shipped examples have no pipeline {name!r}; there are"
            hint = "change to the project, whose pyproject.toml has [tool.dg.project], or name it: batch-platform --project FOLDER"
        elif broken:
            hint = f"{listed(item.name for item in broken)} cannot be loaded: batch-platform check says why"
        elif pipelines:
            hint = "batch-platform gc lists what is left of pipelines whose declaration is gone"
        else:
            hint = "batch-platform new NAME --from FILE proposes one"
        return named(name, pipelines, refusal, hint=hint)


def find_project(folder: Path | None) -> Project:
    """Find the project of a folder or of a folder above it; without one, the shipped pipelines.

    Makes the modules of the project importable, and its home the home of this process and of its child processes.

    Raises:
        WrongUseError: The requested folder does not exist or has no `[tool.dg.project]`, or its module cannot be found.
    """
    start = (folder or Path.cwd()).absolute()
    if not os.path.isdir(start):  # noqa: PTH112 - Path.is_dir raises if a name is too long
        msg = f"{start} is not a folder."
        raise WrongUseError(msg, hint="--project names the folder of a Dagster project.")
    if (project := _around(start)) is not None:
        return _at_home(_declared(*project))
    _refuse_workspace(start)
    if folder is None:
        return shipped_project()
    msg = f"{start} has no pyproject.toml with [tool.dg.project], and neither has any folder above it."
    raise WrongUseError(msg, hint="name the folder of a Dagster project.")


def find_or_create_project(folder: Path | None) -> tuple[Project, bool]:
    """Find the project to write into, or create it without changing any existing file; returns whether it was created."""
    root = (folder or Path.cwd()).absolute()
    if not root.is_dir() or is_in_project(root):
        return find_project(root), False
    require_room(root)
    with explained(root):
        for path, text in project_files(PACKAGE).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    return find_project(root), True


def require_room(root: Path) -> None:
    """Refuse a folder in which no project can be created without changing what is there."""
    _refuse_workspace(root)
    if (root / "pyproject.toml").exists():
        msg = f"{root / 'pyproject.toml'} has no [tool.dg.project], so Dagster would find no pipelines there."
        hint = 'add [tool.dg] directory_type = "project" and [tool.dg.project] root_module to it.'
        raise WrongUseError(msg, hint=hint)
    if (root / PACKAGE).exists():
        msg = f"{root} is not a Dagster project and cannot become one: it already contains {PACKAGE!r}."
        raise WrongUseError(msg, hint="name another folder with --project.")


def project_files(package: str) -> dict[str, str]:
    """The smallest Dagster project with a root module of this name: the text of its files, by path."""
    return {
        "pyproject.toml": _PYPROJECT.format(package=package),
        f"{package}/__init__.py": "",
        f"{package}/definitions.py": _DEFINITIONS,
        f"{package}/defs/__init__.py": "",
    }


@contextmanager
def explained(target: Path) -> Generator[None]:
    """Raise a BatchPlatformError that names the path, where it cannot be written."""
    try:
        yield
    except OSError as error:
        msg = f"{target} cannot be written ({error.strerror})."
        hint = "correct its permissions, or choose another folder with --project."
        raise BatchPlatformError(msg, hint=hint) from error


def shipped_project() -> Project:
    """The pipelines shipped with this package, with their data in the current folder."""
    return _at_home(Project(Path.cwd(), SHIPPED))


def is_in_project(folder: Path) -> bool:
    """Return whether a folder lies in a Dagster project."""
    return _around(folder.absolute()) is not None


def _around(start: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest project folder, and the [tool.dg.project] table of its pyproject.toml."""
    for candidate in (start, *start.parents):
        declared = _dg_project(candidate / "pyproject.toml")
        if declared is not None:
            return candidate, declared
    return None


def _refuse_workspace(start: Path) -> None:
    """Raise WrongUseError if a folder lies in a workspace of `dg`, but in none of its projects; the message lists them."""
    for candidate in (start, *start.parents):
        for name, path in (("dg.toml", ()), ("pyproject.toml", ("tool", "dg"))):
            declared = reduce(lambda table, key: table.get(key, {}), path, _read_toml(candidate / name))
            if declared.get("directory_type") != "workspace":
                continue
            projects = sorted(project["path"] for project in declared.get("workspace", {}).get("projects", ()))
            msg = f"{candidate} is a workspace of dg, and {start} lies in none of its projects: {listed(projects) or 'it has none'}."
            example = os.path.relpath(candidate / projects[0]) if projects else "FOLDER"
            raise WrongUseError(msg, hint=f"name the project: batch-platform --project {example} …")


def _at_home(project: Project) -> Project:
    """Set the home for child processes."""
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
        has_definitions = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        msg = f"{root / 'pyproject.toml'}: the module {module!r} cannot be imported ({error})."
        raise WrongUseError(msg, hint="correct tool.dg.project.root_module.") from error
    declarations = _folder_of(defs)
    if has_definitions:
        return Project(root, module, location=location, declarations=declarations)
    return Project(root, defs, autoloaded=True, location=location, declarations=declarations)


def _folder_of(package: str) -> Path | None:
    """The folder of a package, found without importing it; None if there is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _dg_project(path: Path) -> dict[str, Any] | None:
    declared = _read_toml(path).get("tool", {}).get("dg", {}).get("project")
    return declared if declared and "root_module" in declared else None


def _read_toml(path: Path) -> dict[str, Any]:
    """The content of a file; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}."
        raise WrongUseError(msg) from error


def asked_for(
    spec: PipelineSpec, now: datetime, first: str | None, last: str | None, only: str | None
) -> list[Partition]:
    """The due partitions that the options of `run` select; without options, all of them.

    Raises:
        WrongUseError: A key is invalid or lies in the future, or the options contradict each other.
    """
    if only and (first or last):
        msg = "--partition selects a single partition and cannot be combined with --from or --to."
        raise WrongUseError(msg, hint="leave --from and --to out, or use them alone.")
    due = spec.partitions.calendar.due(now)
    begin, end = (_due(spec, key, due) if key else None for key in (only or first, only or last))
    if begin is not None and end is not None and begin.start > end.start:
        msg = f"{spec.name}: --from {begin.key} is later than --to {end.key}."
        raise WrongUseError(msg, hint=f"--from {end.key} --to {begin.key}")
    return [
        partition
        for partition in due
        if (begin is None or partition.start >= begin.start) and (end is None or partition.start <= end.start)
    ]


def _due(spec: PipelineSpec, key: str, due: Sequence[Partition]) -> Partition:
    partition = spec.partitions.calendar.named(key)
    if not due or partition.start > due[-1].start:
        newest = f"the newest partition that is due is {due[-1].key!r}" if due else "no partition is due yet"
        msg = f"{spec.name}: partition {key!r} lies in the future; {newest}."
        hint = "a partition is due when it ends; with partitions.end_offset: 1 it is due when it starts."
        raise WrongUseError(msg, hint=hint)
    return partition
