"""Every fault that was promised to be survived, by its number."""

import re
from pathlib import Path

import pytest

from batch_platform_tests.cli import test_reporting
from batch_platform_tests.components import test_assets, test_schedules
from batch_platform_tests.faults import Case, attacks, bundles, calendar, processes, resuming, storage, writes
from batch_platform_tests.features import test_spark_features
from batch_platform_tests.pipeline import test_cleanup
from batch_platform_tests.scoring import test_spark_engine

PAGE = Path("batch_platform/guide/faults.md")
CASES: dict[str, Case] = {
    **writes.CASES,
    **processes.CASES,
    **resuming.CASES,
    **storage.CASES,
    **bundles.CASES,
    **calendar.CASES,
    **attacks.CASES,
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fault(case: Case, tmp_path: Path):
    case(tmp_path)


# Tests that stand where what they need is at hand.
ELSEWHERE = {
    "F30": (
        test_cleanup.test_f30_a_version_promoted_after_it_was_found_stays,
        test_cleanup.test_f30_a_version_removed_after_the_decision_to_promote_it_is_not_promoted,
    ),
    "F32": (
        test_schedules.test_f32_a_tick_answers_while_a_long_commit_holds_the_warehouse,
        test_reporting.test_f32_a_report_answers_while_a_long_commit_holds_the_warehouse,
    ),
    "F42": (test_assets.test_f42_performance_of_labels_that_are_not_mature_waits_whichever_run_asks,),
    "F33": (
        test_spark_engine.test_f33_a_killed_executor_or_worker_changes_nothing,
        test_spark_engine.test_f33_a_task_that_crashes_or_lacks_memory_each_time_is_named_and_nothing_is_published,
        test_spark_engine.test_f33_a_killed_driver_leaves_nothing_and_a_retry_converges,
        test_spark_engine.test_f33_without_its_cluster_a_run_fails_clearly_and_a_retry_converges_with_one_full_disk_too,
        test_spark_features.test_f33_an_executor_that_is_lost_in_the_middle_of_the_features_changes_nothing,
        test_spark_features.test_f33_a_killed_driver_leaves_no_features_and_a_retry_leaves_nothing_else,
    ),
}


NUMBERS = [*range(1, 34), 42, 43]


def test_every_number_has_a_case():
    assert {name.split()[0] for name in CASES} | {*ELSEWHERE} == {f"F{number}" for number in NUMBERS}


def test_every_number_has_its_line_in_the_guide():
    rows = re.findall(r"^\| (F\d+(?:, F\d+)*) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(int(name[1:]) for row in rows for name in row.split(", ")) == NUMBERS
