"""When a partition that no model serves fails the work: one rule for commands, jobs and checks."""

import pytest

from batch_platform.planning.holds import unserved_error
from batch_platform.planning.steps import Item
from batch_platform_tests.harness.small_pipeline import small_pipeline
from batch_platform_tests.pipeline.planned_states import with_changes

EARLY, LATER = "2024-02-01", "2024-02-02"  # the first is served by no model


@pytest.mark.unit
@pytest.mark.parametrize(
    ("warm_up", "scored", "named", "fails"),
    [
        (False, (), True, True),
        (False, (), False, True),
        (False, (LATER,), True, True),
        (False, (LATER,), False, False),
        (True, (), True, True),
        (True, (), False, False),
        (True, (LATER,), True, False),
        (True, (LATER,), False, False),
    ],
)
def test_work_fails_where_no_model_serves_what_was_asked_for_unless_nobody_has_to_act(
    tmp_path, warm_up, scored, named, fails
):
    pipeline = small_pipeline(tmp_path)
    asked = [pipeline.spec.partitions.calendar.named(key) for key in (EARLY, LATER)]
    state = with_changes(pipeline.state(), scores=dict.fromkeys(scored))
    blocked = [Item("predictions", asked[0], "no model serves it", warm_up=warm_up)]
    error = unserved_error(state, asked, blocked, named=named)
    assert (error is not None) is fails
    if error is not None:
        assert error.message == f"small, partition {EARLY}: no model serves it; no version is approved."
        assert error.set_apart == (EARLY,)
    assert unserved_error(state, asked, [], named=named) is None
