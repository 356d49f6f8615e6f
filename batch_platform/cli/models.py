"""The `models` command: list the trained versions of a pipeline and when each serves, compare two, promote one, roll one back."""

import getpass
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import Any

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import (
    RunFailedError,
    WrongUseError,
    counted,
    did_you_mean,
    require_local,
)
from batch_platform.models.bundle import read_judged, read_manifest
from batch_platform.models.gate import MEETS
from batch_platform.models.promotion import Decision, Maker, promote, roll_back, scores_on_timeline
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.monitoring.metrics import lower_is_better, without_details
from batch_platform.pipeline.model_comparison import compare
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import relabelled
from batch_platform.reports.card import card_of, since_it_serves
from batch_platform.warehouse.ledger import as_record
from batch_platform.warehouse.published import open_published

HASH_DIGITS = 12  # digits of a hash in a table
GATE = "gate"  # the actor that decides after a training
DECISION_WIDTH = 150  # characters of a decision in a table; `show` has it in full


@dataclass(frozen=True)
class VersionSummary:
    """One line of the list of models."""

    version: str
    serving_period: str
    champion: bool
    challenger: str | None  # name of the challenger it was trained as; None for the model itself
    decision: str
    reason: str
    rows_trained: int
    metrics: dict[str, float]
    suspected_leaks: list[SuspectedLeak]
    created_at: datetime
    labels_corrected: bool  # since the version was trained


@dataclass(frozen=True)
class TimelineLine:
    """One line of the timeline: a stretch of time in which one version serves."""

    first_partition: str
    begin: datetime
    end: datetime | None  # exclusive; None: until further notice
    version: str
    actor: str
    reason: str
    decided_at: datetime
    scored: list[str]  # keys of partitions, as below
    stale: list[str]  # scored by another version
    hindsight: list[str]  # scored by a version that was approved to serve them only after they had ended


@dataclass(frozen=True)
class _Target:
    """The pipeline that the commands below `models` are about."""

    folder: Path | None
    pipeline: str

    def declared(self) -> Pipeline:
        return find_project(self.folder).declared_as(self.pipeline)


