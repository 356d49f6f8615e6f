"""Raw sources in the graph: external assets, observed on demand and by every run that builds features from them."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import dagster as dg

from batch_platform.components import describe, lineage
from batch_platform.components.events import LOGGED_IN_THE_BODY, observed
from batch_platform.components.wiring import Wiring, clear_failures, now
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError
from batch_platform.declaration.functions import import_function


def build_sources(wiring: Wiring) -> list[dg.AssetsDefinition]:
    """One observable asset for each source."""
    return [_observable(wiring, name) for name in wiring.spec.sources]


def read_by_features(wiring: Wiring) -> list[str]:
    """The sources that the features read."""
    query = wiring.pipeline().builder.query
    if query is not None:
        return query.reads(wiring.spec.sources)
    function = import_function(wiring.spec.features.python or "", "features.python")
    return [name for name in inspect.signature(function).parameters if name in wiring.spec.sources]


def read_by_labels(wiring: Wiring) -> list[str]:
    """The sources that the labels read."""
    query = wiring.pipeline().builder.labels_query
    return [] if query is None else query.reads(wiring.spec.sources)


def observe_sources(context: dg.AssetExecutionContext, wiring: Wiring, partitions: Sequence[Partition]) -> None:
    """Log in which state a run finds the sources that it reads.

    Only one whose version is new is opened for it, and none that has a file for each partition. A source without its file
    is left out: building the features that need it says so.
    """
    for name in read_by_features(wiring):
        own = wiring.spec.sources[name].by_partition
        for partition in partitions if own else partitions[:1]:
            with suppress(SourceError):
                version = wiring.pipeline().builder.sources.version(name, partition)
                holds = None if own else _holds(context, wiring, name, partition, version)
                observed(
                    context, wiring.key(name), partition.key if own else None, data_version=version, metadata=holds
                )


def _holds(
    context: dg.AssetExecutionContext, wiring: Wiring, name: str, partition: Partition, version: str
) -> Mapping[str, Any]:
    """What a source holds: as last seen if its version is the same, else as it is read.

    A CSV file is not read for it, since its rows are counted only by reading all of it: *Observe* does that. The
    version of a function is that of its code: the same code may give other rows, so their number is not repeated.
    """
    kind = wiring.pipeline().builder.sources.kind(name)
    record = context.instance.get_latest_data_version_record(wiring.key(name))
    seen = record.event_log_entry.asset_observation if record else None
    if seen is not None and seen.metadata and seen.data_version == version:
        dropped = None if kind.version_fixes_rows else describe.ROW_COUNT
        return {key: value for key, value in seen.metadata.items() if key != dropped}
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
    """The partitions of the run, or all that are due; those without a file are left out."""
    sources = wiring.pipeline().builder.sources
    asked = context.partition_keys if context.has_partition_key or context.has_partition_key_range else ()
    for partition in wiring.named(asked) or wiring.spec.partitions.calendar.due(now()):
        try:
            sources.version(name, partition)
        except SourceError:
            continue
        state = sources.state(name, partition)
        metadata = describe.source_state(state)
        observed(context, wiring.key(name), partition.key, data_version=state.version, metadata=metadata)
