"""The commands that report: `status`, `check`, `models`."""

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby

import dagster as dg

from batch_platform.cli import terminal
from batch_platform.cli.execution import open_instance
from batch_platform.cli.project import Project
from batch_platform.components.runs import failures, held
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.errors import listed
from batch_platform.models.bundle import read_manifest
from batch_platform.models.imports import check_model
from batch_platform.models.registry import Promotion, Registry, Version
from batch_platform.pipeline.challenger_training import check_challengers
from batch_platform.pipeline.plan import State, make_plan
from batch_platform.pipeline.staleness import relabelled
from batch_platform.pipeline.status import ChallengerStatus, PipelineStatus, status_of


@dataclass(frozen=True)
class VersionSummary:
    """One line of the list of models."""

    version: str
    serving_period: str
    champion: bool
    challenger: str | None  # under whose name it was trained; None of the model itself
    decision: str
    reason: str
    rows_trained: int
    metrics: dict[str, float]
    created_at: datetime
    labels_corrected: bool  # since it learnt from them


def show_status(project: Project, wirings: Sequence[Wiring], now: datetime, *, every: bool, as_json: bool) -> None:
    """Where pipelines stand."""
    with open_instance(project) as instance:
        reports: list[PipelineStatus] = []
        for wiring in wirings:
            state = wiring.pipeline().published_state()
            plan = make_plan(wiring.spec, state, now)
            failed = {
                key: run
                for (asset, key), run in failures(wiring, instance).items()
                if asset in ("features", "predictions")
            }
            reports.append(status_of(wiring.spec, state, plan, now, failed, _told(wiring, instance, state)))
    if as_json:
        terminal.show_json(reports)
        return
    for report in reports:
        _show_pipeline(report, every=every)
    if not reports:
        terminal.say(f"{project.root} declares no pipeline.")


def show_check(project: Project, now: datetime, *, as_json: bool) -> None:
    """That every pipeline loads, and that its SQL, functions and estimator would run; no row is read by the SQL.

    Raises:
        BatchPlatformError: One would not; the message says where and why.
    """
    for wiring in project.pipelines.values():
        check_pipeline(wiring, now)
    if as_json:
        terminal.show_json({"project": str(project.root), "pipelines": sorted(project.pipelines), "ok": True})
        return
    for name in sorted(project.pipelines):
        terminal.say(f"{name}: ok")
    if not project.pipelines:
        terminal.say(f"{project.root} declares no pipeline.")


def show_models(wiring: Wiring, now: datetime, *, as_json: bool) -> None:
    """All versions, the champion marked."""
    pipeline = wiring.pipeline()
    registry = pipeline.published_state().registry
    champion, corrected = registry.champion(now), relabelled(pipeline.history, registry.versions)
    versions = [_summary(registry, version, champion, corrected) for version in registry.versions]
    if as_json:
        terminal.show_json(versions)
        return
    if not versions:
        terminal.say(f"{wiring.spec.name} has no trained version yet.")
        return
    metrics = sorted({name for version in versions for name in version.metrics})
    challenged = ("challenger",) if any(one.challenger for one in versions) else ()
    terminal.show_table(
        ("version", "champion", *challenged, "decision", "rows", *metrics),
        [
            (
                one.version,
                "*" if one.champion else "",
                *((one.challenger or "",) if challenged else ()),
                _told_of(one),
                one.rows_trained,
                *(one.metrics.get(name) for name in metrics),
            )
            for one in versions
        ],
    )


def show_version(wiring: Wiring, name: str, *, as_json: bool) -> None:
    """Everything in a manifest, and what was decided of the version."""
    pipeline = wiring.pipeline()
    state = pipeline.published_state()
    registry = state.registry
    version = registry.present(name)
    engines = sorted({run.engine for run in state.scores.values() if run.model_version == name})
    manifest = asdict(read_manifest(pipeline.home.bundle(wiring.spec.name, name), version.sha256))
    decisions = [event for event in registry.promotions if event.version == name]
    if as_json:
        told = [{**asdict(event), "evidence": json.loads(event.evidence)} for event in decisions]
        report = {
            "version": name,
            "sha256": version.sha256,
            "manifest": manifest,
            "engines": engines,
            "decisions": told,
        }
        terminal.show_json(report)
        return
    contract = manifest.pop("contract")
    scored_by = {"scored by": "; ".join(engines)} if engines else {}
    terminal.show_fields({"version": name, "sha256": version.sha256, **manifest, **scored_by})
    columns = ("column", "type", "nullable", "min", "max", "lowest", "highest", "categories")
    terminal.show_table(columns, [tuple(_described(column, name) for name in columns) for column in contract])
    for event in decisions:
        terminal.say(f"{event.decided_at:%Y-%m-%d %H:%M} {_decided(event)}")


