"""A user's whole Dagster project on disk, with the small pipeline as one of its components."""

from pathlib import Path
from typing import Any

import yaml

from batch_platform_tests.small_pipeline import small_declaration, write_small_project

PACKAGE = "shop"
PYPROJECT = f"""\
[project]
name = "{PACKAGE}"
version = "0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{PACKAGE}"
"""
DEFINITIONS = """\
from pathlib import Path

import dagster as dg


@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""


def write_dagster_project(folder: Path, **overrides: Any) -> Path:
    """Write the project with the small pipeline in `shop/defs/small`; returns its folder, created if missing.

    `events`, `features_sql` and `labels_sql` go to the files, all other overrides are as for `small_declaration`.
    """
    files = {name: overrides.pop(name) for name in ("events", "features_sql", "labels_sql") if name in overrides}
    write_small_project(pipeline_folder(folder), **files)
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    for package in (folder / PACKAGE, folder / PACKAGE / "defs"):
        (package / "__init__.py").touch()
    (folder / PACKAGE / "definitions.py").write_text(DEFINITIONS, encoding="utf-8")
    write_defs_yaml(folder, small_declaration(**overrides))
    return folder


def pipeline_folder(folder: Path, name: str = "small") -> Path:
    """The folder with the files of a pipeline of the project."""
    return folder / PACKAGE / "defs" / name


def write_defs_yaml(folder: Path, attributes: dict[str, Any], name: str = "small") -> Path:
    """Write the `defs.yaml` of a pipeline of the project, one key per line; returns the file."""
    file = pipeline_folder(folder, name) / "defs.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    declared = {"type": "batch_platform.components.BatchInference", "attributes": attributes}
    file.write_text(yaml.safe_dump(declared, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file
