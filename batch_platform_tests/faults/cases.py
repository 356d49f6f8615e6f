"""All cases of faults by name, and the tests elsewhere that hold a number."""

from batch_platform_tests.faults import Case, attacks, bundles, calendar, processes, storage, writes

CASES: dict[str, Case] = {
    **writes.CASES,
    **processes.CASES,
    **storage.CASES,
    **bundles.CASES,
    **calendar.CASES,
    **attacks.CASES,
}
# Tests that stand where what they need is at hand.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "F16": ("test_laws.py::test_law_7_an_older_slower_run_never_overwrites_a_newer_commit",),
    "F30": (
        "operations/test_cleanup.py::test_f30_a_version_promoted_after_it_was_found_stays",
        "operations/test_cleanup.py::test_f30_a_version_removed_after_the_decision_to_promote_it_is_not_promoted",
    ),
    "F32": (
        "components/test_schedules.py::test_f32_a_tick_answers_while_a_long_commit_holds_the_warehouse",
        "cli/test_reporting.py::test_f32_a_report_answers_while_a_long_commit_holds_the_warehouse",
    ),
    "F33": (
        "spark/test_spark_engine.py::test_f33_a_killed_executor_or_worker_changes_nothing",
        "spark/test_spark_engine.py::test_f33_a_task_that_crashes_or_lacks_memory_each_time_is_named_and_nothing_is_published",
        "spark/test_spark_engine.py::test_f33_a_killed_driver_leaves_nothing_and_a_retry_converges",
        "spark/test_spark_engine.py::test_f33_without_its_cluster_a_run_fails_clearly_and_a_retry_converges_with_one_full_disk_too",
        "spark/test_spark_features.py::test_f33_an_executor_that_is_lost_in_the_middle_of_the_features_changes_nothing",
        "spark/test_spark_features.py::test_f33_a_killed_driver_leaves_no_features_and_a_retry_leaves_nothing_else",
    ),
    "F34": (
        "components/test_alerts.py::test_f34_receivers_that_never_answer_before_a_healthy_one_neither_hold_it_up_nor_pile_up_threads",
    ),
    "F35": ("test_laws.py::test_law_20_no_copy_is_removed_that_holds_a_change_which_the_warehouse_lacks",),
    "F37": (
        "test_laws.py::test_law_19_nothing_behind_a_link_in_the_home_is_written_or_deleted",
        "test_laws.py::test_law_19_files_of_other_names_stay_whatever_is_cleaned_up_dropped_or_restored",
    ),
    "F36": (
        "cli/test_operation.py::test_f36_a_home_that_lost_its_warehouse_and_its_copies_is_not_taken_for_a_new_one",
    ),
    "F50": (
        "cli/test_operation.py::test_f50_damaged_records_of_dagster_are_called_that_and_status_goes_on",
        "components/test_postgres.py::test_run_status_drop_and_a_schedule_work_with_dagsters_records_in_postgresql",
    ),
    "F56": (
        "cli/test_app.py::test_f56_an_error_and_dagsters_own_about_it_that_are_each_others_cause_are_explained_once",
    ),
    "F57": ("components/test_old_runs.py::test_f57_nothing_is_removed_of_a_run_with_a_step_of_the_users",),
    "F52": (
        "delivery/test_sql.py::test_f52_a_trigger_that_drops_rows_fails_the_delivery_and_the_table_holds_what_it_held",
        "delivery/test_sinks_conformance.py::test_a_receiver_that_has_fewer_rows_than_were_sent_holds_what_it_held",
    ),
    "F55": (
        "sources/test_objects.py::test_f55_a_store_that_accepts_and_never_answers_is_named_in_time",
        "delivery/test_stores.py::test_f55_a_store_that_accepts_and_never_answers_fails_the_delivery_in_time",
    ),
    "F42": (
        "components/test_assets.py::test_f42_performance_of_labels_that_are_not_mature_waits_whichever_run_asks",
        "components/test_assets.py::test_f42_days_whose_labels_are_not_mature_are_not_shown_as_failed_where_another_day_fails",
    ),
    "F51": (
        "cli/test_unread_sources.py::test_f51_a_source_that_cannot_be_looked_at_is_named_by_run_and_status_and_is_an_error_where_it_was_asked_for",
        "cli/test_unread_sources.py::test_f51_a_tick_and_the_check_name_a_source_that_cannot_be_looked_at",
    ),
    "F53": (
        "operations/test_backup.py::test_f53_a_restore_that_is_killed_after_any_number_of_files_is_completed_and_until_then_nothing_uses_the_home",
        "operations/test_backup.py::test_f53_a_home_whose_mark_of_a_restore_is_half_written_is_refused_and_restored",
    ),
    "F54": (
        "operations/test_deletion.py::test_f54_a_text_of_few_keys_is_in_no_table_of_many_rows_and_erase_names_the_bundles_that_hold_it",
    ),
    "F59": (
        "declaration/test_redaction.py::test_f59_a_variable_that_holds_no_secret_changes_no_text",
        "cli/test_json_lines.py::test_f59_no_secret_changes_the_rows_of_a_query",
    ),
    "F48": (
        "cli/test_instance.py::test_f48_a_home_has_one_service_and_the_daemon_of_one_that_was_killed_is_ended",
        "components/test_ui.py::test_f48_a_second_ui_is_refused_and_a_read_only_one_comes_and_goes_beside_the_first",
    ),
}
