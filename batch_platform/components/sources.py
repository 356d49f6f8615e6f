"""Raw sources as external assets, observed on demand and by every run that builds features from them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import dagster as dg

from batch_platform.components import describe, lineage
from batch_platform.components.events import LOGGED_IN_THE_BODY, observed
from batch_platform.components.wiring import Wiring, clear_failures, now
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError


def build_sources(wiring: Wiring) -> list[dg.AssetsDefinition]:
    """Build an observable asset for each source."""
    return [_observable(wiring, name) for name in wiring.spec.sources]


def observe_sources(context: dg.AssetExecutionContext, wiring: Wiring, partitions: Sequence[Partition]) -> None:
    """Log the state of the sources that a run reads.

    A source is opened only if its version is new, and never if it has a file for each partition. A source whose file is
    missing is left out: the build that needs it reports it.
    """
    for name in wiring.pipeline().builder.feature_sources:
        by_partition = wiring.spec.sources[name].by_partition
        for partition in partitions if by_partition else partitions[:1]:
            with suppress(SourceError):
                version = wiring.pipeline().builder.sources.version(name, partition)
                metadata = None if by_partition else _metadata(context, wiring, name, partition, version)
                key = partition.key if by_partition else None
                observed(context, wiring.key(name), key, data_version=version, metadata=metadata)


def _metadata(
    context: dg.AssetExecutionContext, wiring: Wiring, name: str, partition: Partition, version: str
) -> Mapping[str, Any]:
    """Describe a source: as last observed if its version is the same, else by reading it.

    A source whose rows can only be counted by reading all of them is not read here: *Observe* does that. Where equal
    versions do not mean equal rows, the number of rows is not repeated.
    """
    kind = wiring.pipeline().builder.sources.kind(name)
    record = context.instance.get_latest_data_version_record(wiring.key(name))
    last = record.event_log_entry.asset_observation if record else None
    if last is not None and last.metadata and last.data_version == version:
        dropped = None if kind.version_fixes_rows else describe.ROW_COUNT
        return {key: value for key, value in last.metadata.items() if key != dropped}
    if not kind.counts_quickly:
        return {}
    return describe.source_state(wiring.pipeline().builder.sources.state(name, partition))


def _observable(wiring: Wiring, name: str) -> dg.AssetsDefinition:
    source, key = wiring.spec.sources[name], wiring.key(name)

    @dg.multi_observable_source_asset(
        name=key.to_python_identifier(),
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
        with clear_failures():
            if source.by_partition:
                _observe_partitions(context, wiring, name)
            else:
                _observe_whole(context, wiring, name)
        return dg.ObserveResult(asset_key=key, metadata=LOGGED_IN_THE_BODY)

    return observe


def _observe_whole(context: dg.AssetExecutionContext, wiring: Wiring, name: str) -> None:
    calendar, sources = wiring.spec.partitions.calendar, wiring.pipeline().builder.sources
    due = calendar.due(now())
    newest = due[-1] if due else calendar.holding(calendar.first_start)
    state = sources.state(name, newest)
    version = state.version if newest is None else sources.version(name, newest)
    observed(context, wiring.key(name), None, data_version=version, metadata=describe.source_state(state))


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
        metadata = describe.source_state(state)
        observed(context, wiring.key(name), partition.key, data_version=state.version, metadata=metadata)
