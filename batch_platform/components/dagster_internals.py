"""Every use of a private Dagster name, checked against Dagster 1.13.27. No other module may use one; a test sees to it.

Only what removes rows from Dagster's own tables stands in `dagster_records.py`.

Each use says which public alternative there is, or that there is none. Names that look private only because Dagster exports
no type for them count as private. A test pins each use, so that an upgrade of Dagster that breaks one fails there first.
What only a few commands need, Dagster's storage and its command line above all, is imported where it is used.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any, cast

import dagster as dg
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext, DefinitionsLoadType
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.execution.api import execute_run
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.interrupts import check_captured_interrupt
from dagster._utils.pydantic_yaml import enrich_validation_errors_with_source_position
from dagster.components.core import decl, load_defs
from dagster.components.core.component_tree import TestComponentTree
from sqlalchemy import Engine, QueuePool, create_engine
from sqlalchemy.event import listen

from batch_platform.declaration.errors import INTERRUPTED_QUERY
from batch_platform.declaration.yaml_file import FILE_NAMES

# What Dagster's documentation, or every record that it stores, names as text, and for which it exports no constant.
PARTITION_NAME_TAG = "dagster/partition"
ASSET_PARTITION_RANGE_START_TAG = "dagster/asset_partition_range_start"
ASSET_PARTITION_RANGE_END_TAG = "dagster/asset_partition_range_end"
CODE_VERSION_TAG = "dagster/code_version"
DATA_VERSION_TAG = "dagster/data_version"
GRPC_INFO_TAG = ".dagster/grpc_info"
FINISHED_STATUSES = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
NOT_FINISHED_STATUSES = tuple(status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES)
_MOST_PARTITIONS_READ = 100  # with more, Dagster takes the version of the input as a whole

# Marks the output of a step whose events were logged in the step itself. Dagster then logs no second event for every
# partition. Dagster uses the mark for observable source assets, and shows it with the output. No public alternative.
LOGGED_IN_THE_BODY = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: "events: logged above, one by one"}

# The daemon. The public command `dagster-daemon` is not always installed beside the interpreter in use.
DAEMON_COMMAND = (sys.executable, "-m", "dagster._daemon", "run")

# True in a process that executes a run or a step. Dagster loads definitions again there, and says so before it imports what
# they need. A code server imports that first, and so serves the pages on components. No public alternative.
EXECUTES_RUNS = DefinitionsLoadContext.get().load_type == DefinitionsLoadType.RECONSTRUCTION

# Discards what a run prints. No public alternative except the user's own dagster.yaml.
_NOOP = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager", "config": {}}
_LOOKING = ContextVar("looking for resources", default=False)
_KEEPING = Lock()  # held while the engines of the event log are kept
_COMPLETED = ("SUCCEEDED", "FAILED")  # results, rather than announcements of them
_PAGE = 200  # results of a check that are read at once


def is_valid_cron_string(cron: str) -> bool:
    """Return whether Dagster takes a cron expression: publicly, only a schedule that is built refuses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the schedule itself gives them again
        try:
            dg.ScheduleDefinition(name="checked", job_name="checked", cron_schedule=cron)
        except dg.DagsterInvalidDefinitionError:
            return False
    return True


@contextmanager
def without_beta_warnings() -> Generator[None]:
    """Silence Dagster's warnings about its beta features, whose risk is this project's and not the user's.

    Uses public names only; replaces Dagster's own `disable_dagster_warnings`.
    """
    with warnings.catch_warnings():
        for category in (dg.BetaWarning, dg.PreviewWarning, dg.SupersessionWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        yield


class StandingCheck(dg.AssetChecksDefinition):
    """A check that stays a check.

    Dagster turns the checks of a component into assets and back, and warns of its own doing. It does so through
    `dagster_internal_init`, for which there is no public alternative.
    """

    @classmethod
    def of(cls, checks: dg.AssetChecksDefinition) -> "StandingCheck":
        """Make a standing check of a check."""
        return cls.dagster_internal_init(**checks.get_attributes_dict())

    @staticmethod
    def dagster_internal_init(**attributes: Any) -> "StandingCheck":  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride] - passed on as they are
        """Make a standing check, where Dagster makes its own kind."""
        with without_beta_warnings():
            return StandingCheck(**attributes)


def data_version_tags(version: str) -> dict[str, str]:
    """Tags that give a materialization a data version.

    The public alternative, `dg.MaterializeResult(data_version=...)`, gives all partitions of a range the same version.
    """
    return {DATA_VERSION_TAG: version, "dagster/data_version_is_user_provided": "true"}


