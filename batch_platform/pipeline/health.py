"""The health of a pipeline: whether the newest partition is scored in time, and what is unusual about the newest ones.

A partition is compared with earlier partitions only, so its judgement is the same whenever it is scored. The clock is read
by whoever asks whether a pipeline is fresh.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import isfinite

import polars as pl

from batch_platform.declaration.calendar import Calendar, Partition
from batch_platform.declaration.errors import NothingPublishedError, counted, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.windows import deadline, oldest_champion, served_calendar
from batch_platform.models.registry import Version
from batch_platform.monitoring.catalogue import declared_checks
from batch_platform.monitoring.drift import ColumnDrift
from batch_platform.monitoring.estimates import TrackRecord, estimated_metric
from batch_platform.monitoring.health import Aspect, Health
from batch_platform.monitoring.metrics import default_metric
from batch_platform.monitoring.performance import PERFORMANCE
from batch_platform.monitoring.usual import MOST_COMPARED, MOST_REJECTING, unusually_many, usual_rows
from batch_platform.pipeline.evaluate import measured_rows
from batch_platform.pipeline.plan import first_served
from batch_platform.pipeline.state import State
from batch_platform.scoring.drift_tables import SegmentDrift, read_drift, read_segment_alarms, score_not_judged
from batch_platform.scoring.estimate_tables import EstimatedMetric, read_estimates, track_records
from batch_platform.warehouse.failures import Failure
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.published import reading_published

_Rhythm = tuple[int, ...]  # what partitions have in common whose numbers of rows are compared


class Past:
    """The scored partitions of a pipeline in order of time, and which of them are alike."""

    def __init__(self, calendar: Calendar, runs: Iterable[ScoreRun]) -> None:
        """Begin with some commits, the newest of each partition."""
        self._calendar, self._runs = calendar, dict[datetime, ScoreRun]()
        self._starts = defaultdict[_Rhythm | None, list[datetime]](list)  # None: all
        for run in sorted(runs, key=lambda run: run.partition_start):
            self.add(run)

    def add(self, run: ScoreRun) -> None:
        """Take account of a commit, which replaces an earlier one of the same partition."""
        if run.partition_start not in self._runs:
            for rhythm in (None, self._rhythm(run)):
                insort(self._starts[rhythm], run.partition_start)
        self._runs[run.partition_start] = run

    def before(self, run: ScoreRun, most: int, *, alike: bool) -> list[ScoreRun]:
        """The newest commits before a partition, oldest first; if `alike`, of its weekday, and of its hour if it is one."""
        starts = self._starts[self._rhythm(run) if alike else None]
        end = bisect_left(starts, run.partition_start)
        return [self._runs[start] for start in starts[max(0, end - most) : end]]

    def _rhythm(self, run: ScoreRun) -> _Rhythm:
        local = run.partition_start.astimezone(self._calendar.zone)
        match self._calendar.every:
            case "hour":
                return local.weekday(), local.hour
            case "day":
                return (local.weekday(),)
            case "week" | "month":
                return ()


@dataclass(frozen=True)
class Measured:
    """What was measured of the newest partitions."""

    drift: tuple[ColumnDrift, ...] = ()  # of the newest scored partition, the worst column first
    segment_alarms: tuple[SegmentDrift, ...] = ()  # of its segments, the worst first
    estimates: tuple[EstimatedMetric, ...] = ()  # of the newest scored partition
    records: Mapping[str, TrackRecord] = field(default_factory=dict[str, TrackRecord])  # of estimates, by metric
    evaluated: str | None = None  # the newest partition whose labels are known
    performance: pl.DataFrame | None = None  # its metrics


def newest_measured(home: Home, spec: PipelineSpec, state: State) -> Measured:
    """Read what was measured of the newest partitions from the published copy."""
    newest, evaluated = _newest(state, state.scores), _newest(state, state.evaluations)
    if newest is None:
        return Measured()
    try:
        with reading_published(home) as con:
            drift = read_drift(con, spec.name, [newest]).get(newest, ())
            segment_alarms = read_segment_alarms(con, spec.name, [newest]).get(newest, ())
            estimated, records = read_estimates(con, spec.name, [newest]), track_records(con, spec.name)
            keys = [] if evaluated is None else [evaluated]
            rows = measured_rows(con, spec.name, PERFORMANCE.name, keys).filter(pl.col("challenger").is_null())
    except NothingPublishedError:
        return Measured()
    return Measured(drift, segment_alarms, estimated.get(newest, ()), records, evaluated, rows)


def health_of(
    spec: PipelineSpec, state: State, now: datetime, measured: Measured, failures: Sequence[Failure] = ()
) -> Health:
    """The health of a pipeline at a time, where `failures` are the attempts that failed at what is still due."""
    aspects = [freshness(spec, state, now)]
    if failures:
        failed = listed(f"{failure.step} {failure.partition_key}" for failure in failures)
        aspects.insert(0, Aspect("failures", "fail", f"failed: {failed}", numbers={"failures": len(failures)}))
    newest = _newest(state, state.scores)
    if newest is not None:
        run = state.scores[newest]
        past = Past(spec.partitions.calendar, state.scores.values())
        aspects += [volume(past, run), rejected_share(past, run), _drift(spec, run, measured)]
    if (performance := _performance(spec, state, measured)) is not None:
        aspects.append(performance)
    if newest is not None and newest not in state.evaluations:
        aspects += _estimated_performance(spec, state.registry.named(state.scores[newest].model_version), measured)
    last_end = spec.partitions.calendar.last_end
    champion = state.registry.champion(now)
    if champion is not None:
        aspects.append(champion_age(spec, champion, now if last_end is None else min(now, last_end)))
    return Health.of(aspects)


def partition_aspects(
    spec: PipelineSpec, past: Past, run: ScoreRun, version: Version | None = None
) -> tuple[Aspect, ...]:
    """What is judged of a partition by its commit, and by the version that scored it if that is known."""
    age = () if version is None else (champion_age(spec, version, run.partition_start),)
    return (volume(past, run), rejected_share(past, run), *age)


def freshness(spec: PipelineSpec, state: State, now: datetime) -> Aspect:
    """Whether the newest partition that must be scored by a time is scored, whatever else was scored meanwhile.

    Partitions that were dropped, and those before the first model, need not be scored. Without `monitoring.fresh_by`, a
    partition that is late is worth a warning; with it, it fails.
    """
    partition = newest_required(spec, state, now)
    newest = _newest(state, state.scores)
    if partition is None and newest is None:
        return Aspect("fresh", None, "nothing is scored yet")
    if partition is None or partition.key in state.scores:
        return Aspect("fresh", "none", f"fresh ({newest})", newest)
    by = deadline(spec, partition).astimezone(spec.partitions.calendar.zone)
    last = "nothing is scored yet" if newest is None else f"the newest scored partition is {newest}"
    text = f"{partition.key} is not scored, which was expected by {by:%Y-%m-%d %H:%M}; {last}"
    return Aspect("fresh", "fail" if spec.monitoring.fresh_by else "warn", text, partition.key)


def newest_required(spec: PipelineSpec, state: State, now: datetime) -> Partition | None:
    """The newest partition that must be scored by a time; None if there is none."""
    first = first_served(spec, state.registry)
    if first is None:
        return None
    begin = max(first.start, served_calendar(spec).first_start)
    for partition in reversed(spec.partitions.calendar.due(now)):
        if partition.start < begin:
            return None
        if partition.key not in state.dropped and deadline(spec, partition) <= now:
            return partition
    return None


def volume(past: Past, run: ScoreRun) -> Aspect:
    """Whether a partition has as many rows as is usual for its weekday (of an hour, for its hour of the week)."""
    usual = usual_rows([before.rows_in for before in past.before(run, MOST_COMPARED, alike=True)])
    numbers: dict[str, float] = {"rows": run.rows_in}
    if usual is None:
        return Aspect("volume", None, f"{run.rows_in:,} rows", run.partition_key, numbers)
    numbers |= {"usual": usual.middle, "usual_low": usual.low, "usual_high": usual.high}
    numbers = {name: value for name, value in numbers.items() if isfinite(value)}
    if usual.holds(run.rows_in):
        return Aspect("volume", "none", f"{run.rows_in:,} rows", run.partition_key, numbers)
    text = f"{run.partition_key} has {run.rows_in:,} rows, where {usual.low:,.0f} to {usual.high:,.0f} are usual"
    return Aspect("volume", "warn", text, run.partition_key, numbers)


def rejected_share(past: Past, run: ScoreRun) -> Aspect:
    """Whether no more rows of a partition are rejected than earlier partitions explain."""
    earlier = [
        (before.rows_rejected, before.rows_in)
        for before in past.before(run, MOST_REJECTING, alike=False)
        if before.rows_in
    ]
    share = run.rows_rejected / run.rows_in if run.rows_in else 0.0
    numbers: dict[str, float] = {"rejected_share": share}
    if earlier:
        numbers["highest_before"] = max(rejected / rows for rejected, rows in earlier)
    text = f"{run.rows_rejected:,} of {run.rows_in:,} rows rejected"
    if not unusually_many(run.rows_rejected, run.rows_in, earlier):
        return Aspect("rejected_share", "none", text, run.partition_key, numbers)
    highest = f"at most {numbers['highest_before']:.2%} in the {len(earlier)} partitions before"
    return Aspect("rejected_share", "warn", f"{text} in {run.partition_key}, {highest}", run.partition_key, numbers)


def champion_age(spec: PipelineSpec, version: Version, at: datetime) -> Aspect:
    """Whether a version does not score for longer than is allowed after the start of its serving period."""
    age, oldest = max(timedelta(), at - version.serving_start), oldest_champion(spec)
    days = age / timedelta(days=1)
    text = f"the model is {counted(round(days), 'day')} old"
    if oldest is None:
        return Aspect("champion_age", None, text, numbers={"days": days})
    if oldest.after(version.serving_start, spec.partitions.calendar.zone) >= at:
        return Aspect("champion_age", "none", text, numbers={"days": days})
    return Aspect("champion_age", "warn", f"{text}, more than {oldest}", numbers={"days": days})


def _drift(spec: PipelineSpec, run: ScoreRun, measured: Measured) -> Aspect:
    """The worst drift of a partition's columns and segments, as it was judged when the partition was scored."""
    judged, of_segments = [row for row in measured.drift if row.level is not None], measured.segment_alarms
    if spec.monitoring.drift is None or not judged:
        return Aspect("drift", None, "drift is not judged", run.partition_key)
    drifted = [row for row in judged if row.level != "none"]
    not_judged = score_not_judged(measured.drift)
    remark = f" ({not_judged})" if not_judged else ""
    if not drifted and not of_segments:
        return Aspect("drift", "none", f"no drift{remark}", run.partition_key)
    names = [f"{row.column_name} ({'; '.join([f'psi {row.psi:.2f}', *_moves(spec, row)])})" for row in drifted]
    names += [f"{row.predictions} (psi {row.psi:.2f})" for row in of_segments]
    columns = listed(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - of those named
    numbers = {f"psi_{row.column_name}": row.unusual for row in drifted}
    level = "fail" if any(row.level == "fail" for row in (*drifted, *of_segments)) else "warn"
    text = f"drift in {columns}{more} on {run.partition_key}{remark}"
    return Aspect("drift", level, text, run.partition_key, numbers)


def _moves(spec: PipelineSpec, row: ColumnDrift) -> list[str]:
    """Describe a column beside its index: the values outside the range, and every difference where the index is no alarm."""
    declared = spec.monitoring.drift
    if declared is not None and row.unusual < declared.bounds(row.column_name)[0]:
        return row.changes
    return [row.outside] if row.outside else []


def _performance(spec: PipelineSpec, state: State, measured: Measured) -> Aspect | None:
    """The gate's metric of the newest measured partition; None if it is not known."""
    rows, key = measured.performance, measured.evaluated
    if rows is None or not rows.height:
        return None
    task = state.registry.named(rows["model_version"][0]).task
    metric = spec.model.promote.metric or default_metric(task)
    value = dict(zip(rows["metric"], rows["value"], strict=True)).get(metric)
    if value is None:
        return None
    text, numbers = f"{metric} {value:.4f} on {key}", {metric: value}
    check = declared_checks(spec).get(PERFORMANCE.name)
    judgement = None if check is None else check.judge(rows, task)
    if judgement is None:
        return Aspect("performance", None, text, key, numbers)
    if judgement.passed:
        return Aspect("performance", "none", text, key, numbers)
    text += f" is {'above' if judgement.lower_is_better else 'below'} {judgement.bound:g}"
    return Aspect("performance", "warn", text, key, numbers)


def _estimated_performance(spec: PipelineSpec, version: Version, measured: Measured) -> list[Aspect]:
    """What the gate's metric is expected to be in a partition whose labels are not known, or else accuracy."""
    by_metric = {estimate.metric: estimate for estimate in measured.estimates}
    metric = estimated_metric(spec.model.promote.metric or default_metric(version.task), by_metric)
    if metric is None:
        return []
    estimate = by_metric[metric]
    text = in_words(estimate, measured.records)
    numbers = {estimate.metric: estimate.estimate, "low": estimate.low, "high": estimate.high}
    return [Aspect("estimated_performance", None, text, estimate.partition_key, numbers)]


def in_words(estimate: EstimatedMetric, records: Mapping[str, TrackRecord]) -> str:
    """An estimate in words, with its interval and how far such estimates were off so far."""
    record = records.get(estimate.metric)
    so_far = "no such estimate has come true yet" if record is None else f"such estimates were {record}"
    interval = f"{estimate.low:.4f} to {estimate.high:.4f}"
    return (
        f"{estimate.metric} about {estimate.estimate:.4f} expected on {estimate.partition_key} ({interval}; {so_far})"
    )


def _newest(state: State, keys: Mapping[str, object]) -> str | None:
    """The newest of some scored partitions."""
    starts = ((state.scores[key].partition_start, key) for key in keys if key in state.scores)
    return max(starts, default=(None, None))[1]
