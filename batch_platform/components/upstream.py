"""The partitions of the assets that sources read, as Dagster maps and records them."""

from collections.abc import Callable, Mapping

import dagster as dg

from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition

NeverMaterialized = Callable[[Partition], Mapping[str, list[str]]]


def never_materialized(context: dg.AssetExecutionContext, wiring: Wiring) -> NeverMaterialized:
    """A function that gives the partitions of assets that a partition reads and that were never materialized, by source.

    It knows the assets of this code location whose partitions are windows of time, and whose table a source of the features
    reads. An asset with a file for each partition is not among them: a missing file says the same.
    """
    graph, features = context.job_def.asset_layer.asset_graph, wiring.key("features")
    materialized = dict[str, set[str]]()
    for name in wiring.pipeline().builder.feature_sources:
        asset = wiring.source_key(name)
        if wiring.spec.sources[name].kind != "asset" or not graph.has(asset):
            continue
        if isinstance(graph.get(asset).partitions_def, dg.TimeWindowPartitionsDefinition):
            materialized[name] = set(context.instance.get_materialized_partitions(asset))

    def lacking(partition: Partition) -> dict[str, list[str]]:
        read = {
            name: graph.get_parent_partition_keys_for_child(partition.key, wiring.source_key(name), features)
            for name in materialized
        }
        return {
            name: sorted(absent)
            for name, mapped in read.items()
            if (absent := {*mapped.partitions_subset.get_partition_keys()} - materialized[name])
        }

    return lacking
