"""The code versions that earlier releases recorded, read as what is recorded for the same code now.

They counted comments and white space of the SQL and the budget of rejected rows, which change neither features nor scores.
What they recorded of the code as it is declared now is not out of date.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from batch_platform.models.registry import Registry
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun

Coded = TypeVar("Coded", FeatureBuild, ScoreRun)


@dataclass(frozen=True)
class FormerCodes:
    """Reads records of earlier releases."""

    now: Mapping[str, str]  # what is recorded now, by what was recorded

    def in_runs(self, runs: dict[str, Coded]) -> dict[str, Coded]:
        """Ledger rows by partition key."""
        return {
            key: replace(run, code_version=self.now[run.code_version]) if run.code_version in self.now else run
            for key, run in runs.items()
        }

    def in_registry(self, registry: Registry) -> Registry:
        """The versions and trainings of a pipeline."""
        versions = [
            replace(version, features_code_version=self._of(version.features_code_version))
            for version in registry.versions
        ]
        trainings = [replace(training, declared=self._of(training.declared)) for training in registry.model_trainings]
        return replace(registry, versions=versions, model_trainings=trainings)

    def _of(self, recorded: str) -> str:
        return self.now.get(recorded, recorded)
