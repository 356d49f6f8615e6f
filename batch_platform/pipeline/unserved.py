"""Partitions that were asked for and that no model serves: the one rule for whether the work failed because of them."""

from collections.abc import Iterable, Sequence

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, NoChampionError
from batch_platform.pipeline.state import State
from batch_platform.pipeline.steps import Item


def unserved_error(
    state: State, asked: Iterable[Partition], blocked: Sequence[Item], *, named: bool
) -> BatchPlatformError | None:
    """The error that no model serves some of the partitions that were asked for; None if nobody has to act on that.

    - Nobody has to act on a warm-up: it only counts where the partitions were `named` and none of them is scored.
    - Any other partition that was named counts, for example one whose model waits for promotion.
    - If everything that can be scored was asked for, such a partition counts only where nothing is scored: once a later model
      serves, the partitions before it stay as they are.

    Args:
        state: The state once everything else is done.
        asked: The partitions that were asked for.
        blocked: Those that no model serves, by the plan of what is left.
        named: Whether somebody named the partitions, as a run that is launched in Dagster does.
    """
    nothing_scored = all(partition.key not in state.scores for partition in asked)
    unserved = [item for item in blocked if not item.warm_up or (named and nothing_scored)]
    if not unserved or not (named or nothing_scored):
        return None
    error = _no_champion(state, unserved[0])
    if error is not None:
        error.set_apart = tuple(item.partition.key for item in unserved)
    return error


def _no_champion(state: State, item: Item) -> BatchPlatformError | None:
    """The error about one partition, with what makes a model serve it; None if a model serves it after all."""
    pipeline, partition = state.registry.pipeline, item.partition
    if partition.key in state.scores:
        msg = f"{pipeline}, partition {partition.key}: its predictions stay as they were scored; {item.reason}."
        return NoChampionError(msg, hint=f"batch-platform drop {pipeline} --partition {partition.key} removes them.")
    try:
        state.registry.require_champion(partition.start, partition.key)
    except NoChampionError as error:
        return error
    return None
