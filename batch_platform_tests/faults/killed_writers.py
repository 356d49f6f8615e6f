"""Kill one writer after another, at every step, and check after each kill that nothing is torn.

Real processes, real files, SIGKILL. After each kill another process opens the warehouse and the published copy, compares
every partition with its ledger row and with the rows it may hold, and runs the work again. Meanwhile a reader in a
process of its own never stops looking.
"""

import random
import signal
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from batch_platform.models.bundle import open_bundle
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.faults.invariants import (
    NOW,
    SCORED,
    Held,
    assert_nothing_in_between,
    assert_nothing_left_over,
    assert_others_unchanged,
    changed_events,
    contents,
    days,
    held,
    prepared,
    published,
    rewrite,
)
from batch_platform_tests.faults.reader import Reader
from batch_platform_tests.faults.victim import Job
from batch_platform_tests.harness.nursery import Child, Nursery
from batch_platform_tests.harness.small_pipeline import carry_out, write_small_project

PERIOD = "2024-02-01"


@dataclass
class KilledWriters:
    """A home whose writers are killed.

    Args:
        folder: Folder of the home and the projects.
        seed: Seed of all random choices.
        declared: Overrides of the declaration, as for `small_spec`.
    """

    folder: Path
    seed: int = 0
    declared: dict[str, Any] = field(default_factory=dict[str, Any])
    kills: Counter[str] = field(default_factory=Counter[str])  # by the mark that the killed process had passed
    outcomes: Counter[str] = field(default_factory=Counter[str])

    def __enter__(self) -> Self:
        self._random = random.Random(self.seed)
        pipeline = prepared(self.folder, **self.declared)
        if pipeline.spec.challengers:
            carry_out(pipeline, NOW, "challengers")  # so that they have a version
        project = write_small_project(self.folder / "other", events=changed_events(*SCORED))
        self.projects = [pipeline, Pipeline(pipeline.spec, project, pipeline.home)]
        self._contents = [self._content_of(pipeline) for pipeline in reversed(self.projects)][::-1]
        self._count = 0
        with ExitStack() as stack:
            self._nursery = stack.enter_context(Nursery())
            allowed = {key: {content[key] for content in self._contents} for key in SCORED}
            self.reader = stack.enter_context(Reader(pipeline.home, allowed))
            self._last = held(pipeline)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def steps_of_a_write(self) -> list[str]:
        """The steps of a write, in order."""
        return self._steps("write", **self._write_arguments(0, SCORED[:2]))

    def kill_at_step_of_a_write(self, number: int) -> None:
        """Let a write end itself by SIGKILL right before a step, if it has so many: some have less to clean up."""
        before = self._last
        which, keys, child = self._begin_write(stop_at=number)
        ended = child.bury()
        assert ended in (-signal.SIGKILL, 0)
        self.kills["a step"] += ended != 0
        self._require_whole(before, which, keys)

    def kill_write_before(self, pattern: str) -> None:
        """Let a write end itself by SIGKILL right before the first step whose name matches a regular expression."""
        before = self._last
        which, keys, child = self._begin_write(die_at=pattern)
        assert child.bury() == -signal.SIGKILL, pattern
        self.kills["a step"] += 1
        self._require_whole(before, which, keys)

    def steps_of_a_training(self) -> list[str]:
        """The steps of a training, in order."""
        return self._steps("train", **self._train_arguments())

    def kill_training(self, number: int) -> None:
        """Let a training end itself by SIGKILL right before a step."""
        pipeline = self.projects[0]
        before, registry = held(pipeline), pipeline.state().registry
        child = self._nursery.fork("train", **self._train_arguments(), stop_at=number)
        if child.bury() == -signal.SIGKILL:
            self.kills["a training"] += 1
        assert held(pipeline) == before, "training touches no prediction"
        after = pipeline.state().registry
        assert after.versions[: len(registry.versions)] == registry.versions
        assert len(after.promotions) == len(after.versions), "a version and what was decided of it come together"
        for version in after.versions[-2:]:
            open_bundle(pipeline.home.bundle("small", version.version), version.sha256)
        champion = after.require_champion(days(pipeline, SCORED[0])[0].start, SCORED[0])
        rewrite(pipeline, SCORED[0], run_id=f"serves-{self._count}")
        self._last = held(pipeline)
        assert self._last[SCORED[0]].model_version == champion.version
        assert_nothing_left_over(pipeline)

    def _content_of(self, pipeline: Pipeline) -> dict[str, str]:
        rewrite(pipeline, *SCORED, run_id="known")
        return contents(held(pipeline))

    def _begin_write(self, **options: Any) -> tuple[int, list[str], Child]:
        which = self._random.randrange(2)
        first = self._random.randrange(len(SCORED) - 2)
        keys = SCORED[first : first + self._random.randint(1, 3)]
        return which, keys, self._nursery.fork("write", **self._write_arguments(which, keys), **options)

    def _write_arguments(self, which: int, keys: list[str]) -> dict[str, Any]:
        return {"job": self._job(which), "keys": keys}

    def _train_arguments(self) -> dict[str, Any]:
        return {"job": self._job(0), "period": PERIOD}

    def _job(self, which: int) -> dict[str, Any]:
        self._count += 1
        pipeline = self.projects[which]
        name = f"killed-{self._count}"
        job = Job(str(pipeline.home.root), str(pipeline.folder), name, NOW.isoformat(), self.declared, by_changes=True)
        return asdict(job)

    def _steps(self, task: str, **arguments: Any) -> list[str]:
        child = self._nursery.fork(task, **arguments, name_steps=True)
        passed = child.rest()
        assert child.bury() == 0
        self._last = held(self.projects[0])
        return [name.removeprefix("step ") for name in passed if name.startswith("step ")]

    def _require_whole(self, before: dict[str, Held], which: int, keys: list[str]) -> None:
        """Assert that a killed write changed all of its partitions or none and nothing else, and that a retry completes it."""
        pipeline = self.projects[which]
        after = held(pipeline)
        published(pipeline.home)
        assert_others_unchanged(before, after, keys)
        changed = {key for key in keys if after[key] != before[key]}
        assert changed in (set(), set(keys)), "one transaction"
        assert all(after[key].content == self._contents[which][key] for key in changed)
        self.outcomes["new" if changed else "old"] += 1
        rewrite(pipeline, *keys, run_id=f"retry-{self._count}")
        retried = held(pipeline)
        assert {key: retried[key].content for key in keys} == {key: self._contents[which][key] for key in keys}
        assert_others_unchanged(after, retried, keys)
        assert published(pipeline.home) == retried
        assert_nothing_in_between(pipeline)
        self._last = retried
