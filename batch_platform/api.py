"""The Python API for scripts and notebooks: load a pipeline, bring it up to date, read its predictions, and compare its models.

Each call does what the command of its name does, by the same code, and returns a record where the command prints. Only `run`,
`score` and `train` need Dagster, which records their runs as if the command had started them.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from batch_platform.cli import terminal
from batch_platform.cli.instance import VARIABLE, materialized_partitions
from batch_platform.cli.project import Project, find_project
from batch_platform.declaration.errors import RunFailedError, WrongUseError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.declared_model import check_flavours
from batch_platform.pipeline.model_comparison import ModelComparison, compare
from batch_platform.pipeline.pipeline import Pipeline as Steps
from batch_platform.pipeline.status import PipelineStatus, status_at
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform.warehouse.user_tables import TableName, open_table, stored_partitions

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

    from batch_platform.cli.summary import RunSummary, TrainedModel


class Pipeline:
    """A declared pipeline in its home. `load_pipeline` gives one of a project; this class takes one that is declared in Python.

    Args:
        spec: The pipeline, such as a `BatchInference`.
        folder: The folder at which its relative paths start. Default: the current folder.
        home: The folder that holds its data. Default: what BATCH_PLATFORM_HOME names, else `.batch_platform` in the folder.

    Raises:
        WrongUseError: The kind of model does not exist, or the home cannot be used.

    Example:
        >>> declared = BatchInference(
        ...     name="returns",
        ...     partitions=Partitions(every="day", start="2024-01-01", end="2024-03-01", timezone="Europe/Berlin"),
        ...     sources={"events": Source(parquet="events.parquet")},
        ...     features=Features(sql="SELECT * EXCLUDE returned FROM events WHERE ts >= $partition_start AND ts < $partition_end", key=["id"], time="ts"),
        ...     labels=Labels(sql="SELECT id, returned FROM events WHERE ts >= $partition_start AND ts < $partition_end", column="returned"),
        ...     model=Model(estimator="sklearn.ensemble.HistGradientBoostingClassifier", train=Train(every="month", evaluate="7 days")),
        ... )
        >>> Pipeline(declared, "pipelines/defs/churn").status().counts["missing"]
        29
    """

    def __init__(self, spec: PipelineSpec, folder: Path | str = ".", home: Path | str | None = None) -> None:
        """Check the declaration; see the class."""
        check_flavours(spec)
        self.spec, self.folder = spec, Path(folder).absolute()
        self.home = Home.from_environment(self.folder) if home is None else Home(Path(home).absolute())
        self._steps = Steps(spec, self.folder, self.home)
        definitions = partial(_defined, spec, self.folder)
        self._project = Project(self.folder, spec.name, location=spec.name, given=definitions)

    def run(
        self,
        from_: str | None = None,
        to: str | None = None,
        *,
        force: bool = False,
        recheck: bool = False,
        retrain: bool = False,
    ) -> "RunSummary":
        """Bring partitions up to date, with the features and models they need: `batch-platform run`.

        Args:
            from_: Key of the first partition. Default: the first one a model serves.
            to: Key of the last partition, inclusive. Default: the last one that is due.
            force: Build and score partitions again even if nothing has changed.
            recheck: Compare also partitions older than `late` says with their sources.
            retrain: Train the newest model again even if nothing has changed.

        Returns:
            What was scored, rejected, left out and trained.

        Raises:
            RunFailedError: Something failed; what was committed stays.
            WrongUseError: A key is not that of a partition that is due.

        Example:
            >>> summary = load_pipeline("churn").run("2024-02-01", "2024-02-10")
            >>> summary.scored, summary.rows_scored, summary.rows_rejected
            (10, 400, 0)
        """
        return self._run(from_, to, None, force=force, recheck=recheck, retrain=retrain)

    def score(
        self, version: str, from_: str | None = None, to: str | None = None, *, force: bool = False
    ) -> "RunSummary":
        """Score partitions with one version in place of each partition's champion, and train nothing: `batch-platform run --model`.

        Args:
            version: The version that scores.
            from_: Key of the first partition, as for `run`.
            to: Key of the last partition, inclusive, as for `run`.
            force: Score partitions again even if nothing has changed.

        Returns:
            What was scored, rejected and left out.

        Raises:
            RunFailedError: Something failed; what was committed stays.
            WrongUseError: There is no such version, or it cannot serve a partition.

        Example:
            >>> pipeline = load_pipeline("churn")
            >>> pipeline.score(pipeline.status().champion, "2024-02-11", "2024-02-11").scored_now
            1
        """
        return self._run(from_, to, version, force=force, recheck=False, retrain=False)

    def train(self, period: str | None = None, *, force: bool = False) -> "TrainedModel":
        """Train the model of a serving period if it has none or its declaration changed: `batch-platform train`.

        Args:
            period: Key of the serving period. Default: the newest one whose model is due, otherwise the newest one that has begun.
            force: Train again even if nothing has changed.

        Returns:
            The newest version of the period. Its `decision` says whether the gate approved it.

        Raises:
            RunFailedError: The training failed.
            TrainingRefusedError: No model can be trained on the data.

        Example:
            >>> model = load_pipeline("churn").train("2024-02-01", force=True)
            >>> model.decision, model.metric, model.serving_period
            ('approved', 'roc_auc', '2024-02-01')
        """
        with _silent(self.home):
            from batch_platform.cli.train import train

            ((model, _),), _ = train(self._project, self._project.pipeline(self.spec.name), period, force=force)
        return model

    def status(self, *, recheck: bool = False) -> PipelineStatus:
        """Say which partitions are scored, missing, failed or stale, and why: `batch-platform status`.

        Args:
            recheck: Compare also partitions older than `late` says with their sources.

        Returns:
            The status as last published: waits for no run.

        Raises:
            WarehouseError: The published copy cannot be read.

        Example:
            >>> status = load_pipeline("churn").status()
            >>> status.counts["stale"], status.partitions[31].partition, status.partitions[31].condition
            (11, '2024-02-01', 'stale')
        """
        with _silent(self.home):
            state = self._steps.published_state(recheck=recheck)
            recorded = materialized_partitions(self.home, [self.spec.name]) or {}
            request = PlanRequest(datetime.now(UTC), recheck=recheck)
            return status_at(self._steps, request, state, recorded.get(self.spec.name))

    def _run(  # noqa: PLR0913 - those of the commands
        self, first: str | None, last: str | None, model: str | None, *, force: bool, recheck: bool, retrain: bool
    ) -> "RunSummary":
        with _silent(self.home):
            from batch_platform.cli.run import run

            wiring = self._project.pipeline(self.spec.name)
            outcome = run(
                self._project, wiring, (first, last, None), model=model, force=force, recheck=recheck, retrain=retrain
            )
        if outcome.error:
            raise RunFailedError(outcome.error)
        return outcome


def load_pipeline(path_or_name: Path | str) -> Pipeline:
    """Load a pipeline of a project, or one that is shipped as a demo.

    Args:
        path_or_name: The name of a pipeline of the project around the current folder, or the folder or file of its YAML. A text
            with nothing but letters, digits and _ is a name.

    Returns:
        The pipeline, in the home of its project.

    Raises:
        BatchPlatformError: There is no such pipeline, or it cannot be loaded.

    Example:
        >>> load_pipeline("churn").spec == load_pipeline("pipelines/defs/churn/defs.yaml").spec
        True
    """
    with _silent():
        if isinstance(path_or_name, str) and path_or_name.isidentifier():
            project = _project_of(None)
            declared = project.declared_as(path_or_name)
        else:
            path = Path(path_or_name).absolute()
            folder = path if path.is_dir() else path.parent
            project = _project_of(folder)
            there = [it for it in project.declared.values() if it.folder.resolve() == folder.resolve()]
            if len(there) != 1:
                msg = f"{folder} declares {listed(it.spec.name for it in there) or 'no pipeline that can be loaded'}."
                raise WrongUseError(
                    msg, hint=f"load one of {listed(project.declared) or 'another folder'} by its name."
                )
            (declared,) = there
        pipeline = Pipeline(declared.spec, declared.folder, project.home.root)
        pipeline._project, pipeline._steps = project, declared  # noqa: SLF001 - of the same module
        return pipeline


def read_predictions(pipeline: Pipeline, from_: str | None = None, to: str | None = None) -> "pl.LazyFrame":
    """Read the published predictions of a pipeline, also while a run writes.

    Args:
        pipeline: The pipeline.
        from_: Key of the first partition. Default: the first one with predictions.
        to: Key of the last partition, inclusive. Default: the last one with predictions.

    Returns:
        The rows of those of the partitions that are scored; they are read when the frame is collected.

    Raises:
        DataError: Nothing of the pipeline is published, or a key is not that of a partition.

    Example:
        >>> rows = read_predictions(load_pipeline("churn"), "2024-02-01", "2024-02-07")
        >>> rows.select("partition_key", "id", "score").collect().shape
        (280, 3)
    """
    calendar, table = pipeline.spec.partitions.calendar, TableName(pipeline.spec.name, "predictions")
    first, last = (None if key is None else calendar.named(key).start for key in (from_, to))
    starts = {key: calendar.named(key).start for key in stored_partitions(pipeline.home, table)}
    keys = [
        key for key, start in starts.items() if (first is None or start >= first) and (last is None or start <= last)
    ]
    return open_table(pipeline.home, table, partitions=keys).pl(lazy=True)


def compare_models(pipeline: Pipeline, version: str, other: str) -> ModelComparison:
    """Compare two versions, and say which is better on the rows that both were judged on: `batch-platform models NAME compare`.

    Args:
        pipeline: The pipeline.
        version: A version.
        other: Another version.

    Returns:
        Metrics, data windows and what else differs, and the verdict on the first beside the second.

    Raises:
        WrongUseError: There is no such version.
        IntegrityError: A bundle is not what was registered.

    Example:
        >>> pipeline = load_pipeline("churn")
        >>> status = pipeline.status()
        >>> compare_models(pipeline, status.champion, status.challengers[0].version).verdict.word
        'cannot tell'
    """
    return compare(pipeline._steps, version, other)  # noqa: SLF001 - of the same module


def _defined(spec: PipelineSpec, folder: Path) -> "dg.Definitions":
    from batch_platform.components import build_definitions

    return build_definitions(spec, folder)


def _project_of(folder: Path | None) -> Project:
    """The project of a folder; raises WrongUseError if Python has imported a module of its name from another one."""
    project = find_project(folder)
    package, where = project.module.partition(".")[0], project.declarations
    own = [path for path in (project.root / package, project.root / "src" / package) if path.is_dir()]
    if own and where is not None and package in sys.modules and not where.is_relative_to(project.root):
        msg = f"The module {package!r} of {project.root} cannot be loaded: this process has imported that of {where}."
        raise WrongUseError(msg, hint="restart Python, or load each project in a process of its own.")
    return project


@contextmanager
def _silent(home: Home | None = None) -> Generator[None]:
    """Do what a command does on a home, without its output; leaves the environment and the terminal as they were."""
    before = {it: os.environ.get(it) for it in (HOME_VARIABLE, VARIABLE)}
    quiet, file = terminal.out.quiet, terminal.out.file
    if home is not None:
        os.environ[HOME_VARIABLE] = str(home.root)
    try:
        with terminal.reporting(as_json=True):
            yield
    finally:
        terminal.out.quiet, terminal.out.file = quiet, file
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
