"""What this project uses of Dagster's private side still behaves as it relies on; the first tests to run after an upgrade.

The event log has its own part: the same events for every reader, at a fraction of the engines.
"""

import inspect
import json
import os
import subprocess
import sys
import warnings
from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import EngineEventData
from dagster._core.execution.api import execute_run
from dagster._core.execution.retries import RetryMode
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.test_utils import create_run_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._grpc import impl as run_in_subprocess
from dagster_webserver.webserver import DagsterWebserver
from sqlalchemy import create_engine

from batch_platform.cli import running
from batch_platform.cli.instance import prepare_instance
from batch_platform.components import dagster_internals as internals
from batch_platform.components.dagster_records import wipe_partitions
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.dagster_project import PACKAGE, write_dagster_project

CHANGED = "Dagster changed {}: see what components/dagster_internals.py says of it"
RANGE = {internals.ASSET_PARTITION_RANGE_START_TAG: "2024-01-01", internals.ASSET_PARTITION_RANGE_END_TAG: "2024-01-03"}
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")


@dg.asset(partitions_def=DAYS, code_version="7")
def logged(context: dg.AssetExecutionContext):
    """Log each partition in the body, as the assets of a pipeline do."""
    provenance = internals.Provenance(context, context.assets_def.get_asset_spec(context.asset_key))
    for key in context.partition_keys:
        event = dg.AssetMaterialization(
            context.asset_key, partition=key, tags=internals.data_version_tags(f"v{key}") | provenance.tags(key)
        )
        context.log_event(event)
    return dg.MaterializeResult(metadata=internals.LOGGED_IN_THE_BODY)


def run(instance, *assets, **options):
    definitions = dg.Definitions(assets=list(assets), executor=dg.in_process_executor)
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, **options)


def test_a_run_of_a_range_logs_one_event_for_each_partition_with_its_own_data_version(instance):
    result = run(instance, logged, tags=RANGE)
    assert result.success, CHANGED.format("the tags of a run's range")
    records = instance.fetch_materializations(logged.key, limit=10).records
    versions = {record.partition_key: record.asset_materialization.tags["dagster/data_version"] for record in records}
    assert len(records) == 3, CHANGED.format("the mark of an output whose events were logged in the body")
    assert versions == {f"2024-01-0{day}": f"v2024-01-0{day}" for day in (1, 2, 3)}