def _told(wiring: Wiring, instance: dg.DagsterInstance, state: State) -> set[str]:
    """Which predictions Dagster thinks done; what a run holds that is in progress is taken to be as the ledger says."""
    busy = {key for asset, key in held(wiring, instance) if asset == "predictions"}
    return (instance.get_materialized_partitions(wiring.key("predictions")) - busy) | (busy & state.scores.keys())


def _show_pipeline(report: PipelineStatus, *, every: bool) -> None:
    counts = ", ".join(f"{count} {condition}" for condition, count in sorted(report.counts.items()))
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(report.champion_metrics.items()))
    due = ", ".join(f"{count} of {kind}" for kind, count in report.due.items())
    last = f"{report.last_commit:%Y-%m-%d %H:%M:%S} UTC by run {report.last_run}" if report.last_commit else "none"
    terminal.say(f"{report.pipeline}: {counts or 'no partition is due yet'}")
    terminal.say(f"  champion: {report.champion or 'none'}{f' ({metrics})' if metrics else ''}")
    for one in report.challengers:
        terminal.say(f"  challenger {one.name}: {_standing(one)}")
    terminal.say(f"  last commit: {last}")
    terminal.say(f"  due now: {due or 'nothing'}")
    if report.only_in_dagster:
        lost = f"{listed(report.only_in_dagster)}: materialized for Dagster, but not in the ledger"
        terminal.say(f"  {lost}; the next run scores them again")
    if report.only_in_ledger:
        untold = f"{listed(report.only_in_ledger)}: in the ledger, but not materialized for Dagster"
        terminal.say(f"  {untold}; the next run records them there")
    if every:
        columns = ("partition", "condition", "reason", "model", "scored", "rejected")
        rows = [
            (one.partition, one.condition, one.reason, one.model_version, one.rows_scored, one.rows_rejected)
            for one in report.partitions
        ]
        terminal.show_table(columns, rows)
        return
    for (condition, reason), members in groupby(report.partitions, key=lambda one: (one.condition, one.reason)):
        span = [one.partition for one in members]
        named = span[0] if len(span) == 1 else f"{span[0]} to {span[-1]} ({len(span)})"
        terminal.say(f"  {named}: {condition}{f', {reason}' if reason else ''}")


def _standing(one: ChallengerStatus) -> str:
    if one.version is None:
        return one.failure or "no version yet"
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(one.metrics.items()))
    return f"{one.version} ({metrics})" + (f"; could not be trained again: {one.failure}" if one.failure else "")


def check_pipeline(wiring: Wiring, now: datetime) -> None:
    """Check that the SQL, the functions and the estimator of one pipeline would run.

    Raises:
        BatchPlatformError: One would not.
    """
    folder = wiring.pipeline().builder.sources.folder
    check_model(wiring.spec.model, folder)
    check_challengers(wiring.spec, folder)
    _check_sql(wiring, now)


def _check_sql(wiring: Wiring, now: datetime) -> None:
    """Let DuckDB resolve every table and column of the SQL over the sources of the newest partition."""
    spec, builder = wiring.spec, wiring.pipeline().builder
    due = spec.partitions.calendar.due(now)
    if not due:
        return
    with builder.sources.connect(due[-1]) as con:
        if builder.query is not None:
            builder.query.run(con, due[-1], [*spec.features.key, *([spec.features.time] if spec.features.time else [])])
        if builder.labels_query is not None and spec.labels is not None:
            builder.labels_query.run(con, due[-1], [*spec.features.key, spec.labels.column])


def _told_of(one: VersionSummary) -> str:
    decided = one.decision if one.decision == "approved" else f"{one.decision}: {one.reason}"
    return f"{decided}; its labels were corrected since" if one.labels_corrected else decided


def _summary(
    registry: Registry, version: Version, champion: Version | None, corrected: AbstractSet[str]
) -> VersionSummary:
    decided = registry.last_decision(version.version)
    return VersionSummary(
        version=version.version,
        serving_period=version.serving_period,
        champion=champion is not None and version.version == champion.version,
        challenger=registry.challengers.get(version.version),
        decision=decided.action if decided else "none",
        reason=decided.reason if decided else "",
        rows_trained=version.rows_trained,
        metrics=version.metric_values,
        created_at=version.created_at,
        labels_corrected=version.version in corrected,
    )


def _described(column: Mapping[str, object], name: str) -> object:
    """One fact of a column in a contract."""
    if name == "column":
        return column["name"]
    if name == "categories":
        categories = column["categories"]
        return len(categories) if isinstance(categories, list) and categories else None
    return str(column[name]) if name == "nullable" else column[name]


def _decided(event: Promotion) -> str:
    return f"{event.action} by {event.actor}: {event.reason}"
