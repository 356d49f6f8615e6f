"""Pictures of a pipeline's numbers, as Markdown for the metadata of events: which numbers, in which order."""

from batch_platform.components.wiring import Wiring
from batch_platform.monitoring.performance import DEFAULT_METRIC
from batch_platform.monitoring.pictures import Point, bars, curve, histogram
from batch_platform.monitoring.scores import ScoreDistribution
from batch_platform.registry import Version, read_registry

MOST_VERSIONS = 18  # in one picture


def distribution(scores: ScoreDistribution) -> str:
    """The scores of one partition: a histogram, or the shares of the classes."""
    if scores.low is None or scores.high is None:
        return bars(scores.bars)
    return histogram([count for _, count in scores.bars], scores.low, scores.high)


def versions_until(wiring: Wiring, version: Version) -> str | None:
    """The gate's metric of every version up to a registered one, by serving period, refused ones in another colour.

    None where the metric has no value for that version.
    """
    promote = wiring.spec.model.promote
    metric = promote.metric or DEFAULT_METRIC[version.task]
    if metric not in version.metric_values:
        return None
    with wiring.pipeline().warehouse.open() as con:
        registry = read_registry(con, wiring.spec.name)
    approved = {known.version for known in registry.approved()}
    earlier = [known for known in registry.of_model if known.version != version.version]
    earlier = [known for known in earlier if known.serving_start <= version.serving_start]
    points = [
        Point(known.serving_period, known.metric_values[metric], good=known.version in approved)
        for known in [*sorted(earlier, key=lambda known: (known.serving_start, known.seq)), version]
        if metric in known.metric_values
    ]
    bound = None if promote.at_least is None else Point("gate", promote.at_least)
    return f"{metric} of each version, by serving period\n\n{curve(points[-MOST_VERSIONS:], bound=bound)}"
