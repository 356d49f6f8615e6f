"""The assets of the deliveries, one for each receiver: a run delivers the scored partitions whose newest commit it does not hold."""

from collections.abc import Iterator, Mapping

import dagster as dg
from pydantic import Field

from batch_platform.components import commits
from batch_platform.components.automation import condition_of
from batch_platform.components.events import PartitionLog
from batch_platform.components.making import RunStep
from batch_platform.components.scoring import require_all_done, score_what_failed
from batch_platform.components.wiring import Wiring, now
from batch_platform.declaration.predictions import Delivery
from batch_platform.declaration.redaction import redact
from batch_platform.pipeline.deliver import deliver
from batch_platform.planning.artifacts import undelivered
from batch_platform.planning.request import PlanRequest


class DeliveryConfig(dg.Config):
    """Options for delivering partitions."""

    force: bool = Field(default=False, description="Deliver partitions again even if the receiver holds them.")


def delivered_asset(wiring: Wiring, made: Mapping[str, dg.AssetsDefinition], delivery: Delivery) -> dg.AssetsDefinition:
    """The asset of one delivery."""
    key = wiring.key(delivery.asset)

    @dg.asset(
        key=key,
        op_tags=wiring.op_tags,
        group_name=wiring.spec.name,
        owners=wiring.spec.owners,
        kinds={delivery.kind},
        description=f"The {delivery.of.replace('_', ' ')} at `{delivery.kind}: {redact(str(delivery.to))}`, each partition replaced as a "
        "whole when it is scored. Materialize partitions here to retry a delivery that failed: nothing is scored.",
        partitions_def=wiring.served,
        deps=[wiring.key("predictions")],
        backfill_policy=wiring.backfill_policy(wiring.served),
        pool=wiring.spec.dagster.pool,
        automation_condition=condition_of(wiring, delivery.asset),
    )
    def delivered(
        context: dg.AssetExecutionContext, config: DeliveryConfig
    ) -> Iterator[dg.MaterializeResult | dg.Output[None]]:
        step = RunStep(context, wiring, made)
        with step.at_work():
            log = _deliver(step, delivery, force=config.force)
        yield from log.finish()

    return delivered


def _deliver(step: RunStep, delivery: Delivery, *, force: bool) -> PartitionLog:
    """Deliver what is due of the run's partitions, and log the others as they are recorded.

    Beside the predictions, what could not be scored is left out, and fails this step where no evaluation follows that does.
    """
    beside_scoring = step.is_followed_by("predictions")
    if beside_scoring:
        score_what_failed(step, PlanRequest(now(), step.partitions))
    step.pipeline.publish()
    state = step.pipeline.state()
    asked = [partition for partition in step.partitions if not beside_scoring or partition.key in state.scores]
    due = [it for it in asked if force or it.key not in state.scores or undelivered(state, delivery, it.key)]
    log = step.log(delivery.asset, len(due))
    for partition in [partition for partition in asked if partition not in due]:
        log.committed(commits.delivered(state.deliveries[delivery.name, partition.key]), retold=True)
    for _, done in deliver(step.pipeline, delivery, due, step.stamp()):
        log.committed(commits.delivered(done))
    if beside_scoring and not step.is_followed_by("performance"):
        require_all_done(step)
    return log
