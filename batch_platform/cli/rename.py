"""The `rename` command: carry what a pipeline made over to the name that it is declared under now."""

from dataclasses import replace
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.cli.running import open_instance
from batch_platform.components.runs import held
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import WrongUseError, counted, first_few, listed
from batch_platform.pipeline.rename import rename_pipeline


@click.command(
    "rename", epilog=terminal.examples("rename flight_delays late_flights", "rename flight_delays late_flights --json")
)
@click.argument("pipeline")
@click.argument("name")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, name: str) -> None:
    """Carry over to NAME what PIPELINE made: tables, ledgers, features and models. Nothing is scored again.

    First write NAME in the place of PIPELINE in the YAML, before anything runs under the new name. A rename that is killed
    has changed nothing, or is completed by the next command.
    """
    project = replace(find_project(folder), former=(pipeline, name))
    if pipeline in (declared := [*project.pipelines, *(item.name for item in project.broken)]):
        msg = f"{pipeline} is still declared under this name; nothing is renamed."
        hint = f"write name: {name} in its YAML first, then call batch-platform rename {pipeline} {name}."
        taken = f"choose another name: {name} is a pipeline already."
        raise WrongUseError(msg, hint=taken if name in declared else hint)
    wiring = project.pipeline(name)
    former = Wiring(wiring.spec.model_copy(update={"name": pipeline}), wiring.folder)
    with open_instance(project) as instance:
        if running := sorted(held(former, instance) | held(wiring, instance)):
            msg = f"{pipeline}: a run is working on {listed(' '.join(target).strip() for target in running)}."
            raise WrongUseError(msg, hint="rename it when the run has ended.")
    carried_over = rename_pipeline(project.home, pipeline, name)
    stale = sorted(
        f"{spec.key.to_user_string()} refers to {dep.asset_key.to_user_string()}"
        for spec in project.definitions.resolve_all_asset_specs()
        for dep in spec.deps
        if dep.asset_key.path[0] == pipeline
    )
    terminal.report({"from": pipeline, "to": name, "held": carried_over, "stale_references": stale})
    terminal.say(f"{pipeline} is now {name}.")
    terminal.say(
        f"  carried over: {counted(carried_over.partitions, 'partition')}, "
        f"{counted(carried_over.rows, 'prediction')}, {counted(carried_over.versions, 'model')}"
    )
    if stale:
        terminal.warn(f"{first_few(stale)}: write {name} in the place of {pipeline} there.")
    terminal.say(f"  Dagster shows its past under {pipeline}; the next run records what is scored under {name}")