def observed_version_tags(version: str) -> dict[str, str]:
    """Tags that give an observation a data version. `dg.ObserveResult` fits the body of an observable asset only."""
    return {DATA_VERSION_TAG: version}


class Provenance:
    """Tags that name the code and the inputs of each materialization of a step, by which the UI tells what is out of date.

    Dagster adds them to a `dg.MaterializeResult` itself, but not to events logged in the body. No public alternative. The
    version of a partitioned input is made of those of the partitions that were read, as Dagster makes it.
    """

    def __init__(self, context: dg.AssetExecutionContext, spec: dg.AssetSpec) -> None:
        """Record the state of the inputs before the work begins."""
        self._asset, self._graph = spec.key, context.job_def.asset_layer.asset_graph
        self._code = {CODE_VERSION_TAG: spec.code_version or context.run.run_id}
        self._newest = {
            dep.asset_key: context.instance.get_latest_data_version_record(dep.asset_key) for dep in spec.deps
        }
        self._of_partitions: dict[dg.AssetKey, dict[str, Mapping[str, str]]] = {
            key: {
                **context.instance.event_log_storage.get_latest_tags_by_partition(
                    key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
                )
            }
            for key, record in self._newest.items()
            if record and self._graph.has(key) and self._graph.get(key).is_partitioned
        }

    def tags(self, partition_key: str | None) -> dict[str, str]:
        """The tags of a partition, or of an asset without partitions."""
        tags = dict(self._code)
        for key, record in self._newest.items():
            tags[f"dagster/input_data_version/{key.to_user_string()}"] = self._version(key, partition_key)
            tags[f"dagster/input_event_pointer/{key.to_user_string()}"] = str(record.storage_id) if record else "NULL"
        return tags

    def made(self, key: dg.AssetKey, partition_key: str, version: str) -> None:
        """Take a partition of an input that the same step has made since."""
        self._of_partitions.setdefault(key, {})[partition_key] = {DATA_VERSION_TAG: version}

    def _version(self, key: dg.AssetKey, partition_key: str | None) -> str:
        """The data version of what was read of an input."""
        if (versions := self._of_partitions.get(key)) is not None:
            read = self._graph.get_parent_partition_keys_for_child(partition_key, key, self._asset).partitions_subset
            if len(read) < _MOST_PARTITIONS_READ:
                known = [
                    versions[name][DATA_VERSION_TAG] for name in sorted(read.get_partition_keys()) if name in versions
                ]
                return sha256("".join(known).encode()).hexdigest()
        record = self._newest[key]
        tags = (record.event_log_entry.tags if record else None) or {}
        return tags.get(DATA_VERSION_TAG, "INITIAL")


