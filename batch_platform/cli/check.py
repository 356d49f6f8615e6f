"""The `check` command: whether every pipeline would load, train and score, without reading a row."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import Project, find_project
from batch_platform.cli.remarks import remarks_on
from batch_platform.components.receivers import require_known
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    BatchPlatformError,
    SourceError,
    WrongUseError,
    all_of,
    merged,
)
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.yaml_file import with_place
from batch_platform.delivery.known import require_sinks
from batch_platform.features.query import Query, SparkQuery
from batch_platform.models.declared_model import check_model
from batch_platform.models.refinements.known import declared
from batch_platform.monitoring.metrics import own_metrics
from batch_platform.pipeline.challengers import check_challengers
from batch_platform.pipeline.former_partitions import require_no_former_partitions
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.time_travel import TimeTravel, travel_in_time
from batch_platform.warehouse.lock import staging_folder


@dataclass(frozen=True)
class Problem:
    """The faults that would make runs of a pipeline fail."""

    pipeline: str
    problem: str
    hint: str | None


@click.command("check", epilog=terminal.examples("check", "check --time-travel --partitions 10"))
@click.option(
    "--time-travel",
    is_flag=True,
    help="Also compute features without the source rows of the time after a partition's start, and compare.",
)
@click.option(
    "--partitions", type=click.IntRange(min=1), default=3, show_default=True, help="How many for --time-travel."
)
@terminal.reports
@click.pass_obj
def command(folder: Path | None, *, time_travel: bool, partitions: int) -> None:
    """Validate the YAML, SQL, functions and model of every pipeline without running it."""
    project, now = find_project(folder), datetime.now(UTC)
    errors = {
        name: [*check_pipeline(pipeline, now), *_clocks_that_differ(project, pipeline)]
        for name, pipeline in project.declared.items()
    }
    travels = dict[str, TimeTravel]()
    for name, pipeline in project.declared.items() if time_travel else ():
        if not errors[name]:
            travels[name] = travel_in_time(pipeline, now, partitions)
            errors[name] += travels[name].errors
    for broken in project.broken:
        errors.setdefault(broken.name, []).append(broken.error)
    errors = dict(sorted(errors.items()))
    problems = [
        Problem(name, error.message, error.hint) for name, of_pipeline in errors.items() for error in of_pipeline
    ]
    terminal.report(
        {"project": str(project.root), "pipelines": [*errors], "ok": not problems, "problems": problems}
        | ({"time_travel": travels} if time_travel else {})
    )
    for name, of_pipeline in errors.items():
        count = "1 problem" if len(of_pipeline) == 1 else f"{len(of_pipeline)} problems"
        terminal.say(f"{name}: {count if of_pipeline else 'ok'}")
        remarks = [] if of_pipeline else remarks_on(project.declared[name], now)
        for remark in [*remarks, *(travels[name].remarks if name in travels else ())]:
            terminal.say(f"  {remark}")
    if not errors:
        terminal.say(f"{project.root} declares no pipeline.")
    if project.is_shipped:
        terminal.say(f"{project.examples_note}. A project is a folder whose pyproject.toml has [tool.dg.project].")
    if problems:
        raise all_of([error for of_pipeline in errors.values() for error in of_pipeline])


def _clocks_that_differ(project: Project, pipeline: Pipeline) -> Iterator[BatchPlatformError]:
    try:
        project.require_same_clocks(pipeline.spec)
    except WrongUseError as error:
        yield with_place(error, pipeline.builder.sources.folder, pipeline.spec.name)


def check_pipeline(pipeline: Pipeline, now: datetime) -> list[BatchPlatformError]:
    """Find what would make a run fail: in the estimators, in the sources of due partitions, in the SQL over them."""
    errors, lacking = check_declared(pipeline, now)
    errors = [with_place(error, pipeline.builder.sources.folder, pipeline.spec.name) for error in errors]
    return [*errors, *([merged(pipeline.spec.name, [*lacking.items()], 0)] if lacking else [])]


def check_declared(pipeline: Pipeline, now: datetime) -> tuple[list[BatchPlatformError], dict[str, SourceError]]:
    """Find what would make every run fail, and the errors of due partitions whose own source files are missing, by key."""
    spec, builder = pipeline.spec, pipeline.builder
    errors = list[BatchPlatformError]()

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except BatchPlatformError as error:
            if str(error) not in map(str, errors):  # a source that cannot be read fails every query over it
                errors.append(error)

    attempt(lambda: check_model(spec.model, builder.sources.folder, spec.predictions))
    attempt(lambda: check_challengers(spec, builder.sources.folder, pipeline.published_ledgers().registry))
    attempt(lambda: own_metrics(spec))
    attempt(lambda: declared(spec))
    attempt(lambda: require_known(spec.monitoring.notify))
    attempt(lambda: require_sinks(spec.predictions.deliver))
    attempt(lambda: require_no_former_partitions(spec, pipeline.published_ledgers().scores.values()))
    due, lacking = spec.partitions.calendar.due(now), dict[str, SourceError]()
    attempt(lambda: lacking.update(_without_sources(pipeline, due)))
    if readable := [partition for partition in due if partition.key not in lacking][-1:]:
        attempt(lambda: _try_query(pipeline, builder.query, readable[0], builder.built_from, _named_of_features(spec)))
    attempt(lambda: _check_labels(pipeline, due, now))
    return errors, lacking


def _check_labels(pipeline: Pipeline, due: Sequence[Partition], now: datetime) -> None:
    """Try the SQL of the labels for the newest partition that has them. There must be one if some should be known by now."""
    spec, builder = pipeline.spec, pipeline.builder
    labelled = [partition for partition in due if not builder.awaited_label_sources(partition)][-1:]
    for partition in labelled or [partition for partition in due if spec.periods.matures(partition) <= now][-1:]:
        columns = spec.labels.columns if spec.labels else []
        _try_query(pipeline, builder.labels_query, partition, builder.label_sources, columns)


def _without_sources(pipeline: Pipeline, due: Sequence[Partition]) -> dict[str, SourceError]:
    """The errors of the partitions whose features are not built and whose own files are missing, by key."""
    names = [name for name in pipeline.builder.built_from if pipeline.spec.sources[name].by_partition]
    errors: dict[str, SourceError] = {}
    built = pipeline.published_state().features if names else {}
    for partition in due:
        try:
            for name in names:
                pipeline.builder.sources.version(name, partition)
        except SourceError as error:
            if partition.key not in built:
                errors[partition.key] = error
    return errors


def _named_of_features(spec: PipelineSpec) -> list[str]:
    """The columns of the features that the declaration names; drift is also declared of predictions, whose columns these are not."""
    time, drift = spec.features.time, spec.monitoring.drift
    measured = [] if drift is None else [*drift.columns, *drift.ignore]
    of_features = [name for name in measured if not name.startswith(("prediction", "score"))]
    return [*([time] if time else []), *spec.predictions.keep, *spec.features.columns, *of_features]


def _try_query(
    pipeline: Pipeline,
    query: Query | SparkQuery | None,
    partition: Partition,
    sources: Collection[str],
    named: Sequence[str],
) -> None:
    """Open sources for a partition, and run an SQL over them without reading a row; it must give the key and these columns."""
    columns = [*dict.fromkeys([*pipeline.spec.features.key, *named])]
    if isinstance(query, SparkQuery):
        with staging_folder(pipeline.home, "check") as folder, pipeline.builder.session(spill=folder) as session:
            session.require_valid(partition, columns)
        return
    with pipeline.builder.sources.connect(partition, names=pipeline.builder.opened(sources)) as con:
        if query is not None:
            query.run(con, partition, columns)