def logging_itself(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    provenance = internals.Provenance(context, context.assets_def.get_asset_spec(context.asset_key))
    for key in context.partition_keys if context.has_partition_key_range else [None]:
        event = dg.AssetMaterialization(context.asset_key, partition=key, tags=provenance.tags(key))
        context.log_event(event)
    return dg.MaterializeResult(metadata=internals.LOGGED_IN_THE_BODY)


def test_the_process_of_a_run_that_a_code_server_started_is_found_in_its_log(instance):
    launched = internals.GRPC_INFO_TAG
    by_socket, by_port = (
        create_run_for_test(instance, tags={launched: json.dumps(server)})
        for server in ({"host": "localhost", "socket": "/tmp/it"}, {"host": "elsewhere", "port": 4266})
    )
    of_a_command = create_run_for_test(instance)
    assert internals.process_of(instance, by_socket) is None, "not started yet"
    for started in (by_socket, by_port, of_a_command):
        instance.report_engine_event("Started process for run", started, EngineEventData.in_process(os.getpid()))
    pid, at = internals.process_of(instance, by_socket)
    assert pid == os.getpid()
    assert datetime.fromtimestamp(at, UTC) <= datetime.now(UTC)
    assert internals.process_of(instance, by_port) is internals.process_of(instance, of_a_command) is None
    assert [internals.interrupted_by_dagster(run) for run in (by_socket, by_port, of_a_command)] == [True, True, False]
    assert "EngineEventData.in_process(pid)" in inspect.getsource(run_in_subprocess), CHANGED.format("the log of a run")


def provenance_of(instance, asset, partition=None) -> dict[str, str]:
    """The tags of the newest materialization that name its code and its inputs."""
    filtered = dg.AssetRecordsFilter(asset.key, asset_partitions=partition and [partition])
    (record,) = instance.fetch_materializations(filtered, limit=1).records
    tags = record.asset_materialization.tags
    return {name: value for name, value in tags.items() if "code_version" in name or "input_" in name}


def test_the_tags_that_name_code_and_inputs_are_those_dagster_gives_itself(instance):
    @dg.asset(code_version="7")
    def above(): ...

    @dg.asset(deps=[above], code_version="9")
    def by_dagster(): ...

    @dg.asset(deps=[above], code_version="9")
    def by_us(context: dg.AssetExecutionContext):
        return logging_itself(context)

    assert run(instance, above, by_dagster, by_us).success
    theirs, ours = (provenance_of(instance, asset) for asset in (by_dagster, by_us))
    assert len(theirs) == 3
    assert ours == theirs, CHANGED.format("the tags of provenance")


def test_a_partition_names_the_versions_of_those_partitions_that_it_read_as_dagster_does(instance):
    week = dg.TimeWindowPartitionMapping(start_offset=-6)

    @dg.asset(deps=[dg.AssetDep(logged, partition_mapping=week)], partitions_def=DAYS, code_version="9")
    def by_dagster(): ...

    @dg.asset(deps=[dg.AssetDep(logged, partition_mapping=week)], partitions_def=DAYS, code_version="9")
    def by_us(context: dg.AssetExecutionContext):
        return logging_itself(context)

    assert run(instance, logged, tags=RANGE).success
    for day in ("2024-01-02", "2024-01-03"):
        assert run(instance, logged, by_dagster, asset_selection=[by_dagster.key], partition_key=day).success
    assert run(instance, logged, by_us, asset_selection=[by_us.key], tags=RANGE).success
    versions = []
    for day in ("2024-01-02", "2024-01-03"):
        theirs, ours = (provenance_of(instance, asset, day) for asset in (by_dagster, by_us))
        assert len(theirs) == 3
        assert ours == theirs, CHANGED.format("the versions of partitioned inputs")
        versions.append(ours["dagster/input_data_version/logged"])
    assert versions[0] != versions[1]


def test_beta_warnings_are_silenced_and_others_are_not():
    with warnings.catch_warnings(record=True) as seen, internals.without_beta_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.warn("of this project", UserWarning, stacklevel=1)
        dg.CodeReferencesMetadataValue(code_references=[dg.LocalFileCodeReference(file_path=__file__, line_number=1)])
    assert [str(warning.message) for warning in seen] == ["of this project"]
    with pytest.warns(dg.BetaWarning):
        dg.LocalFileCodeReference(file_path=__file__, line_number=1)


def test_a_standing_check_stays_one_in_the_definitions_of_a_component():
    @dg.asset_check(asset="orders")
    def check() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    standing = internals.StandingCheck.of(check).with_attributes().with_attributes()  # as Dagster does for a component
    assert isinstance(standing, internals.StandingCheck), CHANGED.format("dagster_internal_init")
    assert standing.check_keys == check.check_keys


@pytest.mark.parametrize(
    ("tags", "expected"), [(RANGE, True), ({internals.PARTITION_NAME_TAG: "2024-01-01"}, True), ({}, False)]
)
def test_an_input_is_read_for_the_partitions_of_its_run_or_as_a_whole(instance, tags, expected):
    asked = []

    class Reading(dg.IOManager):
        def handle_output(self, context, obj): ...

        def load_input(self, context):
            asked.append(internals.read_partitions(context) is not None)
            return 0

    @dg.asset(partitions_def=DAYS if tags else None)
    def reader(orders): ...

    orders = dg.AssetSpec("orders", partitions_def=DAYS)
    definitions = dg.Definitions(
        assets=[orders, reader], resources={"io_manager": Reading()}, executor=dg.in_process_executor
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance, tags=tags, asset_selection=[reader.key])
    assert asked == [expected], CHANGED.format("step_context of an input")


AS_A_RUN = """\
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
loaded = ReconstructableRepository(ModuleCodePointer("{package}.definitions", "defs", ".")).get_definition()
"""
AS_A_CODE_SERVER = """\
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._grpc.server import LoadedRepositories
origin = LoadableTargetOrigin(module_name="{package}.definitions", working_directory=".", attribute={attribute!r})
(loaded,) = LoadedRepositories(origin, None, [], None).definitions_by_name.values()
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("process", "attribute", "described"),
    [(AS_A_RUN, None, False), (AS_A_CODE_SERVER, None, True), (AS_A_CODE_SERVER, "defs", True)],
    ids=["run", "server", "server of an attribute"],
)
def test_a_code_server_loads_the_pages_on_installed_components_and_the_process_of_a_run_does_not(
    tmp_path, process, attribute, described
):
    project = write_dagster_project(tmp_path)
    code = process.format(package=PACKAGE, attribute=attribute) + "print(len(loaded.metadata))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert bool(int(printed.stdout)) == described, CHANGED.format("how a process loads definitions again")


def test_an_interrupted_step_is_distinguished_from_a_failed_one(instance):
    @dg.asset
    def broken():
        raise ZeroDivisionError

    events = run(instance, broken, raise_on_error=False).all_events
    assert not internals.was_interrupted(events)
    (event,) = (event for event in events if event.is_step_failure)
    failure = event.step_failure_data
    interrupted = failure._replace(error_source=type(failure.error_source)["INTERRUPT"])
    assert internals.was_interrupted([event._replace(event_specific_data=interrupted)]), CHANGED.format("ErrorSource")


def test_a_run_that_is_interrupted_between_two_steps_is_no_failure(instance):
    class Interrupted(dg.Executor):
        retries = RetryMode.DISABLED

        def execute(self, *_):
            yield from ()
            raise KeyboardInterrupt

    @dg.job(executor_def=dg.ExecutorDefinition("interrupted", executor_creation_fn=lambda _: Interrupted()))
    def job():
        dg.op(name="nothing")(lambda: None)()

    made = instance.create_run_for_job(job)
    result = execute_run(InMemoryJob(job), made, instance, raise_on_error=False)
    assert internals.was_interrupted(result.all_events), CHANGED.format("what it logs of an interrupted run")
    assert isinstance(running._failure(result), KeyboardInterrupt)


def test_the_instance_of_the_command_line_captures_no_output_and_keeps_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    folder = prepare_instance(Home(tmp_path).create())
    with internals.open_without_capture(folder) as instance, dg.DagsterInstance.from_config(str(folder)) as plain:
        assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager", CHANGED.format("InstanceRef")
        assert type(plain.compute_log_manager).__name__ != "NoOpComputeLogManager"
        assert type(instance.event_log_storage) is type(plain.event_log_storage)
        assert instance.run_monitoring_enabled == plain.run_monitoring_enabled


KEY = dg.AssetKey("orders")


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    with dg.DagsterInstance.from_config(str(prepare_instance(Home(tmp_path).create()))) as instance:
        yield instance


def report(instance, *partitions: str) -> None:
    for partition in partitions:
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=partition, metadata={"rows": 1}))


def test_wiped_partitions_are_no_longer_materialized_and_the_others_are(instance):
    report(instance, "a", "b", "c")
    with pytest.raises(NotImplementedError):  # else the public way is to be used alone
        instance.wipe_asset_partitions(KEY, ["a"])
    wipe_partitions(instance, KEY, ["a", "c"])
    assert instance.get_materialized_partitions(KEY) == {"b"}
    (record,) = instance.fetch_materializations(KEY, limit=5).records
    assert record.partition_key == "b"


def test_a_kept_open_event_log_writes_as_before_and_makes_one_engine_for_each_database(instance, monkeypatch):
    engines = []

    def counted(address, **options):
        engines.append(address)
        return create_engine(address, **options)

    monkeypatch.setattr(internals, "create_engine", counted)
    monkeypatch.setattr(sqlite_event_log, "create_engine", counted)
    report(instance, "a", "b")
    assert len(engines) == 4, CHANGED.format(
        "how its event log connects: event_log_kept_open may not be needed any more"
    )
    engines.clear()

    def fail():
        with internals.event_log_kept_open(), internals.event_log_kept_open():
            report(instance, "c", "d")
            assert instance.get_materialized_partitions(KEY) == {"a", "b", "c", "d"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(engines) == len(set(engines)) == 2, CHANGED.format("create_engine of the event log")
    report(instance, "e")
    assert instance.get_materialized_partitions(KEY) == {*"abcde"}
    assert sqlite_event_log.create_engine is counted


def test_the_webserver_puts_a_middleware_around_all_that_it_serves(instance, monkeypatch):
    monkeypatch.setattr(DagsterWebserver, "build_middleware", DagsterWebserver.build_middleware)

    class Outermost:
        """Stands for the guard."""

    with pytest.raises(SystemExit):
        internals.run_webserver(["--version"], Outermost)
    with WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as process:
        app = DagsterWebserver(process).create_asgi_app()
    assert app.user_middleware[0].cls is Outermost, CHANGED.format("how the webserver is built")
