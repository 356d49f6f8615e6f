"""The `rename` command: another name for a pipeline, with everything that carries it, or for one of its stored columns."""

import re
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import Project, find_project
from batch_platform.cli.run import open_instance
from batch_platform.components.runs import held
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import WrongUseError, counted, listed, named
from batch_platform.declaration.notation import check_name
from batch_platform.declaration.yaml_file import FILE_NAMES, place_of_name
from batch_platform.pipeline.former_columns import rename_stored_column
from batch_platform.pipeline.rename import rename_pipeline

_READ = (".py", ".yaml", ".yml", ".sql", ".toml")  # files of a project that may name a folder
_COMMENT_LINE = re.compile(r"^\s*(#|--).*$", re.MULTILINE)


@click.command(
    "rename",
    epilog=terminal.examples("rename flight_delays late_flights", "rename flight_delays --column dest destination"),
)
@click.argument("pipeline")
@click.argument("name", required=False)
@click.option(
    "--column",
    nargs=2,
    metavar="OLD NEW",
    help="Store what predictions hold of a key, time or kept column under its new name; NAME is left out.",
)
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, name: str | None, column: tuple[str, str] | None) -> None:
    """Rename PIPELINE to NAME, with its tables, ledgers, features and models; nothing is scored again.

    If NAME is declared already and PIPELINE is not, because the YAML was changed by hand, NAME takes over what PIPELINE
    left.

    A column is renamed in the SQL and in the YAML first. With --column, what is stored under the old name then gets the
    new one, so that it stays one column. Features are built and rows scored again by the next run, as after any change of
    the SQL. If the column is a feature, write its old name under features.columns.NEW.formerly, so that the models that
    were trained before read it.
    """
    if (name is None) == (column is None):
        msg = "Name either the new name of the pipeline or a column."
        hint = f"batch-platform rename {pipeline} NEW_NAME, or batch-platform rename {pipeline} --column OLD NEW"
        raise WrongUseError(msg, hint=hint)
    if column is not None:
        _rename_column(find_project(folder), pipeline, *column)
    elif name is not None:
        _rename_pipeline(folder, pipeline, name)


def _rename_column(project: Project, pipeline: str, old: str, new: str) -> None:
    wiring = project.pipeline(pipeline)
    _require_idle(project, wiring)
    tables = rename_stored_column(project.home, wiring.spec, old, new)
    terminal.report({"pipeline": pipeline, "from": old, "to": new, "tables": tables})
    terminal.say(f"{old} is now {new} in {listed(f'{pipeline}.{table}' for table in tables)}.")
    terminal.say(f"Next: batch-platform status {pipeline} says what the next run makes again")


def _require_idle(project: Project, wiring: Wiring) -> None:
    """Refuse to rename while a run works on the pipeline."""
    with open_instance(project) as instance:
        if running := held(wiring, instance):
            keys = listed(f"{asset} {key}".strip() for asset, key in running)
            msg = f"{wiring.spec.name}: a run is working on {keys}."
            raise WrongUseError(msg, hint="rename it when the run has ended.")


def _rename_pipeline(folder: Path | None, pipeline: str, name: str) -> None:
    for text in (pipeline, name):
        try:
            check_name(text)
        except ValueError as error:
            msg = f"{error}."
            raise WrongUseError(msg, hint="batch-platform rename PIPELINE NAME") from error
    project = find_project(folder)
    declared = [*project.pipelines, *(item.name for item in project.broken)]
    takes_over = name in project.pipelines and pipeline not in declared
    if name in declared and not takes_over:
        msg = f"There is a pipeline {name!r} already."
        raise WrongUseError(msg, hint="choose another name.")
    wiring = project.pipelines[name] if takes_over else project.pipeline(pipeline)
    file = None if takes_over else _declaration(wiring.folder, pipeline)
    _require_idle(project, wiring)
    was_held = rename_pipeline(
        project.home, pipeline, name, None if file is None else lambda: _declare(file, pipeline, name)
    )
    if takes_over and was_held is None:
        named(pipeline, {}, f"Neither the project nor the warehouse has a pipeline {pipeline!r}; there are")
    moved = None if takes_over else _move(project, wiring.folder, pipeline, name)
    terminal.report(
        {
            "from": pipeline,
            "to": name,
            "file": None if file is None else str((moved or wiring.folder) / file.name),
            "folder": str(moved or wiring.folder),
            "held": was_held,
        }
    )
    terminal.say(f"{pipeline} is now {name}.")
    if was_held is not None:
        terminal.say(
            f"  carried over: {counted(was_held.partitions, 'partition')}, "
            f"{counted(was_held.rows, 'prediction')}, {counted(was_held.versions, 'model')}"
        )
    terminal.say(f"  declared in {moved or wiring.folder}")
    if moved is None and wiring.folder.name == pipeline:
        terminal.say(f"  the folder keeps its name: other files name {pipeline!r} as a folder or module")
    terminal.say(f"  Dagster shows its past under {pipeline}; the next run records what is scored under {name}")


def _declaration(folder: Path, name: str) -> Path:
    """The YAML file that declares a pipeline."""
    for file in (folder / file_name for file_name in FILE_NAMES):
        if file.is_file() and place_of_name(file.read_text(encoding="utf-8"), name) is not None:
            return file
    msg = f"{name} is not declared in a YAML file of {folder}."
    hint = "change its name where it is declared; then the same command carries everything else over."
    raise WrongUseError(msg, hint=hint)


def _declare(file: Path, old: str, new: str) -> None:
    """Change the name in a declaration and nothing else, at one instant."""
    text = file.read_text(encoding="utf-8")
    place = place_of_name(text, old)
    if place is None:
        msg = f"{file} no longer declares {old!r}; nothing is renamed."
        raise WrongUseError(msg, hint="run the command again.")
    aside = file.with_name(f".{file.name}.renamed")
    aside.write_text(text[: place.start] + new + text[place.stop :], encoding="utf-8")
    aside.chmod(file.stat().st_mode)
    aside.replace(file)


def _move(project: Project, folder: Path, old: str, new: str) -> Path | None:
    """Give the folder of a pipeline its new name, unless it has another one or a file of the project names it."""
    target = folder.with_name(new)
    if folder.name != old or target.exists():
        return None
    below = folder.parent if project.declarations is None else project.declarations.parent
    for file in below.rglob("*"):
        if file.suffix in _READ and file.is_file() and _needs_folder(file, folder):
            return None
    folder.rename(target)
    return target


def _needs_folder(file: Path, folder: Path) -> bool:
    """Whether a file of the project names the folder of a pipeline, or a module in it.

    In the pipeline's own files, a path to a file that is called like the pipeline, such as ../../../shop.csv, does not: it
    leads to the same file from the renamed folder.
    """
    mentions = re.compile(rf"(?P<before>[^\s'\"]*)(?<!\w){re.escape(folder.name)}(?P<after>[./][^\s'\"]*)")
    text = _COMMENT_LINE.sub("", file.read_text(encoding="utf-8", errors="ignore"))
    for mention in mentions.finditer(text):
        path = Path(mention["before"] + folder.name + mention["after"])
        names_file = folder.name not in path.parts[:-1] and (folder / path).is_file()
        if not (file.is_relative_to(folder) and names_file):
            return True
    return False