class _ListByDefault(click.Group):
    """A group whose command `list` may be omitted, also when its options are given."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in ctx.help_option_names:
            click.echo(ctx.get_help())
            ctx.exit()
        named, pipeline = args[0], ctx.params["pipeline"]
        if not named.startswith("-") and named not in self.commands:
            first = f"the pipeline comes first: batch-platform models {named} {pipeline}"
            if hint := first if pipeline in self.commands else did_you_mean(named, self.commands):
                msg = f"No such command {named!r}."
                raise WrongUseError(msg, hint=hint)
        return super().resolve_command(ctx, ["list", *args] if named.startswith("-") else args)


@click.group(
    "models",
    cls=_ListByDefault,
    invoke_without_command=True,
    epilog=terminal.examples("models churn", "models churn promote 2026-03-01-7e122641"),
)
@click.argument("pipeline")
@click.pass_context
def models_command(context: click.Context, pipeline: str) -> None:
    """Work with the trained versions of PIPELINE. Lists them if no command follows."""
    context.obj = _Target(context.obj, pipeline)
    if context.invoked_subcommand is None:
        context.invoke(list_versions)


@terminal.command("list", "models churn list", "models churn list --json", group=models_command)
def list_versions(target: _Target) -> None:
    """List all versions and mark the champion."""
    pipeline = target.declared()
    state = pipeline.published_state()
    registry, champion = state.registry, state.registry.champion(datetime.now(UTC))
    corrected = relabelled(pipeline.history, registry.versions, state.dropped)
    versions, judged_by_gate = list[VersionSummary](), set[str]()
    for version in registry.versions:
        decision = registry.last_decision(version.version)
        if decision and decision.actor == GATE:
            judged_by_gate.add(version.version)
        summary = VersionSummary(
            version=version.version,
            serving_period=version.serving_period,
            champion=champion is not None and version.version == champion.version,
            challenger=registry.challengers.get(version.version),
            decision=decision.action if decision else "none",
            reason=decision.reason if decision else "",
            rows_trained=version.rows_trained,
            metrics=version.metric_values,
            suspected_leaks=registry.suspected_leaks(version.version),
            created_at=version.created_at,
            labels_corrected=version.version in corrected,
        )
        versions.append(summary)
    terminal.report(versions)
    if not versions:
        terminal.say(f"{pipeline.spec.name} has no trained version yet.")
        return
    metrics = sorted({name for version in versions for name in without_details(version.metrics)})
    challenged = ("challenger",) if any(version.challenger for version in versions) else ()
    terminal.show_table(
        ("version", "champion", *challenged, "decision", "rows", *metrics),
        [
            (
                version.version,
                "*" if version.champion else "",
                *((version.challenger or "",) if challenged else ()),
                shorten(
                    _decision_of(version, by_gate=version.version in judged_by_gate), DECISION_WIDTH, placeholder=" …"
                ),
                version.rows_trained,
                *(version.metrics.get(name) for name in metrics),
            )
            for version in versions
        ],
    )


@terminal.command(
    "show",
    "models churn show 2026-03-01-7e122641",
    "models churn show 2026-03-01-7e122641 --json",
    group=models_command,
)
@click.argument("version")
def show_version(target: _Target, version: str) -> None:
    """Show the manifest of a version and the decisions about it."""
    pipeline = target.declared()
    state = pipeline.published_state()
    registered = state.registry.present(version)
    engines = sorted({run.engine for run in state.scores.values() if run.model_version == version})
    stored = read_manifest(pipeline.home.bundle(pipeline.spec.name, version), registered.sha256)
    manifest = asdict(stored)
    decisions = [event for event in state.registry.promotions if event.version == version]
    head = {"version": version, "sha256": registered.sha256}
    recorded = [{**asdict(event), "evidence": json.loads(event.evidence)} for event in decisions]
    terminal.report({**head, "manifest": manifest, "engines": engines, "decisions": recorded})
    contract, shown = manifest.pop("contract"), ("metrics", "baseline")  # these have tables of their own
    evaluation = {name: value for name, value in manifest["evaluation"].items() if name not in shown}
    leaks = state.registry.suspected_leaks(version)
    manifest["suspected_leaks"] = "; ".join(f"{leak}{' (allowed)' if leak.allowed else ''}" for leak in leaks)
    manifest["remarks"] = "; ".join(manifest["remarks"])
    manifest["judged_fit"] = None if stored.judged_fit is None else asdict(stored.judged_fit.training)
    search = manifest.pop("search")
    scored_by = {"scored by": "; ".join(engines)} if engines else {}
    terminal.show_fields({**head, **manifest, "evaluation": evaluation, **scored_by})
    judged, days = stored.judged_training, None if pipeline.spec.partitions.snapshot else stored.judged_training.days
    terminal.show_metrics(
        stored.evaluation.metrics,
        stored.evaluation.baseline,
        refit=stored.refit,
        judged="" if stored.judged_fit is None else terminal.learned_from(judged.rows, days),
    )
    if search:
        _show_search(search, stored.params)
    bounds = ("min", "max", "lowest", "highest")
    rows: list[tuple[object, ...]] = []
    for column in contract:
        values, categories = [column[name] for name in bounds], len(column["categories"] or ()) or None
        rows.append((column["name"], column["type"], str(column["nullable"]), *values, categories))
    terminal.show_table(("column", "type", "nullable", *bounds, "categories"), rows)
    for event in decisions:
        terminal.say(f"{event.decided_at:%Y-%m-%d %H:%M} {event.action} by {event.actor}: {event.reason}")


@terminal.command(
    "card",
    "models churn card 2026-03-01-7e122641",
    "models churn card 2026-03-01-7e122641 --out card.html",
    group=models_command,
)
@click.argument("version")
@click.option(
    "--out",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, whose name ends with .md or .html. Default: print Markdown.",
)
def write_card(target: _Target, version: str, file: Path | None) -> None:
    """Write the model card of a version: one page with its purpose, data, metrics, features, limits and decisions."""
    if file:
        require_local(file, "write the card here, and copy it.")
    if file and file.suffix.lower() not in (".md", ".html"):
        msg = f"{file}: a model card is Markdown or a web page."
        raise WrongUseError(msg, hint=f"--out {file.with_suffix('.html')}")
    pipeline = target.declared()
    registry = pipeline.published_state().registry
    registered, folder = registry.present(version), pipeline.home.bundle(target.pipeline, version)
    manifest = read_manifest(folder, registered.sha256)
    with open_published(pipeline.home) as con:
        served = since_it_serves(con, pipeline.spec, registered)
    card = card_of(pipeline.spec, registry, registered, manifest, read_judged(folder, manifest), served)
    terminal.report({**asdict(card), "file": None if file is None else str(file)})
    if file is None:
        for line in card.to_markdown().splitlines():
            terminal.say(line)
        return
    file.write_text(card.to_html() if file.suffix.lower() == ".html" else card.to_markdown(), encoding="utf-8")
    terminal.say(f"The card of {version} is written to {file}")


@terminal.command(
    "compare",
    "models churn compare 2026-03-01-7e122641 2026-04-01-0c6b51fe",
    "models churn compare 2026-03-01-7e122641 2026-04-01-0c6b51fe --json",
    group=models_command,
)
@click.argument("left", metavar="VERSION")
@click.argument("right", metavar="OTHER_VERSION")
def compare_versions(target: _Target, left: str, right: str) -> None:
    """Compare two versions side by side: metrics, data windows, what else differs, and which is better on the same rows.

    Better or worse is said from one paired interval of the gate's metric, on the evaluation rows of both, for the fits that the
    gate judged. Where these share no row, the verdict is that of the gate, if it held one against the other. The metrics are of the
    same rows if there are any, otherwise of the evaluation rows of each. Baselines are left out if a version has other rows too.
    """
    pipeline = target.declared()
    comparison = compare(pipeline, left, right)
    values, verdict = comparison.facts, comparison.verdict
    facts = {name: dict(zip((left, right), pair, strict=True)) for name, pair in values.items()}
    judged = {"word": verdict.word, **asdict(verdict)} if verdict else {"not_compared": comparison.not_compared}
    terminal.report({**facts, "verdict": judged})
    known = {name: pair for name, pair in values.items() if any(value not in (None, "") for value in pair)}
    rows = [(name, *(_shortened(name, value) for value in pair)) for name, pair in known.items()]
    terminal.show_table(("", left, right), rows)
    if comparison.shared_rows:
        same = counted(comparison.shared_rows, "evaluation row")
        terminal.say(f"The metrics are those of the {same} that both have scored.")
    elif verdict:
        terminal.say(
            "The metrics are those of each one's own evaluation rows; the verdict is the gate's, on the same rows."
        )
    if verdict:
        terminal.say(f"{left} is judged {verdict.beside(right, worth=pipeline.spec.model.promote.tolerance)}.")
        return
    terminal.say(f"{left} cannot be compared with {right} on the same rows: {comparison.not_compared}.")
    any_version = f"batch-platform backtest {target.pipeline} --from KEY --to KEY --model VERSION"
    terminal.say(f"  {any_version}   measures any version on any partitions")


def _shortened(name: str, value: object) -> object:
    """The beginning of a hash, which tells two apart; anything else as it is."""
    return value[:HASH_DIGITS] if name.endswith("sha256") and isinstance(value, str) else value


@terminal.command("timeline", "models churn timeline", "models churn timeline --json", group=models_command)
def show_timeline(target: _Target) -> None:
    """Show which version serves from which partition on, by whose decision, and what is stale because of it.

    A partition is in hindsight if its version was approved to serve it only after the partition had ended.
    """
    pipeline = target.declared()
    state, lines = pipeline.published_state(), list[TimelineLine]()
    for scores in scores_on_timeline(state.registry, state.scores):
        stretch = scores.stretch
        line = as_record(
            TimelineLine,
            scores,
            stretch.decision,
            first_partition=_first(pipeline, stretch.begin),
            begin=stretch.begin,
            end=stretch.end,
            version=stretch.version.version,
        )
        lines.append(line)
    terminal.report(lines)
    if not lines:
        terminal.say(f"{pipeline.spec.name} has no approved version yet.")
        return
    rows: list[tuple[object, ...]] = []
    for line in lines:
        counts = (len(line.scored), len(line.stale), len(line.hindsight))
        decided = f"{line.decided_at:%Y-%m-%d %H:%M} by {line.actor}: {line.reason}"
        rows.append((line.first_partition, line.version, *counts, decided))
    terminal.show_table(("from", "version", "scored", "stale", "hindsight", "decided"), rows)
    if stale := sorted(key for line in lines for key in line.stale):
        terminal.say(
            f"batch-platform run {pipeline.spec.name} --from {stale[0]} --to {stale[-1]}   scores what is stale again"
        )


@terminal.command(
    "promote",
    "models churn promote 2026-03-01-7e122641",
    "models churn promote 2026-03-01-7e122641 --from 2026-03-15",
    group=models_command,
)
@click.argument("version")
@click.option("--from", "first", metavar="KEY", help="First partition it serves. Default: from its serving period on.")
@click.option("--reason", default="", help="Reason to record with the decision.")
def promote_version(target: _Target, version: str, first: str | None, reason: str) -> None:
    """Let a version serve from a partition on, until the next decision. Any version: older, refused or withdrawn."""
    pipeline = target.declared()
    state, maker = pipeline.state(), _maker(reason)
    decision = promote(state.registry, state.scores, version, maker, holds_from=_start(pipeline, first))
    pipeline.decide(decision.promotion, state)
    _show_decision(decision, pipeline, rescored=False)


@terminal.command(
    "rollback", "models churn rollback", "models churn rollback --from 2026-03-15 --rescore", group=models_command
)
@click.option(
    "--from",
    "first",
    metavar="KEY",
    help="First partition from which the version that serves it is withdrawn. Default: from where today's champion began.",
)
@click.option("--reason", default="", help="Reason to record with the decision.")
@click.option("--rescore", is_flag=True, help="Score the affected partitions again with the previous version.")
def roll_back_champion(target: _Target, first: str | None, reason: str, *, rescore: bool) -> None:
    """Withdraw the champion, so that the previous version serves again, and list the partitions it scored."""
    project = find_project(target.folder)
    pipeline = project.declared_as(target.pipeline)
    state, maker = pipeline.state(), _maker(reason)
    decision = roll_back(state.registry, state.scores, maker, holds_from=_start(pipeline, first))
    pipeline.decide(decision.promotion, state)
    again = rescore and bool(decision.partitions)
    _show_decision(decision, pipeline, rescored=again)
    if again:
        from batch_platform.cli.run import bring_up_to_date

        partitions = [pipeline.spec.partitions.calendar.named(key) for key in decision.partitions]
        if error := bring_up_to_date(
            project, project.pipeline(target.pipeline), PlanRequest(maker.at, partitions, serve_all=True), named=True
        ).error:
            raise RunFailedError(error)


def _show_search(search: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Print each trial of a search with its mean score and that of each fold, the best first; `params` are those of the version.

    A trial without a parameter is that of the declared ones. What was declared is not recorded where a better trial replaced it.
    """
    metric, trials = search["metric"], search["trials"]
    trials = sorted(trials, key=lambda trial: trial["score"], reverse=not lower_is_better(metric))
    terminal.say(f"search: {counted(len(trials), 'trial')}, scored within the rows to learn from")
    terminal.say(search.get("remark") or "The best is used.")
    names = [*dict.fromkeys(name for trial in trials for name in trial["params"])]
    declared = {name: "as declared" if name in search["best"] else params.get(name, "default") for name in names}
    folds = [f"fold {at}" for at, _ in enumerate(trials[0]["folds"], start=1)]
    rows = [(*map(str, (declared | trial["params"]).values()), trial["score"], *trial["folds"]) for trial in trials]
    terminal.show_table((*names, metric, *folds), rows)