def works_in_children(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> bool:
    """Return whether each step of a run works in a child of the process of the run. The executor is not in the public part of a context."""
    executor = context.op_execution_context.job_def.executor_def.name
    config = dict[str, Any](context.run.run_config).get("execution", {}).get("config", {})
    by_default = executor == dg.multi_or_in_process_executor.name and "in_process" not in config
    return by_default or executor == dg.multiprocess_executor.name


def assets_of_run(context: dg.AssetExecutionContext) -> frozenset[dg.AssetKey]:
    """The assets that a run makes. Those of a run without a selection, of its whole job, are not in the public part of a context."""
    return frozenset(context.run.asset_selection or context.job_def.asset_layer.executable_asset_keys)


def steps_at_once(context: dg.AssetExecutionContext, assets: Collection[str]) -> int:
    """The number of pipelines with such assets that a run works on at once, in processes of this machine; within one, step follows step."""
    if not works_in_children(context):
        return 1
    config = dict[str, Any](context.run.run_config).get("execution", {}).get("config", {})
    pipelines = {key.path[0] for key in assets_of_run(context) if len(key.path) > 1 and key.path[-1] in assets}
    most = (config.get("multiprocess") or config).get("max_concurrent") or os.cpu_count() or 1
    return max(1, min(len(pipelines), most))


def read_partitions(context: dg.InputContext) -> list[str] | None:
    """The partitions for which an input is read; None for its whole asset, which an unpartitioned asset reads.

    The public `has_partition_key` of an input says nothing about a range of partitions. No public alternative. A context that
    is built by hand has no step, and tells of a single partition by `partition_key` only.
    """
    if not context.has_asset_partitions:
        return [context.partition_key] if is_built_by_hand(context) and context.has_partition_key else None
    step: Any = None if is_built_by_hand(context) else context.step_context
    whole = step is not None and not (step.has_partition_key or step.has_partition_key_range)
    return None if whole else list(context.asset_partition_keys)


def is_built_by_hand(context: dg.InputContext | dg.OutputContext) -> bool:
    """Return whether a context belongs to no step of a run; its public `step_context` raises then."""
    try:
        context.step_context  # noqa: B018 - asking is the test
    except dg.DagsterInvariantViolationError:
        return True
    return False


def check_results(instance: dg.DagsterInstance, check: dg.AssetCheckKey, *, after: int, most: int) -> Iterator[Any]:
    """The results of a check that were stored after the record with an id, at most so many, the newest first.

    Public methods of the instance give only the newest result of a check, whichever partition it is about.
    """
    before, given = None, 0
    while given < most:
        records = instance.event_log_storage.get_asset_check_execution_history(check, limit=_PAGE, cursor=before)
        new = [record for record in records if record.id > after]
        completed = [record for record in new if record.status.name in _COMPLETED][: most - given]
        yield from completed
        if len(new) < _PAGE:
            return
        before, given = new[-1].id, given + len(completed)


def was_interrupted(events: Iterable[dg.DagsterEvent]) -> bool:
    """Return whether a run ended because its process was interrupted: in a step, within a query, or between two steps.

    The enumerations are not exported.
    """
    for event in events:
        if event.event_type == dg.DagsterEventType.RUN_FAILURE:
            if getattr(event.job_failure_data.failure_reason, "name", None) == "UNEXPECTED_TERMINATION":
                return True
        elif event.is_step_failure:
            failure = event.step_failure_data
            error = failure.error and (failure.error.cause or failure.error)
            within_query = error is not None and error.message.strip() == f"RuntimeError: {INTERRUPTED_QUERY}"
            if getattr(failure.error_source, "name", None) == "INTERRUPT" or within_query:
                return True
    return False


def interrupted_by_dagster(run: dg.DagsterRun) -> bool:
    """Return whether Dagster interrupts the process of a run that is terminated: it reaches only runs that a code server started.

    The tag that names the server is private. No public alternative.
    """
    return GRPC_INFO_TAG in run.tags


def process_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[int, float] | None:
    """The id of the process that a code server of this machine started for a run, and a time at which it worked.

    None for a run that was started in another way, or whose process has not begun to work. A server on a socket is on this machine.
    Dagster logs the id, and only its own launchers for containers ask for it. No public alternative.
    """
    if "socket" not in json.loads(run.tags.get(GRPC_INFO_TAG, "{}")):
        return None
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        logged = entry.dagster_event.engine_event_data.metadata.get("pid") if entry.dagster_event else None
        if logged is not None:
            return int(str(logged.value)), entry.timestamp
    return None


@dataclass(frozen=True)
class CodeLocation:
    """A code location as a workspace file names it."""

    name: str
    module: str  # module of definitions or, if autoloaded, package with folders of components
    autoloaded: bool
    folder: Path  # working folder of the code location

    @property
    def origin(self) -> ManagedGrpcPythonEnvCodeLocationOrigin:
        """The origin that Dagster's processes load it from."""
        target = LoadableTargetOrigin(
            executable_path=sys.executable,
            module_name=None if self.autoloaded else self.module,
            autoload_defs_module_name=self.module if self.autoloaded else None,
            working_directory=str(self.folder),
        )
        return ManagedGrpcPythonEnvCodeLocationOrigin(target, location_name=self.name)

    def job(self, name: str) -> RemoteJobOrigin:
        """The origin by which Dagster's processes find one of its jobs."""
        return RemoteJobOrigin(RemoteRepositoryOrigin(self.origin, "__repository__"), name)


@contextmanager
def code_server(location: CodeLocation, instance: dg.DagsterInstance) -> Generator[dict[str, Any]]:
    """Run a server of a code location, restarted if it dies; gives the contents of a workspace file that names it.

    Given the location itself, the webserver and the daemon would each start a server: *Reload* would reach only that of the
    webserver, and the daemon would replace its own every minute. The public `dagster dev` does the same as this, but
    cannot be told the name of the location.
    """
    from dagster._cli.proxy_server_manager import ProxyServerManager
    from dagster._core.workspace.load_target import WorkspaceLoadTarget

    class OneLocation(WorkspaceLoadTarget):
        """A workspace with this location alone."""

        def create_origins(self) -> list[ManagedGrpcPythonEnvCodeLocationOrigin]:
            return [location.origin]

    with ProxyServerManager(instance, OneLocation(), code_server_log_level="WARNING") as servers:
        yield {"load_from": list(servers.get_code_server_specs())}


def run_webserver(options: Sequence[str], middleware: Callable[[Any], Any]) -> None:
    """Run Dagster's webserver until it ends, with its command's options, its whole application wrapped in an ASGI middleware.

    The public command `dagster-webserver` accepts no middleware.
    """
    from dagster_webserver.cli import cli
    from dagster_webserver.webserver import DagsterWebserver
    from starlette.middleware import Middleware

    build = DagsterWebserver.build_middleware

    def build_with(self: DagsterWebserver[Any, Any]) -> list[Middleware]:
        return [Middleware(middleware), *build(self)]

    DagsterWebserver.build_middleware = build_with
    cli.main(list(options), auto_envvar_prefix="DAGSTER_WEBSERVER")


def execute_here(  # noqa: PLR0913 - what makes up a run
    job: dg.JobDefinition,
    location: CodeLocation,
    instance: dg.DagsterInstance,
    *,
    run_id: str,
    assets: Sequence[dg.AssetKey],
    tags: Mapping[str, str],
    run_config: Mapping[str, Any],
    raise_on_error: bool,
) -> dg.JobExecutionResult:
    """Execute a job in this process as a run that belongs to its code location, as if the UI had launched it.

    The public `JobDefinition.execute_in_process` creates runs that belong to no location: no page of a job or location
    shows them, no sensor hears of them, and they cannot be executed again.
    """
    run = instance.create_run_for_job(
        job,
        run_id=run_id,
        asset_selection=frozenset(assets),
        tags={**job.run_tags, **tags},
        run_config=run_config,
        remote_job_origin=location.job(job.name),
    )
    return execute_run(InMemoryJob(job), run, instance, raise_on_error=raise_on_error)


def open_without_capture(folder: Path) -> dg.DagsterInstance:
    """Open the instance of a Dagster home without capturing what its runs print.

    Capturing starts two processes for every step. The public `dg.DagsterInstance.from_config` accepts no overrides.
    """
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder), overrides={"compute_logs": _NOOP}))


