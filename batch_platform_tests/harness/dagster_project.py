"""A user's whole Dagster project on disk, with the small pipeline as one of its components."""

import functools
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from dagster.components.core import load_defs, package_entry
from sqlalchemy import Engine

from batch_platform.cli.project import PACKAGE as CREATED
from batch_platform.cli.project import project_files
from batch_platform_tests.harness.small_pipeline import small_declaration, write_small_project

PACKAGE = "shop"


def write_dagster_project(folder: Path, **overrides: Any) -> Path:
    """Write the project with the small pipeline in `shop/defs/small`; returns its folder, created if missing.

    `events`, `features_sql` and `labels_sql` go to the files, all other overrides are as for `small_declaration`.
    """
    files = {name: overrides.pop(name) for name in ("events", "features_sql", "labels_sql") if name in overrides}
    write_small_project(pipeline_folder(folder), **files)
    for path, text in project_files(PACKAGE).items():
        (folder / path).write_text(text, encoding="utf-8")
    write_defs_yaml(folder, small_declaration(**overrides))
    return folder


def remember_installed_components() -> None:
    """Let Dagster look for and describe the installed components once for all projects that this process loads.

    It does so each time, for its own pages, which takes longer than to load a project.
    """
    describe = load_defs.get_library_json_enriched_defs
    described = functools.cache(lambda: describe(None).metadata)
    load_defs.get_library_json_enriched_defs = lambda tree: dg.Definitions(metadata=described(), component_tree=tree)
    package_entry.get_plugin_entry_points = functools.cache(package_entry.get_plugin_entry_points)


def remember_migrations() -> None:
    """Let Alembic read the migrations of Dagster's storage once for all storages that this process opens.

    It does so for every storage and for every run, to compare versions: it imports some ninety files each time, which takes
    as long as all else that opens the storage.
    """
    read = ScriptDirectory.from_config
    known = dict[str | None, ScriptDirectory]()

    def remembered(config: Config) -> ScriptDirectory:
        file = config.config_file_name
        if file not in known:
            known[file] = read(config)
        return known[file]

    ScriptDirectory.from_config = remembered


def remember_statements() -> None:
    """Let SQLAlchemy compile each statement of Dagster's storages in files once for all databases that this process opens.

    They make an engine for each transaction, and each engine compiles its own statements. No connection is kept open.
    """
    make = sqlite_event_log.create_engine
    known, statements = dict[str, Engine](), dict[Any, Any]()

    def remembered(address: str, **options: Any) -> Engine:
        if address not in known:
            engine = make(address, **options, execution_options={"compiled_cache": statements})
            engine.dialect = next(iter(known.values()), engine).dialect  # statements are compiled for this very object
            known[address] = engine
        return known[address]

    for storage in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        storage.create_engine = remembered


def forget_projects() -> None:
    """Unload the modules of all projects: each project on disk has the same package name as the next."""
    for name in [name for name in sys.modules if name.partition(".")[0] in (PACKAGE, CREATED)]:
        del sys.modules[name]


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