def _maker(reason: str) -> Maker:
    return Maker(actor=getpass.getuser(), at=datetime.now(UTC), reason=reason)


def _start(pipeline: Pipeline, key: str | None) -> datetime | None:
    return None if key is None else pipeline.spec.partitions.calendar.named(key).start


def _first(pipeline: Pipeline, begin: datetime) -> str:
    """The first partition from an instant on; the instant after the last one."""
    partition = pipeline.spec.partitions.calendar.next_from(begin)
    return f"{begin:%Y-%m-%d %H:%M} UTC" if partition is None else partition.key


def _show_decision(decision: Decision, pipeline: Pipeline, *, rescored: bool) -> None:
    event, partitions = decision.promotion, decision.partitions
    before, after = (version.version if version else None for version in (decision.before, decision.after))
    report = {
        "pipeline": event.pipeline,
        "version": event.version,
        "action": event.action,
        "reason": event.reason,
        "holds_from": event.holds_from,
        "champion_before": before,  # champion at the start of the first partition for which the decision holds
        "champion_after": after,
        "until": decision.until,  # when another version follows; null: not yet known
        "partitions": partitions,  # scored by another version than their champion is now
        "rescored": rescored,
    }
    terminal.report(report)
    begin = "" if event.holds_from is None else f" from {_first(pipeline, event.holds_from)} on"
    terminal.say(f"{event.pipeline}: {event.version} is {event.action}{begin}: {event.reason}.")
    change = "as before" if before == after else f"instead of {before or 'none'}"
    terminal.say(f"  champion from then on: {after or 'none'}, {change}")
    if decision.until is not None:
        following = decision.following.version if decision.following else "none"
        terminal.say(f"  until {_first(pipeline, decision.until)}, then: {following}")
    if partitions:
        first, last = partitions[0], partitions[-1]
        terminal.say(
            f"  scored by another version: {counted(len(partitions), 'partition')} ({terminal.ends(partitions)})"
        )
        if not rescored:
            terminal.say(f"  batch-platform run {event.pipeline} --from {first} --to {last}   scores them again")


def _decision_of(version: VersionSummary, *, by_gate: bool) -> str:
    remarks = version.reason.removeprefix(MEETS).removeprefix("; ")
    decision = f"{version.decision}: {remarks}" if remarks else version.decision
    if version.suspected_leaks and not by_gate:  # the gate's reason says so
        decision += f"; a leak is suspected: {'; '.join(map(str, version.suspected_leaks))}"
    return f"{decision}; its labels were corrected since" if version.labels_corrected else decision