@contextmanager
def waiting_for_slots(instance: dg.DagsterInstance, waits: Callable[[str], object]) -> Generator[None]:
    """Let a run in this process wait for a slot of its pool: `waits` is called once with the pool, and an interruption ends the wait.

    Dagster's own loop asks again without a pause, which takes a whole core, and heeds no interruption. No public alternative.
    """
    storage: Any = instance.event_log_storage
    claimed, heard = storage.claim_concurrency_slot, set[str]()

    def claim(pool: str, *step: object) -> Any:  # noqa: ANN401 - Dagster exports no type for it
        while not (status := claimed(pool, *step)).is_claimed:
            if pool not in heard:
                heard.add(pool)
                waits(pool)
                break  # Dagster records that the step is blocked, and asks again
            if check_captured_interrupt():
                raise dg.DagsterExecutionInterruptedError
            sleep(0.5)
        return status

    vars(storage)["claim_concurrency_slot"] = claim
    try:
        yield
    finally:
        del vars(storage)["claim_concurrency_slot"]


class _KeptOpen(QueuePool):
    """Connections that stay open when Dagster disposes of their engine."""

    def dispose(self) -> None:
        """Keep the connections."""

    def recreate(self) -> QueuePool:
        """Go on with the same connections."""
        return self

    def close(self) -> None:
        """Close the connections."""
        super().dispose()


@contextmanager
def event_log_kept_open() -> Generator[None]:
    """Let Dagster's SQLite event log use one engine for each of its databases, where it would make three for each event.

    With an engine of its own, each statement is compiled anew, and each event takes 17 ms of a core instead of 3.5: a run over
    300 small partitions costs 1.6 times as much. Dagster's storage is as it is and writes the events itself, each in its own
    transactions; other storages are not touched. Only a loss of power can lose the last events, which the next run logs
    again. No public alternative: `DAGSTER_EVENT_BATCH_SIZE` changes nothing for SQLite.
    """
    from dagster._core.storage.event_log.sqlite import sqlite_event_log

    module, kept = cast("Any", sqlite_event_log), dict[str, Engine]()
    if not _KEEPING.acquire(blocking=False):  # within another use
        yield
        return
    former = module.create_engine

    def engine_of(address: str, *, connect_args: Mapping[str, Any], **_: object) -> Engine:
        if address not in kept:
            arguments = {**connect_args, "check_same_thread": False}
            kept[address] = create_engine(address, poolclass=_KeptOpen, connect_args=arguments)
            listen(kept[address], "connect", lambda opened, _: opened.execute("PRAGMA synchronous = NORMAL"))
        return kept[address]

    module.create_engine = engine_of
    try:
        yield
    finally:
        module.create_engine = former
        _KEEPING.release()
        for engine in kept.values():
            cast("_KeptOpen", engine.pool).close()


