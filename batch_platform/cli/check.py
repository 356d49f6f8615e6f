"""The `check` command: whether every pipeline would load, train and score, without reading a row."""

from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.components.wiring import Wiring
from batch_platform.models.declared_model import check_model
from batch_platform.pipeline.train import check_challengers


@click.command("check")
@terminal.reports
@click.pass_obj
def command(folder: Path | None) -> None:
    """Validate the YAML, SQL, functions and model of every pipeline without running it."""
    project, now = find_project(folder), datetime.now(UTC)
    for wiring in project.pipelines.values():
        check_pipeline(wiring, now)
    terminal.report({"project": str(project.root), "pipelines": sorted(project.pipelines), "ok": True})
    for name in sorted(project.pipelines):
        terminal.say(f"{name}: ok")
    if not project.pipelines:
        terminal.say(f"{project.root} declares no pipeline.")


def check_pipeline(wiring: Wiring, now: datetime) -> None:
    """Check the estimators of a pipeline, and its SQL over the sources of the newest partition; raises what would fail a run."""
    spec, builder = wiring.spec, wiring.pipeline().builder
    check_model(spec.model, builder.sources.folder)
    check_challengers(spec, builder.sources.folder)
    due = spec.partitions.calendar.due(now)
    if not due:
        return
    with builder.sources.connect(due[-1]) as con:
        if builder.query is not None:
            builder.query.run(con, due[-1], [*spec.features.key, *([spec.features.time] if spec.features.time else [])])
        if builder.labels_query is not None and spec.labels is not None:
            builder.labels_query.run(con, due[-1], [*spec.features.key, spec.labels.column])
