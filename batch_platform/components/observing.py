"""Raw sources as Dagster sees them: assets that are observed, by themselves or by a run that reads them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import dagster as dg

from batch_platform.components import describe, lineage
from batch_platform.components.dagster_internals import LOGGED_IN_THE_BODY, observed_version_tags
from batch_platform.components.events import cluster_heard
from batch_platform.components.wiring import PIPELINE_TAG, Wiring, clear_failures, now
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError
from batch_platform.sources.known import SOURCE_KINDS

NeverMaterialized = Callable[[Partition], Mapping[str, list[str]]]


def source_asset(wiring: Wiring, name: str) -> dg.AssetsDefinition:
    """The asset of a raw source, which observes what the source holds."""
    source, key = wiring.spec.sources[name], wiring.key(name)

    @dg.multi_observable_source_asset(
        name=key.to_python_identifier(),
        required_resource_keys=wiring.resource_keys if SOURCE_KINDS[source.kind].only_on_spark else None,
        specs=[
            dg.AssetSpec(
                key,
                group_name=wiring.spec.name,
                owners=wiring.spec.owners,
                kinds={source.kind},
                description=describe.source(wiring, name),
                metadata=lineage.source(wiring, name),
            )
        ],
        partitions_def=wiring.partitions if source.by_partition else None,
    )
    def observe(context: dg.AssetExecutionContext) -> dg.ObserveResult:
        with clear_failures(), cluster_heard(context, wiring):
            if source.by_partition:
                _observe_partitions(context, wiring, name)
            else:
                _observe_whole(context, wiring, name)
        return dg.ObserveResult(asset_key=key, metadata=LOGGED_IN_THE_BODY)

    return observe


def _observe_whole(context: dg.AssetExecutionContext, wiring: Wiring, name: str) -> None:
    calendar, builder = wiring.spec.partitions.calendar, wiring.pipeline().builder
    due = calendar.due(now())
    newest = due[-1] if due else calendar.holding(calendar.first_start)
    state = builder.source_state(name, newest)
    version = state.version if newest is None else builder.sources.version(name, newest)
    _log_observed(context, wiring, name, None, version, describe.source_state(state, by_partition=False))


def _observe_partitions(context: dg.AssetExecutionContext, wiring: Wiring, name: str) -> None:
    """Observe the partitions of the run, or all that are due, except those whose file is missing."""
    sources = wiring.pipeline().builder.sources
    keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else ()
    for partition in wiring.named(keys) or wiring.spec.partitions.calendar.due(now()):
        try:
            sources.version(name, partition)
        except SourceError:
            continue
        state = sources.state(name, partition)
        metadata = describe.source_state(state, by_partition=True)
        _log_observed(context, wiring, name, partition.key, state.version, metadata)


def observe_sources(context: dg.AssetExecutionContext, wiring: Wiring, partitions: Sequence[Partition]) -> None:
    """Log the state of the sources that a run reads.

    A source is opened only if its version is new, and never if it has a file for each partition. A source whose file is
    missing is left out: the build that needs it reports it. So is an asset of somebody else that has data versions of its own.
    """
    for name in wiring.pipeline().builder.feature_sources:
        if wiring.spec.sources[name].asset is not None and _has_own_versions(context, wiring.source_key(name)):
            continue
        by_partition = wiring.spec.sources[name].by_partition
        for partition in partitions if by_partition else partitions[:1]:
            with suppress(SourceError):
                version = wiring.pipeline().builder.sources.version(name, partition)
                metadata = {} if by_partition else _source_metadata(context, wiring, name, partition, version)
                _log_observed(context, wiring, name, partition.key if by_partition else None, version, metadata)


def _has_own_versions(context: dg.AssetExecutionContext, asset: dg.AssetKey) -> bool:
    """Return whether an asset was materialized, or observed by anything but a pipeline."""
    record = context.instance.get_latest_data_version_record(asset)
    observation = record.event_log_entry.asset_observation if record else None
    return record is not None and (observation is None or PIPELINE_TAG not in observation.tags)


def _source_metadata(
    context: dg.AssetExecutionContext, wiring: Wiring, name: str, partition: Partition, version: str
) -> Mapping[str, Any]:
    """Describe a source: as last observed if its version is the same, else by reading it.

    A source whose rows can only be counted by reading all of them is not read here: *Observe* does that. Where equal
    versions do not mean equal rows, the number of rows is not repeated.
    """
    kind = wiring.pipeline().builder.sources.kind(name)
    record = context.instance.get_latest_data_version_record(wiring.source_key(name))
    last = record.event_log_entry.asset_observation if record else None
    if last is not None and last.metadata and last.data_version == version:
        dropped = None if kind.version_fixes_rows else describe.ROW_COUNT
        return {key: value for key, value in last.metadata.items() if key != dropped}
    if not kind.counts_quickly:
        return {}
    return describe.source_state(wiring.pipeline().builder.source_state(name, partition), by_partition=False)


def _log_observed(  # noqa: PLR0913 - what makes up an observation
    context: dg.AssetExecutionContext,
    wiring: Wiring,
    name: str,
    partition_key: str | None,
    version: str,
    metadata: Mapping[str, Any],
) -> None:
    tags = observed_version_tags(version) | {PIPELINE_TAG: wiring.spec.name}
    key = wiring.source_key(name)
    context.log_event(dg.AssetObservation(asset_key=key, partition=partition_key, metadata=metadata, tags=tags))


def never_materialized(context: dg.AssetExecutionContext, wiring: Wiring, sources: Sequence[str]) -> NeverMaterialized:
    """A function that gives the partitions of assets that a partition reads and that were never materialized, by source.

    It knows the assets of this code location whose partitions are windows of time, and whose table one of the
    sources reads. An asset with a file for each partition is not among them: a missing file says the same.
    """
    graph, mapping = context.job_def.asset_layer.asset_graph, dg.TimeWindowPartitionMapping()
    upstream, materialized = dict[str, dg.TimeWindowPartitionsDefinition](), dict[str, set[str]]()
    for name in sources:
        asset = wiring.source_key(name)
        if wiring.spec.sources[name].kind != "asset" or not graph.has(asset):
            continue
        if isinstance(windows := graph.get(asset).partitions_def, dg.TimeWindowPartitionsDefinition):
            upstream[name] = windows
            materialized[name] = set(context.instance.get_materialized_partitions(asset))

    def lacking(partition: Partition) -> dict[str, list[str]]:
        own = wiring.partitions.subset_with_partition_keys([partition.key])
        read = {
            name: mapping.get_upstream_mapped_partitions_result_for_partitions(own, wiring.partitions, windows)
            for name, windows in upstream.items()
        }
        return {
            name: sorted(absent)
            for name, mapped in read.items()
            if (absent := {*mapped.partitions_subset.get_partition_keys()} - materialized[name])
        }

    return lacking
