"""Every kind of bad input, by its number."""

import re
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from batch_platform_tests import test_laws
from batch_platform_tests.bad_input import Case, columns, declarations, rows, values
from batch_platform_tests.cli import test_proposed_files, test_proposed_shapes
from batch_platform_tests.components import test_schedules
from batch_platform_tests.features import test_build, test_sql
from batch_platform_tests.models import test_gate
from batch_platform_tests.monitoring import test_leakage, test_measures
from batch_platform_tests.pipeline import test_inputs, test_late_rows, test_staleness

PAGE = Path("batch_platform/guide/faults.md")
CASES: dict[str, Case] = columns.CASES | values.CASES | rows.CASES | declarations.CASES


def parameters() -> list[ParameterSet]:
    """All cases; of those of a number that differ only in what one function is given, the everyday tier has the first."""
    known = set[tuple[str, Case]]()
    marked: list[ParameterSet] = []
    for name, case in CASES.items():
        kind = (name.split()[0], case.func if isinstance(case, partial) else case)
        marked.append(pytest.param(case, id=name, marks=[pytest.mark.full] * (kind in known)))
        known.add(kind)
    return marked


@pytest.mark.parametrize("case", parameters())
def test_bad_input(case: Case, tmp_path: Path):
    case(tmp_path)


# Tests that stand where what they need is at hand.
ELSEWHERE = {
    "B22": (
        test_gate.test_both_are_measured_on_the_rows_that_both_accept,
        test_measures.test_a_label_of_a_class_that_the_model_does_not_know_is_counted_and_named_beside_each_metric,
    ),
    "B23": (
        test_leakage.test_a_copy_of_the_label_with_a_few_flips_is_suspected_however_rare_the_label,
        test_leakage.test_two_columns_that_add_up_to_the_label_or_differ_by_it_are_suspected_together,
        test_leakage.test_a_column_that_is_null_in_just_the_rows_without_a_label_is_suspected,
    ),
    "B24": (
        test_proposed_shapes.test_a_table_without_times_is_scored_whole_today_and_its_rows_are_named_by_their_place,
        test_proposed_shapes.test_a_time_can_be_the_key,
        test_proposed_shapes.test_new_rows_whose_key_is_their_time_are_scored_the_next_day,
        test_build.test_a_time_in_nanoseconds_as_pandas_writes_it_is_compared_with_the_bounds_of_the_partition,
    ),
    "B25": (
        test_proposed_files.test_a_corrected_file_and_a_late_file_are_seen_after_a_proposal_for_a_folder,
        test_late_rows.test_a_corrected_row_is_found_in_files_of_any_kind_and_an_appended_day_concerns_no_other,
    ),
    "B26": (test_schedules.test_a_failed_partition_is_requested_again_and_holds_up_none_behind_it,),
    "B28": (test_laws.test_law_17_the_order_of_rows_changes_no_training_data,),
    "B29": (test_laws.test_law_17_renaming_labels_changes_no_probability,),
    "B31": (
        test_staleness.test_models_that_know_too_much_once_the_delay_of_labels_is_corrected_are_told_and_trained_again,
    ),
    "B37": (
        test_sql.test_b37_infinite_times_of_postgresql_arrive_as_such,
        test_sql.test_b37_values_of_postgresql_that_cannot_be_taken_over_are_named_by_column,
    ),
    "B35": (
        test_laws.test_law_18_what_is_worse_beyond_chance_never_replaces_a_champion_by_itself,
        test_gate.test_a_version_that_is_no_better_than_a_trivial_one_on_permuted_labels_does_not_replace_a_champion_that_was,
    ),
    "B36": (
        test_inputs.test_b36_labels_that_are_declared_otherwise_make_the_model_and_what_it_scored_due,
        test_inputs.test_b36_a_label_column_that_does_not_exist_is_due_and_an_error_that_names_the_nearest,
    ),
}


def test_every_number_of_the_guide_has_a_case():
    rows = re.findall(r"^\| (B\d+(?:\W+B\d+)*) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    bounds = [[int(number) for number in re.findall(r"\d+", row)] for row in rows]
    promised = [f"B{number}" for row in bounds for number in range(row[0], row[-1] + 1)]
    assert len(promised) == len(set(promised))
    assert {name.split()[0] for name in CASES} | {*ELSEWHERE} == {*promised}
