"""Score the partitions with rejected rows again, after a fix in the sources or in the declared rules.

A replay is a plain rebuild and scoring of whole partitions. It refuses only what would change every prediction of a
partition for a reason other than the fix: another champion, or another form of the predictions.
"""

from collections.abc import Generator, Sequence

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, DataError, listed
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.state import State
from batch_platform.scoring.run import Committed
from batch_platform.warehouse.ledger import ScoreRun


def replay(pipeline: Pipeline, partitions: Sequence[Partition], stamp: Stamp) -> Generator[Committed]:
    """Rebuild the features of partitions that have rejected rows, score them, and yield each one that changed.

    The features are rebuilt whatever the plan says: a fix in a source that is not split by partition is not in the plan.

    Raises:
        DataError: Some partitions were refused; raised after all others are committed. See `Pipeline.score` for others.
        SourceError: A source cannot be read, or the SQL fails.
        IntegrityError: A feature file or a bundle is not what was recorded.
        WarehouseError: A newer run committed a partition meanwhile.
    """
    state, due, refused = pipeline.state(), list[Partition](), dict[str, list[str]]()
    for partition in partitions:
        run = state.scores.get(partition.key)
        if run is None or not run.rows_rejected:
            continue
        if reason := _refusal(state, partition, run):
            refused.setdefault(reason, []).append(partition.key)
        else:
            due.append(partition)
    try:
        for _ in pipeline.build_features(due, stamp, force=True):
            pass
    except BatchPlatformError as error:
        if not error.set_apart:  # otherwise scoring says so, once the others are scored
            raise
    if due:
        yield from (committed for committed in pipeline.score(due, stamp) if not committed.skipped)
    if refused:
        reasons = "; ".join(f"{listed(keys)}: {reason}" for reason, keys in refused.items())
        keys = [key for keys in refused.values() for key in keys]
        msg = f"{pipeline.spec.name}: these partitions were not replayed: {reasons}."
        hint = f"batch-platform run {pipeline.spec.name} --from {min(keys)} --to {max(keys)} --force scores them anew."
        raise DataError(msg, hint=hint)


def _refusal(state: State, partition: Partition, run: ScoreRun) -> str:
    """Say why a partition cannot be replayed; empty if it can."""
    champion = state.registry.champion(partition.start)
    if champion is None or champion.version != run.model_version:
        served_by = "no model serves it" if champion is None else f"the champion is {champion.version}"
        return f"scored by {run.model_version}, {served_by}"
    if run.code_version.partition("-")[0] != state.scoring_code_version.partition("-")[0]:
        return "features.key, features.time or predictions.keep are declared differently now"
    return ""
