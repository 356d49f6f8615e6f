"""The pipelines of a project, read without Dagster, whose import takes longer than most reports do.

They are read so only where the files leave no doubt: every definition of the project is a YAML file of this component, and each
pipeline loads. All else, and every error, is left to Dagster, so that both ways give the same pipelines and the same messages.
A test compares both on the shipped pipelines, on variants of a project and on broken files.
"""

import ast
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import yaml

from batch_platform.declaration.importing import import_function
from batch_platform.declaration.notation import has_template, rendered
from batch_platform.declaration.redaction import protect
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import FILE_NAMES, TYPE, check_file
from batch_platform.models.declared_model import check_flavours
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.sources.known import SOURCE_KINDS
from batch_platform.warehouse.home import Home

_TYPES = (TYPE, "batch_platform.BatchInference")
_IMPORTS = (
    "from pathlib import Path",
    "import dagster as dg",
    "from dagster import definitions, load_from_defs_folder",
    "from batch_platform.components import load_from_defs_folder",
)
_RETURNS = re.compile(r"return (dg\.)?load_from_defs_folder\(path_within_project=Path\(__file__\)\.parent\)")
_OWNER = re.compile(r"team:\w+|[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")  # part of what Dagster allows
_TEMPLATE = re.compile(r"\{\{\s*env\.(?!jinja)([A-Za-z]\w*)\s*\}\}")
# Part of the cron expressions that Dagster allows: numbers, ranges, lists and steps; days up to 28, which every month has.
_NUMBERS = ("[0-5]?[0-9]", "[01]?[0-9]|2[0-3]", "0?[1-9]|1[0-9]|2[0-8]", "0?[1-9]|1[0-2]", "0?[0-6]")
_RANGES = [f"(?:{number})(?:-(?:{number}))?" for number in _NUMBERS]
CRON = re.compile(" ".join(rf"(?:\*(?:/[1-9][0-9]?)?|{range_}(?:,{range_})*)" for range_ in _RANGES))


class _DoubtError(Exception):
    """Something that only Dagster can load, or that may be wrong."""


class _Loader(yaml.SafeLoader):
    """Reads YAML as Dagster does: a date is a text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride] - as PyYAML has it
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_declared(*folders: Path) -> dict[str, Pipeline] | None:
    """The pipelines below folders of definitions, by name; None where Dagster has to load them."""
    pipelines = dict[str, Pipeline]()
    with suppress(Exception):  # whatever it is: Dagster meets it again, and its error is the one to show
        for file in (file for folder in folders for file in _files(folder)):
            for pipeline in _pipelines(file):
                _require(pipeline.spec.name not in pipelines)
                pipelines[pipeline.spec.name] = pipeline
        return dict(sorted(pipelines.items())) or None
    return None


def loads_only_its_folder(definitions: Path, root: Path) -> bool:
    """Return whether a module of definitions in a project does nothing but load the folder of definitions."""
    inside = [folder for folder in definitions.parents if folder.is_relative_to(root)]
    settings = [folder / "dg.toml" for folder in inside] + [folder / "pyproject.toml" for folder in inside[:-1]]
    try:
        *imports, function = _statements(ast.parse(definitions.read_text(encoding="utf-8")))
    except (
        OSError,
        SyntaxError,
        ValueError,
    ):  # Dagster's import says what is wrong; a module without a statement is empty
        return False
    return (
        root in inside
        and not any(file.exists() for file in settings)
        and all(ast.unparse(node) in _IMPORTS for node in imports)
        and isinstance(function, ast.FunctionDef)
        and not ast.unparse(function.args)
        and [ast.unparse(decorator) for decorator in function.decorator_list] in (["dg.definitions"], ["definitions"])
        and [bool(_RETURNS.fullmatch(ast.unparse(node))) for node in _statements(function)] == [True]
    )


def _statements(node: ast.Module | ast.FunctionDef) -> list[ast.stmt]:
    """The statements of a module or function, without docstrings."""
    return [it for it in node.body if not (isinstance(it, ast.Expr) and isinstance(it.value, ast.Constant))]


def _files(folder: Path) -> Iterator[Path]:
    """The YAML files of the definitions below a folder, as Dagster finds them; refuses Python files that hold a statement."""
    if (file := next((folder / name for name in FILE_NAMES if (folder / name).exists()), None)) is not None:
        yield file
        return
    for path in sorted(folder.iterdir()):
        if path.name == "__pycache__" or path.name.startswith("."):
            continue
        if path.suffix == ".py":
            _require(not _statements(ast.parse(path.read_text(encoding="utf-8"))))
        elif path.is_dir():
            yield from _files(path)


def _pipelines(file: Path) -> Iterator[Pipeline]:
    """The pipelines that a file declares, each checked as loading it in Dagster would."""
    check_file(file)
    for document in yaml.load_all(file.read_text(encoding="utf-8"), Loader=_Loader):
        _require(document.keys() == {"type", "attributes"} and document["type"] in _TYPES)
        declared = PipelineSpec.model_validate(document["attributes"]).model_dump(exclude_unset=True, by_alias=True)
        protect(declared)
        pipeline = Pipeline(
            PipelineSpec.model_validate(rendered(declared, from_environment)), file.parent, Home.from_environment()
        )
        _check(pipeline)
        yield pipeline


def _check(pipeline: Pipeline) -> None:
    """Raise what loading the pipeline in Dagster could raise, or _DoubtError where only Dagster can tell."""
    spec, builder = pipeline.spec, pipeline.builder
    check_flavours(spec)
    _require(all(_OWNER.fullmatch(owner) for owner in spec.owners))
    _require(all(CRON.fullmatch(schedule) for schedule in spec.cron_schedules.values()))
    _require(spec.engine.on_spark.resource is None)
    for name, source in spec.sources.items():
        _require(source.asset is None)
        if (dotted := SOURCE_KINDS[source.kind].function(source)) is not None:
            import_function(dotted, f"sources.{name}.{source.kind}")
    _ = builder.code_version, builder.feature_sources, builder.label_sources, pipeline.scoring_code_version


def from_environment(text: str, _: object = None) -> Any:  # noqa: ANN401 - a value of YAML
    """A template rendered as the component renders it; refuses all but `{{ env.NAME }}`."""
    from jinja2.nativetypes import NativeTemplate

    _require(not has_template(_TEMPLATE.sub("", text)))
    names = _TEMPLATE.findall(text)
    return NativeTemplate(text).render(env=SimpleNamespace(**{name: os.environ.get(name) for name in names}))


def _require(certain: object) -> None:
    if not certain:
        raise _DoubtError
