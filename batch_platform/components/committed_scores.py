"""The distributions of scores for the events of a run: one look at the warehouse for all partitions of a commit."""

from collections.abc import Sequence

from batch_platform.ledger import LEDGERS_SCHEMA
from batch_platform.monitoring.scores import ScoreDistribution, read_distributions
from batch_platform.warehouse import Warehouse

AT_ONCE = 60  # partitions that one look covers; a commit holds about as many


class CommittedScores:
    """The distributions of the partitions of a run, read for many at a time as they are committed.

    Args:
        warehouse: Where they are committed.
        pipeline: Whose predictions.
        partition_keys: Of the run, in the order in which they are committed.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        pipeline: str,
        partition_keys: Sequence[str],
    ) -> None:
        """Nothing is read yet."""
        self._warehouse, self._pipeline, self._keys = warehouse, pipeline, list(partition_keys)
        self._seqs: dict[str, int] = {}
        self._found: dict[str, ScoreDistribution] = {}

    def of(self, partition_key: str, seq: int) -> ScoreDistribution | None:
        """The distribution of a partition as committed with a ledger row; None where it has no predictions.

        Raises:
            WarehouseBusyError: Another process kept the warehouse for longer than the time-out.
        """
        if self._seqs.get(partition_key) != seq:
            start = self._keys.index(partition_key)
            self._read(self._keys[start : start + AT_ONCE])
        return self._found.get(partition_key)

    def _read(self, keys: list[str]) -> None:
        query = (
            f"SELECT partition_key, max(seq) FROM {LEDGERS_SCHEMA}.score_runs "
            "WHERE pipeline = $pipeline AND partition_key IN $keys GROUP BY partition_key"
        )
        with self._warehouse.open() as con:
            self._seqs |= dict(con.execute(query, {"pipeline": self._pipeline, "keys": keys}).fetchall())
            found = read_distributions(con, self._pipeline, keys)
        for key in keys:
            self._found.pop(key, None)
        self._found |= found
