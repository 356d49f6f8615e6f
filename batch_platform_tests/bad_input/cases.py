"""All cases of bad input by name, and the tests elsewhere that hold a number."""

from batch_platform_tests.bad_input import Case, columns, declarations, rows, values

CASES: dict[str, Case] = columns.CASES | values.CASES | rows.CASES | declarations.CASES
# Tests that stand where what they need is at hand.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "B11": (
        "warehouse/test_database.py::test_a_partition_that_had_rows_becomes_empty_only_if_forced",
        "pipeline/test_set_apart.py::test_a_partition_that_would_become_empty_is_set_apart_from_those_committed_with_it",
    ),
    "B20": (
        "declaration/test_spec.py::test_a_budget_is_exact_and_the_larger_of_a_share_and_a_number_of_rows",
        "scoring/test_batch.py::test_the_budget_is_exact_to_the_row",
    ),
    "B22": (
        "models/test_gate.py::test_a_version_that_alone_can_score_many_rows_is_judged_on_the_shared_ones_and_replaces_an_unfit_champion",
        "monitoring/test_measures.py::test_a_label_of_a_class_that_the_model_does_not_know_is_counted_and_named_beside_each_metric",
    ),
    "B23": (
        "monitoring/test_leakage.py::test_a_strong_column_is_suspected_if_it_nearly_decides_the_label_and_no_other_comes_near",
        "monitoring/test_leakage.py::test_two_columns_that_add_up_to_the_label_or_differ_by_it_are_suspected_together",
        "monitoring/test_leakage.py::test_a_column_null_in_just_the_rows_without_a_label_and_a_nearly_perfect_model_are_suspected",
    ),
    "B24": (
        "proposal/test_proposed_shapes.py::test_a_table_without_times_is_scored_whole_today_and_its_rows_are_named_by_their_place",
        "proposal/test_proposed_shapes.py::test_a_time_can_be_the_key",
        "features/test_build.py::test_a_time_in_nanoseconds_as_pandas_writes_it_is_compared_with_the_bounds_of_the_partition",
    ),
    "B25": (
        "pipeline/test_late_rows.py::test_a_corrected_row_is_found_in_files_of_any_kind_and_an_appended_day_concerns_no_other",
    ),
    "B26": ("components/test_schedules.py::test_a_failed_partition_is_requested_again_and_holds_up_none_behind_it",),
    "B28": ("test_laws.py::test_law_17_the_order_of_rows_changes_no_training_data",),
    "B29": ("test_laws.py::test_law_17_renaming_labels_changes_no_probability",),
    "B31": (
        "pipeline/test_staleness.py::test_models_that_know_too_much_once_the_delay_of_labels_is_corrected_are_told_and_trained_again",
    ),
    "B37": (
        "features/test_sql.py::test_b37_infinite_times_of_postgresql_arrive_as_such",
        "features/test_sql.py::test_b37_values_of_postgresql_that_cannot_be_taken_over_are_named_by_column",
    ),
    "B35": (
        "test_laws.py::test_law_18_what_is_worse_beyond_chance_never_replaces_a_champion_by_itself",
        "models/test_gate.py::test_a_version_that_is_no_better_than_a_trivial_one_on_permuted_labels_does_not_replace_a_champion_that_was",
    ),
    "B36": (
        "pipeline/test_inputs.py::test_b36_labels_that_are_declared_otherwise_make_the_model_and_what_it_scored_due",
        "pipeline/test_inputs.py::test_b36_a_label_column_that_does_not_exist_is_due_and_an_error_that_names_the_nearest",
    ),
}
