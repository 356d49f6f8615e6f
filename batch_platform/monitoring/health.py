"""The health of a pipeline: one judgement for each aspect of it, and the worst of them as a whole."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import get_args

from batch_platform.monitoring.drift import Level

LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Aspect:
    """One judgement."""

    name: str  # that of a check of the newest partition, or sources, failures, fresh, delivered and so on
    level: Level | None  # None where it is not judged
    text: str  # a clause that says what is so
    partition: str | None = None  # key of the partition that it is about
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def passed(self) -> bool:
        """True if it is neither worth a warning nor failed."""
        return self.level in (None, "none")


@dataclass(frozen=True)
class Health:
    """All judgements, and the worst level among them."""

    level: Level
    aspects: list[Aspect]

    @classmethod
    def of(cls, aspects: Iterable[Aspect]) -> "Health":
        """The health by some judgements."""
        members = list(aspects)
        levels: list[Level] = [aspect.level for aspect in members if aspect.level is not None]
        return cls(LEVELS[max(map(LEVELS.index, levels), default=0)], members)

    @property
    def alarms(self) -> list[Aspect]:
        """The aspects that are worth a warning or failed, the worst first."""
        alarms = [aspect for aspect in self.aspects if not aspect.passed]
        return sorted(alarms, key=lambda aspect: LEVELS.index(aspect.level or "none"), reverse=True)

    def reaches(self, level: Level) -> bool:
        """Return whether it is as bad as a level, or worse."""
        return LEVELS.index(self.level) >= LEVELS.index(level)
