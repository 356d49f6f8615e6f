"""The plan: what is due and in which order; once it is carried out, nothing is due at the same time."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.inputs import Labels
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.delivery.ledger import Delivered
from batch_platform.models.registry import Promotion, Registry, Version
from batch_platform.planning.artifacts import features_due, undelivered
from batch_platform.planning.holds import awaited_labels
from batch_platform.planning.plan import Plan, make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import Declared, Records, State
from batch_platform.planning.steps import STEPS, Item, requests
from batch_platform.planning.trainings import changed, declared_now, training_asked_for
from batch_platform.warehouse.deletion import DroppedPartition
from batch_platform.warehouse.failures import Failure
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ModelTraining
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.harness.tiers import examples
from batch_platform_tests.pipeline.planned_states import NOW, scored, with_changes

pytestmark = pytest.mark.unit

EMPTY = State(Records(Registry("small")), Declared("f1", "s1"))


def carried_out(  # noqa: PLR0913 - what is carried out, and how it ends
    spec: PipelineSpec,
    state: State,
    plan: Plan,
    refused: set[str] = frozenset(),
    found: dict[str, dict[str, str]] | None = None,
    *,
    failing: bool = False,
) -> State:
    """The state after a plan, as the pipeline would record it; `failing`: no model can be trained again.

    `found` takes the hashes of features as the last training of each serving period found them.
    """
    features, scores, evaluations = dict(state.features), dict(state.scores), dict(state.evaluations)
    versions, promotions = list(state.registry.versions), list(state.registry.promotions)
    trainings, found = list(state.registry.model_trainings), {} if found is None else found
    seq = 1 + max([0, *(run.seq for run in scores.values()), *(version.seq for version in versions)])
    for item in plan.items:
        seq, key = seq + 1, item.partition.key
        registry = Registry("small", versions, promotions)
        if item.step == "features":
            sources = state.seen.source_versions.get(key, "{}")
            features[key] = FeatureBuild(
                "small", key, 1, f"{key} {seq}", 1, state.declared.features_version, sources, NOW, "run"
            )
        elif item.step == "model":
            window = spec.periods.window(item.partition.start)
            for partition in window:
                assert features_due(with_changes(state, features=features), partition) is None, (
                    "features come before the model"
                )
            declared, is_short = declared_now(spec, state), not spec.periods.can_train(window)
            failed = is_short or (failing and registry.newest_of(key) is not None)
            found[key] = {partition.key: features[partition.key].sha256 for partition in window}
            outcome = (None, "it failed") if failed else (f"{key} {seq}", None)
            trainings.append(ModelTraining("small", key, declared, *outcome, NOW, "run", seq))
            if failed:
                continue
            version = replace(trained(item.partition, f"{key} {seq}", seq), trained_until=window[-1].end)
            versions.append(replace(version, **as_declared(spec, state)))
            action = "refused" if key in refused else "approved"
            promotions.append(Promotion("small", f"{key} {seq}", action, "", "{}", "gate", NOW, "run", seq))
        elif item.step == "predictions":
            champion = registry.champion(item.partition.start)
            if champion is not None:
                assert key in features, "features come before predictions"
                scores[key] = scored(
                    item.partition, champion.version, features[key].sha256, state.declared.scoring_version, seq
                )
        elif key in scores:
            evaluations[key] = EvaluationRun("small", key, scores[key].seq, 1, 1, NOW, "run")
    registry = Registry("small", versions, promotions, model_trainings=trainings)
    registry = replace(registry, refused_on={key: found[key] for key in registry.fruitless})
    return with_changes(
        state,
        features=features,
        scores=scores,
        evaluations=evaluations,
        registry=registry,
        failures={
            ("model", key): Failure("model", key, "it failed", None, state.declared.text, NOW, "run")
            for key in {training.serving_period: training for training in trainings if training.version is None}
        },
    )


def with_refused_on(state: State, hashes: dict[str, dict[str, str]]) -> State:
    return with_changes(state, registry=replace(state.registry, refused_on=hashes))


def as_declared(spec: PipelineSpec, state: State) -> dict[str, str]:
    """What a version that is trained now records of the declaration."""
    return {
        "estimator": spec.model.estimator,
        "params": json.dumps(spec.model.params, sort_keys=True),
        "features_code_version": state.declared.features_version,
    }


def with_params(spec: PipelineSpec, **params) -> PipelineSpec:
    return spec.model_copy(update={"model": spec.model.model_copy(update={"params": params})})


def with_delay(spec: PipelineSpec, days: int) -> PipelineSpec:
    labels = spec.labels and Labels(**spec.labels.model_dump() | {"delay": f"{days} days"})
    return spec.model_copy(update={"labels": labels})


def trained(period: Partition, name: str, seq: int = 1) -> Version:
    return Version(
        pipeline="small",
        version=name,
        serving_period=period.key,
        serving_start=period.start,
        sha256="",
        flavour="sklearn",
        task="binary",
        estimator="",
        params="{}",
        trained_from=period.start - timedelta(days=30),
        trained_until=period.start - timedelta(days=2),
        rows_trained=1,
        rows_evaluated=1,
        metrics="{}",
        features_code_version="f1",
        created_at=NOW,
        run_id="run",
        seq=seq,
    )


SPECS = {
    "monthly models": small_spec(),
    "weekly models": small_spec(model={"train": {"every": "week", "start": "2024-01-07", "evaluate": "2 days"}}),
    "one model": small_spec(model={"train": {"every": None, "evaluate": "3 days"}}),
    "never rescored": small_spec(predictions={"rescore": "never"}),
    "due at their start": small_spec(partitions={"end_offset": 1}, labels={"delay": "0 days"}),
    "short window": small_spec(model={"train": {"every": "week", "window": "10 days", "evaluate": "2 days"}}),
    "late labels": small_spec(labels={"delay": "9 days"}),
    "no labels": small_spec(labels=None, model={"estimator": "sklearn.cluster.KMeans", "params": None}),
    "hours": small_spec(
        partitions={"every": "hour", "end": "2024-01-06"}, model={"train": {"every": "day", "evaluate": "5 hours"}}
    ),
}

KEYS = [f"2024-01-{day:02}" for day in range(1, 32)] + [f"2024-02-{day:02}" for day in range(1, 30)]
HAPPENING = st.one_of(
    st.tuples(st.just("time passes"), st.integers(1, 20)),
    st.tuples(st.just("files are lost"), st.lists(st.sampled_from(KEYS), max_size=6)),
    st.tuples(st.just("sources change"), st.lists(st.sampled_from(KEYS), max_size=6)),
    st.tuples(st.just("features change"), st.integers(0, 3)),
    st.tuples(st.just("scoring changes"), st.integers(0, 3)),
    st.tuples(st.just("parameters change"), st.integers(0, 3)),
    st.tuples(st.just("labels are known after days"), st.integers(0, 9)),
    st.tuples(st.just("the champion is refused"), st.none()),
    st.tuples(st.just("the champion is withdrawn from a day on"), st.sampled_from(KEYS)),
)


def happened(state: State, what: str, detail) -> State:
    if what == "files are lost":
        return with_changes(state, features={key: build for key, build in state.features.items() if key not in detail})
    if what == "sources change":
        changed = {key: f'"changed from {state.features[key].sources}"' for key in detail if key in state.features}
        return with_changes(state, source_versions={**state.seen.source_versions, **changed})
    if what == "features change":
        return with_changes(state, features_version=f"f{detail}")
    if what == "scoring changes":
        return with_changes(state, scoring_version=f"s{detail}")
    if what.startswith("the champion is") and (approved := state.registry.approved()):
        begin = small_spec().partitions.calendar.named(detail).start if detail else None
        event = Promotion("small", approved[-1].version, "withdrawn", "", "{}", "me", NOW, "run", 10**6, begin)
        return with_changes(state, registry=replace(state.registry, promotions=[*state.registry.promotions, event]))
    return state


@examples(120)
@example("hours", 2, [("features change", 0), ("the champion is refused", None)], set(), True)
@example(
    "one model",
    9,
    [("parameters change", 1), ("the champion is withdrawn from a day on", "2024-01-09"), ("parameters change", 0)],
    set(),
    False,
)
@example("weekly models", 40, [("files are lost", ["2024-01-01"]), ("time passes", 1)], {"2024-01-14"}, False)
@example("one model", 8, [("labels are known after days", 7), ("features change", 0)], set(), False)
@given(
    st.sampled_from(sorted(SPECS)),
    st.integers(1, 40),
    st.lists(HAPPENING, max_size=5),
    st.sets(st.sampled_from(["2024-02-01", "2024-01-14", "2024-01-21"])),
    st.booleans(),
)
def test_once_a_plan_is_carried_out_the_next_one_at_the_same_time_is_empty(name, day, happenings, refused, failing):
    spec, state, now = SPECS[name], EMPTY, datetime(2024, 1, 1, 6, tzinfo=UTC) + timedelta(days=day)
    found = dict[str, dict[str, str]]()
    for what, detail in [("nothing", None), *happenings]:
        state = happened(state, what, detail)
        state = with_refused_on(state, {key: found[key] for key in state.registry.fruitless})
        spec = with_params(spec, max_iter=detail) if what == "parameters change" else spec
        spec = with_delay(spec, detail) if what == "labels are known after days" else spec
        now += timedelta(days=detail if what == "time passes" else 0)
        plan = make_plan(spec, state, PlanRequest(now))
        kinds = [STEPS.index(item.step) for item in plan.items]
        assert kinds == sorted(kinds)
        due = [item.reason for item in plan.of("model")]
        assert training_asked_for(spec, state, now, force=False)[1] == (due[-1] if due else None), "train asks the plan"
        state = carried_out(spec, state, plan, refused, found, failing=failing)
        assert make_plan(spec, state, PlanRequest(now)).items == []


def test_features_come_before_models_before_predictions_before_performance_before_deliveries():
    plan = make_plan(small_spec(predictions={"deliver": [{"csv": "out"}]}), EMPTY, PlanRequest(NOW))
    assert list(dict.fromkeys(item.step for item in plan.items)) == [kind for kind in STEPS if kind != "challengers"]
    assert [item.partition.key for item in plan.of("model")] == ["2024-02-01"]
    assert [item.partition.key for item in plan.of("predictions")] == [key for key in KEYS if key >= "2024-02-01"]
    assert [item.partition.key for item in plan.of("features")] == [key for key in KEYS if key != "2024-01-31"]
    assert {item.partition.key for item in plan.blocked} == {key for key in KEYS if key < "2024-02-01"}


def test_performance_waits_until_labels_are_known():
    spec, now = SPECS["late labels"], datetime(2024, 2, 15, 12, tzinfo=UTC)
    plan = make_plan(spec, EMPTY, PlanRequest(now))
    assert plan.of("performance")[-1].partition.key == "2024-02-05"
    calendar = spec.partitions.calendar
    assert spec.periods.matures(calendar.named("2024-02-05")) == calendar.named("2024-02-14").end
    asked_for = [awaited_labels(spec, calendar.named(f"2024-02-{day}"), now, lambda _: []) for day in ("05", "06")]
    assert asked_for == [None, "its labels are not known before 2024-02-15 23:00 UTC"]


def test_a_partition_is_delivered_until_the_receiver_holds_its_newest_commit_as_declared():
    spec = small_spec(predictions={"deliver": [{"csv": "out"}]})
    (delivery,), partition = spec.predictions.deliver, spec.partitions.calendar.named("2024-02-05")
    state = with_changes(EMPTY, scores={partition.key: scored(partition, "version", "hash", seq=2)})
    row = Delivered(partition.key, delivery.name, 1, "", 2, delivery.digest, NOW, "run")
    rows = [row, replace(row, score_seq=1), replace(row, declared="")]
    deliveries = [{}, *({(delivery.name, partition.key): row} for row in rows)]
    reasons = [undelivered(with_changes(state, deliveries=each), delivery, partition.key) for each in deliveries]
    assert reasons == ["missing", None, "scored again", "its declaration changed"]
    assert undelivered(EMPTY, delivery, partition.key) is None, "nothing is scored"


@pytest.mark.parametrize("limit", [None, 1, 3, 100])
def test_ranges_are_contiguous_oldest_first_and_limited_in_all(limit):
    calendar = small_spec().partitions.calendar
    keys = ["2024-01-05", "2024-01-01", "2024-01-02", "2024-01-04", "2024-01-09"]
    planned = requests([Item("features", calendar.named(key), "missing") for key in keys], limit=limit)
    joined = [[partition.key for partition in request.partitions] for request in planned]
    assert sum(map(len, joined)) == min(limit or 99, 5)
    if limit is None:
        assert joined == [["2024-01-01", "2024-01-02"], ["2024-01-04", "2024-01-05"], ["2024-01-09"]]
        assert (planned[0].first, planned[0].last) == ("2024-01-01", "2024-01-02")
    assert joined[0][0] == "2024-01-01"


def test_a_run_does_all_steps_of_a_partition_and_no_range_begins_with_a_failed_one():
    calendar = small_spec().partitions.calendar
    days = [calendar.named(f"2024-01-{day:02}") for day in range(1, 8)]
    items = [Item("predictions", day, "missing") for day in days[:6]] + [
        Item("features", day, "missing") for day in days[3:]
    ]
    planned = requests(items, failed={("features", "2024-01-04"), ("predictions", "2024-01-02")})
    assert [(request.steps, request.first, request.last) for request in planned] == [
        (("features", "predictions"), "2024-01-04", "2024-01-04"),
        (("features", "predictions"), "2024-01-05", "2024-01-06"),
        (("features",), "2024-01-07", "2024-01-07"),
        (("predictions",), "2024-01-01", "2024-01-03"),
    ]


def test_a_named_version_scores_what_it_did_not_score_and_no_model_is_trained_for_it():
    spec = SPECS["never rescored"]
    state = carried_out(spec, EMPTY, make_plan(spec, EMPTY, PlanRequest(datetime(2024, 2, 10, tzinfo=UTC))))
    early, *days = (spec.partitions.calendar.named(key) for key in ("2024-01-20", "2024-02-03", "2024-02-20"))
    (champion,) = state.registry.versions
    named = make_plan(spec, state, PlanRequest(NOW, [early, *days], model=champion.version))
    assert [item.partition.key for item in named.of("predictions")] == ["2024-02-20"]
    assert [(item.partition.key, item.warm_up) for item in named.blocked] == [("2024-01-20", True)]
    other = trained(spec.partitions.calendar.named("2024-02-01"), "other")
    registered = with_changes(state, registry=replace(state.registry, versions=[*state.registry.versions, other]))
    plan = make_plan(spec, registered, PlanRequest(NOW, days, model=other.version))
    assert [item.partition.key for item in plan.of("predictions")] == [day.key for day in days]
    assert plan.of("model", "challengers") == plan.blocked == []
    forced = make_plan(spec, state, PlanRequest(NOW, days, model=champion.version, force=True))
    assert [item.partition.key for item in forced.of("features")] == [day.key for day in days]
    assert len(forced.of("predictions")) == 2


def test_a_single_model_learns_from_all_that_is_known_before_the_newest_partition_with_mature_labels():
    spec, early = SPECS["one model"], datetime(2024, 2, 10, 12, tzinfo=UTC)
    (model,) = make_plan(spec, EMPTY, PlanRequest(early)).of("model")
    assert model.partition.key == "2024-02-08", "of 9 February the labels are known a day later"
    assert [day.key for day in spec.periods.window(model.partition.start)] == KEYS[: KEYS.index("2024-02-07")]
    state = carried_out(spec, EMPTY, make_plan(spec, EMPTY, PlanRequest(early)))
    assert sorted(state.scores) == ["2024-02-08", "2024-02-09"]
    later = make_plan(spec, state, PlanRequest(NOW))
    assert later.of("model") == []
    assert [item.partition.key for item in later.of("predictions")] == [key for key in KEYS if key > "2024-02-09"]
    for plan in (make_plan(spec, EMPTY, PlanRequest(early)), later):
        assert [item.partition.key for item in plan.blocked] == [key for key in KEYS if key < "2024-02-08"]
        assert {(item.warm_up, item.reason) for item in plan.blocked} == {
            (True, "the first model serves from 2024-02-08")
        }


def test_rescore_never_leaves_committed_predictions_alone_but_scores_what_is_missing():
    spec = SPECS["never rescored"]
    state = carried_out(spec, EMPTY, make_plan(spec, EMPTY, PlanRequest(datetime(2024, 2, 10, tzinfo=UTC))))
    changed = with_changes(state, features_version="new", scoring_version="new")
    keys = [item.partition.key for item in make_plan(spec, changed, PlanRequest(NOW)).of("predictions")]
    assert keys == [key for key in KEYS if key > "2024-02-09"]
    assert set(keys).isdisjoint(state.scores)
    assert set(make_plan(spec, changed, PlanRequest(NOW)).stale) == set(state.scores), (
        "they are reported as stale all the same"
    )
    forced = make_plan(spec, changed, PlanRequest(NOW, [spec.partitions.calendar.named("2024-02-03")], force=True))
    assert [item.reason for item in forced.of("predictions")] == ["forced"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scoring_version": "new"}, "its declaration or the scoring code changed"),
        ({"features_version": "new"}, "the SQL or its declaration changed"),
        ({"source_versions": {"2024-02-03": "new"}}, "a source file changed"),
    ],
)
def test_stale_predictions_are_due_with_the_reason(change, reason):
    spec = SPECS["monthly models"]
    state = carried_out(spec, EMPTY, make_plan(spec, EMPTY, PlanRequest(NOW)))
    plan = make_plan(spec, with_changes(state, **change), PlanRequest(NOW))
    assert {item.partition.key: item.reason for item in plan.of("predictions")}["2024-02-03"] == reason
    assert make_plan(spec, state, PlanRequest(NOW)).stale == {}


def test_a_plan_for_some_partitions_holds_what_they_need_and_no_more():
    spec = SPECS["weekly models"]
    calendar = spec.partitions.calendar
    plan = make_plan(spec, EMPTY, PlanRequest(NOW, [calendar.named("2024-02-20")]))
    assert [item.partition.key for item in plan.of("model")] == ["2024-02-18"]
    assert [item.partition.key for item in plan.of("predictions", "performance")] == ["2024-02-20", "2024-02-20"]
    needed = {p.key for p in spec.periods.window(calendar.named("2024-02-18").start)} | {"2024-02-20"}
    assert {item.partition.key for item in plan.of("features")} == needed


@pytest.mark.parametrize(
    ("window", "delay", "first", "last"),
    [
        ("all", "1 day", "2024-01-01", "2024-01-30"),
        ("all", "0 days", "2024-01-01", "2024-01-31"),
        ("10 days", "1 day", "2024-01-22", "2024-01-30"),
        ("90 days", "1 day", "2024-01-01", "2024-01-30"),
        ("2 weeks", "3 days", "2024-01-18", "2024-01-28"),
    ],
)
def test_a_window_ends_with_the_labels_known_at_its_boundary(window, delay, first, last):
    spec = small_spec(labels={"delay": delay}, model={"train": {"window": window, "evaluate": "3 days"}})
    boundary = spec.partitions.calendar.named("2024-02-01").start
    window = spec.periods.window(boundary)
    assert (window[0].key, window[-1].key) == (first, last)
    assert spec.periods.evaluation_start(window) == window[-3].start


@given(st.sampled_from(sorted(SPECS)), st.integers(0, 70))
def test_law_5_a_training_window_holds_nothing_that_is_not_known_at_its_boundary(name, day):
    spec = SPECS[name]
    boundary = datetime(2024, 1, 1, 3, tzinfo=UTC) + timedelta(days=day)
    window = spec.periods.window(boundary)
    assert all(partition.end <= boundary and spec.periods.matures(partition) <= boundary for partition in window)
    if spec.periods.can_train(window):
        assert window[0].start < spec.periods.evaluation_start(window) < window[-1].end


def planned(spec: PipelineSpec, state: State) -> list[tuple[str, str]]:
    return [(item.partition.key, item.reason) for item in make_plan(spec, state, PlanRequest(NOW)).of("model")]


def finished(spec: PipelineSpec) -> State:
    return carried_out(spec, EMPTY, make_plan(spec, EMPTY, PlanRequest(NOW)))


def test_a_changed_parameter_trains_the_newest_serving_period_again_and_no_other():
    spec = SPECS["weekly models"]
    state = finished(spec)
    newest = spec.periods.begun(NOW)[-1]
    assert len(state.registry.versions) > 2
    changed_spec = with_params(spec, max_iter=9)
    assert planned(changed_spec, state) == [(newest.key, "the declared parameters changed")]
    plan = make_plan(changed_spec, state, PlanRequest(NOW))
    waiting = [item for item in plan.of("predictions") if item.awaits_model]
    assert [item.partition.key for item in waiting] == [key for key in KEYS if key >= newest.key]
    assert plan.stale == {item.partition.key: "a newer model is due" for item in waiting}
    assert planned(spec, state) == []


def test_a_change_trains_nothing_in_a_run_over_some_of_the_partitions_that_its_model_serves():
    spec = SPECS["monthly models"]
    state, changed_spec = finished(spec), with_params(spec, max_iter=9)
    days = [spec.partitions.calendar.named(key) for key in KEYS if key >= "2024-02-01"]
    assert make_plan(changed_spec, state, PlanRequest(NOW, days[1:])).items == []
    assert [item.partition.key for item in make_plan(changed_spec, state, PlanRequest(NOW, days)).of("model")] == [
        "2024-02-01"
    ]


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_a_training_that_came_to_nothing_is_not_repeated_until_the_declaration_changes_again(outcome):
    spec = SPECS["monthly models"]
    state, second = finished(spec), with_params(spec, max_iter=9)
    plan = make_plan(second, state, PlanRequest(NOW))
    after = carried_out(
        second, state, plan, {"2024-02-01"} if outcome == "refused" else set(), failing=outcome == "failed"
    )
    assert after.registry.champion(NOW) == state.registry.champion(NOW)
    assert planned(second, after) == []
    assert planned(with_params(spec, max_iter=10), after) == [("2024-02-01", "the declared parameters changed")]
    assert planned(spec, after) == [], "the champion was trained with it"


def test_a_training_that_is_asked_for_builds_its_history_and_scores_nothing_by_itself():
    spec = SPECS["monthly models"]
    state = finished(spec)
    period, _ = training_asked_for(spec, state, NOW, force=True)
    assert period.key == "2024-02-01"
    lost = with_changes(state, features={key: build for key, build in state.features.items() if key != "2024-01-10"})
    plan = make_plan(spec, lost, PlanRequest(NOW, (), train=[period]))
    assert [(item.step, item.partition.key) for item in plan.items] == [
        ("features", "2024-01-10"),
        ("model", "2024-02-01"),
    ]
    assert changed(spec, state, period) is None


def test_the_newest_serving_period_of_the_only_model_begins_with_the_newest_partition_if_it_is_forced():
    spec = SPECS["one model"]
    state = finished(spec)
    assert asked(spec, state, force=True) == (KEYS[-1], "asked for")
    (version,) = state.registry.versions
    assert asked(spec, state) == (version.serving_period, None)
    assert asked(spec, EMPTY) == (version.serving_period, "not trained")
    assert asked(with_params(spec, max_iter=9), state) == (version.serving_period, "the declared parameters changed")
    assert training_asked_for(spec, EMPTY, datetime(2024, 1, 3, tzinfo=UTC), force=True)[0] is None
    with pytest.raises(WrongUseError, match="2024-02-20' has not begun"):
        training_asked_for(spec, state, datetime(2024, 2, 10, tzinfo=UTC), "2024-02-20", force=True)


def asked(spec: PipelineSpec, state: State, *, force: bool = False) -> tuple[str, str | None]:
    period, reason = training_asked_for(spec, state, NOW, force=force)
    return period.key, reason


def test_a_dropped_partition_is_due_only_if_it_is_named_and_no_model_waits_for_it():
    spec = small_spec()
    calendar = spec.partitions.calendar
    state = carried_out(spec, EMPTY, make_plan(spec, EMPTY, PlanRequest(NOW)))
    assert make_plan(spec, state, PlanRequest(NOW)).items == []
    gone = ("2024-01-15", "2024-02-10")
    kept = {
        name: {key: row for key, row in getattr(state, name).items() if key not in gone}
        for name in ("features", "scores", "evaluations")
    }
    drops = {key: DroppedPartition(key, 1, "alice", NOW, "drop", 9) for key in gone}
    state = with_changes(state, **kept, dropped=drops)
    assert make_plan(spec, state, PlanRequest(NOW)).items == []
    retrained = make_plan(spec, state, PlanRequest(NOW, train=[calendar.named("2024-02-01")]))
    assert {item.step for item in retrained.items} >= {"model", "predictions"}
    assert not {item.partition.key for item in retrained.items} & {*gone}
    named = make_plan(spec, state, PlanRequest(NOW, [calendar.named("2024-02-10")]))
    assert [(item.step, item.partition.key) for item in named.items] == [
        ("features", "2024-02-10"),
        ("predictions", "2024-02-10"),
        ("performance", "2024-02-10"),
    ]
    (features,) = make_plan(spec, state, PlanRequest(NOW, [calendar.named("2024-01-15")])).items
    assert (features.step, features.reason) == ("features", "missing")
    changed_model = with_params(spec, max_iter=9)
    assert make_plan(changed_model, state, PlanRequest(NOW)).of("model"), "what was dropped holds up no training"


def test_a_refused_model_is_trained_again_once_its_training_window_changed():
    spec = SPECS["monthly models"]
    state = carried_out(spec, EMPTY, make_plan(spec, EMPTY, PlanRequest(NOW)), {"2024-02-01"})
    (version,) = state.registry.versions
    assert planned(spec, state) == []
    other = {key: {**hashes, "2024-01-10": "other"} for key, hashes in state.registry.refused_on.items()}
    assert planned(spec, with_refused_on(state, other)) == [
        ("2024-02-01", f"1 partition of its training window changed since {version.version} was refused")
    ]
