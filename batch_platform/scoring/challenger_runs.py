"""Which challengers score a partition beside its champion, each version opened once, and what they commit."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.learners import Challenger
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle
from batch_platform.models.registry import Registry, Version
from batch_platform.scoring.challenger_tables import ChallengerRun, StagedChallenger
from batch_platform.scoring.challengers import Contender, OpenVersion, Shadowed, failure_of
from batch_platform.scoring.partition import Staged

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Challenged:
    """A challenger of one partition.

    Args:
        name: As declared.
        version: That is to score; None where it could not be told which one.
        bundle: Its bundle; None where it failed.
        failure: Why it cannot score.
    """

    name: str
    version: Version | None
    bundle: Bundle | None
    failure: str = ""


class Challengers:
    """The challengers of the partitions of one run, each version opened once."""

    def __init__(self, spec: PipelineSpec, registry: Registry, open_version: OpenVersion) -> None:
        """Open nothing yet."""
        self._spec, self._registry, self._open = spec, registry, open_version
        self._opened: dict[str, Bundle | str] = {}

    def of(self, partition: Partition, champion: Version) -> tuple[Challenged, ...]:
        """Who scores a partition beside its champion: the declared ones that have a version for it, but for itself."""
        return tuple(found for one in self._spec.challengers if (found := self._one(one, partition.start, champion)))

    def named(self, name: str, version: str) -> Challenged:
        """A challenger with a given version."""
        try:
            found = self._registry.present(version)
        except WrongUseError as error:
            return Challenged(name, None, None, failure_of(error))
        bundle = self._bundle(found)
        return Challenged(name, found, None, bundle) if isinstance(bundle, str) else Challenged(name, found, bundle)

    def _one(self, one: Challenger, at: datetime, champion: Version) -> Challenged | None:
        version = one.version
        if version is None:
            found = self._registry.challenger_at(one.name, at)
            version = None if found is None else found.version
        return None if version in (None, champion.version) else self.named(one.name, version)

    def _bundle(self, version: Version) -> Bundle | str:
        """The bundle, or why it cannot be had."""
        if version.version not in self._opened:
            try:
                self._opened[version.version] = self._open(version)
            except Exception as error:  # noqa: BLE001 - loading runs users' code: it is recorded, and production goes on
                self._opened[version.version] = failure_of(error)
        return self._opened[version.version]


def contenders(challenged: Sequence[Challenged], rows: Mapping[str, int]) -> tuple[Contender, ...]:
    """Those that are ready to score, given how many rows of a run each version is to score."""
    return tuple(
        Contender(one.name, one.bundle, one.bundle.for_rows(rows[one.bundle.version]))
        for one in challenged
        if one.bundle is not None
    )


def staged_challengers(
    challenged: Sequence[Challenged], staged: Staged, champion: str, stamp: Stamp
) -> tuple[StagedChallenger, ...]:
    """What the challengers of a staged partition commit, those included that failed."""
    given = {one.name: one for one in staged.shadowed}
    return tuple(_staged(one, given.get(one.name), staged, champion, stamp) for one in challenged)


def _staged(one: Challenged, given: Shadowed | None, staged: Staged, champion: str, stamp: Stamp) -> StagedChallenger:
    failure = one.failure if given is None else given.failure
    if failure:
        where = f"{staged.partition.key}: challenger {one.name!r}"
        _log.warning("partition %s could not score it beside the champion: %s", where, failure)
    version, partition = one.version, staged.partition
    run = ChallengerRun(
        partition_key=partition.key,
        challenger=one.name,
        model_version=None if version is None else version.version,
        champion_version=champion,
        rows_in=staged.rows_scored,
        rows_scored=0 if given is None else given.rows_scored,
        rows_rejected=0 if given is None else given.rows_rejected,
        reasons=json.dumps({} if given is None else given.reasons),
        rank_correlation=None if given is None else given.agreed.rank_correlation,
        decisions_flipped=None if given is None else given.agreed.decisions_flipped,
        failure=failure or None,
        in_sample=version is not None and version.has_seen(partition),
        scored_at=staged.started_at,
        run_id=stamp.run_id,
    )
    return StagedChallenger(run, None if given is None else given.file)
