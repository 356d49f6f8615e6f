"""Read the files that a pipeline's ledgers refer to, feature files and bundles, and compare them with what was recorded."""

from collections.abc import Iterator

from batch_platform.declaration.errors import IntegrityError, WrongUseError
from batch_platform.models.bundle import require_unchanged
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.state import State


def damaged_files(pipeline: Pipeline, state: State) -> Iterator[IntegrityError]:
    """Read every feature file and every bundle that serves; gives an error for each that is not as recorded.

    A file may be missing of a partition that is not scored, which builds it again, or no longer declared, whose file `gc` removes.
    """
    for key, build in {**state.features, **state.seen.lost}.items():
        is_needed = key in state.scores and _is_declared(pipeline, key)
        if is_needed or pipeline.history.file(build).exists():
            try:
                pipeline.history.require_unchanged(build)
            except IntegrityError as error:
                yield error
    registry = state.registry
    challengers = ((name, registry.named(version)) for version, name in registry.challengers.items())
    serving = [stretch.version for stretch in registry.timeline.stretches]
    serving += filter(None, (registry.challenger_at(name, version.serving_start) for name, version in challengers))
    for name, sha256 in {version.version: version.sha256 for version in serving}.items():
        try:
            require_unchanged(pipeline.home.bundle(registry.pipeline, name), sha256)
        except IntegrityError as error:
            yield error


def _is_declared(pipeline: Pipeline, key: str) -> bool:
    try:
        pipeline.spec.partitions.calendar.named(key)
    except WrongUseError:
        return False
    return True
