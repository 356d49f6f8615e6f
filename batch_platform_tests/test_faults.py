"""Every fault that was promised to be survived, by its number."""

import re
from pathlib import Path

import pytest

from batch_platform_tests import test_laws
from batch_platform_tests.cli import (
    test_app,
    test_instance,
    test_json_lines,
    test_operation,
    test_reporting,
    test_unread_sources,
)
from batch_platform_tests.components import (
    test_alerts,
    test_assets,
    test_old_runs,
    test_postgres,
    test_schedules,
    test_ui,
)
from batch_platform_tests.declaration import test_redaction
from batch_platform_tests.delivery import test_sinks_conformance, test_sql, test_stores
from batch_platform_tests.faults import Case, attacks, bundles, calendar, hanging, processes, resuming, storage, writes
from batch_platform_tests.features import test_objects, test_spark_features
from batch_platform_tests.pipeline import test_backup, test_cleanup, test_deletion
from batch_platform_tests.scoring import test_spark_engine

PAGE = Path("batch_platform/guide/faults.md")
CASES: dict[str, Case] = {
    **writes.CASES,
    **processes.CASES,
    **hanging.CASES,
    **resuming.CASES,
    **storage.CASES,
    **bundles.CASES,
    **calendar.CASES,
    **attacks.CASES,
}


# Cases of the later tiers; quicker ones of the same numbers are in the everyday tier.
LATER = {
    "full": {
        "F1 killed before every step of a write",
        "F2 a run of the daemon, without and with its code server",
        "F3 the daemon and its code server",
        "F4 then another run",
        "F7 a reader that looks all the time, with predictions in files",
        "F7 a reader that never closes, with predictions in files",
        "F24 hostile web pages",
        "F41 a run of the command line, by force",
        "F41 a run of dagster job execute",
    },
    "release": {
        "F1 killed at 200 random moments of a write",
        "F1 killed before every step with files of predictions",
        "F1 a storm of competing processes",
        "F2 a run of 300 partitions, twice",
        "F22 killed before every step of training",
        "F22 killed at 20 random moments of training",
        "F27 as many runs as may work at once",
        "F38 killed before the steps of a rename",
        "F41 a run of dg, by force, whose steps are processes",
    },
}
PARAMETERS = [
    pytest.param(case, id=name, marks=[getattr(pytest.mark, tier) for tier, names in LATER.items() if name in names])
    for name, case in CASES.items()
]


@pytest.mark.parametrize("case", PARAMETERS)
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
    "F33": (
        test_spark_engine.test_f33_a_killed_executor_or_worker_changes_nothing,
        test_spark_engine.test_f33_a_task_that_crashes_or_lacks_memory_each_time_is_named_and_nothing_is_published,
        test_spark_engine.test_f33_a_killed_driver_leaves_nothing_and_a_retry_converges,
        test_spark_engine.test_f33_without_its_cluster_a_run_fails_clearly_and_a_retry_converges_with_one_full_disk_too,
        test_spark_features.test_f33_an_executor_that_is_lost_in_the_middle_of_the_features_changes_nothing,
        test_spark_features.test_f33_a_killed_driver_leaves_no_features_and_a_retry_leaves_nothing_else,
    ),
    "F34": (
        test_alerts.test_f34_receivers_that_never_answer_before_a_healthy_one_neither_hold_it_up_nor_pile_up_threads,
    ),
    "F35": (test_laws.test_law_20_no_copy_is_removed_that_holds_a_change_which_the_warehouse_lacks,),
    "F37": (
        test_laws.test_law_19_nothing_behind_a_link_in_the_home_is_written_or_deleted,
        test_laws.test_law_19_files_of_other_names_stay_whatever_is_cleaned_up_dropped_or_restored,
    ),
    "F36": (test_operation.test_f36_a_home_that_lost_its_warehouse_and_its_copies_is_not_taken_for_a_new_one,),
    "F50": (
        test_operation.test_f50_damaged_records_of_dagster_are_called_that_and_status_goes_on,
        test_postgres.test_run_status_drop_and_a_schedule_work_with_dagsters_records_in_postgresql,
    ),
    "F56": (test_app.test_f56_an_error_and_dagsters_own_about_it_that_are_each_others_cause_are_explained_once,),
    "F57": (test_old_runs.test_f57_nothing_is_removed_of_a_run_with_a_step_of_the_users,),
    "F52": (
        test_sql.test_f52_a_trigger_that_drops_rows_fails_the_delivery_and_the_table_holds_what_it_held,
        test_sinks_conformance.test_a_receiver_that_has_fewer_rows_than_were_sent_holds_what_it_held,
    ),
    "F55": (
        test_objects.test_f55_a_store_that_accepts_and_never_answers_is_named_in_time,
        test_stores.test_f55_a_store_that_accepts_and_never_answers_fails_the_delivery_in_time,
    ),
    "F42": (
        test_assets.test_f42_performance_of_labels_that_are_not_mature_waits_whichever_run_asks,
        test_assets.test_f42_days_whose_labels_are_not_mature_are_not_shown_as_failed_where_another_day_fails,
    ),
    "F51": (
        test_unread_sources.test_f51_a_source_that_cannot_be_looked_at_is_named_by_run_and_status_and_is_an_error_where_it_was_asked_for,
        test_unread_sources.test_f51_a_tick_and_the_check_name_a_source_that_cannot_be_looked_at,
    ),
    "F53": (
        test_backup.test_f53_a_restore_that_is_killed_after_any_number_of_files_is_completed_and_until_then_nothing_uses_the_home,
        test_backup.test_f53_a_home_whose_mark_of_a_restore_is_half_written_is_refused_and_restored,
    ),
    "F54": (
        test_deletion.test_f54_a_text_of_few_keys_is_in_no_table_of_many_rows_and_erase_names_the_bundles_that_hold_it,
    ),
    "F59": (
        test_redaction.test_f59_a_variable_that_holds_no_secret_changes_no_text,
        test_json_lines.test_f59_no_secret_changes_the_rows_of_a_query,
    ),
    "F48": (
        test_instance.test_f48_a_home_has_one_service_and_the_daemon_of_one_that_was_killed_is_ended,
        test_ui.test_f48_a_second_ui_is_refused_and_a_read_only_one_comes_and_goes_beside_the_first,
    ),
}


def test_every_number_of_the_guide_has_a_case():
    rows = re.findall(r"^\| (F\d+(?:, F\d+)*) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    promised = [name for row in rows for name in row.split(", ")]
    assert len(promised) == len(set(promised))
    assert {name.split()[0] for name in CASES} | {*ELSEWHERE} == {*promised}
    assert {*CASES} >= set().union(*LATER.values())