@contextmanager
def leaving_out(check: Callable[[Path], None], left_out: Callable[[Path, Path, Exception], None]) -> Generator[None]:
    """Let Dagster load definitions without the folders whose YAML file fails a check or cannot be parsed.

    `left_out` gets such a folder, the folder of all definitions and the error. Dagster parses all YAML files of a project before
    it loads the first one, and gives up at the first error. No public alternative. Within another use, the inner one counts.
    """
    former = decl.build_filesystem_component_decl_from_context
    build = getattr(former, "__wrapped__", former)

    @wraps(build)
    def build_or_leave_out(context: Any) -> Any:  # noqa: ANN401 - Dagster exports no types for them
        try:
            check(context.path)
            return build(context)
        except Exception as error:
            if not any((context.path / name).is_file() for name in FILE_NAMES):
                raise
            left_out(context.path, context.defs_module_path, error)
            return None

    decl.build_filesystem_component_decl_from_context = build_or_leave_out
    try:
        yield
    finally:
        decl.build_filesystem_component_decl_from_context = former


@contextmanager
def without_component_pages() -> Generator[None]:
    """Load definitions without the pages on the installed components, which only Dagster's UI shows.

    Dagster imports and describes every installed component for them, which takes as long as loading the project. No public
    alternative.
    """
    describe = load_defs.get_library_json_enriched_defs
    load_defs.get_library_json_enriched_defs = lambda tree: dg.Definitions(component_tree=tree)
    try:
        yield
    finally:
        load_defs.get_library_json_enriched_defs = describe


@contextmanager
def with_positions(context: dg.ComponentLoadContext) -> Generator[None]:
    """Add to errors of validation the file and line of each wrong key, as Dagster does while it validates by itself."""
    source = getattr(context.component_decl, "source_tree", None)
    positions = source.source_position_tree.children.get("attributes") if source else None
    if positions is None:
        yield
        return
    with enrich_validation_errors_with_source_position(positions, ["attributes"]):
        yield


def key_in_file(context: dg.ComponentLoadContext) -> int | str:
    """The position of a component in its YAML file, or the name of its function in its Python file.

    The context names only the file.
    """
    return getattr(context.component_decl.loc, "instance_key", None) or 0


def loaded_components(tree: dg.ComponentTree) -> Iterator[tuple[Path, dg.Component]]:
    """Every component of a project, each with its folder or Python file; none before the project is loaded.

    The public `DefsFolderComponent.iterate_path_component_pairs` leaves out what lies below a folder with a YAML file of its own.
    """
    waiting = [(tree.defs_module_path, tree.load_component(tree.defs_module_path))] if tree.is_fully_loaded() else []
    while waiting:
        path, component = waiting.pop()
        yield path, component
        if isinstance(component, dg.DefsFolderComponent):
            waiting += component.children.items()
        else:  # of a file: a sequence in YAML, by name in Python
            inner = getattr(component, "components", ())
            waiting += [(path, it) for it in (inner.values() if isinstance(inner, Mapping) else inner)]


def stands_alone(context: dg.ComponentLoadContext) -> bool:
    """Return whether a component is built without a project, by the public `dg.build_defs_for_component`.

    Dagster then passes a tree of mocks on, in which nothing can be looked up. No public alternative.
    """
    return isinstance(context.component_tree, TestComponentTree)


def not_defined_elsewhere(context: dg.ComponentLoadContext, resources: Mapping[str, Any]) -> dict[str, Any]:
    """Those resources whose keys no Python file of the same project defines.

    Dagster refuses a second resource of the same key, and knows no defaults that give way. It builds each file once, for
    this and for the project. Which components a project has is not in the public part of its tree.
    """
    if _LOOKING.get():  # a file reads the definitions of another pipeline: whoever looks into it brings the resources
        return {}
    looking, defined = _LOOKING.set(True), set[str]()
    try:
        for part in context.component_tree.find_root_decl().iterate_all_component_decls():
            if isinstance(part, decl.PythonFileDecl) and not part.decls:
                with suppress(Exception):  # Dagster raises it again, and names the file
                    defined |= (context.build_defs(part.loc).resources or {}).keys()
    finally:
        _LOOKING.reset(looking)
    return {key: resource for key, resource in resources.items() if key not in defined}
